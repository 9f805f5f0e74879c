"""From tokens or features to the keys and values of one block; full, lite and reference are values of one dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_NORM_EPS = 1e-5


class KeysValues(NamedTuple):
    """What one block attends to: key and value, each [B, I or R, N, K]."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectionConfig:
    """Shape of one projection.

    tokens: width of what comes in. width: D of the base. registers: learned tokens appended to the identity tokens of this block.
    own_key_norm: True: an RMS norm without weight over the full width, eps 1e-5 (lite); False: the block's own norm_k.
    """

    tokens: int
    width: int
    bias: bool = True
    registers: int = 0
    own_key_norm: bool = False


class Projection(nn.Module):
    """Tokens [B, I, tokens] -> KeysValues, given the block's norm_k and its number of heads."""

    def __init__(self, config: ProjectionConfig) -> None:
        super().__init__()
        self.config = config
        self.to_k = nn.Linear(config.tokens, config.width, bias=config.bias)
        self.to_v = nn.Linear(config.tokens, config.width, bias=config.bias)
        self.registers = nn.Parameter(torch.randn(1, config.registers, config.tokens)) if config.registers else None

    def forward(self, tokens: Tensor, block_norm: nn.Module, heads: int) -> KeysValues:
        if self.registers is not None:
            tokens = torch.cat([tokens, self.registers.expand(tokens.shape[0], -1, -1)], 1)
        key, value = self.to_k(tokens), self.to_v(tokens)
        if self.config.own_key_norm:
            key = F.rms_norm(key, (self.config.width,), eps=PLAIN_NORM_EPS)
        else:
            key = block_norm(key)
        return KeysValues(key.unflatten(-1, (heads, -1)), value.unflatten(-1, (heads, -1)))
