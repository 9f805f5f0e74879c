"""The resampler: a Perceiver that turns one face vector into identity tokens (paper, ID-adapter)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lynx_video.types import FACE_WIDTH


@dataclass(frozen=True, kw_only=True, slots=True)
class ResamplerConfig:
    """Sizes; the official ones are depth 4, width 1280, 16 queries, output 5120 (full) or 2048 (lite)."""

    depth: int = 4
    width: int = 1280
    queries: int = 16
    output: int = 5120
    face: int = FACE_WIDTH
    inner: int = 1280
    "width inside the attention: heads times head width"

    @property
    def head_width(self) -> int:
        """No file says how many heads the attention has. The official resampler has 20 of 64; toy ones have heads of 16."""
        return 64 if self.inner >= 512 else 16


class _PerceiverAttention(nn.Module):
    """The queries attend to the face token and to themselves; no biases."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.inner
        self.head_width = config.head_width
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, queries: Tensor) -> Tensor:
        tokens, queries = self.norm1(tokens), self.norm2(queries)
        key, value = self.to_kv(torch.cat([tokens, queries], 1)).chunk(2, -1)

        def split(x: Tensor) -> Tensor:
            heads: Tensor = x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            return heads

        out = F.scaled_dot_product_attention(split(self.to_q(queries)), split(key), split(value))
        mixed: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return mixed


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
    )


class Resampler(nn.Module):
    """Face vectors [B, 512] -> identity tokens [B, I, output], any float dtype. Parameter names are the official file's."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.randn(1, config.queries, config.width) / config.width**0.5)
        self.proj_in = nn.Linear(config.face, config.width)
        self.proj_out = nn.Linear(config.width, config.output)
        self.norm_out = nn.LayerNorm(config.output)
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(config), _feed_forward(config.width)]) for _ in range(config.depth)
        )

    def forward(self, face: Tensor) -> Tensor:
        tokens = self.proj_in(face)[:, None]
        queries = self.latents.expand(face.shape[0], -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            queries = layer[0](tokens, queries) + queries
            queries = layer[1](queries) + queries
        out: Tensor = self.norm_out(self.proj_out(queries))
        return out
