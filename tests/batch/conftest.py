"""What the tests of batches share: three drawn people, and a batch that runs in this process."""

import json

import numpy as np
import pytest

from lynx_video.batch.check import read_requests
from lynx_video.batch.run import run_batch, survey_of
from lynx_video.cli.console import hush_libraries
from lynx_video.media.image import write_picture
from lynx_video.nano.people import album
from lynx_video.studio.setup import ModelFlags, Setup
from lynx_video.studio.studio import Studio

SETUP = Setup(model=ModelFlags(model="nano", device="cpu"))


@pytest.fixture(autouse=True)
def quiet():
    hush_libraries()


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A folder with ann.png, bob.png and wall.png, which shows nobody; treat as read-only."""
    folder = tmp_path_factory.mktemp("people")
    for number, name in enumerate(("ann", "bob")):
        write_picture(folder / f"{name}.png", album(number, 0)[0])
    write_picture(folder / "wall.png", np.full((128, 128, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="session")
def studio():
    """A studio that is opened once."""
    return Studio(SETUP)


@pytest.fixture
def write(tmp_path, people):
    """write({...}, {...}) is a requests file; portraits are named without their folder."""

    def make(*lines, name="requests.jsonl"):
        file = tmp_path / name
        for picture in people.iterdir():
            if not (tmp_path / picture.name).exists():
                (tmp_path / picture.name).write_bytes(picture.read_bytes())
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return file

    return make


@pytest.fixture
def read(write, studio):
    """read({...}, ...) are the requests of such a file, checked."""
    return lambda *lines, **defaults: read_requests(write(*lines), defaults, studio)[0]


@pytest.fixture
def run(tmp_path, here_pool, studio):
    """run(wanted, ...) makes a batch in tmp_path/out; its summary."""

    def make(wanted, pool=here_pool, setup=SETUP, name="out", **how):
        found = studio if setup is SETUP else Studio(setup)
        return run_batch(tmp_path / name, wanted, setup, survey_of(wanted, found), pool, **how)

    return make


@pytest.fixture
def rows(tmp_path):
    """rows() is the table of tmp_path/out, by id."""

    def make(name="out"):
        lines = (tmp_path / name / "results.jsonl").read_text().splitlines()
        found = {row["id"]: row for row in map(json.loads, lines)}
        assert len(found) == len(lines), "a row for each request"
        return found

    return make
