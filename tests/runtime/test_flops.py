"""Arithmetic from configurations: held against torch's own counter, the real modules' parameters and the sums worked out before."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lynx_video.adapters.memory import text_memory
from lynx_video.errors import BadRequest
from lynx_video.pipeline.condition import REFERENCE_PROMPT, encode_prompt
from lynx_video.pipeline.models import NANO
from lynx_video.runtime.flops import Terms, decode, encode, encoder_numbers, forward, moved, once, shape_of, tiles

GOLDEN = Path(__file__).parents[1] / "golden"
WAN_14B = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "num_layers": 40,
    "ffn_dim": 13824,
    "text_dim": 4096,
    "freq_dim": 256,
}
WAN_VAE = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "scale_factor_spatial": 8,
}
UMT5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 256384,
    "relative_attention_num_buckets": 32,
}
FULL = Terms(identity=32, identity_width=5120, identity_blocks=40, reference=256, reference_blocks=40)
LITE = Terms(identity=16, identity_width=2048, identity_blocks=20)


def counted(call):
    """Operations as torch counts them, fused attention on the CPU included."""

    def of_attention(query, key, value, *_, **__):
        return sdpa_flop_count(query, key, value)

    known = dict.fromkeys(
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, torch.ops.aten._scaled_dot_product_attention_math),
        of_attention,
    )
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def config(folder, part):
    return json.loads((folder / part / "config.json").read_text())


@pytest.mark.parametrize(
    ("frames", "tokens", "expected"),
    [
        (81, 32_760, {"linear": 783, "self": 879, "text": 16, "base": 1678}),
        (121, 48_360, {"linear": 1156, "self": 1916, "text": 22, "base": 3095}),
    ],
)
def test_the_table_of_the_14b(frames, tokens, expected):
    shape = shape_of(WAN_14B)
    assert shape.tokens((frames - 1) // 4 + 1, 60, 104) == tokens
    found, before = forward(shape, tokens, FULL), once(shape, FULL)
    text = found["text attention"] + before["text K/V"]
    base = found["linear layers"] + found["self-attention"] + text
    assert found["linear layers"] == pytest.approx(expected["linear"] * 1e12, rel=0.01)
    assert found["self-attention"] == pytest.approx(expected["self"] * 1e12, rel=0.01)
    assert round(text / 1e12) == expected["text"]
    assert base == pytest.approx(expected["base"] * 1e12, rel=0.01)


def test_what_the_adapters_add():
    shape = shape_of(WAN_14B)
    full, before = forward(shape, 32_760, FULL), once(shape, FULL)
    assert (full["identity attention"] + full["reference attention"]) / 1e12 == pytest.approx(7.7, abs=0.05)
    assert (before["identity K/V"] + before["reference K/V"]) / 1e12 == pytest.approx(1.2, abs=0.05)
    lite = forward(shape, 48_360, LITE)
    assert lite["identity attention"] / 1e12 == pytest.approx(0.32, abs=0.01)
    assert lite["reference attention"] == once(shape, LITE)["reference features"] == 0


def golden_terms(adapter):
    identity = adapter.config.identity
    return Terms(
        identity=adapter.config.resampler.queries + identity.registers,
        identity_width=identity.tokens,
        identity_blocks=len(adapter.config.identity_blocks),
        reference=256,
        reference_blocks=len(adapter.config.reference_blocks),
    )


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_a_forward_with_adapters_is_what_torch_counts(arm, attached, golden):
    data, adapter = golden("full_three_pass" if arm == "full" else "lite"), attached(arm)
    terms, text = golden_terms(adapter), text_memory(adapter.transformer, data["prompt_embeds"])
    with torch.no_grad():
        memory = adapter.remember(data["face_embedding"], torch.zeros(1, 16, 1, 32, 32), data["prompt_embeds"])
    latents = data["initial_latents"][:1]

    def run():
        with adapter.using(memory, text=text):
            adapter.transformer(latents, torch.ones(1), text.embeddings[:, :1])

    shape = shape_of(config(GOLDEN / "base", "transformer"))
    found = forward(shape, shape.tokens(*latents.shape[2:]), terms)
    assert sum(found.values()) == counted(run)
    assert all(found[name] > 0 for name in ("linear layers", "self-attention", "text attention", "identity attention"))


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_what_is_done_once_is_what_torch_counts(arm, attached, golden):
    data, adapter = golden("full_three_pass" if arm == "full" else "lite"), attached(arm)
    shape, found = shape_of(config(GOLDEN / "base", "transformer")), None
    found = once(shape, golden_terms(adapter))
    assert counted(lambda: text_memory(adapter.transformer, data["prompt_embeds"])) == found["text K/V"]
    resampler = counted(lambda: adapter.resampler(data["face_embedding"][None]))
    still = torch.zeros(1, 16, 1, 32, 32)
    of_person = counted(lambda: adapter.remember(data["face_embedding"], still, data["prompt_embeds"]))
    assert of_person == found["identity K/V"] + found["reference K/V"] + found["reference features"] + resampler


def test_a_forward_of_nano_is_what_torch_counts():
    from lynx_video import load

    model = load("nano", device="cpu", dtype="fp32")
    text = text_memory(model.transformer, torch.zeros(1, 24, model.transformer.config.text_dim))
    memory = model.adapter.identity_memory(torch.zeros(1, 512))
    from lynx_video.adapters.memory import Memory

    def run():
        with model.adapter.using(Memory(identity=memory), text=text):
            model.transformer(torch.zeros(1, 12, 3, 8, 10), torch.ones(1), text.embeddings[:, :1])

    shape = shape_of(config(NANO / "base", "transformer"))
    terms = golden_terms(model.adapter)
    found = forward(shape, shape.tokens(3, 8, 10), Terms(text=24, identity=terms.identity, identity_blocks=len(memory)))
    assert sum(found.values()) == counted(run)
    assert shape.parameters == sum(p.numel() for p in model.transformer.parameters())


def test_parameters_are_those_of_the_real_modules(stock_transformer):
    from lynx_video.shards import _kept

    shape = shape_of(WAN_14B)
    assert shape.parameters == 14_288_491_584
    model, toy = stock_transformer(), shape_of(config(GOLDEN / "base", "transformer"))
    floats = sum(p.numel() for name, p in model.named_parameters() if _kept(name))
    assert toy.parameters == sum(p.numel() for p in model.parameters())
    assert toy.blocks * toy.block_float + toy.outside_float == floats
    block = model.blocks[0]
    text = sum(p.numel() for layer in (block.attn2.to_k, block.attn2.to_v) for p in layer.parameters())
    assert toy.block_text == text
    matrices = sum(p.numel() for name, p in block.named_parameters() if p.ndim == 2)
    assert toy.block_linear == matrices - 2 * 96**2


def test_the_text_encoder_is_what_torch_counts(full):
    about = config(GOLDEN / "base", "text_encoder")
    layer, rest = encoder_numbers(about)
    assert 2 * layer + rest == sum(p.numel() for p in full.text_encoder.parameters())
    found = counted(lambda: encode_prompt(full.tokenizer, full.text_encoder, REFERENCE_PROMPT, 512))
    assert encode(about, 512) == pytest.approx(found, rel=5e-3)
    layer, rest = encoder_numbers(UMT5_XXL)
    assert 2 * (24 * layer + rest) == pytest.approx(11.4e9, rel=0.01)


@pytest.mark.parametrize("folder", [GOLDEN, NANO], ids=["golden", "nano"])
def test_decoding_is_what_torch_counts(folder):
    from diffusers import AutoencoderKLWan

    about = config(folder / "base", "vae")
    vae = AutoencoderKLWan.from_pretrained(folder / "base", subfolder="vae")
    latents = torch.zeros(1, about["z_dim"], 3, 6, 8)
    assert decode(about, 3, 6, 8) == counted(lambda: vae.decode(latents))
    assert decode(about, 1, 6, 8) == counted(lambda: vae.decode(latents[:, :, :1]))


def test_decoding_of_the_real_vae():
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan()
        latents = torch.empty(1, 16, 3, 6, 8)
    assert decode(dict(vae.config), 3, 6, 8) == decode(WAN_VAE, 3, 6, 8) == counted(lambda: vae.decode(latents))
    assert 0.05e15 < decode(WAN_VAE, 21, 60, 104) < 0.5e15  # a fifth of one forward or less


def test_tiles_are_those_of_the_vae():
    assert tiles(WAN_VAE, 32, 32) == [(32, 32)]
    found = tiles(WAN_VAE, 60, 104)
    assert len(found) == 3 * 5
    assert found[0] == (32, 32)
    assert found[-1] == (60 - 48, 104 - 96)
    assert 1.5 < sum(a * b for a, b in found) / (60 * 104) < 1.8


def test_elementwise_traffic_is_that_of_the_real_block():
    """On the real modules at the real width, made of fake tensors: to a twentieth; half precision moves more numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lynx_video.adapters.attach import Adapter, AdapterConfig
    from lynx_video.adapters.memory import Memory, TextMemory
    from lynx_video.adapters.projection import KeysValues

    shape = shape_of(WAN_14B)
    for dtype in (torch.bfloat16, torch.float32):
        with FakeTensorMode(), torch.no_grad():
            from diffusers import WanTransformer3DModel

            base = WanTransformer3DModel(num_layers=2)
            for name, parameter in base.named_parameters():
                if not any(part in base._keep_in_fp32_modules for part in name.split(".")):
                    parameter.data = parameter.data.to(dtype)
            adapter = Adapter(AdapterConfig(width=5120, heads=40))
            adapter.attach(base)

            def pair(count, dtype=dtype):
                return KeysValues(*(torch.empty(1, count, 40, 128, dtype=dtype) for _ in range(2)))

            text = TextMemory(embeddings=torch.empty(1, 512, 4096, dtype=dtype), blocks={i: pair(512) for i in range(2)})
            memory = Memory(identity={i: pair(32) for i in range(2)}, reference={i: pair(256) for i in range(2)})
            with Traffic() as traffic, adapter.using(memory, text=text):
                base(torch.empty(1, 16, 21, 60, 104, dtype=dtype), torch.empty(1), text.embeddings[:, :1])
        expected = moved(shape, 32_760, dtype.itemsize) * 2 / 40
        assert traffic.bytes == pytest.approx(expected, rel=0.05)


class Traffic(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes that operations read and write, products and views aside."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name
        if any(part in name for part in ("mm", "attention", "convolution", "detach", "empty")):
            return out
        read = [one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        written = [one for one in torch.utils._pytree.tree_leaves(out) if isinstance(one, torch.Tensor)]
        storages = {one.untyped_storage()._cdata for one in read}
        new = [one for one in written if one.untyped_storage()._cdata not in storages]
        if new or name.endswith("_"):
            self.bytes += sum(one.numel() * one.element_size() for one in (*read, *new))
        return out


def test_bad_config():
    with pytest.raises(BadRequest, match="does not describe a Wan transformer"):
        shape_of({"num_layers": 3})
