"""One side at work: compared and counted once, then timed turn by turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lynx_video.bench.count import count_flops, count_forward
from lynx_video.bench.record import Row, Turn
from lynx_video.bench.side import Held
from lynx_video.bench.way import Clock, Way
from lynx_video.runtime.device import peak_memory
from lynx_video.runtime.host import peak_host_memory

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""How far predictions of a side that computes the same may be from those of `exact`, relative to their norm."""


def remember(way: Way) -> None:
    """Make memories and texts."""
    way.memories()
    way.texts()


def predict(way: Way) -> Mapping[str, Tensor]:
    """The predictions of every pass at the first step, with memories and texts made; they stay."""
    remember(way)
    with way.ready():
        return way.predictions()


def difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Largest distance of the passes that both have, relative to the norm of what is wanted; nan where anything is no number."""
    assert found.keys() & wanted.keys(), "no pass in common"
    distances = [
        float((found[name].double() - wanted[name].double()).norm() / wanted[name].double().norm())
        for name in wanted
        if name in found
    ]
    return float("nan") if any(one != one for one in distances) else max(distances)


def count(one: Held, row: Row, *, video: bool) -> None:
    """Note what the pieces ask for. Memories and texts are there before and, after a video, not any more."""
    way = one.way
    row.kinds = {kind: way.kinds.count(kind) for kind in dict.fromkeys(way.kinds)}
    if video:
        row.work["memories"] = count_flops(way.memories).total
        row.work["texts"] = count_flops(way.texts).total
    with way.ready():
        row.counts = count_forward(way.forward, way.components.transformer, way.device)
    row.work["forward"] = row.counts.flops.total
    if video:
        row.work["decoding"] = count_flops(lambda: way.decode(way.noise)).total
        row.work["clip"] = sum(row.work[name] for name in ("memories", "texts", "decoding"))
        row.work["clip"] += way.forwards * row.work["forward"]


def time_forward(one: Held, row: Row, clock: Clock) -> None:
    """A turn that is one forward. Memories and texts are there before and stay."""
    with _watched(one, row, "denoising"), one.way.ready():
        row.turns.append(Turn(forward=clock.seconds(one.way.forward)))


def time_clip(one: Held, row: Row, clock: Clock, steps: int | None) -> None:
    """A turn that is a clip of so many steps, in phases, and a forward by itself; nothing of it stays."""
    way, turn = one.way, Turn()
    for name, run in (("memories", way.memories), ("texts", way.texts)):
        with _watched(one, row, name):
            turn.phases[name] = clock.seconds(run)
    with _watched(one, row, "denoising"), way.ready():
        turn.forward = clock.seconds(way.forward)
        done = way.steps(steps, clock)
    for kind, seconds in zip(done.kinds, done.seconds, strict=True):
        turn.steps.setdefault(kind, []).append(seconds)
    with _watched(one, row, "decoding"):
        turn.phases["decoding"] = clock.seconds(lambda: way.decode(done.latents))
    row.turns.append(turn)


@contextmanager
def _watched(one: Held, row: Row, phase: str) -> Iterator[None]:
    """Within it the device memory that the side takes is watched: its own weights, and what comes on top of what was there.

    Beside a device the host memory of this process is, too; where the host is the device, all sides are in it together.
    """
    device = one.way.device
    if device.type != "cuda":
        yield
        return
    own, before = one.resting(), torch.cuda.memory_allocated(device)
    with peak_memory(device) as peak, peak_host_memory(every=0.05) as host:
        yield
    assert peak.allocated is not None
    row.peaks[phase] = max(row.peaks.get(phase, 0), own + peak.allocated - before)
    row.host = max(row.host or 0, host.total) or None
