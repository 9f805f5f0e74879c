"""The whole story through the command line: draw somebody, enrol, generate twice, read the clip back, compare."""

import json
from pathlib import Path

import numpy as np
import pytest

from lynx_video.cli.main import run as run_command
from lynx_video.media.image import write_picture
from lynx_video.media.video import read_metadata, read_video
from lynx_video.nano import probes
from lynx_video.nano.people import portrait

PROMPT = "a person smiles wearing a blue shirt in front of a white wall"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    code = run_command([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "alice.png", portrait(seed=77))
    run(capsys, "enroll", "alice.png", "-o", "alice.safetensors", "--consent", "drawn")
    first = run(
        capsys, "generate", "--identity", "alice.safetensors", "--prompt", PROMPT, "--seed", "5", "--output", "first.mp4"
    )
    second = run(
        capsys,
        *("generate", "--subject-image", "alice.png", "--prompt", PROMPT, "--seed", "5", "--output", "second.mp4"),
        *("--reference-latent", "mean"),
    )
    frames, fps = read_video(tmp_path / "first.mp4")
    again, _ = read_video(tmp_path / "second.mp4")
    assert frames.shape == (9, 64, 64, 3)
    assert fps == 8
    assert np.abs(frames.astype(int) - again.astype(int)).max() <= 8  # the same clip, enrolled or not
    assert read_metadata(tmp_path / "first.mp4")["prompt"] == PROMPT
    assert probes.wall(frames) == "white"
    assert first["similarity"] == pytest.approx(second["similarity"], abs=0.02)
    assert first["similarity"] > 0.4
    assert first["coverage"] == 1.0
