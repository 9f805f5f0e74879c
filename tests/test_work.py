"""What is done stays done, what changed is done anew, and what kills its workers is given up in the run in which it does."""

import errno

import pytest
import torch

from lynx_video import work
from lynx_video.errors import BadOutput, LynxError
from lynx_video.training.dataset.source import Dropped
from lynx_video.training.dataset.stages import attempt, keep
from lynx_video.work import Shelf, claim_work, is_full


@pytest.fixture
def shelf(tmp_path):
    return Shelf(folder=tmp_path / "scan", run="one")


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_result_comes_back_with_its_stamp_alone(shelf):
    tensors = {"a": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    assert shelf.value("x", "s") is None
    shelf.save("x", "s", {"words": [1, "ä"]}, tensors)
    assert shelf.value("x", "s") == {"words": [1, "ä"]}
    assert shelf.value("x", "other") is None
    assert (shelf.note("x"), shelf.note("y")) == (("s", {"words": [1, "ä"]}), None)
    assert {name: value.tolist() for name, value in shelf.tensors("x").items()} == {"a": [0, 1, 2], "b": [1, 1]}
    assert list(shelf.tensors("x", "b")) == ["b"]


@pytest.mark.parametrize("left", [0, 5, 40])
def test_a_damaged_result_counts_as_none(shelf, left):
    shelf.save("x", "s", {}, {"a": torch.arange(100)})
    file = shelf.folder / "x.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    assert shelf.value("x", "s") is None


def test_nothing_but_the_result_is_left(shelf):
    assert shelf.begin("x")
    shelf.save("x", "s", {})
    assert [file.name for file in shelf.folder.iterdir()] == ["x.safetensors"]


def test_what_killed_its_worker_twice_in_a_run_is_given_up_in_that_run(shelf, tmp_path):
    assert [shelf.begin("x") for _ in range(3)] == [True, True, False]
    other = Shelf(folder=tmp_path / "scan", run="two")
    assert other.begin("x"), "a run that was killed is no fault of the item it was at"
    assert other.begin("x")
    assert not other.begin("x")


def test_attempts_are_made_once(shelf):
    calls = []

    def make():
        calls.append(1)
        return {"n": len(calls)}, {}

    for _ in range(3):
        attempt(shelf, "x", "s", "x.mp4", make)
    assert (len(calls), shelf.value("x", "s")) == (1, {"n": 1})
    attempt(shelf, "x", "changed", "x.mp4", make)
    assert shelf.value("x", "changed") == {"n": 2}


def raising(error):
    def make():
        raise error

    return make


def test_what_goes_wrong_with_an_item_is_kept_as_its_drop(shelf):
    attempt(shelf, "x", "s", "x.mp4", raising(Dropped("blurred", "very")))
    attempt(shelf, "y", "s", "y.mp4", raising(ZeroDivisionError("division\nby zero")))
    assert shelf.value("x", "s") == {"drop": {"item": "x.mp4", "reason": "blurred", "detail": "very"}}
    assert shelf.value("y", "s")["drop"] == {
        "item": "y.mp4",
        "reason": "failed",
        "detail": "ZeroDivisionError: division by zero",
    }


def test_an_item_that_kills_its_worker_is_dropped_by_name(shelf):
    shelf.begin("x"), shelf.begin("x")
    attempt(shelf, "x", "s", "x.mp4", raising(AssertionError("must not be tried again")))
    assert shelf.value("x", "s")["drop"]["detail"] == "its worker died each time it was tried"


def test_no_memory_ends_the_run_and_names_the_item(shelf):
    class OutOfMemoryError(RuntimeError):
        """As torch has it."""

    for error in (MemoryError(), OutOfMemoryError()):
        with pytest.raises(LynxError, match=r"x\.mp4: out of memory"):
            attempt(shelf, "x", "s", "x.mp4", raising(error))
    assert shelf.value("x", "s") is None


def test_a_full_disk_ends_the_run_in_one_sentence_and_keeps_what_is_done(shelf, monkeypatch):
    attempt(shelf, "done", "s", "done.mp4", lambda: ({}, {}))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(BadOutput, match="the disk is full; make room and give the same command again"):
            attempt(shelf, "x", "s", "x.mp4", lambda: ({}, {}))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)  # already when it is noted as begun
        with pytest.raises(BadOutput, match="the disk is full"):
            attempt(shelf, "x", "s", "x.mp4", lambda: ({}, {}))
    assert shelf.value("done", "s") == {}
    assert shelf.value("x", "s") is None
    assert not list(shelf.folder.glob(".*")), "nothing half-written is left"


def test_another_fault_of_the_disk_is_an_output_that_cannot_be_written(shelf, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    with pytest.raises(BadOutput, match="cannot be written"):
        keep(shelf, "x", "s", ({}, {}))


def test_a_full_disk_is_seen_through_other_errors():
    outer, middle = BadOutput("cannot be written"), ValueError("no")
    middle.__context__ = OSError(errno.ENOSPC, "No space left on device")
    outer.__cause__ = middle
    assert is_full(outer)
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_full(OSError(errno.EACCES, "no"))
    assert not is_full(None)


def test_a_work_folder_goes_on_with_its_own_settings_only(tmp_path):
    settings = {"seed": 1, "bucket": ("9x64x64",), "near": 3.0}
    claim_work(tmp_path / "work", settings)
    claim_work(tmp_path / "work", settings)
    with pytest.raises(BadOutput, match=r"was begun with seed 1, now it is 2: .*--overwrite"):
        claim_work(tmp_path / "work", {**settings, "seed": 2})
    with pytest.raises(BadOutput, match="was begun with augment null, now it is"):
        claim_work(tmp_path / "work", {**settings, "augment": ["light"]})
    (tmp_path / "work" / work.SETTINGS).write_text("{")
    with pytest.raises(BadOutput, match="can't be read"):
        claim_work(tmp_path / "work", settings)
