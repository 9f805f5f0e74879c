"""Layouts under a budget: what fits, in which order harm is done, and activations as the real modules keep them alive."""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.released import released
from lynx_video.pipeline.workload import describe, pace_of, sizes_of, work_of
from lynx_video.runtime import memory
from lynx_video.runtime.device import Device, Rates
from lynx_video.runtime.flops import shape_of
from lynx_video.runtime.memory import (
    GIB,
    HARM,
    Layout,
    Pace,
    activations,
    choose_layout,
    crowded,
    gib,
    least_budget,
)
from lynx_video.runtime.quantize import KINDS

CARD = Device(
    name="card", kind="cuda", memory=24 * GIB, free=24 * GIB, host_memory=96 * GIB, host_free=90 * GIB, capability=(8, 9)
)
CARD_RATES = Rates(matmul=150e12, attention=140e12, convolution=60e12, traffic=0.9e12, link=22e9, start=4e-6)
SERVER_RATES = Rates(matmul=790e12, attention=600e12, convolution=200e12, traffic=4e12, link=50e9, start=4e-6)
HOST = Device(name="host", kind="cpu", memory=64 * GIB, free=60 * GIB, host_memory=64 * GIB, host_free=60 * GIB)


def request(model, rates=CARD_RATES, **settings):
    """Sizes and pace of a request to a released model in bf16, by its known shapes."""
    blueprint = replace(released(model, ("base", "adapter"), dtype="bf16", device="cpu"), device="cuda")
    config, runtime, described = GenerateConfig(**settings), RuntimeConfig(), describe(blueprint)
    work = work_of(blueprint, config, runtime, described, None)
    return sizes_of(blueprint, config, runtime, described, work), pace_of(runtime, described, work, rates)


@pytest.mark.parametrize("rates", [CARD_RATES, SERVER_RATES], ids=["card", "server"])
@pytest.mark.parametrize("budget", [24, 16, 12, 8])
@pytest.mark.parametrize("model", ["lynx-full", "lynx-lite"])
def test_every_budget_has_a_layout(model, budget, rates, monkeypatch):
    monkeypatch.setattr(memory, "has_four_bits", lambda: True)
    sizes, pace = request(model, rates)
    layout = choose_layout(sizes, budget * GIB, RuntimeConfig(), CARD, pace=pace)
    assert layout.peak <= budget * GIB
    assert layout.peak == max(layout.device.values())
    assert layout.slowdown <= 1.1
    assert layout.exact != (model == "lynx-lite" and budget == 8)
    assert layout.exact == (layout.quantize == "none" and not layout.vae_tiling)


@pytest.mark.parametrize("rates", [CARD_RATES, SERVER_RATES], ids=["card", "server"])
@pytest.mark.parametrize("model", ["lynx-full", "lynx-lite"])
def test_more_memory_is_never_slower_nor_less_exact(model, rates):
    sizes, pace = request(model, rates)
    least = least_budget(sizes, CARD)
    layouts = [choose_layout(sizes, budget, RuntimeConfig(), CARD, pace=pace) for budget in range(least, 64 * GIB, GIB // 4)]
    for less, more in itertools.pairwise(layouts):
        assert more.harm <= less.harm
        assert more.slowdown <= less.slowdown
        assert (more.harm, more.slowdown, more.moves) <= (less.harm, less.slowdown, less.moves)
    assert layouts[-1].moves == 0
    assert layouts[-1].slowdown == 1
    assert layouts[0].harm > 0


def test_exactness_comes_before_speed():
    """A short clip over a slow link: exact is several times as long, and a budget gives nothing of the likeness away for it."""
    sizes, pace = request("lynx-full", replace(CARD_RATES, link=3e9), num_frames=5, height=256, width=256)
    layout = choose_layout(sizes, 24 * GIB, RuntimeConfig(), CARD, pace=pace)
    assert layout.exact
    assert layout.offload == "block"
    assert layout.slowdown > 3
    quick = choose_layout(sizes, 24 * GIB, RuntimeConfig(quantize="fp8-storage"), CARD, pace=pace)
    assert not quick.exact
    assert quick.offload == "none"
    assert sum(quick.seconds.values()) < 0.5 * sum(layout.seconds.values())


@pytest.mark.parametrize("quantize", KINDS)
def test_what_is_asked_for_holds(quantize):
    sizes, pace = request("lynx-full")
    layout = choose_layout(sizes, 24 * GIB, RuntimeConfig(quantize=quantize), CARD, pace=pace)
    assert layout.quantize == quantize
    assert not layout.exact
    assert layout.harm == HARM[quantize] > 0
    layout = choose_layout(
        sizes, 40 * GIB, RuntimeConfig(offload="block", vae_tiling=True), CARD, pace=pace, idle_models="free"
    )
    assert (layout.offload, layout.vae_tiling, layout.idle_models, layout.exact) == ("block", True, "free", False)
    layout = choose_layout(sizes, 24 * GIB, RuntimeConfig(offload="none"), CARD, pace=pace)
    assert (layout.offload, layout.quantize) == ("none", "fp8-storage")


def test_without_a_budget_nothing_is_chosen():
    sizes, pace = request("lynx-full")
    assert choose_layout(sizes, None, RuntimeConfig(), CARD, pace=pace).moves == 0
    layout = choose_layout(sizes, None, RuntimeConfig(offload="block", quantize="fp8"), CARD, pace=pace, idle_models="offload")
    assert (layout.offload, layout.quantize, layout.idle_models, layout.text_encoder) == ("block", "fp8", "offload", "whole")


def test_a_budget_that_cannot_be_met_names_the_one_that_can():
    sizes, pace = request("lynx-full")
    with pytest.raises(BadRequest, match=r"--vram-budget 4 is too little for this request: at least [\d.]+ is needed") as told:
        choose_layout(sizes, 4 * GIB, RuntimeConfig(), CARD, pace=pace)
    least = float(str(told.value).split("at least ")[1].split()[0])
    assert str(told.value).count(". ") == 0
    assert choose_layout(sizes, round(least * GIB), RuntimeConfig(), CARD, pace=pace).peak <= least * GIB
    with pytest.raises(BadRequest, match="too little"):
        choose_layout(sizes, round((least - 0.02) * GIB), RuntimeConfig(), CARD, pace=pace)
    with pytest.raises(BadRequest, match=f"without the given --quantize, --offload or --vae-tiling {least:g} would do"):
        choose_layout(sizes, 16 * GIB, RuntimeConfig(offload="none", quantize="none"), CARD, pace=pace)


def test_four_bits_are_the_last_resort(monkeypatch):
    sizes, _ = request("lynx-lite")
    monkeypatch.setattr(memory, "has_four_bits", lambda: True)
    least = least_budget(sizes, CARD)
    layout = choose_layout(sizes, least, RuntimeConfig(), CARD)
    assert (layout.quantize, layout.exact) == ("nf4", False)
    monkeypatch.setattr(memory, "has_four_bits", lambda: False)
    with pytest.raises(BadRequest, match="too little"):
        choose_layout(sizes, least, RuntimeConfig(), CARD)
    assert choose_layout(sizes, least_budget(sizes, CARD), RuntimeConfig(), CARD).quantize == "fp8-storage"


def test_host_memory_counts():
    """First blocks that are not pinned, then blocks in 8 bits; what there is no room for is taken only if nothing else fits."""
    sizes, pace = request("lynx-full")

    def on(gigabytes):
        device = replace(CARD, host_free=gigabytes * GIB)
        layout = choose_layout(sizes, 12 * GIB, RuntimeConfig(), device, pace=pace)
        return layout, crowded(layout, device)

    plenty, tight, little, nothing = (on(gigabytes) for gigabytes in (90, 45, 28, 8))
    assert (plenty[0].pinned, plenty[0].exact, plenty[1]) == (True, True, False)
    assert (tight[0].pinned, tight[0].exact, tight[1]) == (False, True, False)
    assert (little[0].exact, little[1]) == (False, False)
    assert (nothing[0].exact, nothing[1]) == (True, True)
    assert tight[0].host < plenty[0].host


def test_pinned_memory_takes_powers_of_two():
    sizes, _ = request("lynx-full")
    offloaded, plain = (choose_layout(sizes, None, RuntimeConfig(offload=one), CARD) for one in ("block", "none"))
    weights = sum(rows * columns * 2 for rows, columns in (*sizes.linears, *sizes.text_linears))
    rounded = sum(1 << (rows * columns * 2 - 1).bit_length() for rows, columns in (*sizes.linears, *sizes.text_linears))
    assert offloaded.host == plain.host + 40 * rounded
    assert 1.4 < rounded / weights < 1.6


def test_what_each_choice_saves():
    sizes, _ = request("lynx-full")
    plain = choose_layout(sizes, None, RuntimeConfig(), HOST)
    blocks = sizes.blocks * sum(rows * columns * 2 for rows, columns in (*sizes.linears, *sizes.text_linears))
    offloaded = choose_layout(sizes, None, RuntimeConfig(offload="block"), HOST)
    assert plain.device["denoising"] - offloaded.device["denoising"] == blocks * 38 // 40
    stored = choose_layout(sizes, None, RuntimeConfig(quantize="fp8-storage"), HOST)
    saved = plain.device["denoising"] - stored.device["denoising"]
    assert 0.47 * blocks < saved < 0.5 * blocks
    tiled = choose_layout(sizes, None, RuntimeConfig(vae_tiling=True), HOST)
    assert plain.device["decoding"] - tiled.device["decoding"] == sizes.decode - sizes.decode_tiled > 2 * GIB
    assert not tiled.exact
    free = choose_layout(sizes, None, RuntimeConfig(), HOST, idle_models="free")
    text = sizes.blocks * sum(
        rows * columns * 2 for rows, columns in sizes.text_linears
    )  # away too, once the prompts are projected
    away = sizes.text_encoder + sizes.vae + sizes.adapter + text
    assert plain.device["denoising"] - free.device["denoising"] == away
    cuda = choose_layout(sizes, None, RuntimeConfig(), CARD)
    assert 1.03 * plain.peak < cuda.peak < 1.06 * plain.peak  # the context, and what the allocator loses


def test_a_gguf_base_is_as_large_as_its_file_and_not_exact():
    sizes, pace = request("lynx-full")
    stored = replace(sizes, stored=0.6)
    layout = choose_layout(stored, None, RuntimeConfig(), CARD, pace=pace)
    assert not layout.exact
    assert layout.peak < 0.8 * choose_layout(sizes, None, RuntimeConfig(), CARD, pace=pace).peak
    assert choose_layout(stored, 24 * GIB, RuntimeConfig(), CARD, pace=pace).quantize == "none"


def test_hidden_fetching_costs_little_and_shown_fetching_what_the_link_takes():
    sizes, _ = request("lynx-full")
    block = sum(rows * columns * 2 for rows, columns in (*sizes.linears, *sizes.text_linears))
    quick = Pace(forward=40.0, forwards=10, link=block / 0.5)
    slow = replace(quick, link=block / 4.0)
    asked = RuntimeConfig(offload="block")
    assert choose_layout(sizes, None, asked, CARD, pace=quick).seconds["denoising"] == pytest.approx(10 * (40 * 1.02 + 0.5))
    assert choose_layout(sizes, None, asked, CARD, pace=slow).seconds["denoising"] == pytest.approx(10 * 41 * 4)


def test_four_bits_under_offload_leave_their_scales_on_the_device():
    sizes, _ = request("lynx-full")
    offloaded, whole = (
        choose_layout(sizes, None, RuntimeConfig(quantize="nf4", offload=one), HOST) for one in ("block", "none")
    )
    weights = sum(rows * columns for rows, columns in (*sizes.linears, *sizes.text_linears))
    assert whole.device["denoising"] - offloaded.device["denoising"] == 38 * weights // 2


def test_compiled_torchao_weights_are_not_offloaded():
    sizes, pace = request("lynx-full")
    compiled = RuntimeConfig(quantize="int8", compile=True)
    assert choose_layout(sizes, 24 * GIB, compiled, CARD, pace=pace).offload == "none"
    with pytest.raises(BadRequest, match="too little"):
        choose_layout(sizes, 12 * GIB, compiled, CARD, pace=pace)
    assert choose_layout(sizes, 12 * GIB, replace(compiled, compile=False), CARD, pace=pace).offload == "block"


def test_layouts_in_words():
    assert str(Layout()) == "everything stays on the device"
    said = str(Layout(quantize="fp8", offload="block", vae_tiling=True, idle_models="free", text_encoder="block"))
    for words in ("blocks in fp8", "blocks in host memory", "VAE in tiles", "text encoder (layer by layer)"):
        assert words in said
    assert (gib(23.4 * GIB), gib(3 * 2**20)) == ("23.4 GiB", "3.0 MiB")


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
            if not isinstance(one, torch.Tensor):
                continue
            storage = one.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known and key not in given:
                self.known.add(key)
                self.now += size
                weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("heads", "head_width", "inner", "size"),
    [(40, 128, 13824, (21, 60, 104)), (3, 64, 768, (9, 32, 32)), (12, 128, 8960, (13, 60, 104))],
    ids=["14b", "nano", "1.3b"],
)
def test_activations_are_what_the_real_modules_keep_alive(heads, head_width, inner, size, dtype):
    """On fake tensors, to 2%."""
    from diffusers import WanTransformer3DModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lynx_video.adapters.attach import Adapter, AdapterConfig
    from lynx_video.adapters.memory import Memory, TextMemory
    from lynx_video.adapters.projection import KeysValues

    about = {"num_attention_heads": heads, "attention_head_dim": head_width, "ffn_dim": inner, "num_layers": 3}
    with FakeTensorMode(), torch.no_grad():
        base = WanTransformer3DModel(**about, text_dim=64)
        for name, parameter in base.named_parameters():
            if not any(part in base._keep_in_fp32_modules for part in name.split(".")):
                parameter.data = parameter.data.to(dtype)
        adapter = Adapter(AdapterConfig(width=heads * head_width, heads=heads))
        adapter.attach(base)

        def pairs(count):
            return {i: KeysValues(*(torch.empty(1, count, heads, head_width, dtype=dtype) for _ in range(2))) for i in range(3)}

        text = TextMemory(embeddings=torch.empty(1, 512, 64, dtype=dtype), blocks=pairs(512))
        latents = torch.empty(1, 16, *size, dtype=dtype)
        person, timestep = Memory(identity=pairs(32), reference=pairs(256)), torch.empty(1)
        with adapter.using(person, text=text), Alive() as alive:
            base(latents, timestep, text.embeddings[:, :1], return_dict=False)
    shape = shape_of({**about, "text_dim": 64, "freq_dim": 256})
    expected = activations(shape, shape.tokens(*size), dtype.itemsize)
    assert 0.98 * expected < alive.peak < 1.02 * expected
