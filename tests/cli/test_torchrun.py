"""`torchrun -m lynx_video generate`: the processes together make the clip that one makes alone, and the first of them writes it."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lynx_video.cli.main import run
from lynx_video.errors import Cancelled
from lynx_video.pipeline.denoise import Step, _tell


@pytest.fixture(scope="module")
def portrait(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portrait")
    assert run(["demo", "--output-dir", str(folder), "--quiet"]) == 0
    return folder / "portrait.png"


def command(portrait, output, *arguments):
    base = [
        "generate",
        "--subject-image",
        str(portrait),
        "--prompt",
        "the person nods",
        "--num-inference-steps",
        "6",
        "--quiet",
    ]
    return [*base, "-o", str(output), "--save-tensors", str(output.with_suffix(".safetensors")), *arguments]


@pytest.mark.parametrize(
    ("count", "arguments", "tolerance"),
    [
        (3, ["--preset", "balanced"], 0),  # passes, a step cache, and processes without a pass once guidance has ended
        pytest.param(2, ["--ring-degree", "2", "--preset", "balanced"], 1e-5, marks=pytest.mark.slow),  # tokens
    ],
)
def test_many_processes_make_one_s_clip(count, arguments, tolerance, portrait, tmp_path):
    plain = [one for one in arguments if one not in ("--ring-degree", "2")]
    assert run(command(portrait, tmp_path / "one.mp4", *plain)) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", "lynx_video"]
    done = subprocess.run(
        [*launch, *command(portrait, tmp_path / "many.mp4", *arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "the first process speaks alone"
    one, many = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "many"))
    torch.testing.assert_close(many["latents"], one["latents"], rtol=0, atol=tolerance)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["many.mp4", "many.safetensors", "one.mp4", "one.safetensors"]


class Others:
    """Processes of which another one wants to stop, or not."""

    def __init__(self, stop):
        self.stop, self.asked = stop, []

    def agree(self, stop):
        self.asked.append(stop)
        return stop or self.stop


def test_who_stops_stops_all():
    step = Step(number=1, total=2, latents=torch.zeros(1), seconds=0.0)

    def stop(_):
        raise Cancelled("mine")

    others = Others(False)
    _tell(None, step, others)
    with pytest.raises(Cancelled, match="mine"):
        _tell(stop, step, others)
    assert others.asked == [False, True]
    with pytest.raises(Cancelled, match="another process"):
        _tell(None, step, Others(True))
    with pytest.raises(Cancelled, match="mine"):
        _tell(stop, step, None)
