"""The known faults of other implementations, each as a test."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from lynx_video import GenerateConfig, load
from lynx_video.adapters.attach import Influence
from lynx_video.adapters.attention import Attention
from lynx_video.adapters.memory import Memory, reference_features
from lynx_video.adapters.projection import KeysValues
from lynx_video.adapters.weights import official_parameters
from lynx_video.config import FULL, LITE
from lynx_video.face.align import arcface_crop, reference_crop
from lynx_video.pipeline.condition import reference_latents
from lynx_video.pipeline.denoise import denoise, initial_noise
from lynx_video.pipeline.generate import generate, plan
from lynx_video.pipeline.guidance import passes
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def video(golden):
    data = golden("full_two_pass")
    return data["initial_latents"], torch.tensor([999.0]), data["prompt_embeds"]


def remember(adapter, data):
    return Memory(
        identity=adapter.identity_memory(data["face_embedding"][None]),
        reference=adapter.reference_memory([data[f"ref_buffer.cond.{i}"] for i in range(4)])
        if adapter.config.reference_blocks
        else {},
    )


@torch.no_grad()
def forward(transformer, video):
    return transformer(*video, return_dict=False)[0]


def test_no_rotary_embedding_on_the_reference_query(stock_transformer, video):
    """Where every token is the same and positions differ only by the rotary embedding, the reference term is the same."""
    transformer = stock_transformer()
    attention, generator = transformer.blocks[0].attn1, torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 1, 96, generator=generator).expand(1, 72, 96)
    processor = Attention()
    processor.memory = KeysValues(*(torch.randn(1, 256, 4, 24, generator=generator) * 4 for _ in range(2)))
    out = processor(attention, tokens, rotary_emb=transformer.rope(video[0]))
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-5)
    processor.memory = None
    assert (processor(attention, tokens, rotary_emb=transformer.rope(video[0])) - out).abs().max() > 0.01


def test_features_are_the_plain_base_s(attached, golden, stock_transformer, video):
    adapter, stock = attached("full"), copy.deepcopy(stock_transformer())
    still, text = video[0][:, :, :1], video[2]
    inputs = []
    for block in stock.blocks:
        block.attn1.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    forward(stock, (still, torch.zeros(1), text))
    features = reference_features(adapter.transformer, still, text)
    assert all(torch.equal(ours, plain) for ours, plain in zip(features, inputs, strict=True))
    with adapter.using(remember(adapter, golden("full_three_pass"))), pytest.raises(AssertionError, match="no memory in scope"):
        reference_features(adapter.transformer, still, text)
    assert not any(block.attn1._forward_pre_hooks for block in adapter.transformer.blocks)


def test_projections_are_never_applied_to_the_video(attached, golden, video, stock_transformer):
    """With projections of NaN everything still works: memories are all that a pass reads."""
    adapter = attached("full")
    memory = remember(adapter, golden("full_three_pass"))
    with adapter.using(memory):
        expected = forward(adapter.transformer, video)
    for parameter in adapter.parameters():
        parameter.data.fill_(torch.nan)
    with adapter.using(memory):
        assert torch.equal(forward(adapter.transformer, video), expected)
    with adapter.using(memory, identity=Influence(scale=0), reference=Influence(scale=0)):
        assert torch.equal(forward(adapter.transformer, video), forward(stock_transformer(), video))


def test_lite_entry_i_is_on_block_2i(attached, golden, video, stock_transformer):
    adapter = attached("lite")
    ours = official_parameters(adapter)
    for entry in (0, 1):
        assert ours[f"ip_layers.{entry}.to_k_ip.weight"] is adapter.identity[str(2 * entry)].to_k.weight
    memory = remember(adapter, golden("lite"))
    assert memory.identity.keys() == {0, 2}
    stock = forward(stock_transformer(), video)
    for blocks, same in (({1, 3}, True), ({0}, False), ({2}, False)):
        with adapter.using(memory, identity=Influence(blocks=frozenset(blocks))):
            assert torch.equal(forward(adapter.transformer, video), stock) == same


@pytest.mark.parametrize("cut", [arcface_crop, reference_crop])
def test_crops_keep_their_contrast_and_have_a_black_border(cut):
    grey = np.full((120, 120, 3), 110, dtype=np.uint8)
    grey[::2] = 140
    inside = np.array([[45, 50], [75, 50], [60, 65], [48, 80], [72, 80]], dtype=np.float32)
    crop = cut(grey, inside)
    middle = crop[crop.shape[0] // 3 : -crop.shape[0] // 3, crop.shape[1] // 3 : -crop.shape[1] // 3]
    assert middle.min() >= 110
    assert middle.max() <= 140
    corner = cut(grey, inside - 45)[0, 0]
    assert corner.tolist() == [0, 0, 0]


def test_the_third_pass_is_the_default_of_full(full, lite):
    assert len(passes(FULL.guidance_scale, FULL.guidance_scale_i)) == 3
    assert [one.name for one in plan(full, GenerateConfig(height=96, width=96)).tables[0]] == ["prompt", "identity", "none"]
    assert len(passes(LITE.guidance_scale, LITE.guidance_scale_i)) == 2
    assert [one.name for one in plan(lite, GenerateConfig(height=96, width=96)).tables[0]] == ["prompt", "none"]


def test_the_reference_latent_is_sampled_with_the_seed(full, sitter):
    def sample(seed, global_seed):
        torch.manual_seed(global_seed)
        return reference_latents(full.vae, sitter().crop, 256, seed)

    assert torch.equal(sample(43, 0), sample(43, 1))
    assert not torch.equal(sample(43, 0), sample(44, 0))


@pytest.mark.parametrize("g_i", [2.0, "none"])
@pytest.mark.parametrize(("part", "off"), [("identity", "ref_scale"), ("reference", "ip_scale")])
def test_one_part_alone_with_guidance(part, off, g_i, load_golden, full, sitter, tiny):
    alone = load_golden("full", parts=frozenset({part}))
    setting = {"guidance_scale": 5.0, "guidance_scale_i": g_i}
    latents = generate(alone, sitter(), "A person waves.", tiny(**setting)).latents
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, generate(full, sitter(), "A person waves.", tiny(**setting, **{off: 0.0})).latents)
    for other in ({}, {"ip_scale": 0.0, "ref_scale": 0.0}):  # both parts, or none
        assert not torch.equal(latents, generate(full, sitter(), "A person waves.", tiny(**setting, **other)).latents)


def test_lite_identity_with_full_reference(lite, sitter, tiny):
    files = [GOLDEN / "lynx_lite", GOLDEN / "lynx_full" / "ref_layers.safetensors"]
    mixed = load(base=GOLDEN / "base", adapter=files, dtype="fp32", device="cpu")
    assert mixed.arm == "lite"
    assert mixed.adapter.config.identity_blocks == (0, 2)
    assert mixed.adapter.config.reference_blocks == (0, 1, 2, 3)
    both = generate(mixed, sitter(), "A person waves.", tiny())
    without = generate(mixed, sitter(), "A person waves.", tiny(ref_scale=0.0))
    assert torch.equal(without.latents, generate(lite, sitter(), "A person waves.", tiny()).latents)
    assert not torch.equal(both.latents, without.latents)


def test_over_an_fp8_base(load_golden, full, sitter, tiny):
    """Linear weights stored as 8 bit floats and cast as they are used: the adapters keep their own dtype."""
    eight = load_golden("full")
    eight.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert eight.transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    ours = generate(eight, sitter(), "A person waves.", tiny()).latents
    plain = generate(full, sitter(), "A person waves.", tiny()).latents
    assert torch.isfinite(ours).all()
    assert 0 < (ours - plain).norm() / plain.norm() < 0.2


def test_two_scales(attached, golden, video):
    adapter = attached("full")
    memory = remember(adapter, golden("full_three_pass"))

    def out(identity, reference, who=memory):
        with adapter.using(who, identity=Influence(scale=identity), reference=Influence(scale=reference)):
            return forward(adapter.transformer, video)

    outs = [out(1, 1), out(0.5, 1), out(1, 0.5), out(0.5, 0.5)]
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])
    only_identity, only_reference = Memory(identity=memory.identity), Memory(reference=memory.reference)
    assert torch.equal(out(0.5, 1, only_identity), out(0.5, 0.2, only_identity))
    assert torch.equal(out(1, 0.5, only_reference), out(0.2, 0.5, only_reference))


def test_lite_with_scale_0_is_off(lite, sitter, tiny):
    from lynx_video.adapters.memory import text_memory
    from lynx_video.pipeline.condition import encode_prompt

    config = tiny(ip_scale=0.0)
    chosen = plan(lite, config)
    scheduler = make_scheduler(lite.scheduler, config)
    texts = {
        name: text_memory(lite.transformer, encode_prompt(lite.tokenizer, lite.text_encoder, prompt, 512))
        for name, prompt in (("prompt", "A person waves."), ("negative", "static"))
    }
    noise, timesteps = initial_noise(chosen.latent_shape, config.seed), set_timesteps(scheduler, 2, "cpu")
    base_alone = denoise(
        [Expert(adapter=lite.adapter, texts=texts, memories={})], scheduler, noise, timesteps, chosen.tables, Conditions()
    )
    assert torch.equal(generate(lite, sitter(), "A person waves.", config).latents, base_alone)
    assert not torch.equal(generate(lite, sitter(), "A person waves.", tiny()).latents, base_alone)
