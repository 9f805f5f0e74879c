"""What we rely on in diffusers and transformers: when one of these fails, the adapters must follow."""

import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from lynx_video.adapters.attention import Attention
from lynx_video.flow import reference_sigmas

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def inputs(golden):
    data = golden("full_two_pass")
    return data["initial_latents"], torch.tensor([999.0]), data["prompt_embeds"]


@pytest.fixture
def transformer(stock_transformer):
    return copy.deepcopy(stock_transformer())


def test_the_processor_is_called_as_stock():
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    theirs, ours = (inspect.signature(kind.__call__).parameters for kind in (WanAttnProcessor, Attention))
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    for name in ("_attention_backend", "_parallel_config"):
        assert getattr(WanAttnProcessor, name) is getattr(Attention, name) is None


def test_what_an_attention_is_called_with(transformer, inputs):
    """Self-attention: tokens and rotary embedding; cross-attention: tokens and text, no rotary embedding; all by position."""
    seen = []

    class Spy(Attention):
        def __call__(self, attn, *args):
            seen.append((attn, *args))
            return super().__call__(attn, *args)

    first = transformer.blocks[0]
    for attn in (first.attn1, first.attn2):
        attn.set_processor(Spy())
    with torch.no_grad():
        transformer(*inputs)
    (attn1, tokens, text, mask, rotary), (attn2, tokens2, text2, mask2, rotary2) = seen
    assert (attn1, attn2) == (first.attn1, first.attn2)
    assert tokens.shape == tokens2.shape == (1, 72, 96)
    assert text is mask is mask2 is rotary2 is None
    assert text2.shape == (1, 512, 96)
    assert [part.shape for part in rotary] == [(1, 72, 1, 24)] * 2


def test_attributes_of_an_attention(transformer):
    for block in transformer.blocks:
        for attn in (block.attn1, block.attn2):
            assert (attn.heads, attn.fused_projections, attn.add_k_proj) == (4, False, None)
            assert type(attn.norm_q) is type(attn.norm_k) is torch.nn.RMSNorm
            assert attn.norm_k.normalized_shape == (96,)
            assert len(attn.to_out) == 2
        assert (block.attn1.is_cross_attention, block.attn2.is_cross_attention) == (False, True)


def test_fused_projections(transformer):
    transformer.fuse_qkv_projections()
    block = transformer.blocks[0]
    assert block.attn1.fused_projections
    assert block.attn2.fused_projections
    assert block.attn1.to_qkv.weight.shape == (288, 96)
    assert block.attn2.to_kv.weight.shape == (192, 96)


def test_a_hook_sees_the_input_of_self_attention(transformer, inputs):
    """It is the first positional argument: normalised and modulated tokens."""
    seen = []
    hook = transformer.blocks[1].attn1.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        transformer(*inputs)
    hook.remove()
    assert len(seen) == 1
    assert seen[0][0].shape == (1, 72, 96)


def test_attention_dispatch(transformer):
    """Layout [B, L, N, K]; keys may be of another length; the backend set on a model reaches our processors too."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    query, key, value = (torch.randn(2, length, 4, 24, generator=torch.Generator().manual_seed(length)) for length in (7, 5, 5))
    ours = dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False)
    weights = torch.einsum("blnk,bmnk->bnlm", query, key).div(24**0.5).softmax(-1)
    torch.testing.assert_close(ours, torch.einsum("bnlm,bmnk->blnk", weights, value))
    transformer.blocks[0].attn1.set_processor(Attention())
    transformer.set_attention_backend("native")
    assert transformer.blocks[0].attn1.processor._attention_backend == "native"


def test_attach_carries_the_backend_over_and_back(attached):
    adapter = attached("full")
    transformer = adapter.transformer
    transformer.set_attention_backend("native")
    adapter.detach()
    assert {p._attention_backend for p in transformer.attn_processors.values()} == {"native"}
    adapter.attach(transformer)
    assert {p._attention_backend for p in transformer.attn_processors.values()} == {"native"}
    assert len(transformer.attn_processors) == 8


def test_unipc_takes_sigmas_before_the_shift(full):
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler.from_config(full.scheduler.config)
    scheduler.set_timesteps(sigmas=reference_sigmas(4), device="cpu")
    before = np.array([0.999, 0.74925, 0.4995, 0.24975])
    np.testing.assert_allclose(reference_sigmas(4), before)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [*(3 * before / (1 + 2 * before)), 0], rtol=1e-6)
    assert scheduler.timesteps.tolist() == [999, 899, 749, 499]
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() != [999, 899, 749, 499]  # once it is, our grid is theirs and can go


def test_vae_configuration(full):
    config = full.vae.config
    assert (config.scale_factor_spatial, config.scale_factor_temporal) == (8, 4)
    assert len(config.latents_mean) == len(config.latents_std) == config.z_dim == 16


def test_vae_posterior(full):
    with torch.no_grad():
        posterior = full.vae.encode(torch.zeros(1, 3, 1, 16, 16)).latent_dist
        again = posterior.sample(torch.Generator().manual_seed(3))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(posterior.mean + posterior.std * noise, again)


def test_what_stays_in_float32(stock_transformer):
    """The time embedder and the modulation do; `dtype` still says what latents and text must be in."""
    half = stock_transformer(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    kept = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert {"scale_shift_table", "blocks.0.scale_shift_table", "condition_embedder.time_embedder.linear_1.weight"} <= kept
    assert not any("attn" in name or "ffn" in name or "text_embedder" in name for name in kept)


def test_layerwise_casting_leaves_the_norms(transformer):
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    block = transformer.blocks[0]
    assert block.attn1.to_k.weight.dtype == torch.float8_e4m3fn
    assert block.attn1.norm_k.weight.dtype == torch.float32
    assert transformer.dtype == torch.bfloat16


def test_text_encoder(full):
    tokens = full.tokenizer(["a person"], padding="max_length", max_length=8, return_tensors="pt", return_attention_mask=True)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (1, 8)
    with torch.no_grad():
        assert full.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state.shape == (1, 8, 48)
