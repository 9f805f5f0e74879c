"""`lynx-video plan`: the table and the JSON, for what is there and for what is not, and budgets that cannot be met."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ("--num-frames", 5, "--height", 64, "--width", 64)


@pytest.fixture
def told(lynx, tmp_path):
    """told("--model", "lynx-full", ...) is what `plan --json` answers, with an empty models folder."""

    def call(*arguments):
        done = lynx("plan", "--models", tmp_path, "--json", *arguments)
        assert (done.code, done.err) == (0, ""), done
        return json.loads(done.out)

    return call


def test_nano(lynx, told):
    done = lynx("plan")
    assert (done.code, done.err) == (0, "")
    for words in ("forwards of", "exact: everything stays", "Memory", "Host memory", "Time", "denoising", "measured here"):
        assert words in done.out
    assert "known shapes" not in done.out
    facts = told("--model", "nano-lite")
    assert (facts["model"], facts["arm"], facts["by_known_shapes"], facts["exact_layout"]) == ("nano-lite", "lite", False, True)
    assert 0 < facts["peak_bytes"] < 2**28
    assert sum(facts["seconds"].values()) > 0


def test_a_released_model_that_is_not_there_is_planned_by_its_shapes(lynx, told, tmp_path):
    facts = told("--model", "lynx-full", "--torch-dtype", "bf16")
    assert facts["by_known_shapes"]
    assert (facts["forwards"], facts["video_tokens"]) == (150, 32_760)
    assert facts["peak_bytes"] > 48e9
    budget = told("--model", "lynx-full", "--torch-dtype", "bf16", "--vram-budget", 24)
    assert budget["offload"] == "block"
    assert budget["peak_bytes"] <= budget["budget_bytes"] == 24 * 2**30
    without = told("--model", "lynx-full", "--ref-scale", 0, "--ip-scale", 0, "--torch-dtype", "bf16")
    assert facts["peak_bytes"] - without["peak_bytes"] > 8e9
    done = lynx("plan", "--model", "lynx-lite", "--models", tmp_path)
    assert "By the known shapes: the base's weights are not there." in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_model_by_path(told):
    facts = told("--base-model-path", GOLDEN / "base", "--adapter-path", GOLDEN / "lynx_lite", *SMALL)
    assert (facts["base"], facts["arm"], facts["forwards"]) == (str(GOLDEN / "base"), "lite", 100)


def test_options_of_generate_count(told):
    plain = told(*SMALL)
    assert told(*SMALL, "--guidance-stop", 0.5)["forwards"] < plain["forwards"]
    assert told(*SMALL, "--preset", "balanced")["forwards"] < plain["forwards"]
    stored = told(*SMALL, "--quantize", "fp8-storage", "--vae-tiling")
    assert (stored["quantize"], stored["vae_tiling"], stored["exact_layout"]) == ("fp8-storage", True, False)
    assert stored["memory"]["denoising"] < plain["memory"]["denoising"]
    assert told(*SMALL, "--idle-models", "free")["idle_models"] == "free"


def test_a_budget_that_is_met(told):
    plain = told(*SMALL)
    budget = plain["peak_bytes"] / 2**30 * 0.7
    facts = told(*SMALL, "--vram-budget", budget)
    assert facts["peak_bytes"] <= facts["budget_bytes"] < plain["peak_bytes"]
    assert facts["exact_layout"]


def test_doctor_says_what_the_plan_says(tmp_path):
    from lynx_video.cli.doctor import GIB, NANO_ADAPTERS, NEEDS, judge
    from lynx_video.pipeline.forecast import needs

    there = dict.fromkeys([*NANO_ADAPTERS, *sum(NEEDS.values(), ())], True)
    for name in NEEDS:
        need = needs(name)
        for size, said in (
            (need.kept, "fits this GPU, by"),
            (need.idle, "fits this GPU with --idle-models free, by"),
            (24 * GIB, "fits this GPU with --vram-budget 24, by"),
            (need.least + GIB // 10, "fits this GPU with --vram-budget"),
            (need.least - GIB // 10, "does not fit this GPU"),
            (0, "no CUDA GPU"),
        ):
            verdict = judge({"gpu_bytes": size}, {"onnxruntime": "1"}, there, tmp_path)[name]
            assert said in verdict
            assert "estimate" in verdict


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vram-budget", 0.001), "--vram-budget 0.001 is too little for this request: at least 0.0"),
        (("--model", "lynx-full", "--vram-budget", 2), "--vram-budget 2 is too little for this request: at least "),
        (("--model", "lynx-full", "--num-frames", 80), "num_frames must be 4k + 1, got 80"),
        (("--quantize", "fp8"), "quantize fp8"),
        (("--base-model-path", "absent", "--adapter-path", "absent"), "absent"),
    ],
)
def test_what_cannot_be_is_one_sentence(lynx, tmp_path, arguments, said):
    done = lynx("plan", "--models", tmp_path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err
