"""The only sampling loop, and the noise it starts from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.errors import Cancelled
from lynx_video.pipeline.guidance import Table
from lynx_video.pipeline.predict import Conditions, Expert, combine, predict

if TYPE_CHECKING:
    from lynx_video.runtime.parallel import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step callback is told. latents: the state after this step, [1, C, T, h, w]. seconds: since the first step began."""

    number: int
    total: int
    latents: Tensor
    seconds: float


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """float32 noise [1, C, T, h, w] from a CPU generator: the same on every device, and the reference's for the same seed."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@torch.no_grad()
def denoise(
    experts: Sequence[Expert],
    scheduler: Any,
    latents: Tensor,
    timesteps: Tensor,
    tables: Sequence[Table],
    conditions: Conditions,
    *,
    computed: Sequence[bool] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Latents [1, C, T, h, w] float32 from noise to clean.

    experts: the first whose `least` a timestep reaches serves it. tables: the passes of each step. computed: for each step, whether
    the blocks are computed; None: always. A callback may raise to stop.
    """
    began = time.monotonic()
    hosted, total = timesteps.tolist(), len(timesteps)
    before: tuple[Any, ...] = ()
    for number, (t, table) in enumerate(zip(timesteps, tables, strict=True)):
        progress = number / total
        expert = next(one for one in experts if hosted[number] >= one.least)
        # a cached contribution is of the expert and the adapters that were on
        state = (id(expert), *conditions.at(progress))
        compute = computed is None or computed[number] or state != before
        before = state
        predictions = predict(expert, conditions, table, latents, t, progress, compute=compute)
        latents = scheduler.step(combine(table, predictions), t, latents, return_dict=False)[0]
        step = Step(number=number + 1, total=total, latents=latents, seconds=time.monotonic() - began)
        _tell(on_step, step, conditions.ranks)
    return latents


def _tell(on_step: Callable[[Step], None] | None, step: Step, ranks: Ranks | None) -> None:
    """Call back; if that stops one of the processes that share the work, it stops all of them."""
    stopped: BaseException | None = None
    try:
        if on_step:
            on_step(step)
    except BaseException as error:
        if ranks is None:
            raise
        stopped = error
    if ranks is not None and ranks.agree(stopped is not None):
        raise stopped or Cancelled("another process was asked to stop.")
