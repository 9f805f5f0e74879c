"""The transformer with its adapter as one module that takes a pack: what is trained, sharded and compiled.

Blocks, embedders and output layers are the stock ones of diffusers; only the way through them is ours, since the stock forward takes
one shape at a time. For a pack of one sample it computes what the stock forward computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.projection import Projection
from lynx_video.training.packing import PackedAttention, Segments, Term
from lynx_video.training.sample import Pack, runs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stream:
    """A pack as tokens. tokens [1, L, D], context [1, sum S, D], rotary two of [1, L, 1, K]; lengths: video tokens a sample."""

    tokens: Tensor
    context: Tensor
    embedded: Tensor
    modulation: Tensor
    rotary: tuple[Tensor, Tensor]
    lengths: tuple[int, ...]
    within: Segments
    to_text: Segments


class PackedModel(nn.Module):
    """Packs in, one velocity a sample out.

    adapter must be attached to a stock `WanTransformer3DModel`; its processors are replaced by those that know packs, which without
    a pack in scope compute the same as before. recompute: keep only each block's input for the backward (activation checkpointing).
    """

    def __init__(self, adapter: Adapter, *, recompute: bool = False) -> None:
        super().__init__()
        self.transformer: Any = adapter.transformer
        self.adapter = adapter
        self.recompute = recompute
        if not all(isinstance(one, PackedAttention) for pair in self._processors() for one in pair):
            transformer = self.transformer
            adapter.detach()
            adapter.attach(transformer, PackedAttention)

    def forward(self, pack: Pack) -> list[Tensor]:
        """Velocities [C, T, h, w], float32, in the order of the samples."""
        features = self.reference_features(pack)
        faces = [face for face in pack.faces if face is not None]
        tokens, each = None, 0
        if faces and self.adapter.resampler is not None and self.adapter.config.identity is not None:
            tokens = self.adapter.resampler(torch.stack(faces).to(self.adapter.resampler.latents.dtype))
        stream = self._stream(pack.noisy, pack.timesteps, pack.texts)
        device = stream.tokens.device
        counts = torch.tensor(stream.lengths, device=device)
        identity_scale, reference_scale = (
            scales.repeat_interleave(counts)[None, :, None] for scales in (pack.identity_scales, pack.reference_scales)
        )
        if tokens is not None and self.adapter.config.identity is not None:
            each = tokens.shape[1] + self.adapter.config.identity.registers
        known = Segments.of(stream.lengths, tuple(each if face is not None else 0 for face in pack.faces), device)
        seen = Segments.of(stream.lengths, tuple(_tokens(one, self.transformer) for one in pack.references), device)
        for i in range(len(self.transformer.blocks)):
            cross = in_self = None
            if tokens is not None and str(i) in self.adapter.identity:
                projection = self.adapter.identity[str(i)]
                assert isinstance(projection, Projection)
                cross = Term(projection=projection, tokens=tokens, segments=known, scale=identity_scale)
            if features and str(i) in self.adapter.reference:
                projection = self.adapter.reference[str(i)]
                assert isinstance(projection, Projection)
                in_self = Term(projection=projection, tokens=features[i], segments=seen, scale=reference_scale)
            stream = self._block(i, stream, cross, in_self)
        return self._finish(stream, [one.shape for one in pack.noisy])

    @torch.no_grad()
    def reference_features(self, pack: Pack) -> list[Tensor]:
        """The input of each block's self-attention, [1, sum R, D], when the plain base sees the references at timestep 0.

        Empty if no sample of the pack has a reference, or the adapter has no use for it.
        """
        latents = [one for one in pack.references if one is not None]
        if not latents or not self.adapter.config.reference_blocks:
            return []
        texts = [one for one in pack.reference_texts if one is not None]
        stream = self._stream(latents, torch.zeros(1, device=latents[0].device), texts)
        features: list[Tensor] = []
        for i, block in enumerate(self.transformer.blocks):
            processor = block.attn1.processor
            processor.keep = True
            try:
                stream = self._block(i, stream, None, None)
                features.append(processor.seen)
            finally:
                processor.keep, processor.seen = False, None
        return features

    def _processors(self) -> list[tuple[Any, Any]]:
        return [(block.attn1.processor, block.attn2.processor) for block in self.transformer.blocks]

    def _stream(self, latents: Sequence[Tensor], timesteps: Tensor, texts: Sequence[Tensor]) -> _Stream:
        transformer = self.transformer
        shapes = [one.shape for one in latents]
        parts, cosines, sines, lengths = [], [], [], []
        for run in runs(shapes):
            batch = torch.stack(list(latents[run]))
            patches = transformer.patch_embedding(batch).flatten(2).transpose(1, 2)
            cosine, sine = transformer.rope(batch)
            parts.append(patches.flatten(0, 1))
            cosines += [cosine] * len(batch)
            sines += [sine] * len(batch)
            lengths += [patches.shape[1]] * len(batch)
        embedded, modulation, context, _ = transformer.condition_embedder(timesteps, torch.cat(list(texts))[None], None)
        modulation = modulation.unflatten(1, (6, -1))
        if len(timesteps) > 1:  # a timestep a sample: stock blocks take one a token
            counts = torch.tensor(lengths, device=modulation.device)
            modulation = modulation.repeat_interleave(counts, 0)[None]
            embedded = embedded.repeat_interleave(counts, 0)[None]
        return _Stream(
            tokens=torch.cat(parts)[None],
            context=context,
            embedded=embedded,
            modulation=modulation,
            rotary=(torch.cat(cosines, 1), torch.cat(sines, 1)),
            lengths=tuple(lengths),
            within=Segments.of(tuple(lengths), tuple(lengths), embedded.device),
            to_text=Segments.of(tuple(lengths), tuple(len(text) for text in texts), embedded.device),
        )

    def _block(self, i: int, stream: _Stream, cross: Term | None, in_self: Term | None) -> _Stream:
        block = self.transformer.blocks[i]

        def run(tokens: Tensor) -> Tensor:
            # scoped here, inside what is recomputed in the backward
            one, two = block.attn1.processor, block.attn2.processor
            one.segments, one.term = stream.within, in_self
            two.segments, two.term = stream.to_text, cross
            try:
                out: Tensor = block(tokens, stream.context, stream.modulation, stream.rotary)
            finally:
                one.segments = one.term = two.segments = two.term = None
            return out

        through: Callable[[Tensor], Tensor] = run
        if self.recompute and torch.is_grad_enabled():
            through = lambda tokens: checkpoint(run, tokens, use_reentrant=False)  # noqa: E731
        return replace(stream, tokens=through(stream.tokens))

    def _finish(self, stream: _Stream, shapes: Sequence[torch.Size]) -> list[Tensor]:
        transformer = self.transformer
        table, embedded = transformer.scale_shift_table, stream.embedded
        shift, scale = (
            (table[None] + embedded[:, :, None]).unbind(2) if embedded.ndim == 3 else (table + embedded[:, None]).chunk(2, 1)
        )
        hidden = (transformer.norm_out(stream.tokens.float()) * (1 + scale) + shift).type_as(stream.tokens)
        patches = transformer.proj_out(hidden)[0].split(stream.lengths)
        return [_unpatch(one, shape, transformer.config.patch_size).float() for one, shape in zip(patches, shapes, strict=True)]


def _tokens(latents: Tensor | None, transformer: Any) -> int:
    """Tokens that a latent [C, T, h, w] becomes; None has none."""
    if latents is None:
        return 0
    _, frames, height, width = latents.shape
    in_time, down, across = transformer.config.patch_size
    return int(frames // in_time * (height // down) * (width // across))


def _unpatch(patches: Tensor, shape: torch.Size, patch: Sequence[int]) -> Tensor:
    """[L, pt * ph * pw * C] -> [C, T, h, w]."""
    frames, height, width = shape[1:]
    in_time, down, across = patch
    grid = patches.reshape(frames // in_time, height // down, width // across, in_time, down, across, -1)
    return grid.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, frames, height, width)
