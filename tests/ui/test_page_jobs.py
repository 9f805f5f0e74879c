"""The queue behind the page: one clip at a time, cancelled at its next step, told of in sentences."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from opened import wait_until

from lynx_video.errors import BadRequest, Refused
from lynx_video.media.provenance import read_provenance
from lynx_video.pipeline.denoise import Step
from lynx_video.studio.publish import PRIVATE
from lynx_video.studio.request import Request
from lynx_video.ui import view
from lynx_video.ui.jobs import MOST_WAITING, Queue


class Held:
    """A studio whose steps wait until they are let go; for what is about the queue and not about clips."""

    def __init__(self, steps=3):
        self.steps, self.turn, self.seen, self.previews = steps, threading.Semaphore(0), [], 0
        self.fault, self.unsafe, self.decodes = None, False, False

    def check(self, request):
        return request

    def meet(self, order):
        return order

    def film(self, order, guest, target, *, on_step, before_writing):  # noqa: ARG002 (the studio's signature)
        for number in range(1, self.steps + 1):
            assert self.turn.acquire(timeout=30)
            if self.fault is not None:
                raise self.fault
            self.seen.append((target.name, number))
            on_step(Step(number=number, total=self.steps, latents=torch.zeros(1), seconds=float(number)))
        assert not self.decodes or self.turn.acquire(timeout=30)
        before_writing(None)
        raise BadRequest("this studio makes no clips")

    def preview(self, step):
        self.previews += 1
        return None if self.unsafe else np.full((4, 4, 3), step.number, np.uint8)

    def go(self, steps=1):
        for _ in range(steps):
            self.turn.release()


@pytest.fixture
def held(tmp_path):
    studio = Held()
    queue = Queue(studio, tmp_path / "clips")
    yield studio, queue
    studio.go(1000)
    queue.close(10)


@pytest.fixture
def asked(tmp_path):
    """asked() is a request and the copy of a portrait that goes with it."""
    count = iter(range(1000))

    def make():
        own = tmp_path / f"own{next(count)}.png"
        own.write_bytes(b"portrait")
        return Request(prompt="smiles", portrait=own, shown="me.png"), own

    return make


def test_one_after_the_other_and_everyone_knows_their_place(held, asked):
    studio, queue = held
    first, second, third = (queue.submit(*asked()) for _ in range(3))
    wait_until(lambda: first.state == "preparing")
    assert [queue.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    assert view.where(second, 1) == "In the queue: 1 clip comes before yours."
    assert view.where(third, 2) == "In the queue: 2 clips come before yours."
    assert view.LEAVE in view.progress(third, 2)
    studio.go(3)
    wait_until(lambda: first.ended and second.state == "preparing")
    assert [queue.ahead(job) for job in (second, third)] == [0, 1]
    studio.go(6)
    wait_until(lambda: third.ended)
    assert studio.seen == [(job.target.name, number) for job in (first, second, third) for number in (1, 2, 3)]


def test_cancel_stops_at_the_next_step(held, asked):
    studio, queue = held
    job = queue.submit(*asked())
    studio.go()
    wait_until(lambda: job.state == "denoising")
    queue.cancel(job.key)
    assert view.where(job, 0) == "Step 1 of 3, stopping."
    studio.go()
    wait_until(lambda: job.ended)
    assert (job.state, len(studio.seen)) == ("cancelled", 2)
    assert view.where(job, 0) == "Cancelled; nothing was kept."
    assert not job.portrait.exists()


def test_cancel_after_the_last_step_still_keeps_the_clip_from_being_written(held, asked):
    studio, queue = held
    studio.decodes = True
    job = queue.submit(*asked())
    studio.go(3)
    wait_until(lambda: job.state == "finishing")
    assert view.where(job, 0) == "All steps are done; decoding and signing."
    queue.cancel(job.key)
    studio.go()
    wait_until(lambda: job.ended)
    assert job.state == "cancelled"


def test_what_waits_is_cancelled_at_once(held, asked):
    studio, queue = held
    first, second = queue.submit(*asked()), queue.submit(*asked())
    wait_until(lambda: first.state == "preparing")
    queue.cancel(second.key)
    assert second.state == "cancelled"
    assert not second.portrait.exists()
    studio.go(3)
    wait_until(lambda: first.ended)
    assert {name for name, _ in studio.seen} == {first.target.name}
    queue.cancel("a key that nobody has")


def test_previews_take_a_share_of_the_time(held, asked, monkeypatch):
    studio, queue = held
    studio.steps = 100
    clock = iter(np.arange(0, 10_000, 0.19))  # each preview seems to take 0.19 s; a step takes 1 s
    monkeypatch.setattr("lynx_video.ui.jobs.time", SimpleNamespace(monotonic=lambda: next(clock)))
    job = queue.submit(*asked())
    studio.go(100)
    wait_until(lambda: job.ended)
    assert studio.previews == 25
    assert job.preview is not None


def test_a_preview_is_shown_only_if_the_gate_lets_it_through(held, asked):
    studio, queue = held
    job = queue.submit(*asked())
    studio.go()
    wait_until(lambda: job.step == 1)
    assert job.preview is not None
    studio.unsafe = True
    studio.go()
    wait_until(lambda: job.step == 2)
    assert job.preview is None
    assert "<img" not in view.progress(job, 0)
    studio.preview = lambda _: 1 / 0
    studio.go()
    wait_until(lambda: job.ended)
    assert "this studio makes no clips" in job.said


def test_a_full_queue_says_so(held, asked):
    queue = held[1]
    first = queue.submit(*asked())
    wait_until(lambda: first.state == "preparing")
    for _ in range(MOST_WAITING):
        queue.submit(*asked())
    with pytest.raises(BadRequest, match=f"{MOST_WAITING} clips wait already"):
        queue.submit(*asked())


@pytest.mark.parametrize(
    ("fault", "state", "words"),
    [
        (BadRequest("OWN: no such file."), "failed", "No clip was made: me.png: no such file."),
        (Refused("a frame is unsafe."), "refused", "Refused by the safety check: a frame is unsafe."),
        (OSError(28, "No space left on device"), "failed", "the disk is full; make room, then ask again."),
        (MemoryError(), "failed", "out of memory; take fewer frames or a smaller size."),
        (ZeroDivisionError("division"), "failed", "something unforeseen happened (ZeroDivisionError)"),
    ],
)
def test_what_goes_wrong_ends_one_clip_and_is_said(held, asked, capfd, fault, state, words):
    studio, queue = held
    request, own = asked()
    if isinstance(fault, BadRequest):
        fault = BadRequest(str(fault).replace("OWN", str(own)))
    studio.fault = fault
    job = queue.submit(request, own)
    studio.go()
    wait_until(lambda: job.ended)
    assert job.state == state
    assert words in view.where(job, 0)
    assert str(own) not in view.where(job, 0)
    assert ("division" in capfd.readouterr().err) == isinstance(fault, ZeroDivisionError)
    studio.fault = None
    following = queue.submit(*asked())
    studio.go(3)
    wait_until(lambda: following.ended)
    assert "this studio makes no clips" in following.said


def test_closing_cancels_everything(held, asked):
    studio, queue = held
    first, second = queue.submit(*asked()), queue.submit(*asked())
    wait_until(lambda: first.state == "preparing")
    studio.go()
    later = threading.Thread(target=lambda: (first.stop.wait(60), studio.go(3)))  # it is at work until it is told to stop
    later.start()
    queue.close(20)
    later.join()
    assert [first.state, second.state] == ["cancelled", "cancelled"]
    with pytest.raises(BadRequest, match="closing"):
        queue.submit(*asked())


def test_a_clip_of_nano_is_made_signed_and_named_by_us(desk, form, pictures):
    portrait = desk.portrait(pictures["one"], "../../etc/me.png")
    job = desk.ask(portrait, form(seed=7, consent="drawn", private=True))
    wait_until(lambda: job.ended)
    assert job.state == "done", job.said
    assert job.target.parent == desk.clips
    assert job.target.suffix == ".mp4"
    found = read_provenance(job.target)
    assert found.state == "untouched"
    assert found.record == job.record
    assert (found.record["seed"], found.record["num_inference_steps"]) == (7, 3)
    assert all(found.record[name] is None for name in PRIVATE)
    assert job.preview is not None
    assert job.preview.shape == (64, 64, 3)
    assert list(desk.scratch.iterdir()) == []


def test_a_full_disk_leaves_no_clip(desk, form, pictures, monkeypatch):
    before = set(desk.clips.glob("*"))
    real = Path.replace

    def full(self, target):
        if Path(target).parent == desk.clips:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    job = desk.ask(desk.portrait(pictures["one"], "me.png"), form())
    wait_until(lambda: job.ended)
    assert job.state == "failed"
    assert "the disk is full" in job.said
    assert {file for file in desk.clips.rglob("*") if file.is_file()} <= before


def test_a_clip_of_nano_is_cancelled_within_a_step(desk, form, pictures):
    before = set(desk.clips.glob("*"))
    job = desk.ask(desk.portrait(pictures["one"], "me.png"), form(values={"num_inference_steps": 400}))
    wait_until(lambda: job.step >= 2)
    desk.queue.cancel(job.key)
    at = job.step
    wait_until(lambda: job.ended)
    assert job.state == "cancelled"
    assert job.step <= at + 1
    assert set(desk.clips.glob("*")) == before
