"""benchmarks/gpu.sh at toy size on the CPU: every part, a summary, and going on where it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PARTS = (
    *("1_check", "2_full", "3_lite", "4_clip", "5_quantized_int8", "5_quantized_fp8-storage", "6_budget_1", "6_budget_0.02"),
    "8_profile",
)
pytestmark = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash, coreutils")


def run(*words, **environment):
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    settings.pop("LYNX_REFERENCE", None)
    return subprocess.run(["bash", str(SCRIPT), *map(str, words)], env=settings, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_part_and_a_summary(tmp_path):
    done = run("--tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {file.stem for file in tmp_path.iterdir()} == {*PARTS, "summary"}
    summary = (tmp_path / "summary.md").read_text()
    for part in PARTS:
        assert f"## {part.replace('_', ' ')}" in summary
        assert (tmp_path / f"{part}.md").read_text() in summary
    assert "**wrong**" not in summary
    assert "| int8 compiled |" in summary
    assert "blocks in host memory" in (tmp_path / "6_budget_0.02.md").read_text()
    assert "One block of compiled" in (tmp_path / "8_profile.md").read_text()
    times = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file.stem != "summary"}
    again = run("--tiny", "--out", tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("there already") == len(PARTS)
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.slow
def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    """And what is wrong is not timed."""
    (tmp_path / "1_check.md").write_text("right")
    done = run(
        "--tiny", "--out", tmp_path, "--steps", "1,2,4", LIMIT="3", LYNX_VIDEO=f"{sys.executable} -c raise(SystemExit(3))"
    )
    assert done.returncode == 1
    assert "without a result: 2_full 4_clip" in (tmp_path / "summary.md").read_text()
    assert done.stdout.count("exit code 3") == 2
    (tmp_path / "1_check.md").unlink()
    stopped = run("--tiny", "--out", tmp_path, LIMIT="0.01")
    assert stopped.returncode == 1
    assert "nothing is timed" in stopped.stderr
    assert "2 full" not in stopped.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--tiny" in done.stderr
    assert run("--fast").returncode == 2
