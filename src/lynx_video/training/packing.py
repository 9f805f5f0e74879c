"""Packed attention: many samples as one sequence, each token seeing only its own sample's tokens (paper, Training; NaViT).

The processor of the product, told where samples begin and end. On CUDA one variable-length kernel does all samples; elsewhere a loop
takes samples of equal lengths together. A sample without keys gets nothing from that term, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_video.adapters.attention import Attention, Rotary
from lynx_video.adapters.projection import KeysValues, Projection
from lynx_video.training.sample import runs

PLAIN_SCORES = 2**18
"scores a head up to which attention on a CPU is spelled out: the backward of SDPA is slow there at short lengths"


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Lengths of queries and keys, an entry a sample.

    bounds: what the variable-length kernel takes: cumulative lengths, int32 [n + 1] each, and upper bounds of the lengths, as powers
    of two, so that few graphs are compiled; None where that kernel is not used.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    bounds: tuple[Tensor, Tensor, int, int] | None = None

    @staticmethod
    def of(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Segments:
        """The segments of samples with these lengths, for tensors on `device`."""
        if device.type != "cuda" or 0 in keys:  # samples without keys are taken out before the kernel runs
            return Segments(queries=queries, keys=keys)
        ends = [torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32) for lengths in (queries, keys)]
        most = [1 << (max(lengths) - 1).bit_length() for lengths in (queries, keys)]
        return Segments(queries=queries, keys=keys, bounds=(ends[0], ends[1], most[0], most[1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """An extra term in scope: the projection that makes keys and values of `tokens` ([P, I, W], or [1, sum R, D]), and the segments.

    scale: [1, L, 1], the weight of the term for each video token.
    """

    projection: Projection
    tokens: Tensor
    segments: Segments
    scale: Tensor


class PackedAttention(Attention):
    """The product's processor over a pack; with no segments in scope it is that processor.

    segments: of the main attention. term: the identity or reference term; its keys are projected here, inside the block, so that
    sharded and recomputed blocks find their own norm_k in place. keep: put what comes in into `seen` (a hook would make a compiled
    block compile again for each place in the network).
    """

    def __init__(self) -> None:
        super().__init__()
        self.segments: Segments | None = None
        self.term: Term | None = None
        self.keep = False
        self.seen: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        term = self.term
        if self.keep:
            self.seen = hidden_states
        if term is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        made = term.projection(term.tokens, attn.norm_k, attn.heads)
        self.scale = term.scale
        self.memory = KeysValues(made.key.flatten(0, 1)[None], made.value.flatten(0, 1)[None])
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        finally:
            self.memory, self.scale = None, 1.0

    def _attend(self, query_BLNK: Tensor, memory: KeysValues, mask: Tensor | None, parallel: Any) -> Tensor:
        if self.segments is None:
            return super()._attend(query_BLNK, memory, mask, parallel)
        return attend(query_BLNK, memory, self.segments)

    def _attend_memory(self, query_BLNK: Tensor, memory: KeysValues) -> Tensor:
        if self.term is None:
            return super()._attend_memory(query_BLNK, memory)
        return attend(query_BLNK, memory, self.term.segments)


def attend(query_BLNK: Tensor, memory: KeysValues, segments: Segments) -> Tensor:
    """Attention of each sample to its own keys: [1, L, N, K] and keys [1, M, N, K] -> [1, L, N * K]; zeros where it has none."""
    if segments.bounds is not None:
        from torch.nn.attention.varlen import varlen_attn

        key, value = memory.key.type_as(query_BLNK), memory.value.type_as(query_BLNK)
        out_LNK = varlen_attn(query_BLNK[0], key[0], value[0], *segments.bounds)
        assert isinstance(out_LNK, Tensor)
        return out_LNK.flatten(1)[None]
    parts = query_BLNK[0].split(segments.queries)
    present = [i for i, count in enumerate(segments.keys) if count]
    if len(present) < len(parts):
        queries, keys = (tuple(lengths[i] for i in present) for lengths in (segments.queries, segments.keys))
        inner = Segments.of(queries, keys, query_BLNK.device)
        found = iter(())
        if present:
            some = attend(torch.cat([parts[i] for i in present])[None], memory, inner)
            found = iter(some[0].split(inner.queries))
        whole = [
            next(found) if count else torch.zeros_like(part).flatten(1)
            for part, count in zip(parts, segments.keys, strict=True)
        ]
        return torch.cat(whole)[None]
    key, value = memory.key.type_as(query_BLNK), memory.value.type_as(query_BLNK)
    return attend_in_turn(query_BLNK, key, value, segments)


def attend_in_turn(query_BLNK: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """The same without a variable-length kernel: a product for each run of samples of equal lengths."""
    done: list[Tensor] = []
    query_at = key_at = 0
    for run in runs(list(zip(segments.queries, segments.keys, strict=True))):
        count, queries, keys = run.stop - run.start, segments.queries[run.start], segments.keys[run.start]
        query_end, key_end = query_at + count * queries, key_at + count * keys
        some = query_BLNK[0, query_at:query_end].unflatten(0, (count, queries))
        pair = (x[0, key_at:key_end].unflatten(0, (count, keys)) for x in (key, value))
        done.append(_dense(some, *pair).flatten(0, 1))
        query_at, key_at = query_end, key_end
    return torch.cat(done)[None]


def _dense(query_BLNK: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, L, N, K] -> [B, L, N * K]."""
    query, key, value = (x.transpose(1, 2) for x in (query_BLNK, key, value))
    if query.is_cpu and query.shape[2] * key.shape[2] <= PLAIN_SCORES:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        out = torch.softmax(scores, -1) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).flatten(2)
