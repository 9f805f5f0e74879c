"""The race: a row for every side, in turn, beside `exact`; what is wrong stops it, what cannot be run does not."""

import json
from dataclasses import replace

import pytest
import torch

from lynx_video.bench import race as module
from lynx_video.bench import turn
from lynx_video.bench.made import Source
from lynx_video.bench.plain import Plain
from lynx_video.bench.race import race
from lynx_video.bench.record import Request, Row, Turn
from lynx_video.bench.report import facts, report
from lynx_video.bench.side import Side
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, LynxError

CONFIG = GenerateConfig(num_inference_steps=4, num_frames=3, height=32, width=32)
PLAIN = Side(name="plain", way="plain", config=CONFIG)
EXACT = Side(name="exact", config=CONFIG)
WAN = Side(name="wan", way="wan", config=CONFIG)


def side(name, **runtime):
    return Side(name=name, config=CONFIG, runtime=RuntimeConfig(**runtime))


def request(*sides, **settings):
    source = Source(size="nano", device="cpu")
    return Request(**({"source": source, "sides": sides, "rounds": 2, "steps": 2} | settings))


@pytest.fixture(scope="module")
def whole():
    """A race of everything, and what it said on the way."""
    asked = request(
        *(PLAIN, EXACT, WAN, side("int8", quantize="int8"), side("offloaded", offload="block")),
        *(side("0.02 GB", vram_budget=0.02), side("0.001 GB", vram_budget=0.001), side("fp8", quantize="fp8")),
        replace(side("lora"), unable="no file"),
        profile=True,
    )
    said = []
    return race(asked, said.append), said


def test_every_side_has_a_row_in_the_order_asked(whole):
    result, _ = whole
    assert [row.name for row in result.rows] == [one.name for one in result.request.sides]
    done = {row.name: row for row in result.rows if not row.missing}
    assert list(done) == ["plain", "exact", "wan", "int8", "offloaded", "0.02 GB"]
    for row in done.values():
        assert len(row.turns) == len(row.beside) == 2
        assert all(one.forward > 0 and set(one.phases) == {"memories", "texts", "decoding"} for one in row.turns)
        assert all(len(seconds) == 2 for one in row.turns for seconds in one.steps.values())
        assert row.kinds == ({"2 passes": 4} if row.name == "wan" else {"3 passes": 4})
        assert row.profile.total > 0
        assert row.counts.kernels > 100
        assert not row.counts.syncs
    missing = {row.name: row.missing for row in result.rows if row.missing}
    assert missing["lora"] == "no file"
    assert "fp8 computes on NVIDIA GPUs" in missing["fp8"]
    assert "too little" in missing["0.001 GB"]


def test_what_should_be_the_same_is(whole):
    rows = {row.name: row for row in whole[0].rows}
    for name in ("plain", "offloaded", "0.02 GB"):
        assert rows[name].difference < 1e-5
    assert 1e-4 < rows["int8"].difference < 1e-1
    assert rows["wan"].difference is rows["exact"].difference is None


def test_work_is_counted_and_worked_out(whole):
    result, _ = whole
    rows = {row.name: row for row in result.rows}
    exact, plain, wan = (rows[name] for name in ("exact", "plain", "wan"))
    assert exact.work["forward"] == pytest.approx(exact.arithmetic["forward"], rel=1e-3)
    # the arithmetic leaves out the resampler and the VAE's encoder, which are in what is counted of the memories
    assert exact.work["clip"] - exact.work["memories"] < exact.arithmetic["clip"] < exact.work["clip"]
    parts = sum(exact.work[name] for name in ("memories", "texts", "decoding"))
    assert exact.work["clip"] == parts + 4 * 3 * exact.work["forward"]
    assert plain.work["forward"] > exact.work["forward"] > wan.arithmetic["forward"]
    assert wan.work["clip"] - wan.work["texts"] - wan.work["decoding"] == 8 * wan.work["forward"]
    assert not wan.work["memories"]
    for row in (exact, plain, wan):
        assert result.apart(row) > 0
        assert result.at_rates(row) > 0
    assert result.apart(wan) < result.apart(exact)
    assert {len(seconds) for seconds in result.kernels.seconds.values()} == {2}
    assert set(result.kernels.seconds) == set(exact.terms)


def test_turns_come_in_turn_and_own_weights_come_last(whole):
    """A, B, ... in each round; a side with weights of its own in a heat of its own, beside `exact` again."""
    result, said = whole
    rounds = [line.partition(": ")[2] for line in said if line.startswith("round")]
    together = "exact, plain, wan, int8"
    assert rounds == [together] * 2 + ["exact, offloaded"] * 2 + ["exact, 0.02 GB"] * 2
    rows = {row.name: row for row in result.rows}
    assert rows["plain"].beside == rows["exact"].turns == rows["exact"].beside
    assert rows["offloaded"].beside != rows["exact"].turns
    assert rows["exact"].ratio(lambda one: one.forward, lambda one: one.forward) == 1


def test_the_report_has_it_all(whole):
    result, _ = whole
    text = report(result, "lynx-video bench")
    tables = text.split("### ")
    assert [table.partition("\n")[0].partition(":")[0] for table in tables[1:4]] == ["A forward", "A clip", "Memory at most"]
    assert sum(table.startswith("One block of") for table in tables) == 6
    for table in tables[1:]:
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1, table
    assert "| lora | not run: no file |" in text
    assert "The exact levers save" in text
    assert "Over WanPipeline identity adds" in text
    assert "blocks in host memory" in text
    known = json.loads(json.dumps(facts(result, "lynx-video bench")))
    assert list(known["sides"]) == [one.name for one in result.request.sides]
    assert known["sides"]["exact"]["forward_ratio"] == known["sides"]["exact"]["clip_ratio"] == 1
    assert known["sides"]["fp8"]["forward_seconds"] is None


def test_forwards_alone():
    result = race(request(EXACT, PLAIN, side("offloaded", offload="block"), video=False, rounds=1))
    for row in result.rows:
        assert len(row.turns) == len(row.beside) == 1
        assert not row.turns[0].steps
        assert set(row.work) == {"forward"}
    text = report(result, "")
    assert "### A clip" not in text
    assert "The exact levers save" in text
    assert facts(result, "")["sides"]["plain"]["clip_seconds"] is None


def test_a_side_that_computes_something_else_stops_it(monkeypatch):
    right = Plain._pass
    monkeypatch.setattr(Plain, "_pass", lambda self, *rest: right(self, *rest) * (1 + 1e-4))
    timed = []
    monkeypatch.setattr(turn, "time_clip", lambda *_: timed.append(1))
    with pytest.raises(LynxError, match=r"plain computes something else than exact: .* nothing was timed"):
        race(request(EXACT, PLAIN))
    assert not timed


def test_no_number_is_not_the_same(monkeypatch):
    right = Plain._pass
    monkeypatch.setattr(Plain, "_pass", lambda self, *rest: right(self, *rest) * float("nan"))
    with pytest.raises(LynxError, match="differ by nan"):
        race(request(EXACT, PLAIN))


def test_no_memory_is_a_row_and_not_the_end(monkeypatch):
    right = turn.time_clip

    def narrow(one, row, *rest):
        if row.name == "int8" and len(row.turns) == 1:
            raise torch.OutOfMemoryError
        right(one, row, *rest)

    monkeypatch.setattr(turn, "time_clip", narrow)
    rows = {row.name: row for row in race(request(EXACT, side("int8", quantize="int8"), PLAIN)).rows}
    assert rows["int8"].missing == "out of memory"
    assert len(rows["plain"].turns) == len(rows["exact"].turns) == 2


def test_without_exact_there_is_no_race(monkeypatch):
    def fails(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(module, "hold", fails)
    with pytest.raises(LynxError, match="exact cannot be run here: RuntimeError: no kernel for this"):
        race(request(EXACT, PLAIN))


def test_what_cannot_be_made_is_said_before_anything(monkeypatch):
    monkeypatch.setattr(module, "open_stage", lambda *_: pytest.fail("too late"))
    if not torch.cuda.is_available():
        with pytest.raises(BadRequest, match="CUDA GPU"):
            race(replace(request(EXACT), source=Source(size="14b")))


def test_a_clip_is_reckoned_by_kinds_of_steps():
    one = Turn(
        forward=1.0,
        phases={"memories": 0.5, "texts": 0.25, "decoding": 2.0},
        steps={"3 passes": [3.0, 5.0, 4.0], "1 pass": [1.5]},
    )
    kinds = {"3 passes": 10, "1 pass": 4}
    assert one.denoising(kinds) == 46
    assert one.clip(kinds) == 48.75
    row = Row(name="", way="ours", turns=[one, Turn(forward=3.0)], beside=[Turn(forward=2.0), Turn(forward=2.0)])
    assert row.ratio(lambda x: x.forward, lambda x: x.forward) == 1.0  # the median of a half and one and a half


@pytest.mark.slow
def test_a_side_is_weighed_alone():
    """Whatever this process holds: a process of its own begins with nothing."""
    from lynx_video.bench.weigh import weigh

    ballast = bytearray(2**30)
    ballast[:: 2**12] = b"x" * 2**18
    asked = request(EXACT, side("offloaded", offload="block"))
    for one in asked.sides:
        assert 100e6 < weigh(asked, one) < 2**30
    assert weigh(asked, side("fp8", quantize="fp8")) is None
    assert len(ballast) == 2**30
