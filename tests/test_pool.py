"""Work shared out on Ray: workers that die, and errors that end a run in a sentence."""

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lynx_video.errors import BadWeights, LynxError, MissingDependency
from lynx_video.pool import open_pool, portion
from lynx_video.training.dataset.stages import attempt
from lynx_video.work import Shelf

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


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
            return {"niceness": os.nice(0)} if job == "niceness" else {"job": job}, {}

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


@pytest.mark.slow
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


def test_where_jobs_are_handed_out_one_by_one_progress_is_told_of_each(ray_pool, odd):
    seen = []
    replace(ray_pool, handful=1).run("working", odd, list(range(16)), lambda _, done, __: seen.append(done))
    assert seen == list(range(17))


def test_workers_have_the_priority_of_what_started_them(ray_pool, odd):
    ray_pool.run("working", odd, ["niceness"], lambda *_: None)
    assert odd.shelf.value("niceness", "") == {"niceness": os.nice(0)}


def test_how_many_are_handed_out_at_a_time():
    assert portion(3, 2) == 1
    assert portion(30, 2) == 3, "every worker gets several portions, so that none waits long for the last"
    assert portion(10_000, 2) == 8
    assert portion(10_000, 2, handful=1) == 1
    assert portion(1_000_000, 2, handful=1) == 100, "Ray keeps account of each portion"


def test_no_jobs_start_no_workers(ray_pool, odd):
    ray_pool.run("working", odd, [], lambda *_: None)
    assert not odd.opened.exists()


def test_without_ray_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[train\]'"), open_pool():
        pass


def test_without_an_address_no_cluster_is_joined(monkeypatch):
    import ray

    asked = {}

    def start(**how):
        asked.update(how)
        raise RuntimeError("enough")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(LynxError, match="Ray can't be started"), open_pool(workers=2):
        pass
    assert (asked["address"], asked["num_cpus"]) == ("local", 2)


def test_a_cluster_that_is_not_there_is_one_sentence(monkeypatch):
    import ray

    def refuse(**_):
        raise ConnectionError("ray head not found\nand much more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(LynxError, match="Ray can't be reached at nowhere:1") as caught, open_pool(address="nowhere:1"):
        pass
    assert "\n" not in str(caught.value)
