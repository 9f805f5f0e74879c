"""The log of a run: one line a step, valid JSON whatever the numbers, cut where a run goes on."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lynx_video.errors import BadData, BadOutput, MissingDependency
from lynx_video.training.journal import Journal, Smooth, StepFacts, read_log


def facts(step, **changes):
    plain = {
        "stage": "video",
        "loss": 1 / step,
        "learning_rate": 1e-5,
        "gradient_norm": 0.5,
        "samples": 2,
        "tokens": 640,
        "seconds": 0.5,
    }
    return StepFacts(step=step, **plain | changes)


def train(folder, first, last, **settings):
    with Journal(folder, **{"total_steps": 100, "start": first - 1, "quiet": True} | settings) as journal:
        for step in range(first, last + 1):
            journal.step(facts(step))
    return read_log(folder)


def steps_of(log):
    return [line["step"] for line in log if line["kind"] == "step"]


def strict(line):
    return json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_line_a_step(tmp_path):
    log = train(tmp_path / "run", 1, 3)
    assert steps_of(log) == [1, 2, 3]
    time = log[1].pop("time")
    assert time > 1.7e9
    assert log[1] == {
        "kind": "step",
        "step": 2,
        "stage": "video",
        "loss": 0.5,
        "learning_rate": 1e-5,
        "gradient_norm": 0.5,
        "samples": 2,
        "tokens": 640,
        "seconds": 0.5,
        "skipped": 0,
        "peak_memory": None,
    }


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    with Journal(tmp_path, total_steps=5, quiet=True) as journal:
        journal.step(facts(1))
        assert steps_of(read_log(tmp_path)) == [1]
        journal.note("ein Wort — mit Umlaut: ä\nund zwei Zeilen")
        assert read_log(tmp_path)[-1]["text"] == "ein Wort — mit Umlaut: ä\nund zwei Zeilen"


def test_what_is_not_finite_is_null_and_named(tmp_path):
    with Journal(tmp_path, total_steps=5, quiet=True) as journal:
        journal.step(facts(1, loss=math.nan, gradient_norm=math.inf, skipped=1))
        journal.step(facts(2))
        journal.validation(2, {"similarity": np.float32(0.5), "loss_900": torch.tensor(-math.inf)})
    first, second, third = (strict(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["loss"] is None
    assert first["gradient_norm"] is None
    assert first["not_finite"] == ["loss", "gradient_norm"]
    assert "not_finite" not in second
    assert third["facts"] == {"similarity": 0.5, "loss_900": None}
    assert third["not_finite"] == ["facts.loss_900"]


def test_validation_and_its_clips(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere.mp4"
    with Journal(run, total_steps=5, quiet=True) as journal:
        journal.validation(0, {"similarity": 0.1}, {"anna": run / "validation" / "anna-0.mp4", "ben": elsewhere})
    (line,) = read_log(run)
    assert line["kind"] == "validation"
    assert line["clips"] == {"anna": "validation/anna-0.mp4", "ben": elsewhere.as_posix()}


def test_going_on_cuts_what_came_after(tmp_path):
    train(tmp_path, 1, 8)
    log = train(tmp_path, 6, 9)
    assert steps_of(log) == list(range(1, 10))
    assert [line["text"] for line in log if line["kind"] == "note"] == ["goes on after step 5"]
    assert log[5]["kind"] == "note"  # where the new part begins
    assert not [file for file in tmp_path.iterdir() if file.name != "log.jsonl"]


def test_going_on_keeps_validation_up_to_the_step(tmp_path):
    with Journal(tmp_path, total_steps=9, quiet=True) as journal:
        for step in range(1, 9):
            journal.step(facts(step, loss=math.nan if step == 2 else 1.0))
            if step % 2 == 0:
                journal.validation(step, {"similarity": step / 10})
    log = train(tmp_path, 5, 5)
    assert [line["step"] for line in log if line["kind"] == "validation"] == [2, 4]
    assert log[1]["not_finite"] == ["loss"]


def test_a_run_from_the_start_begins_a_new_log(tmp_path):
    train(tmp_path, 1, 8)
    assert steps_of(train(tmp_path, 1, 2)) == [1, 2]


def test_a_cut_last_line(tmp_path):
    train(tmp_path, 1, 4)
    log = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        log.write_bytes(whole[:-cut])
        assert steps_of(read_log(tmp_path)) == ([1, 2, 3, 4] if cut == 1 else [1, 2, 3])
    log.write_bytes(whole[:-20])
    assert steps_of(train(tmp_path, 4, 5)) == [1, 2, 3, 4, 5]
    assert all(strict(line) for line in log.read_text().splitlines())


@pytest.mark.parametrize(
    "line", [b'{"kind": "st', b"[1]", b'{"step": 3}', b'{"kind": "step", "step": "3"}', b"\x00\x00", b"\xff"]
)
def test_damage_in_the_middle_is_named(tmp_path, line):
    train(tmp_path, 1, 3)
    log = tmp_path / "log.jsonl"
    lines = log.read_bytes().splitlines()
    lines[1] = line
    log.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(BadData, match=r"log\.jsonl: line 2 is not a line of a training log"):
        read_log(tmp_path)
    with pytest.raises(BadData, match="line 2"):
        train(tmp_path, 4, 4)
    assert log.read_bytes().splitlines() == lines  # nothing was cut from a log that needs a look


def test_no_log(tmp_path):
    with pytest.raises(BadData, match=r"log\.jsonl: the log of the run cannot be read"):
        read_log(tmp_path)
    (tmp_path / "log.jsonl").touch()
    assert read_log(tmp_path) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(BadOutput, match="run"):
        train(tmp_path / "run", 1, 1)


def test_other_ranks_write_nothing(tmp_path, capsys):
    with Journal(tmp_path / "run", total_steps=5, tensorboard=True, active=False) as journal:
        journal.step(facts(1))
        journal.validation(1, {"similarity": 1.0})
        journal.note("nobody hears this")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_progress_in_the_terminal(tmp_path, capsys):
    with Journal(tmp_path, total_steps=40) as journal:
        for step in range(1, 4):
            journal.step(facts(step, tokens=8192, seconds=0.5, loss=0.25, skipped=1))
        journal.validation(3, {"similarity": 0.51239})
        journal.note("saved")
    out, shown = capsys.readouterr()
    assert out == ""
    for words in ("3/40", "video, loss 0.2500, 16.4k tokens/s, 1 skipped", "step 3: similarity 0.5124\n", "saved\n"):
        assert words in shown
    train(tmp_path, 4, 5)
    assert capsys.readouterr() == ("", "")
    train(tmp_path, 6, 7, quiet=False)
    assert "7/100" in capsys.readouterr().err


def test_smoothed_loss():
    smooth = Smooth(0.5)
    assert smooth.add(math.nan) is None
    assert smooth.add(None) is None
    assert smooth.add(4.0) == 4.0  # no pull towards zero
    assert smooth.add(1.0) == pytest.approx((0.5 * 4 + 1) / 1.5)
    assert smooth.add(math.inf) == smooth.add(None) == pytest.approx(2.0)


def test_smoothed_loss_goes_on_where_it_was(tmp_path, capsys):
    train(tmp_path, 1, 6)
    expected = Smooth()
    for step in range(1, 7):
        value = expected.add(1 / step)
    train(tmp_path, 5, 6, quiet=False)
    assert f"loss {value:.4f}" in capsys.readouterr().err


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Journal(tmp_path, total_steps=9, quiet=True, tensorboard=True) as journal:
        for step in range(1, 5):
            journal.step(facts(step, loss=math.nan if step == 2 else float(step), peak_memory=3 * 2**30))
        journal.validation(4, {"similarity": 0.25})
    with Journal(tmp_path, total_steps=9, start=3, quiet=True, tensorboard=True) as journal:
        journal.step(facts(4, loss=40.0))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (3, 3.0), (4, 40.0)]
    assert events.Scalars("train/peak_memory_gib")[0].value == 3.0
    assert events.Scalars("train/tokens_per_second")[0].value == 1280.0
    assert "validation/similarity" in events.Tags()["scalars"]


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[train\]'"),
        Journal(tmp_path / "run", total_steps=5, tensorboard=True),
    ):
        pass
    assert not Path(tmp_path / "run").exists()


def test_a_crash_in_the_run_leaves_a_whole_log(tmp_path):
    journal = Journal(tmp_path, total_steps=5, quiet=True)

    def run():
        with journal:
            journal.step(facts(1))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    assert steps_of(read_log(tmp_path)) == [1]
    with pytest.raises(AssertionError, match="within `with`"):
        journal.step(facts(2))


def test_steps_come_in_order(tmp_path):
    with Journal(tmp_path, total_steps=5, quiet=True) as journal:
        journal.step(facts(2))
        with pytest.raises(AssertionError, match="step 2 after step 2"):
            journal.step(facts(2))
