"""What is asked of a race and what it finds, as values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.bench.side import Side

if TYPE_CHECKING:
    import torch

    from lynx_video.bench.count import Counts
    from lynx_video.bench.kernels import Kernels
    from lynx_video.bench.made import Source
    from lynx_video.bench.profile import Profile
    from lynx_video.runtime.device import Device, Rates

APART = ("memories", "texts", "decoding")
"""The phases of a clip beside denoising."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is compared; one of the sides is `exact`.

    rounds: turns of each side that are timed. steps: denoising steps of a turn; None: every step of the clip. video: whether clips are
    timed, or forwards alone. profile: look into one block, too. weigh: start each side once more, alone, for its host memory.
    calibration: of the step cache, in place of the model's own.
    """

    source: Source
    sides: tuple[Side, ...]
    rounds: int = 3
    steps: int | None = None
    video: bool = True
    profile: bool = False
    weigh: bool = False
    calibration: Path | None = None


@dataclass(kw_only=True, slots=True)
class Turn:
    """Seconds of one turn of a side: of a forward, of the phases apart, and of each denoising step by its kind."""

    forward: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    steps: dict[str, list[float]] = field(default_factory=dict)

    def denoising(self, kinds: Mapping[str, int]) -> float:
        """Of so many steps of each kind."""
        return sum(statistics.median(self.steps[kind]) * count for kind, count in kinds.items())

    def clip(self, kinds: Mapping[str, int]) -> float:
        """Of a whole clip, with so many steps of each kind."""
        return self.denoising(kinds) + sum(self.phases[name] for name in APART)


@dataclass(kw_only=True, slots=True)
class Row:
    """What was seen of a side.

    missing: why there is nothing. layout: what a memory budget decided. difference: of its predictions from those of `exact`, relative.
    kinds: how often each kind of step comes in a clip. work: operations counted, by phase, of a "forward" and of a whole "clip".
    arithmetic: the same two worked out from the shapes; terms: those of the forward. peaks, estimate: bytes on the device by phase,
    measured and planned. host: bytes of a process of its own. beside, beside_kinds: the turns of `exact` in the same rounds, and its
    kinds of steps.
    """

    name: str
    way: str
    missing: str = ""
    layout: str = ""
    difference: float | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    counts: Counts | None = None
    work: dict[str, int] = field(default_factory=dict)
    arithmetic: dict[str, int] = field(default_factory=dict)
    terms: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    estimate: dict[str, int] = field(default_factory=dict)
    host: int | None = None
    profile: Profile | None = None
    turns: list[Turn] = field(default_factory=list)
    beside: list[Turn] = field(default_factory=list)
    beside_kinds: dict[str, int] = field(default_factory=dict)

    def times(self, of: Callable[[Turn], float]) -> list[float]:
        """Of each turn."""
        return [of(turn) for turn in self.turns]

    def ratio(self, mine: Callable[[Turn], float], theirs: Callable[[Turn], float]) -> float:
        """Of its time over that of `exact`, the median over rounds."""
        pairs = zip(self.turns, self.beside, strict=True)
        return statistics.median(mine(turn) / theirs(exact) for turn, exact in pairs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a race found, and where.

    kernels: what those of a forward take apart. tokens: video tokens of a pass. spoken: whether a real text encoder was timed.
    processor: whether seconds are the processor's.
    """

    request: Request
    rows: tuple[Row, ...]
    device: Device
    rates: Rates
    kernels: Kernels
    dtype: torch.dtype
    tokens: int
    clip: tuple[int, int, int]
    "frames, height, width"
    total_steps: int
    threads: int
    spoken: bool
    processor: bool

    def row(self, name: str) -> Row | None:
        """The row of a side that was run."""
        return next((row for row in self.rows if row.name == name and row.turns), None)

    def at_rates(self, row: Row) -> float:
        """Seconds of a forward at the rates that the device has for matrix products and attention."""
        linear = row.terms["linear layers"]
        return linear / self.rates.matmul + (sum(row.terms.values()) - linear) / self.rates.attention

    def apart(self, row: Row) -> float:
        """Seconds that the kernels of a forward take apart."""
        return self.kernels.of(name for name, work in row.terms.items() if work)
