"""`lynx-video bench`: flags to sides, tables and JSON, and one sentence for what cannot be."""

import json

import pytest
import torch

from lynx_video.cli.bench import BenchFlags, sides_of
from lynx_video.errors import BadRequest
from lynx_video.presets import SPEED
from lynx_video.studio.setup import ModelFlags

FAST = ("--size", "nano", "--rounds", 1, "--steps", 1, "--num-inference-steps", 2, "--num-frames", 3, "--device", "cpu")


def sides(model=ModelFlags(), **flags):  # noqa: B008 (a frozen value)
    return {side.name: side for side in sides_of(model, BenchFlags(**flags))}


def test_sides_by_default():
    found = sides()
    assert {name: side.way for name, side in found.items()} == {"plain": "plain", "exact": "ours", "wan": "wan"}
    assert list(sides(sides="wan")) == ["exact", "wan"]


def test_every_flag_is_a_side():
    found = sides(presets="exact, balanced,fast", backends="native", compile=True, quantize="int8,nf4", budgets="24,0.5")
    assert list(found) == [
        *("plain", "exact", "wan", "balanced", "fast", "native", "compiled"),
        *("int8", "int8 compiled", "nf4", "nf4 compiled", "24 GB", "0.5 GB"),
    ]
    for name in ("balanced", "fast"):
        preset = SPEED[name]()
        assert all(getattr(found[name].config, key) == value for key, value in preset.generation.items())
        assert all(getattr(found[name].runtime, key) == value for key, value in preset.runtime.items())
    assert found["native"].runtime.attention_backend == "native"
    assert found["nf4 compiled"].runtime.compile
    assert not found["nf4"].runtime.compile
    assert [side.runtime.vram_budget for side in found.values() if side.own_weights] == [24, 0.5]
    assert sides(backends="flex")["flex"].runtime.compile


def test_all_sides_make_the_same_clip():
    found = sides(num_frames=5, height=64, width=32, num_inference_steps=7, presets="balanced")
    assert {(one.config.num_frames, one.config.height, one.config.width) for one in found.values()} == {(5, 64, 32)}
    assert {one.config.num_inference_steps for one in found.values()} == {7}


def test_a_preset_without_its_lora_says_so_in_its_row(tmp_path):
    there = tmp_path / "few_step.safetensors"
    model = ModelFlags(model="lynx-full", models=tmp_path)
    assert "few-step LoRA" in sides(model, presets="draft")["draft"].unable
    there.write_bytes(b"")
    draft = sides(model, presets="draft")["draft"]
    assert (draft.unable, draft.runtime.lora_path) == ("", (str(there),))
    assert sides(model, presets="draft", size="mid")["draft"].unable


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"sides": "plain,ours"}, "--sides: unknown 'ours'; choose from plain, exact, wan."),
        ({"presets": "quick"}, "--presets: unknown 'quick'; choose from exact, balanced, fast, draft."),
        ({"backends": "cuda"}, "--backends: unknown 'cuda'"),
        ({"quantize": "int4"}, "--quantize: unknown 'int4'; choose from fp8, fp8-storage, int8, nf4."),
        ({"budgets": "24,small"}, "--budgets: 'small' is no number of GB"),
        ({"budgets": "-1"}, "vram_budget must be a number"),
        ({"rounds": 0}, "--rounds must be a whole number from 1"),
        ({"steps": 0}, "--steps must be 1 or more"),
    ],
    ids=str,
)
def test_bad_requests(flags, said):
    with pytest.raises(BadRequest) as caught:
        sides(**flags)
    assert said in str(caught.value)


def test_tables_and_a_file(lynx, tmp_path):
    file = tmp_path / "new" / "bench.md"
    done = lynx("bench", *FAST, "--output", file)
    assert (done.code, done.out) == (0, file.read_text())
    rows = [line.split("|")[1].strip() for line in done.out.splitlines() if line.startswith("| ")]
    assert rows == ["", "---", "plain", "exact", "wan"] * 2 or rows == ["", "plain", "exact", "wan"] * 2
    assert "random weights" in done.out
    assert "round 1 of 1: exact, plain, wan" in done.err
    again = lynx("bench", *FAST, "--output", file)
    assert again.code == 2
    assert "exists already" in again.err


def test_json(lynx):
    done = lynx("bench", *FAST, "--no-video", "--sides", "exact", "--quantize", "fp8", "--arm", "lite", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["output"] is None
    assert found["model"] == "a nano model with random weights, lite adapter"
    assert found["sides"]["exact"]["forward_ratio"] == 1
    assert "NVIDIA" in found["sides"]["fp8"]["missing"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "14b"), "made on a CUDA GPU"),
        (("--size", "mid", "--model", "nano"), "--size makes a model with random weights: leave out --model."),
        (("--arm", "lite"), "--arm belongs to --size"),
        (("--num-frames", 4, "--size", "nano"), "num_frames must be 2k + 1, got 4"),
        (("--output", "bench.txt"), "unknown extension"),
        (("--model", "lynx-full", "--models", "nowhere"), "is not there"),
    ],
    ids=str,
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="some of it would run")
def test_what_cannot_be_is_one_sentence(lynx, words, said):
    done = lynx("bench", *words, "--rounds", 1)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1


def test_help_names_the_reference_and_the_script(lynx):
    said = " ".join(lynx("bench", "--help").out.split())
    assert "benchmarks/reference.py --reference PATH" in said
    assert "benchmarks/gpu.sh" in said
    for word in ("--size", "--budgets", "--no-video", "--weigh", "--profile", "--calibration"):
        assert word in said
