"""The whole story through the command line: draw somebody, enrol, generate twice, read the clip back, evaluate."""

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


@pytest.mark.filterwarnings("ignore")  # of Ray and its own libraries
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
    lines = [
        {"clip": name, "subject": "alice", "reference": "alice.png", "prompt": PROMPT, "prompt_id": name[:-4]}
        for name in ("first.mp4", "second.mp4")
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = run(capsys, "evaluate", "score", ".", "--model", "nano", "-o", "scores", "--workers", "1")
    assert (scored["clips"], scored["failed"]) == (2, 0)
    # the file was compressed since
    assert scored["metrics"]["similarity/nano judge"]["mean"] == pytest.approx(first["similarity"], abs=0.05)
    assert scored["metrics"]["probe/wall"]["mean"] == 1.0
    assert (tmp_path / "scores" / "report.html").is_file()
