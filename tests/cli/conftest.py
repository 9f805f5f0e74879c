"""What the tests of the command line share: commands run in this process, and the golden base as their model."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def lynx(capfd, monkeypatch):
    """lynx("generate", "--seed", 1, ...) runs a command line in this process."""
    from lynx_video.cli.main import run

    monkeypatch.delenv("LYNX_VIDEO_DEBUG", raising=False)

    def call(*arguments):
        capfd.readouterr()
        code = run([str(one) for one in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def record(golden, tmp_path_factory):
    """record("lite") is a face record file with the landmarks and the embedding of a golden case."""
    folder = tmp_path_factory.mktemp("records")

    def make(case="full_three_pass"):
        data, file = golden(case), folder / f"{case}.json"
        file.write_text(json.dumps({"points": data["landmarks"].tolist(), "embedding": data["face_embedding"].tolist()}))
        return file

    return make


@pytest.fixture
def request_of(record):
    """request_of("--seed", 1) is a complete, tiny request to `generate`; what is given comes last and so counts."""

    def make(*more, arm="full"):
        return (
            "generate",
            *("--subject-image", GOLDEN / "subject.png", "--face-record", record(), "--prompt", "A person smiles."),
            *("--base-model-path", GOLDEN / "base", "--adapter-path", GOLDEN / f"lynx_{arm}"),
            *("--num-frames", 5, "--height", 64, "--width", 64, "--num-inference-steps", 2, "--negative-prompt", "static"),
            *more,
        )

    return make
