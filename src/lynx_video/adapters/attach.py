"""The adapter as a whole: its weights, its place on a transformer, and what is in scope.

adapter = Adapter(...); adapter.attach(transformer); with adapter.using(memory, text=text): transformer(...)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video.adapters.attention import Attention
from lynx_video.adapters.memory import Blocks, Memory, TextMemory, reference_features
from lynx_video.adapters.projection import KeysValues, Projection, ProjectionConfig
from lynx_video.adapters.resampler import Resampler, ResamplerConfig
from lynx_video.errors import BadRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Influence:
    """How much, when and where one adapter speaks.

    scale: weight of its term, 1 as trained, 0 off. start, stop: the share of the steps in which it is on, start <= t < stop.
    blocks: block numbers it is on in; None: all it has weights for.
    Outside of these the transformer is the stock one, bit for bit.
    """

    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    blocks: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= 1:
            raise BadRequest(f"a step window needs 0 <= start <= stop <= 1, got start {self.start} and stop {self.stop}.")
        if not -10 <= self.scale <= 10:
            raise BadRequest(f"a scale must be between -10 and 10 (1 is as trained), got {self.scale}.")

    def at(self, progress: float) -> Influence:
        """This influence at `progress` in [0, 1) through the steps: itself, or switched off."""
        return self if self.start <= progress < self.stop else OFF

    def pick(self, blocks: Blocks) -> Blocks:
        """The part of a memory that it lets through."""
        if self.scale == 0:
            return {}
        return blocks if self.blocks is None else {i: pair for i, pair in blocks.items() if i in self.blocks}


OFF = Influence(scale=0.0)
FULL_STRENGTH = Influence()


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """Which parts an adapter has and their sizes.

    width, heads: of the base. resampler, identity: None when the adapter has no identity part. identity_blocks: the block number of
    each identity entry, in file order (full: 0, 1, 2, ...; lite: 0, 2, 4, ...). reference_blocks: empty without a reference part.
    """

    width: int
    heads: int
    resampler: ResamplerConfig | None = None
    identity: ProjectionConfig | None = None
    identity_blocks: tuple[int, ...] = ()
    reference_blocks: tuple[int, ...] = ()

    @property
    def reference(self) -> ProjectionConfig:
        """The reference projection: the base's features in, keys and values out."""
        return ProjectionConfig(tokens=self.width, width=self.width)


class Adapter(nn.Module):
    """Resampler and projections (may be absent: a memory from a file needs none), and the processors on a transformer."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.resampler = Resampler(config.resampler) if config.resampler else None
        identity, reference = config.identity, config.reference
        self.identity = nn.ModuleDict({str(i): Projection(identity) for i in config.identity_blocks} if identity else {})
        self.reference = nn.ModuleDict({str(i): Projection(reference) for i in config.reference_blocks})
        self._attached: list[Any] = []  # a list, so that the transformer does not become a submodule

    @property
    def transformer(self) -> Any:
        """The transformer this adapter is attached to."""
        if not self._attached:
            raise BadRequest("the adapter is not attached: call adapter.attach(transformer) first.")
        return self._attached[0]

    def attach(self, transformer: Any, processor: type[Attention] = Attention) -> None:
        """Put the processors on every attention of a stock `WanTransformer3DModel` whose width fits."""
        if self._attached:
            raise BadRequest("the adapter is attached already: detach it first.")
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        if width != self.config.width:
            raise BadRequest(f"the adapter is made for a base of width {self.config.width}, this transformer has {width}.")
        if transformer.config.num_attention_heads != self.config.heads:
            heads = transformer.config.num_attention_heads
            raise BadRequest(f"the adapter is made for a base of {self.config.heads} heads, this transformer has {heads}.")
        last = max((*self.config.identity_blocks, *self.config.reference_blocks), default=0)
        if last >= len(transformer.blocks):
            raise BadRequest(
                f"the adapter has weights for block {last}, this transformer has {len(transformer.blocks)} blocks."
            )
        if any(block.attn2.add_k_proj is not None for block in transformer.blocks):
            raise BadRequest("the transformer is an image-to-video model; the adapters need a text-to-video base.")
        for block in transformer.blocks:
            for attn in (block.attn1, block.attn2):
                attn.set_processor(_succeed(attn.processor, processor()))
        self._attached.append(transformer)

    def twin(self) -> Adapter:
        """Another adapter of the very same weights, for a second transformer of the same shape; not attached."""
        twin = copy.copy(self)
        twin._attached = []
        return twin

    def detach(self) -> None:
        """Give the transformer its stock processors back."""
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        for block in self.transformer.blocks:
            for attn in (block.attn1, block.attn2):
                attn.set_processor(_succeed(attn.processor, WanAttnProcessor()))
        self._attached.clear()

    @contextmanager
    def using(
        self,
        memory: Memory | None,
        *,
        text: TextMemory | None = None,
        identity: Influence = FULL_STRENGTH,
        reference: Influence = FULL_STRENGTH,
    ) -> Iterator[None]:
        """Within it the transformer attends to `memory`; None is nobody: the stock transformer."""
        blocks = self.transformer.blocks
        memory = memory or Memory()
        in_cross, in_self = identity.pick(memory.identity), reference.pick(memory.reference)
        for part, used, known in (("identity", identity, in_cross), ("reference", reference, in_self)):
            beyond = [i for i in (*(used.blocks or ()), *known) if not 0 <= i < len(blocks)]
            if beyond:
                raise BadRequest(f"{part} block {max(beyond)} does not exist: the base has blocks 0 to {len(blocks) - 1}.")
        processors = [attn.processor for block in blocks for attn in (block.attn1, block.attn2)]
        before = [(one.memory, one.scale, one.text) for one in processors]
        cross_scale, self_scale = (torch.full((), used.scale, dtype=torch.float32) for used in (identity, reference))
        try:
            for i, block in enumerate(blocks):
                cross, self_ = block.attn2.processor, block.attn1.processor
                cross.memory, cross.scale = in_cross.get(i), cross_scale
                self_.memory, self_.scale = in_self.get(i), self_scale
                cross.text = text.blocks[i] if text else None
            yield
        finally:
            for one, (kept_memory, kept_scale, kept_text) in zip(processors, before, strict=True):
                one.memory, one.scale, one.text = kept_memory, kept_scale, kept_text

    def identity_memory(self, face: Tensor) -> dict[int, KeysValues]:
        """Face vectors [B, 512] -> keys and values of every identity block; zeros are the unconditional identity."""
        if self.resampler is None:
            return {}
        return self.identity_keys(self.resampler(face.to(self._device, self.resampler.latents.dtype)))

    def identity_keys(self, tokens: Tensor) -> dict[int, KeysValues]:
        """Identity tokens [B, I, W] -> keys and values of every identity block."""
        return self._project(self.identity, dict.fromkeys(self.config.identity_blocks, tokens), "attn2")

    def reference_memory(self, features: list[Tensor]) -> dict[int, KeysValues]:
        """Reference features, one [B, R, D] a block -> keys and values of every reference block."""
        return self._project(self.reference, {i: features[i] for i in self.config.reference_blocks}, "attn1")

    @property
    def _device(self) -> torch.device:
        """Where the transformer computes; its norms are there even while its blocks wait elsewhere, and while this adapter does."""
        device: torch.device = self.transformer.blocks[0].attn2.norm_k.weight.device
        return device

    def _project(self, layers: nn.ModuleDict, tokens: dict[int, Tensor], attention: str) -> dict[int, KeysValues]:
        found: dict[int, KeysValues] = {}
        for i, x in tokens.items():
            projection, attn = layers[str(i)], getattr(self.transformer.blocks[i], attention)
            assert isinstance(projection, Projection)
            found[i] = projection(x.to(self._device, projection.to_k.weight.dtype), attn.norm_k, self.config.heads)
        return found

    @torch.no_grad()
    def remember(self, face: Tensor | None, latents: Tensor | None, reference_text: Tensor | None) -> Memory:
        """The memory of one identity.

        face: [512] or None (no identity term). latents: [1, C, 1, h, w], normalised VAE latents of the reference crop, or None
        (no reference term). reference_text: embeddings of the reference prompt.
        """
        identity = self.identity_memory(face[None]) if face is not None else {}
        reference: Blocks = {}
        if latents is not None and reference_text is not None and self.config.reference_blocks:
            # one forward with hooks inside the blocks: compiled blocks would be compiled again, each for itself
            with torch.compiler.set_stance("force_eager"):
                features = reference_features(self.transformer, latents, reference_text)
            reference = self.reference_memory(features)
        return Memory(identity=identity, reference=reference)


def _succeed(old: Any, new: Any) -> Any:
    """Carry over what diffusers stores on a processor: the attention backend and the parallel plan."""
    new._attention_backend, new._parallel_config = old._attention_backend, old._parallel_config
    return new
