"""The training benchmark runs, prints a row for every arm, and refuses to compare arms that compute something else."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SMALL = ["--steps", "1", "--budget", "640"]
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def rows_of(text):
    """{mix: {arm: cells}} of the printed tables."""
    found = {}
    for line in text.splitlines():
        if line.startswith("### "):
            mix = found[line.removeprefix("### ")] = {}
        elif line.startswith("| ") and not line.startswith(("| | ", "| ---")):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            mix[name] = cells
    return found


def number(cell):
    return float(re.search(r"[\d.,e+-]+", cell)[0].replace(",", ""))


@pytest.mark.parametrize("timesteps", ["own", "shared"])
def test_a_row_for_every_arm(bench, capsys, tmp_path, timesteps):
    bench.main([*SMALL, "--timesteps", timesteps, "--no-memory", "--output", str(tmp_path / "new" / "result.md")])
    printed = capsys.readouterr().out
    assert (tmp_path / "new" / "result.md").read_text() == printed
    found = rows_of(printed)
    assert list(found) == list(bench.MIXES)
    for mix, rows in found.items():
        assert list(rows) == list(bench.ARMS)
        for rate, factor, *_, differences in rows.values():
            assert number(rate) > 0
            assert number(factor) > 0
            loss, gradient = (float(one) for one in differences.split(", "))
            assert loss < 1e-4
            assert gradient < 1e-3
        padding = {name: number(cells[4]) for name, cells in rows.items()}
        assert (padding.pop("padded") > 10) == (mix == "several-shapes")
        assert not any(padding.values())


def test_padding_that_is_seen_is_not_a_fair_race(bench, monkeypatch):
    monkeypatch.setattr(bench.Arm, "_mask", lambda *_: None)
    with pytest.raises(SystemExit, match="padded: losses differ from the packed ones"):
        bench.main([*SMALL, "--no-memory"])


def test_gradients_are_compared_too(bench, monkeypatch):
    right = bench.Arm.losses

    def twice(arm, step):
        losses = right(arm, step)
        if arm.model is None:
            for parameter in arm.adapter.parameters():
                parameter.grad.mul_(2)
        return losses

    monkeypatch.setattr(bench.Arm, "losses", twice)
    with pytest.raises(SystemExit, match="padded: gradients differ"):
        bench.main([*SMALL, "--no-memory"])


def test_recomputed_blocks_race_too(bench, capsys):
    bench.main([*SMALL, "--no-memory", "--recompute", "--mix", "one-shape"])
    assert list(rows_of(capsys.readouterr().out)["one-shape"]) == list(bench.ARMS)


def test_memory_is_that_of_the_arm(bench):
    """However much the process that asks has held: a child's account must not begin there."""
    ballast = bytearray(2**30)
    ballast[:: 2**12] = b"x" * 2**18
    asked = bench.peak_memory()
    before, peak = bench.weigh("packed", "one-shape", SMALL)
    assert asked > 2**30 > peak > before > 50e6


def test_bad_requests_are_named(bench, capsys):
    for words, said in ((["--budget", "100"], "at least 320"), (["--steps", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            bench.main(words)
        assert said in capsys.readouterr().err
