"""Memory: the keys and values that an identity, or a prompt, contributes to every block, computed once.

They depend neither on the timestep nor on the latents (see docs/decisions), so a generation computes them before its first step
and an identity file keeps them for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lynx_video.adapters.projection import KeysValues

Blocks = Mapping[int, KeysValues]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Keys and values by block number; a block that is absent has no such term.

    identity: for cross-attention, each [B, I, N, K]. reference: for self-attention, each [B, R, N, K].
    """

    identity: Blocks = field(default_factory=dict)
    reference: Blocks = field(default_factory=dict)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Memory:
        """The same memory on another device or in another dtype."""
        return Memory(
            identity=_map(self.identity, lambda t: t.to(device, dtype)),
            reference=_map(self.reference, lambda t: t.to(device, dtype)),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Flat names for a safetensors file: `identity.0.key`, `reference.3.value`, ..."""
        return {
            f"{part}.{block}.{name}": getattr(pair, name).contiguous()
            for part, blocks in (("identity", self.identity), ("reference", self.reference))
            for block, pair in blocks.items()
            for name in ("key", "value")
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Memory:
        """The inverse of `tensors`."""
        parts: dict[str, dict[int, dict[str, Tensor]]] = {"identity": {}, "reference": {}}
        for name, tensor in tensors.items():
            part, block, kind = name.split(".")
            parts[part].setdefault(int(block), {})[kind] = tensor
        found = {
            part: {block: KeysValues(pair["key"], pair["value"]) for block, pair in sorted(blocks.items())}
            for part, blocks in parts.items()
        }
        return Memory(identity=found["identity"], reference=found["reference"])


def _map(blocks: Blocks, change: Callable[[Tensor], Tensor]) -> Blocks:
    return {block: KeysValues(change(pair.key), change(pair.value)) for block, pair in blocks.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMemory:
    """A prompt's keys and values in every block, and the embeddings [1, S, C] they came from."""

    embeddings: Tensor
    blocks: Blocks


def stack_memories(memories: Sequence[Memory]) -> Memory:
    """Memories of one person each as one batch, in this order; all must have the same blocks."""
    return Memory(
        identity=_stack([memory.identity for memory in memories]), reference=_stack([memory.reference for memory in memories])
    )


def stack_texts(texts: Sequence[TextMemory]) -> TextMemory:
    """Prompts as one batch, in this order."""
    return TextMemory(embeddings=torch.cat([text.embeddings for text in texts]), blocks=_stack([text.blocks for text in texts]))


def _stack(many: Sequence[Blocks]) -> Blocks:
    assert all(blocks.keys() == many[0].keys() for blocks in many), "one batch, one set of blocks"
    return {
        i: KeysValues(*(torch.cat(tensors) for tensors in zip(*(blocks[i] for blocks in many), strict=True))) for i in many[0]
    }


@torch.no_grad()
def text_memory(transformer: Any, embeddings: Tensor) -> TextMemory:
    """Project prompt embeddings [B, S, text width] once for all steps: the same products as in the stock forward."""
    embeddings = embeddings.to(transformer.device, transformer.dtype)
    hidden = transformer.condition_embedder.text_embedder(embeddings)
    blocks: dict[int, KeysValues] = {}
    for i, block in enumerate(transformer.blocks):
        attn = block.attn2
        if attn.fused_projections:
            key, value = attn.to_kv(hidden).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(hidden), attn.to_v(hidden)
        blocks[i] = KeysValues(attn.norm_k(key).unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1)))
    return TextMemory(embeddings=embeddings, blocks=blocks)


@torch.no_grad()
def reference_features(transformer: Any, latents: Tensor, embeddings: Tensor) -> list[Tensor]:
    """The input of every block's self-attention, one [B, R, D] a block, when the plain base sees a still at timestep 0.

    latents: [B, C, 1, h, w], normalised. embeddings: of the reference prompt. No extra term may be in scope: the features are
    the frozen base's own (paper, Ref-adapter).
    """
    for block in transformer.blocks:
        for attn in (block.attn1, block.attn2):
            assert getattr(attn.processor, "memory", None) is None, "features must be taken with no memory in scope"
    features: list[Tensor] = []
    hooks = [block.attn1.register_forward_pre_hook(lambda _, args: features.append(args[0])) for block in transformer.blocks]
    try:
        latents = latents.to(transformer.device, transformer.dtype)
        timestep = torch.zeros(latents.shape[0], device=latents.device)
        transformer(latents, timestep, embeddings.to(latents.device, latents.dtype), return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return features
