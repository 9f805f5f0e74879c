"""What makes a small transformer train fast on CPU cores: attention as plain products, bfloat16 weights, compiled blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lynx_video.adapters.attention import Attention
from lynx_video.adapters.projection import KeysValues


def short() -> torch.dtype:
    """bfloat16 where the CPU has instructions for it, else float32: without them torch unfolds each convolution, 20 times slower."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def autocast() -> torch.autocast:
    """Sums in `short`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=short() is torch.bfloat16)


class TrainingAttention(Attention):
    """The product's processor with softmax attention spelled out: the backward of SDPA is slow on CPUs at these lengths."""

    def _attend(self, query_BLNK: Tensor, memory: KeysValues, mask: Tensor | None, parallel: Any) -> Tensor:  # noqa: ARG002
        batch, length, heads, width = query_BLNK.shape

        def flat(x: Tensor) -> Tensor:
            return x.transpose(1, 2).reshape(batch * heads, -1, width)

        scores = torch.bmm(flat(query_BLNK) * width**-0.5, flat(memory.key).transpose(1, 2))
        out = torch.bmm(torch.softmax(scores, -1), flat(memory.value))
        return out.view(batch, heads, length, width).transpose(1, 2).flatten(2, 3)


def prepare_(transformer: Any, *, compiled: bool = True) -> None:
    """bfloat16 weights (the loop keeps float32 masters), training processors, one compiled graph shared by all blocks."""
    transformer.to(torch.bfloat16)
    for block in transformer.blocks:
        block.attn1.set_processor(TrainingAttention())
        block.attn2.set_processor(TrainingAttention())
        if compiled:
            block.compile(dynamic=False)
