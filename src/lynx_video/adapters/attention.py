"""The processors that stand in for diffusers' `WanAttnProcessor` on every `WanAttention`.

The stock result, plus `scale * attention(query, K, V)` for the memory in scope, before the output projection. With none in scope
the result equals stock bit for bit. They hold no weights, so a transformer with them attached keeps its stock state dict.

The extra terms share the block's normalised query: with text in cross-attention (identity), and in self-attention without its
rotary embedding (reference), so that a face is not tied to a place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lynx_video.adapters.projection import KeysValues

Rotary = tuple[Tensor, Tensor]


class Attention:
    """One processor for self- and cross-attention; what differs is what is put in scope.

    memory: keys and values of the extra term, or None. scale: its weight; as a 0-dim tensor in host memory one compiled graph serves
    every value, and kernels take it as an argument, in full precision and without waiting.
    text: keys and values of the prompt that replace projecting `encoder_hidden_states` (cross-attention only), or None.
    gather: turns the keys and values of this process's video tokens into those of all (self-attention only), or None.
    """

    _attention_backend: Any = None  # diffusers' set_attention_backend and enable_parallelism write these two
    _parallel_config: Any = None

    def __init__(self) -> None:
        self.memory: KeysValues | None = None
        self.scale: float | Tensor = 1.0
        self.text: KeysValues | None = None
        self.gather: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """Video tokens [B, L, D] -> [B, L, D]; the signature diffusers calls."""
        heads = attn.heads
        plain_query_BLD, key, value = self._project(attn, hidden_states, encoder_hidden_states)
        plain_query_BLNK = attn.norm_q(plain_query_BLD).unflatten(2, (heads, -1))
        query_BLNK = plain_query_BLNK
        if rotary_emb is not None:
            query_BLNK, key = rotate(query_BLNK, *rotary_emb), rotate(key, *rotary_emb)
        parallel = None
        if encoder_hidden_states is None:
            parallel = self._parallel_config
            if self.gather is not None:
                key, value = self.gather(key, value)
        out_BLD = self._attend(query_BLNK, KeysValues(key, value), attention_mask, parallel)
        if self.memory is not None:
            # the scale stands on the right: on a CPU only there it is not rounded to the dtype of the other factor first
            out_BLD = out_BLD + self._attend_memory(plain_query_BLNK, self.memory) * self.scale
        out_BLD = attn.to_out[0](out_BLD)
        out: Tensor = attn.to_out[1](out_BLD)
        return out

    def _project(self, attn: Any, hidden_states: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query [B, L, D] before its norm; key and value [B, ., N, K] after theirs."""
        if context is not None and self.text is not None:
            text = _for_batch(self.text, hidden_states.shape[0])
            return attn.to_q(hidden_states), text.key, text.value
        if not attn.fused_projections:
            source = hidden_states if context is None else context
            query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        elif context is None:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query = attn.to_q(hidden_states)
            key, value = attn.to_kv(context).chunk(2, dim=-1)
        key = attn.norm_k(key)
        return query, key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))

    def _attend_memory(self, query_BLNK: Tensor, memory: KeysValues) -> Tensor:
        return self._attend(query_BLNK, _for_batch(memory, query_BLNK.shape[0]), None, None)

    def _attend(self, query_BLNK: Tensor, memory: KeysValues, mask: Tensor | None, parallel: Any) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        out_BLNK: Tensor = dispatch_attention_fn(
            query_BLNK,
            memory.key,
            memory.value,
            attn_mask=mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=parallel,
        )
        return out_BLNK.flatten(2, 3).type_as(query_BLNK)


def rotate(x_BLNK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, in the arithmetic of the stock processor: pairs are (even, odd) channels."""
    even, odd = x_BLNK.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x_BLNK)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out.type_as(x_BLNK)


def _for_batch(memory: KeysValues, batch: int) -> KeysValues:
    if memory.key.shape[0] == batch:
        return memory
    return KeysValues(*(tensor.expand(batch, -1, -1, -1) for tensor in memory))
