"""What a clip will take, told beforehand: held against the real modules, a real run, and the arithmetic of passes and steps."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lynx_video.adapters.attach import Adapter
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline import released
from lynx_video.pipeline.forecast import forecast, needs
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.load import survey
from lynx_video.pipeline.models import NANO
from lynx_video.runtime.device import Device, Rates
from lynx_video.runtime.memory import GIB
from lynx_video.types import Identity

GOLDEN = Path(__file__).parents[1] / "golden"
RATES = Rates(matmul=1e12, attention=5e11, convolution=2e11, traffic=1e11, link=1e10, start=0.0)
CPU = Device(name="a CPU", kind="cpu", memory=64 * GIB, free=60 * GIB, host_memory=64 * GIB, host_free=60 * GIB)
CARD = replace(CPU, name="a card", kind="cuda", memory=24 * GIB, free=24 * GIB, capability=(8, 9))
TINY = {"num_frames": 5, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def tell():
    """tell(blueprint, ..., runtime=..., device=...) is a forecast for a made-up device."""

    def make(blueprint, runtime=RuntimeConfig(), device=CPU, computed=None, **settings):  # noqa: B008 (a frozen value)
        return forecast(blueprint, GenerateConfig(**settings), runtime, device=device, rates=RATES, computed=computed)

    return make


@pytest.fixture(scope="module")
def golden_blueprint():
    def make(arm="full", dtype=torch.float32):
        return survey(base=GOLDEN / "base", adapter=GOLDEN / f"lynx_{arm}", dtype=dtype, device="cpu")

    return make


@pytest.fixture(scope="module")
def real():
    """real("lynx-full") is a blueprint of that model for a card, by its known shapes."""

    def make(model="lynx-full", **settings):
        made = released.released(model, ("base", "adapter"), dtype="bf16", device="cpu", **settings)
        return replace(made, device="cuda")

    return make


def size(module):
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_weights_are_those_of_the_loaded_modules(arm, dtype, golden_blueprint, load_golden, tell):
    loaded, sizes = load_golden(arm, dtype), tell(golden_blueprint(arm, dtype), **TINY).sizes
    linears = sum(rows * columns for rows, columns in (*sizes.linears, *sizes.text_linears)) * sizes.word
    assert sizes.outside + sizes.blocks * (sizes.block_rest + linears) == size(loaded.transformer)
    assert sizes.text_encoder == size(loaded.text_encoder)
    assert sizes.encoder_outside + 2 * sizes.encoder_layer == sizes.text_encoder
    assert sizes.vae == size(loaded.vae)
    assert sizes.adapter == size(loaded.adapter)
    parts = (loaded.adapter.resampler, *loaded.adapter.identity.values(), *loaded.adapter.reference.values())
    assert sizes.adapter_piece == max(size(part) for part in parts)


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_memories_are_those_of_the_loaded_modules(arm, golden_blueprint, load_golden, sitter, tell):
    from lynx_video.adapters.memory import text_memory
    from lynx_video.pipeline.memories import remember

    loaded = load_golden(arm)
    persons = remember(loaded, sitter(), reference_seed=None)
    persons = persons[0] if isinstance(persons, list) else persons
    made = sum(tensor.nbytes for memory in persons.values() for tensor in memory.tensors().values())
    text = text_memory(loaded.transformer, torch.zeros(1, 512, 48))
    made += 2 * sum(tensor.nbytes for pair in text.blocks.values() for tensor in pair)
    assert tell(golden_blueprint(arm), **TINY).sizes.memories == made
    unguided = tell(golden_blueprint(arm), **TINY, guidance_scale=1.0).sizes.memories
    assert made - unguided == sum(tensor.nbytes for pair in text.blocks.values() for tensor in pair)


class Alive(TorchDispatchMode):
    """The most bytes alive at once of what is made within it."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        for one in tree_leaves(out):
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(("model", "dtype"), [("nano", "fp32"), ("nano-lite", "bf16")])
def test_a_run_keeps_alive_what_was_told(model, dtype, tell):
    """Beside the weights, at most, over a whole clip: to a tenth."""
    from lynx_video import load

    loaded = load(model, device="cpu", dtype=dtype)
    side = loaded.defaults.reference_size
    who = Identity(embedding=torch.randn(512), crop=np.zeros((side, side, 3), np.uint8), aligned=None)
    settings = {"num_frames": 9, "height": 128, "width": 128, "num_inference_steps": 2}
    told = tell(survey(model, device="cpu", dtype=dtype), **settings).layout.peak
    weights = sum(size(part) for part in (loaded.transformer, loaded.text_encoder, loaded.vae, loaded.adapter))
    with Alive() as alive:
        generate(loaded, who, "a person waves", GenerateConfig(**settings))
    assert told - weights == pytest.approx(alive.peak, rel=0.1)


def test_forwards_follow_the_table_of_passes(real, tell):
    def forwards(**settings):
        runtime = RuntimeConfig(**{name: settings.pop(name) for name in ("pass_degree",) if name in settings})
        return tell(real(), runtime, **settings).facts["forwards"]

    assert forwards() == 150
    assert forwards(guidance_scale_i="none") == 100
    assert forwards(guidance_scale=1.0) == 50
    assert forwards(guidance_stop=0.6) == 110
    assert forwards(pass_degree=3) == 50
    assert forwards(pass_degree=2) == 100
    assert tell(real("lynx-lite")).facts["forwards"] == 100


def test_steps_from_the_cache_are_not_counted(real, tell):
    computed = [i % 2 == 0 or i == 49 for i in range(50)]
    plain, cached = tell(real()), tell(real(), step_cache=0.1, computed=computed)
    assert (cached.facts["steps"], cached.facts["steps_computed"], cached.facts["forwards"]) == (50, 26, 78)
    assert cached.layout.seconds["denoising"] == pytest.approx(plain.layout.seconds["denoising"] * 78 / 150)
    assert cached.sizes.kept == 4 * 32_760 * 5120 * 2
    assert "24 from the step cache" in cached.text
    assert "not calibrated" in tell(real(), step_cache=0.1).text


def test_the_calibration_of_a_model_says_which_steps_are_computed(golden_blueprint, tell, tmp_path):
    from lynx_video.pipeline.calibration import made_for, save_calibration
    from lynx_video.runtime.cache import Calibration

    file = tmp_path / "step_cache.json"
    save_calibration(file, Calibration(sigmas=(1.0, 0.5, 0.001), drift=(0.2, 0.2)), made_for(golden_blueprint()))
    found = tell(replace(golden_blueprint(), calibration=file), **TINY, num_inference_steps=20, step_cache=0.1)
    assert 2 < found.facts["steps_computed"] < 12
    assert tell(replace(golden_blueprint(), calibration=file), **TINY, num_inference_steps=20).facts["steps_computed"] == 20


def test_time_is_arithmetic_over_rates(real, tell):
    facts = tell(real()).facts
    work, seconds = facts["arithmetic"], facts["seconds"]
    attention = sum(work[f"{name} attention"] for name in ("text", "identity", "reference")) + work["self-attention"]
    products = (work["linear layers"] / 1e12 + attention / 5e11) / 0.8
    assert seconds["denoising"] > products
    assert seconds["denoising"] == pytest.approx(products + 150 * 194 * 40 * 32_760 * 5120 * 2 / 1e11)
    assert seconds["decoding"] == pytest.approx(work["VAE decoder"] / 2e11, rel=1e-3)
    assert work["linear layers"] + work["self-attention"] == pytest.approx(150 * (783 + 879) * 1e12, rel=5e-3)
    quick = tell(real(), RuntimeConfig(compile=True)).facts["seconds"]["denoising"]
    assert products < quick < seconds["denoising"]


def test_processes_share_the_tokens(real, tell):
    one, four = tell(real()), tell(real(), RuntimeConfig(ulysses_degree=4))
    assert four.facts["video_tokens"] == one.facts["video_tokens"] // 4
    assert four.sizes.forward == pytest.approx(one.sizes.forward / 4, rel=1e-3)
    assert four.layout.seconds["denoising"] < one.layout.seconds["denoising"] / 3.9


def test_a_batch_of_passes_takes_their_activations_together(golden_blueprint, tell):
    plain, batch = (tell(golden_blueprint(), RuntimeConfig(passes=one), **TINY).sizes for one in ("sequential", "batched"))
    assert batch.forward == 3 * plain.forward
    assert batch.memories == 2 * plain.memories


def test_two_experts_take_their_weights_and_memories_twice(golden_blueprint, tell):
    one, two = (tell(replace(golden_blueprint(), boundary=boundary), **TINY) for boundary in (0.0, 900.0))
    assert (one.sizes.experts, two.sizes.experts) == (1, 2)
    assert two.sizes.memories == 2 * one.sizes.memories
    weights = one.sizes.outside + one.sizes.blocks * one.sizes.block_rest
    assert two.layout.device["denoising"] - one.layout.device["denoising"] > weights + one.sizes.memories


def test_parts_that_are_off_are_not_held(real, tell):
    full, plain = tell(real()), tell(real(parts=frozenset()))
    assert plain.sizes.adapter == plain.sizes.remembering == 0
    assert full.sizes.memories - plain.sizes.memories == 2 * 2 * 40 * (256 + 32) * 5120 * 2
    assert plain.facts["arithmetic"]["reference attention"] == 0
    assert tell(real(parts=frozenset({"identity"}))).sizes.adapter < 0.6 * full.sizes.adapter


def test_base_and_full_adapter_within_24_gigabytes(real):
    """A card of 150 TFLOP/s and PCIe 4, with 64 GB of host memory: exact, and at most a tenth of the time lost."""
    rates = Rates(matmul=150e12, attention=140e12, convolution=60e12, traffic=0.9e12, link=22e9, start=4e-6)
    found = forecast(real(), GenerateConfig(), RuntimeConfig(vram_budget=24), device=CARD, rates=rates)
    assert found.layout.exact
    assert found.layout.peak <= 24 * GIB
    assert found.layout.slowdown <= 1.1
    assert found.facts["budget_bytes"] == 24 * GIB


def test_advice(real, tell):
    assert "with --vram-budget 24 it does (exact)" in tell(real(), device=CARD).text
    slow = replace(RATES, matmul=1e15, attention=1e15, traffic=4e12, link=2e9)
    short = {"num_frames": 5, "height": 256, "width": 256}
    found = forecast(real(), GenerateConfig(**short), RuntimeConfig(vram_budget=24), device=CARD, rates=slow)
    assert found.layout.exact
    assert "--quantize fp8 would take" in found.text
    assert "but is not exact" in found.text
    assert "Only 3.0 GiB of the device are free now" in tell(real(), device=replace(CARD, memory=80 * GIB, free=3 * GIB)).text
    poor = replace(CARD, host_memory=32 * GIB, host_free=28 * GIB)
    found = forecast(real(), GenerateConfig(), RuntimeConfig(vram_budget=24), device=poor, rates=RATES)
    assert not found.layout.exact
    assert "An exact layout would fit the budget but needs" in found.text
    assert "The host memory for it is not there" in tell(real(), device=replace(CPU, host_free=GIB)).text
    assert tell(real(), device=replace(CARD, memory=80 * GIB, free=80 * GIB)).facts["advice"] == []


def test_text_and_facts(real, tell):
    found = tell(real(), RuntimeConfig(vram_budget=24), device=CARD)
    facts = json.loads(json.dumps(found.facts))
    assert facts["by_known_shapes"]
    assert set(facts["memory"]) == set(facts["seconds"]) == {"texts", "memories", "denoising", "decoding"}
    assert max(facts["memory"].values()) == facts["peak_bytes"] <= 24 * GIB
    for words in (
        "81 frames of 832x480, 50 steps, 150 forwards of 32,760 video tokens on a card",
        "By the known shapes",
        "PFLOP",
    ):
        assert words in found.text
    assert found.summary.startswith("exact layout, about ")
    assert all(len(line) < 240 for line in found.text.splitlines())


def test_a_budget_that_cannot_be_met(real, tell):
    with pytest.raises(BadRequest, match=r"--vram-budget 5 is too little .* at least \d"):
        tell(real(), RuntimeConfig(vram_budget=5), device=CARD)
    with pytest.raises(BadRequest, match="num_frames must be 4k"):
        tell(real(), num_frames=80)


@pytest.mark.parametrize(("model", "arm"), [("lynx-full", "lynx_full"), ("lynx-lite", "lynx_lite")])
def test_known_shapes_are_those_of_the_released_files(model, arm, real):
    manifest = json.loads((GOLDEN / "manifest_14b.json").read_text())[arm]
    numbers = sum(int(np.prod(shape)) for tensors in manifest.values() for shape in tensors.values())
    with torch.device("meta"):
        adapter = Adapter(released.adapter_config(real(model).arm))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == numbers
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert sum(parameter.numel() for parameter in vae.parameters()) == released.VAE_NUMBERS
    assert all(list(vae.config[name]) == list(value) for name, value in released.VAE.items() if isinstance(value, tuple))


def test_what_is_missing_is_replaced_by_known_shapes(tmp_path):
    assert released.missing_parts("nano", None, (), tmp_path) == ()
    assert released.missing_parts("lynx-full", None, (), tmp_path) == ("base", "adapter")
    (tmp_path / "lynx_full").mkdir()
    assert released.missing_parts("lynx-full", None, (), tmp_path) == ("base",)
    assert released.missing_parts("lynx-full", str(GOLDEN / "base"), (), tmp_path) == ()
    with pytest.raises(BadRequest):  # an adapter that is there counts, and this one is empty
        released.released("lynx-full", ("base",), models=tmp_path, device="cpu")
    shutil.copytree(GOLDEN / "base", tmp_path / "Wan2.1-T2V-14B-Diffusers")
    assert released.missing_parts("lynx-lite", None, (), tmp_path) == ("adapter",)
    made = released.released("lynx-lite", ("adapter",), models=tmp_path, device="cpu")
    assert made.base_name == str(tmp_path / "Wan2.1-T2V-14B-Diffusers")
    assert (made.blocks, made.files.arm, made.defaults.num_frames) == (4, "lite", 121)


def test_what_the_released_models_need():
    for name, adapter in (("lynx-full", 8.6), ("lynx-lite", 1.0)):
        found = needs(name)
        assert found.kept > (28.6 + 11.4 + 0.25 + adapter) * 1e9
        assert (28.6 + 11.4) * 1e9 < found.idle < found.kept
        assert 6 * GIB < found.least < 9 * GIB


def test_nano_is_told_by_its_files(tell):
    found = tell(survey("nano", device="cpu"))
    assert not found.facts["by_known_shapes"]
    assert found.facts["base"] == str(NANO / "base")
    assert found.layout.peak < GIB / 10
