"""The example workflow through the real ComfyUI, where the variable COMFYUI names its folder and this Python has what it requires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from comfy_interface import FOLDER, api_workflow

COMFYUI = os.environ.get("COMFYUI", "")
EXECUTOR = Path(__file__).with_name("comfy_executor.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMFYUI, reason="COMFYUI names no folder with ComfyUI in it"),
]


def execute(workflow: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "input").mkdir(parents=True, exist_ok=True)
    from lynx_video.media.image import write_picture
    from lynx_video.nano.people import portrait

    write_picture(folder / "input" / "portrait.png", portrait(1))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXECUTOR), COMFYUI, str(FOLDER), str(folder)],
        input=json.dumps(workflow),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LYNX_VIDEO_HOME": str(folder / "home")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_example_workflow_makes_the_clip_that_generate_makes(tmp_path: Path) -> None:
    from lynx_video import GenerateConfig, generate, load
    from lynx_video.media.provenance import read_provenance
    from lynx_video.nano.people import portrait
    from lynx_video.studio.publish import frames_hash

    workflow = api_workflow()
    workflow["7"]["inputs"] |= {"num_inference_steps": 3, "seed": 7}
    made = execute(workflow, tmp_path)
    assert made["failed"] == []
    assert made["steps"] == [[1, 3, True], [2, 3, True], [3, 3, True]]
    settings = json.loads(made["outputs"]["9"]["text"][0])
    config = GenerateConfig(seed=7, num_inference_steps=3)
    expected = generate(load("nano", device="cpu"), portrait(1), workflow["7"]["inputs"]["prompt"], config)
    assert settings["frames_hash"] == frames_hash(expected.frames)
    (shown,) = made["outputs"]["8"]["images"]
    file = tmp_path / "output" / shown["subfolder"] / shown["filename"]
    provenance = read_provenance(file)
    assert (provenance.state, provenance.record["frames_hash"]) == ("untouched", settings["frames_hash"])


def test_refusals_reach_comfyui(tmp_path: Path) -> None:
    workflow = api_workflow()
    workflow["7"]["inputs"]["prompt"] = "a naked child"
    made = execute(workflow, tmp_path)
    assert "no setting lets that through" in json.dumps(made["node_errors"]["7"])
    workflow["7"]["inputs"]["prompt"] = "the naked person nods"
    made = execute(workflow, tmp_path)
    assert made["failed"] == [
        "the prompt was refused: words of sex or undress ('naked'), and every clip shows a real person; ask for something else."
    ]
    assert "8" not in made["outputs"]


def test_comfyui_refuses_what_the_widgets_do_not_offer(tmp_path: Path) -> None:
    wrong = {"ip_scale": 99, "scheduler": "ddim", "seed": -1, "num_frames": "many"}
    workflow = api_workflow()
    workflow["7"]["inputs"] |= wrong
    errors = execute(workflow, tmp_path)["node_errors"]["7"]["errors"]
    assert {error["extra_info"]["input_name"] for error in errors} == set(wrong)
