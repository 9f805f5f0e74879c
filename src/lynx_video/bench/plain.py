"""The plain way: the same method without the exact levers, short enough to be seen to be right. What `exact` is compared with.

One pass after the other; in every block of every pass the prompt is projected by the stock transformer, and identity tokens and
reference features by the adapter, as if they changed; guidance by the paper's formula; attention by torch's own function; the VAE's own
decode. Only what the reference computes once too is computed once: embeddings, identity tokens, and the features of the still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lynx_video.adapters.memory import reference_features
from lynx_video.bench.made import Scene
from lynx_video.bench.way import Clock, Steps, Way
from lynx_video.config import GenerateConfig
from lynx_video.pipeline import condition
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components

PASSES = {"prompt": ("prompt", "person"), "identity": ("negative", "person"), "none": ("negative", "nobody")}
"""Which text and whom each pass sees."""


class PlainAttention:
    """Stock attention plus, where there are tokens, attention to their keys and values, computed here.

    tokens: [1, I or R, .]. projection: of this block.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self.projection: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is None:
            out = _attention(query, key, value, attention_mask)
        else:
            out = _attention(_rotate(query, *rotary_emb), _rotate(key, *rotary_emb), value, attention_mask)
        if self.tokens is not None:
            its_key, its_value = self.projection(self.tokens, attn.norm_k, attn.heads)
            out = out + _attention(query, its_key, its_value, None)
        result: Tensor = attn.to_out[1](attn.to_out[0](out.type_as(hidden_states)))
        return result


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[B, ., N, K] each -> [B, L, D]."""
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of pairs (even, odd) of channels."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class Plain(Way):
    """Takes the components' transformer for itself: its processors are replaced."""

    def __init__(self, components: Components, scene: Scene, config: GenerateConfig) -> None:
        super().__init__(components, scene, config)
        self.transformer, self.adapter = components.transformer, components.adapter
        for block in self.transformer.blocks:
            for attn in (block.attn1, block.attn2):
                attn.set_processor(PlainAttention())
        self._tokens: dict[str, Tensor] = {}
        self._features: dict[str, list[Tensor]] = {}
        self._embeddings: dict[str, Tensor] = {}

    @property
    def kinds(self) -> list[str]:
        count = len(self._names)
        return [f"{count} pass{'es' if count > 1 else ''}"] * self.plan.steps

    @property
    def forwards(self) -> int:
        return len(self._names) * self.plan.steps

    @torch.no_grad()
    def memories(self) -> None:
        assert self.adapter.resampler is not None, "the plain way is that of a whole adapter"
        identity, size = self.scene.identity, self.components.defaults.reference_size
        dtype = self.components.dtype
        for who, face in (("person", identity.embedding), ("nobody", torch.zeros_like(identity.embedding))):
            self._tokens[who] = self.adapter.resampler(face[None].to(self.device, dtype))
        if not self.adapter.config.reference_blocks:
            return
        text = self._embed(condition.REFERENCE_PROMPT)
        self._see({}, {})
        for who, crop in (("person", identity.crop), ("nobody", None)):
            latents = condition.reference_latents(self.components.vae, crop, size, self.config.seed + 1)
            self._features[who] = reference_features(self.transformer, latents, text)

    def texts(self) -> None:
        self._embeddings["prompt"] = self._embed(self.scene.prompt)
        if self.plan.guidance_scale > 1:
            self._embeddings["negative"] = self._embed(self.plan.negative_prompt)

    def forward(self) -> Tensor:
        return self._pass("prompt", self.noise, self.timesteps[0])

    def predictions(self) -> Mapping[str, Tensor]:
        return {name: self._pass(name, self.noise, self.timesteps[0]) for name in self._names}

    def steps(self, limit: int | None, clock: Clock) -> Steps:
        count = self.plan.steps if limit is None else min(limit, self.plan.steps)
        scheduler = make_scheduler(self.components.scheduler, self.config)
        latents = self.noise
        marks = [clock.now()]
        for t in set_timesteps(scheduler, count, self.device):
            found = {name: self._pass(name, latents, t) for name in self._names}
            latents = scheduler.step(self._velocity(found), t, latents, return_dict=False)[0]
            marks.append(clock.now())
        return Steps.between(marks, self.kinds[:count], latents)

    def decode(self, latents: Tensor) -> Tensor:
        return decode_whole(self.components.vae, latents)

    def forget(self) -> None:
        self._tokens, self._features, self._embeddings = {}, {}, {}
        self._see({}, {})

    @property
    def _names(self) -> tuple[str, ...]:
        if self.plan.guidance_scale <= 1:
            return ("prompt",)
        return ("prompt", "none") if self.plan.guidance_scale_i is None else ("prompt", "identity", "none")

    def _velocity(self, found: Mapping[str, Tensor]) -> Tensor:
        """u + g_i (i - u) + g (c - i), or u + g (c - u) where prompt and identity are guided together."""
        g, g_i, prompt = self.plan.guidance_scale, self.plan.guidance_scale_i, found["prompt"]
        if g <= 1:
            return prompt
        if g_i is None:
            return found["none"] + g * (prompt - found["none"])
        return found["none"] + g_i * (found["identity"] - found["none"]) + g * (prompt - found["identity"])

    @torch.no_grad()
    def _pass(self, name: str, latents: Tensor, timestep: Tensor) -> Tensor:
        text, who = PASSES[name]
        features = self._features.get(who, [])
        self._see(
            dict.fromkeys(self.adapter.config.identity_blocks, self._tokens[who]),
            {block: features[block] for block in self.adapter.config.reference_blocks},
        )
        inputs: Any = latents.to(self.components.dtype), timestep.expand(1), self._embeddings[text]
        predicted: Tensor = self.transformer(*inputs, return_dict=False)[0]
        return predicted.float()

    def _see(self, identity: Mapping[int, Tensor], reference: Mapping[int, Tensor]) -> None:
        """Give every block its tokens and features."""
        for i, block in enumerate(self.transformer.blocks):
            parts: tuple[tuple[Any, nn.ModuleDict, Mapping[int, Tensor]], ...] = (
                (block.attn2.processor, self.adapter.identity, identity),
                (block.attn1.processor, self.adapter.reference, reference),
            )
            for processor, projections, tokens in parts:
                processor.tokens = tokens.get(i)
                processor.projection = projections[str(i)] if i in tokens else None

    def _embed(self, prompt: str) -> Tensor:
        held = self.components
        embeddings = condition.encode_prompt(held.tokenizer, held.text_encoder, prompt, held.defaults.max_sequence_length)
        return embeddings.to(self.device, held.dtype)


@torch.no_grad()
def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """By the VAE's own decode: final latents [1, C, T, h, w] -> video [F, H, W, 3] uint8 on the CPU."""
    parameter = next(vae.parameters())
    mean, std = condition.latent_statistics(vae, latents.device)
    raw = (latents * std + mean).to(parameter.device, parameter.dtype)
    video = vae.decode(raw, return_dict=False)[0][0]
    frames: Tensor = ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).cpu()
    return frames
