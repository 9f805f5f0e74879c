"""On Ray: the same set as in one process, workers that die, errors that end a run in a sentence, and a set that can be streamed."""

import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from sources import NANO, contents, dropped, fill, shelf_in

from lynx_video.errors import BadWeights, LynxError, MissingDependency
from lynx_video.training.dataset.config import DatasetConfig
from lynx_video.training.dataset.pool import open_pool
from lynx_video.training.dataset.stages import attempt
from lynx_video.training.dataset.work import Shelf

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def ray_pool():
    """Ray with one worker, started once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_pool(workers=1) as pool:
            yield pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Odd:
    """Work whose jobs do what they are called."""

    shelf: Shelf
    opened: Path

    def open(self):
        with self.opened.open("a") as file:
            file.write("x")

        def make(job):
            if job == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if job == "stumble" and not (mark := self.opened.with_name("stumbled")).exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if job == "weights":
                raise BadWeights("the weights are gone; get them again.")
            return {"job": job}, {}

        def do(job):
            if job == "weights":
                make(job)
            if job == "unheard of":
                raise ZeroDivisionError("of its own\nkind")
            attempt(self.shelf, job, "", job, lambda: make(job))

        return do


@pytest.fixture
def odd(tmp_path):
    return Odd(shelf=Shelf(folder=tmp_path / "odd", run="r"), opened=tmp_path / "opened")


@pytest.fixture(autouse=True)
def importable():
    """Workers find the work that is defined here."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_job_that_kills_its_worker_is_given_up_and_the_rest_is_done(ray_pool, odd):
    seen = []
    jobs = ["a", "crash", "stumble", *"bcdefgh"]
    ray_pool.run("working", odd, jobs, lambda *now: seen.append(now))
    assert seen[0] == ("working", 0, len(jobs))
    assert seen[-1] == ("working", len(jobs), len(jobs))
    for job in jobs:
        value = odd.shelf.value(job, "")
        if job == "crash":
            assert value["drop"]["detail"] == "its worker died each time it was tried"
        else:
            assert value == {"job": job}


@pytest.mark.parametrize(
    ("job", "kind", "said"),
    [
        ("weights", BadWeights, "the weights are gone; get them again."),
        ("unheard of", LynxError, "a worker failed: ZeroDivisionError: of its own"),
    ],
)
def test_what_ends_a_run_comes_back_as_it_was(ray_pool, odd, job, kind, said):
    with pytest.raises(kind) as caught:
        ray_pool.run("working", odd, ["a", job, "b"], lambda *_: None)
    assert str(caught.value) == said


def test_no_jobs_start_no_workers(ray_pool, odd):
    ray_pool.run("working", odd, [], lambda *_: None)
    assert not odd.opened.exists()


def test_without_ray_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[train\]'"), open_pool():
        pass


def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch):
    import ray

    def refuse(**_):
        raise ConnectionError("ray head not found\nand much more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(LynxError, match="Ray can't be reached at nowhere:1") as caught, open_pool(address="nowhere:1"):
        pass
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def streamed(drawn, build_here, ray_pool, tmp_path_factory):  # noqa: ARG001 (Ray runs, and is used because it does)
    """A set of 24 items with planted faults: its folder, and that of the same set made in one process."""
    from lynx_video.training.dataset.build import build

    folder = tmp_path_factory.mktemp("streamed")
    shelve = shelf_in(folder / "source")
    fill(shelve, drawn, people=5, clips=3, photos=1)
    shelve("lonely.mp4", drawn.clips[0][5], "a person nods")
    shelve("silent.mp4", drawn.clips[1][5])
    shelve("short.mp4", drawn.clips[2][5][:4], "a person nods")
    (shelve.root / "broken.mp4").write_bytes(b"no video")
    config = DatasetConfig(same_person=0.8, augment="light,jitter", references=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the workers are not
        build(Path("source"), Path("ray"), config, name="nano", survey=NANO)
    build_here(shelve.root, folder / "here", augment="light,jitter", references=2)
    return folder


def test_on_ray_a_set_is_what_it_is_in_one_process(streamed):
    assert contents(streamed / "ray") == contents(streamed / "here")
    assert {item: reason for item, (reason, _) in dropped(streamed / "ray").items()} == {
        "broken.mp4": "no caption",
        "lonely.mp4": "one photo only",
        "short.mp4": "too short",
        "silent.mp4": "no caption",
    }


def test_a_set_can_be_read_as_a_stream(streamed):
    import webdataset
    from safetensors.torch import load

    from lynx_video.training.shards import Shards

    opened = Shards(streamed / "ray")
    shards = sorted(map(str, (streamed / "ray" / "shards").glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [entry.key for entry in opened.entries]
    assert len(found) == 30
    for sample, entry in zip(found, opened.entries, strict=True):
        assert set(sample) >= {"safetensors", "json"}
        words, tensors, example = json.loads(sample["json"]), load(sample["safetensors"]), opened.read(entry)
        assert (words["caption"], words["person"]) == (example.caption, example.person)
        assert tensors["latents"].equal(example.latents)
