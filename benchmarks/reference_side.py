"""The reference implementation as a side of `reference.py`: its own classes over our tensors, with what it misses lent in memory.

Written against bytedance/lynx 3a6a91a, which is read from a checkout and never changed. What is lent: names that diffusers no longer
exports, exact attention in place of flash-attn, and the sigma grid of the diffusers it was written for. Its adapters are held in the
precision of the base; it would cast those of the reference to bfloat16 whatever the rest is in.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_video.adapters.weights import official_parameters
from lynx_video.flow import reference_sigmas
from lynx_video.pipeline.components import Components
from lynx_video.types import Identity

ARMS = ("full", "lite")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What both sides are asked for; all else is as the components' defaults say."""

    identity: Identity
    prompt: str
    seed: int
    steps: int


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
) -> Tensor:
    """What flash-attn's variable-length function computes, exactly: [L, N, K] of sequences one after the other -> [L, N, K]."""
    assert not causal
    single = max_seqlen_q == len(query) and max_seqlen_k == len(key)  # known without waiting for the device
    bounds = [[0, len(query)], [0, len(key)]] if single else [cu_seqlens_q.tolist(), cu_seqlens_k.tolist()]
    found = []
    for start, end, from_, to in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        parts = (query[start:end], key[from_:to], value[from_:to])
        found.append(F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in parts))[0].transpose(0, 1))
    return found[0] if single else torch.cat(found)


def load_reference(checkout: Path) -> SimpleNamespace:
    """The reference's classes, imported from a checkout as they are; what it misses here is lent for the import alone."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers import transformer_wan
    from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers

    lent = {name: getattr(typing, name) for name in ("Dict", "List", "Optional", "Tuple", "Union")} | {
        "Attention": Attention,
        "USE_PEFT_BACKEND": USE_PEFT_BACKEND,
        "scale_lora_layers": scale_lora_layers,
        "unscale_lora_layers": unscale_lora_layers,
    }
    kernel = ModuleType("flash_attn_interface")
    kernel.flash_attn_varlen_func = varlen_attention  # type: ignore[attr-defined]
    absent = {name: value for name, value in lent.items() if not hasattr(transformer_wan, name)}
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "path", [str(checkout), *sys.path]))
        stack.enter_context(patch.dict(sys.modules, {"flash_attn_interface": kernel}))
        stack.enter_context(patch.multiple(transformer_wan, create=True, **absent))
        full, lite = (importlib.import_module(f"modules.{name}") for name in ("full.lynx_pipeline", "lite.lynx_lite_pipeline"))
        resampler = importlib.import_module("modules.common.resampler")
        layers = {arm: importlib.import_module(f"modules.{arm}.attention_processor") for arm in ARMS}
    return SimpleNamespace(
        transformer={"full": full.WanTransformer3DModel, "lite": lite.WanTransformer3DModel},
        pipeline={"full": full.LynxWanPipeline, "lite": lite.LynxLiteWanPipeline},
        resampler=resampler.Resampler,
        layers=layers,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a side ends with. latents: the final ones as the transformer sees them, float32. frames: uint8 [F, H, W, 3]."""

    latents: Tensor
    frames: Tensor


class Theirs:
    """The reference's pipeline and transformer over the tensors of `components`, called as its own inference classes do."""

    def __init__(self, code: SimpleNamespace, components: Components, request: Request) -> None:
        self.components, self.request = components, request
        self.transformer = _their_transformer(code.transformer[components.arm], components)
        self.pipe = code.pipeline[components.arm](
            tokenizer=components.tokenizer,
            text_encoder=components.text_encoder,
            vae=components.vae,
            transformer=self.transformer,
            scheduler=_on_their_grid(components.scheduler),
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.resampler = self.pipe.resampler = _their_adapters(code, self.transformer, components)
        self.call = self._full if components.arm == "full" else self._lite

    def make(self, on_step: Callable[[], None]) -> Made:
        last: list[Tensor] = []

        def told(_: Any, __: int, ___: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
            last[:] = [given["latents"]]
            on_step()
            return {}

        defaults = self.components.defaults
        frames = self.call(
            prompt=self.request.prompt,
            negative_prompt=defaults.negative_prompt,
            height=defaults.height,
            width=defaults.width,
            num_frames=defaults.num_frames,
            num_inference_steps=self.request.steps,
            guidance_scale=defaults.guidance_scale,
            generator=torch.Generator().manual_seed(self.request.seed),
            output_type="pil",
            callback_on_step_end=told,
        ).frames[0]
        return Made(latents=last[0][:1].float().cpu(), frames=_array(frames))

    def _full(self, **given: Any) -> Any:
        from PIL import Image

        face = self.request.identity.embedding.to(self.pipe.device, self.pipe.dtype)[None, None]
        tokens, nobody = self.pipe.resampler(face), self.pipe.resampler(face * 0)
        crop = [Image.fromarray(self.request.identity.crop)]
        seen, unseen = (
            self.pipe.encode_reference_images(crop, drop=drop, generator=torch.Generator().manual_seed(self.request.seed + 1))
            for drop in (False, True)
        )
        kept = {"ip_scale": 1.0, "ref_scale": 1.0}
        return self.pipe(
            guidance_scale_i=self.components.defaults.guidance_scale_i,
            attention_kwargs={"ip_hidden_states": [tokens], "ref_buffer": seen, **kept},
            attention_kwargs_uncond={"ip_hidden_states": [nobody], "ref_buffer": unseen, **kept},
            **given,
        )

    def _lite(self, **given: Any) -> Any:
        return self.pipe(face_embeds=self.request.identity.embedding.numpy(), ip_scale=1.0, **given)


def _array(pictures: Sequence[Any]) -> Tensor:
    """As the reference ends: an array of its pictures."""
    import numpy as np

    return torch.from_numpy(np.array([np.array(one) for one in pictures]))


def _their_transformer(kind: Any, components: Components) -> Any:
    """The reference's transformer on our tensors; what we keep in float32 it casts, with all else, to the precision of the base."""
    ours = components.transformer
    names = inspect.signature(kind.__init__).parameters
    with torch.device("meta"):
        theirs = kind(**{name: value for name, value in ours.config.items() if name in names})
    state = {name: tensor.to(components.dtype) for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    config = theirs.config
    theirs.rope = type(theirs.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    return theirs.eval().requires_grad_(False)


def _their_adapters(code: SimpleNamespace, transformer: Any, components: Components) -> Any:
    """Put the reference's adapter layers on its transformer, with our tensors; its resampler."""
    adapter, dtype, device = components.adapter, components.dtype, components.device
    official = {name: parameter.data for name, parameter in official_parameters(adapter).items()}

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): tensor for key, tensor in official.items() if key.startswith(f"{name}.")}

    sizes, identity = adapter.config.resampler, adapter.config.identity
    assert sizes is not None
    assert identity is not None
    layers = code.layers[components.arm]
    if components.arm == "full":
        _, ip_layers = layers.register_ip_adapter(
            transformer, cross_attention_dim=identity.tokens, n_registers=identity.registers, dtype=dtype
        )
        _, ref_layers = layers.register_ref_adapter(transformer, dtype=dtype)
        ref_layers.load_state_dict(part("ref_layers"), assign=True)
    else:
        _, ip_layers = layers.register_ip_adapter_wan(
            transformer, hidden_size=identity.width, cross_attention_dim=identity.tokens, layers=2, dtype=dtype
        )
    ip_layers.load_state_dict(part("ip_layers"), assign=True)
    resampler = code.resampler(
        depth=sizes.depth,
        dim=sizes.width,
        dim_head=sizes.head_width,
        embedding_dim=sizes.face,
        ff_mult=4,
        heads=sizes.inner // sizes.head_width,
        num_queries=sizes.queries,
        output_dim=sizes.output,
    )
    resampler.load_state_dict(part("resampler"), assign=True)
    return resampler.to(device=device, dtype=dtype).eval()


def _on_their_grid(scheduler: Any) -> Any:
    """A scheduler of its own that spaces sigmas as the reference's diffusers did."""
    fresh = type(scheduler).from_config(scheduler.config)
    plain = fresh.set_timesteps
    fresh.set_timesteps = lambda steps, device=None: plain(sigmas=reference_sigmas(steps), device=device)
    return fresh
