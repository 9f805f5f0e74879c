"""The benchmark against the reference, without the reference: what it lends, what it counts, what it refuses."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lynx_video.bench.made import Source, draw_scene, make
from lynx_video.config import RuntimeConfig

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reference.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def side(bench):
    """What runs the reference, as the benchmark imports it."""
    return sys.modules[bench.Theirs.__module__]


@pytest.fixture
def checkout(tmp_path):
    """What looks like a checkout: its modules take what the reference's take from diffusers and flash-attn."""
    for name, text in {
        "full/lynx_pipeline": "class LynxWanPipeline: pass\nfrom modules.full.transformer_wan import WanTransformer3DModel",
        "full/transformer_wan": "from diffusers.models.transformers.transformer_wan import *\n"
        "from flash_attn_interface import flash_attn_varlen_func as attention\n"
        "class WanTransformer3DModel:\n"
        "    lent = (Attention, Optional[Dict], Tuple, Union[int, str], USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers)\n"
        "    attention = staticmethod(attention)",
        "full/attention_processor": "",
        "lite/lynx_lite_pipeline": "class LynxLiteWanPipeline: pass\nclass WanTransformer3DModel: pass",
        "lite/attention_processor": "",
        "common/resampler": "class Resampler: pass",
    }.items():
        file = tmp_path / "checkout" / "modules" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    yield tmp_path / "checkout"
    for name in [one for one in sys.modules if one.partition(".")[0] == "modules"]:
        del sys.modules[name]


def ours_of(bench, tmp_path, arm="full"):
    """Our side at toy size, and the model's blueprint."""
    components, blueprint = make(Source(arm=arm, dtype="fp32", device="cpu"), tmp_path, size=bench.MADE["toy"])
    asked = bench.Request(identity=draw_scene(components).identity, prompt=bench.PROMPT, seed=1, steps=2)
    return bench.Ours(components, asked), blueprint


def bounds(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


@pytest.mark.parametrize(("queries", "keys"), [([7], [5]), ([4, 9, 1], [3, 2, 8]), ([5, 5], [5, 5])])
def test_what_stands_in_for_flash_attention_is_exact(side, queries, keys):
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(sum(n), 3, 16, generator=rng) for n in (queries, keys, keys))
    out = side.varlen_attention(query, key, value, bounds(queries), bounds(keys), max(queries), max(keys), causal=False)
    assert out.shape == query.shape
    parts = zip(out.split(queries), query.split(queries), key.split(keys), value.split(keys), strict=True)
    for found, q, k, v in parts:
        scores = torch.einsum("lnk,mnk->nlm", q.double(), k.double()) / 4
        torch.testing.assert_close(
            found.double(), torch.einsum("nlm,mnk->lnk", scores.softmax(-1), v.double()), atol=1e-6, rtol=0
        )
        plain = torch.nn.functional.scaled_dot_product_attention(*(one.transpose(0, 1)[None] for one in (q, k, v)))
        assert torch.equal(found, plain[0].transpose(0, 1))


def test_what_is_lent_is_taken_back(side, checkout):
    from diffusers.models.transformers import transformer_wan

    before = set(vars(transformer_wan)), list(sys.path)
    code = side.load_reference(checkout)
    assert code.transformer["full"].attention is side.varlen_attention
    assert len(code.transformer["full"].lent) == 7
    assert (set(vars(transformer_wan)), sys.path) == before
    assert "flash_attn_interface" not in sys.modules


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_arithmetic_is_what_torch_counts_of_ours(bench, arm, tmp_path):
    ours, blueprint = ours_of(bench, tmp_path, arm)
    made, work = bench.count(ours)
    clip = ours.components.defaults
    assert made.frames.shape == (clip.num_frames, clip.height, clip.width, 3)
    needed = bench.arithmetic(blueprint, 2)
    assert work.passes == needed.passes == (6 if arm == "full" else 4)
    for phase in ("text", "memory", "denoise", "decode"):
        assert getattr(work, phase) == getattr(needed, phase) > 0
    assert work.portrait > 0
    assert needed.whole == work.whole - work.portrait


def test_phases_are_all_there_is(bench, tmp_path):
    ticks = itertools.count()
    ours, _ = ours_of(bench, tmp_path)
    _, phases = bench.watch(ours, lambda: next(ticks))
    assert phases.whole == next(ticks) - 1
    assert phases.passes == 6
    ours.components.runtime = RuntimeConfig(passes="batched")
    assert bench.watch(ours, lambda: 0.0)[1].passes == 6, "a batch of passes counts by its entries"
    assert not ours.transformer._forward_pre_hooks


def test_other_clips_are_not_timed(bench, tmp_path):
    made, _ = bench.watch(ours_of(bench, tmp_path)[0], lambda: 0.0)
    assert bench.compare(made, made, "fp32") == (0, 0, 0)
    for other in (
        bench.Made(latents=made.latents * 1.001, frames=made.frames),
        bench.Made(latents=made.latents, frames=made.frames ^ 2),
        bench.Made(latents=made.latents * torch.nan, frames=made.frames),
    ):
        with pytest.raises(SystemExit, match="nothing is timed"):
            bench.compare(other, made, "fp32")


def test_tables(bench, checkout, monkeypatch, capsys, tmp_path):
    """Ours in both places: a row of every phase, ratios around one, the path of the checkout left out."""
    monkeypatch.setattr(bench, "Theirs", lambda _, *rest: bench.Ours(*rest))
    small = [
        "--size",
        "toy",
        "--steps",
        "1",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "new" / "result.md"),
    ]
    bench.main(["--reference", str(checkout), *small])
    printed = capsys.readouterr().out
    assert (tmp_path / "new" / "result.md").read_text() == printed
    assert "--reference PATH" in printed
    assert str(checkout) not in printed
    parts = printed.split("### ")[1:]
    assert [part.split(":")[0] for part in parts] == ["full", "lite"]
    for part in parts:
        rows = {cells[1].strip(): cells[2:] for line in part.splitlines() if len(cells := line.split("|")) > 4}
        assert set(bench.SECONDS) | set(bench.OPERATIONS) <= set(rows)
        assert 0.3 < float(rows["end to end"][2].split()[0]) < 3
        assert rows["video, but for portrait"][3:5] == [" 1.0000 ", " 1.0000 "]
    assert "- decode: " not in parts[0]
    assert "- decode: " in parts[1]
    assert printed.count("- operations over the arithmetic: 1, at most 1 is asked: met") == 2


def test_targets(bench):
    """Half the seconds meets what is asked, twice the seconds does not; nor does a hundredth of an operation too many."""
    one, two, more = (bench.Phases(text=1, portrait=1, denoise=4 * n, decode=n, passes=4) for n in (1, 2, 1.01))
    for pair, work, words in (((one, two), one, ["met"] * 3), ((two, one), more, ["missed"] * 3)):
        lines = bench.tables("lite", [pair] * 3, (work, two, one))
        told = {line.split(":")[0]: line.split(": ")[-1] for line in lines if line.startswith("- ")}
        assert list(told) == ["- end to end", "- operations over the arithmetic", "- decode"]
        assert list(told.values()) == words


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--reference", "/nowhere"], "no checkout of bytedance/lynx"),
        ([], "--reference"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--size", "14b", "--device", "cpu"], "needs a CUDA GPU"),
        (["--size", "huge"], "invalid choice"),
    ],
)
def test_requests_that_cannot_be_run(bench, checkout, capsys, arguments, word):
    given = arguments if not arguments or arguments[0] == "--reference" else ["--reference", str(checkout), *arguments]
    with pytest.raises(SystemExit) as ended:
        bench.parse(given)
    assert ended.value.code == 2
    assert word in capsys.readouterr().err


def test_precision_follows_the_device(bench, checkout):
    assert bench.parse(["--reference", str(checkout), "--device", "cpu"]).dtype == "fp32"
    assert bench.parse(["--reference", str(checkout), "--device", "cuda"]).dtype == "bf16"


def test_sizes(bench):
    """The mid-size clip has a few thousand tokens and the widths of the real thing's parts fit together."""
    for size in bench.MADE.values():
        for arm in bench.ARMS:
            config = size.adapter(arm, 96, 2, 4)
            assert config.resampler.output == config.identity.tokens
    components = SimpleNamespace(**{arm: bench.MADE["mid"].defaults(arm) for arm in bench.ARMS})
    tokens = [((one.num_frames - 1) // 4 + 1) * (one.height // 16) * (one.width // 16) for one in vars(components).values()]
    assert all(2000 < one < 5000 for one in tokens)
