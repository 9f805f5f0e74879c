"""A clip that is longer than the model was trained for, as overlapping windows of the trained length.

Every step is predicted window by window over the latents of the whole clip and blended where windows overlap; the scheduler then takes
one step on the whole (MultiDiffusion, Bar-Tal et al. 2023, in time). All windows see the same memories of texts and person.

A VAE such as Wan's lets the first latent frame stand for one frame and every other for several. A window that begins inside the clip
shows the transformer, in the place of the first, a latent frame that stands for several. That place has the least weight of its window;
`docs/long.md` has what giving it none changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LEAST_OVERLAP = 2
"""Latent frames that windows overlap by default at least: over one, ghosts of both were seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """The latent frames of a clip as windows of one length, in order.

    starts: the first latent frame of each window. weights: for each window, how much each of its latent frames counts in the clip's;
    they sum to one over the windows that have the frame.
    """

    length: int
    starts: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def count(self) -> int:
        """How many windows."""
        return len(self.starts)

    @property
    def total(self) -> int:
        """Latent frames of the clip."""
        return self.starts[-1] + self.length

    @property
    def overlap(self) -> int:
        """Latent frames that neighbours share at least; 0 for one window."""
        return min((before + self.length - after for before, after in pairwise(self.starts)), default=0)

    def shares(self, device: torch.device | str) -> list[Tensor]:
        """For each window, how much its latent frames count beside the windows before it: float32 [T, 1, 1], for `blend`."""
        so_far = [0.0] * self.total
        found = []
        for start, weights in zip(self.starts, self.weights, strict=True):
            row = []
            for i, weight in enumerate(weights, start):
                so_far[i] += weight
                row.append(weight / so_far[i] if weight else 0.0)
            found.append(torch.tensor(row, dtype=torch.float32, device=device).view(-1, 1, 1))
        return found

    def to_json(self, temporal_factor: int) -> dict[str, int]:
        """What a clip's settings say of it: how many windows, and in frames their length and their least overlap."""
        return {
            "number": self.count,
            "frames": (self.length - 1) * temporal_factor + 1,
            "overlap": self.overlap * temporal_factor,
        }


def divide(total: int, length: int, overlap: int) -> Windows:
    """As few windows of `length` latent frames as cover `total` and overlap by `overlap` at least, evenly spread.

    In an overlap the one window fades out linearly while the next fades in.
    """
    assert 0 <= overlap < length, f"windows of {length} latent frames can't overlap by {overlap}"
    assert total >= length, f"{total} latent frames are less than a window of {length}"
    last = total - length
    count = 1 + math.ceil(last / (length - overlap))
    return faded(length, tuple(round(i * last / (count - 1)) for i in range(count)) if count > 1 else (0,))


def faded(length: int, starts: tuple[int, ...]) -> Windows:
    """Windows that begin there, each fading in and out over what it shares with its neighbours."""
    raw = [[1.0] * length for _ in starts]
    for before, (one, other) in enumerate(pairwise(starts)):
        shared = max(0, one + length - other)
        for i in range(shared):
            rising = (i + 1) / (shared + 1)
            raw[before + 1][i] *= rising
            raw[before][length - shared + i] *= 1 - rising
    sums = [0.0] * (starts[-1] + length)
    for start, row in zip(starts, raw, strict=True):
        for i, weight in enumerate(row, start):
            sums[i] += weight
    weights = tuple(
        tuple(weight / sums[i] for i, weight in enumerate(row, start)) for start, row in zip(starts, raw, strict=True)
    )
    return Windows(length=length, starts=starts, weights=weights)


def default_overlap(length: int) -> int:
    """A quarter of a window of `length` latent frames, LEAST_OVERLAP at least where that fits."""
    return min(max(length // 4, LEAST_OVERLAP), length - 1)


def blend(windows: Windows, shares: list[Tensor], latents: Tensor, predict: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The prediction for all latents [B, C, T, h, w], from `predict(number, part)` for each window's part of them.

    shares: of `Windows.shares` on the latents' device. A running mean: where all windows say the same, that is the result, bit for bit.
    """
    whole = torch.zeros_like(latents)
    for number, (start, share) in enumerate(zip(windows.starts, shares, strict=True)):
        here: Any = slice(start, start + windows.length)
        part = predict(number, latents[:, :, here].contiguous())
        whole[:, :, here].lerp_(part, share)
    return whole
