"""The 14B training benchmark at toy size on the CPU; its counts against torch's; its shapes against the official files."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lynx_video.adapters.weights import official_parameters
from lynx_video.training.model import PackedModel
from lynx_video.training.objective import step

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training_14b.py"
MANIFEST = Path(__file__).parent / "golden" / "manifest_14b.json"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_training_14b", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("extra", [[], ["--optimizer", "adamw", "--timesteps", "own"]])
def test_toy_size_gives_a_row_for_every_pack(bench, capsys, tmp_path, extra):
    bench.main(["--tiny", "--steps", "1", "--output", str(tmp_path / "result.md"), *extra])
    printed = capsys.readouterr().out
    assert (tmp_path / "result.md").read_text() == printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row[0].partition(":")[0] for row in rows] == ["clip", "stills", "mixed"]
    for _, way, seconds, *_ in rows:
        assert way == "in turn"
        assert float(re.match(r"[\d.]+", seconds)[0]) > 0


def test_no_memory_is_a_row_and_not_the_end(bench, capsys, monkeypatch):
    whole = bench.measure

    def narrow(machine, model, samples, *rest):
        if len(samples) == 5:
            raise torch.OutOfMemoryError
        return whole(machine, model, samples, *rest)

    monkeypatch.setattr(bench, "measure", narrow)
    bench.main(["--tiny", "--steps", "1"])
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert ["out of memory" in row for row in rows] == [False, True, False]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would run")
def test_without_a_gpu_it_says_so(bench):
    with pytest.raises(SystemExit, match=r"needs a CUDA GPU .* --tiny"):
        bench.main([])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("pack", ["clip", "stills", "mixed"])
def test_work_is_what_torch_counts(bench, pack, recompute):
    size, shapes = bench.TINY, bench.TINY.packs[pack]
    model = PackedModel(bench.build(size, CPU, torch.bfloat16), recompute=recompute)
    with FlopCounterMode(display=False) as counter:
        step(model, bench.draw(size, shapes), torch.tensor([500.0]), CPU, torch.bfloat16).loss.backward()
    work = bench.Work.of(size, shapes)
    assert work.needed + recompute * work.recomputed == pytest.approx(counter.get_total_flops(), rel=5e-3)


def test_full_size_is_the_official_one(bench):
    adapter = bench.build(bench.FULL_SIZE, torch.device("meta"), torch.float32)
    official = {
        f"{file}.{name}": tuple(shape)
        for file, tensors in json.loads(MANIFEST.read_text())["lynx_full"].items()
        for name, shape in tensors.items()
    }
    assert {name: tuple(one.shape) for name, one in official_parameters(adapter).items()} == official
    assert sum(one.numel() for one in adapter.transformer.parameters()) == pytest.approx(14.3e9, rel=0.005)
    for shapes in bench.FULL_SIZE.packs.values():
        assert 30_000 < sum(map(bench.tokens_of, shapes)) <= 33_600
