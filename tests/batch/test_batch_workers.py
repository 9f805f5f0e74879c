"""A batch on Ray: workers that die, before and after a clip is on the disk, cost nobody else anything."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lynx_video.batch import run as running
from lynx_video.batch.jobs import DIED, BatchWork
from lynx_video.media.video import read_metadata

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

ANN = {"portrait": "ann.png", "prompt": "a person nods", "num_frames": 5, "num_inference_steps": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadly(BatchWork):
    """A batch whose requests kill their workers, as they are called."""

    def _shoot(self, studio, take):
        if take.wanted.id == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        made = BatchWork._shoot(self, studio, take)
        mark = Path(f"{take.target}.died")
        if take.wanted.id == "stumbles" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made


@pytest.fixture(autouse=True)
def importable():
    """Workers find the work that is defined here."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_workers_that_die_cost_their_own_request_at_most(read, run, rows, ray_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BatchWork", Deadly)
    names = ("a", "deadly", "b", "stumbles", "c")
    wanted = read(*({**ANN, "id": name, "seed": number} for number, name in enumerate(names)))
    summary = run(wanted, pool=replace(ray_pool, handful=1))
    assert (summary.counts["done"], summary.counts["failed"], summary.made_now) == (4, 1, 4)
    table = rows()
    assert list(table) == list(names)
    assert table["deadly"]["reason"] == DIED
    assert table["stumbles"]["warnings"] is None, "known by its record: it was made before its worker died, and not again"
    clips = tmp_path / "out" / "clips"
    assert sorted(one.name for one in clips.glob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4", "stumbles.mp4"]
    for name in ("a", "b", "stumbles", "c"):
        assert read_metadata(clips / f"{name}.mp4")["frames_hash"] == table[name]["frames_hash"]
    before = {one: one.stat().st_mtime_ns for one in clips.glob("*.mp4")}
    monkeypatch.undo()
    assert run(wanted, pool=replace(ray_pool, handful=1), retry_failed=True).counts["done"] == 5, (
        "another try, without the killer"
    )
    assert {one: one.stat().st_mtime_ns for one in before} == before
