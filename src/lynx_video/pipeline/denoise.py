"""The only sampling loop, and the noise it starts from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.errors import Cancelled
from lynx_video.flow import TIMESTEPS
from lynx_video.pipeline.guidance import Table
from lynx_video.pipeline.predict import Conditions, Expert, combine, predict
from lynx_video.pipeline.windows import Windows, blend

if TYPE_CHECKING:
    from lynx_video.runtime.parallel import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a step callback is told. latents: the state after this step, [1, C, T, h, w]. seconds: since the first step began.

    before, velocity, sigma: the state this step began with, what was predicted for it, and its noise level (0-dim), for `clean`.
    """

    number: int
    total: int
    latents: Tensor
    seconds: float
    before: Tensor | None = None
    velocity: Tensor | None = None
    sigma: Tensor | None = None

    @property
    def clean(self) -> Tensor:
        """The clean latents as this step guesses them, float32 [1, C, T, h, w]; computed when it is asked for, without waiting."""
        if self.before is None or self.velocity is None or self.sigma is None:
            return self.latents
        return self.before - self.sigma * self.velocity


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
    windows: Windows | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Latents [1, C, T, h, w] float32 from noise to clean.

    experts: the first whose `least` a timestep reaches serves it. tables: the passes of each step. computed: for each step, whether
    the blocks are computed; None: always. windows: how a long clip is divided; None: it is one. A callback may raise to stop.
    """
    began = time.monotonic()
    hosted, total = timesteps.tolist(), len(timesteps)
    sigmas = _sigmas(scheduler, timesteps)
    shares = windows.shares(latents.device) if windows is not None else []
    before: tuple[Any, ...] = ()
    for number, (t, table) in enumerate(zip(timesteps, tables, strict=True)):
        progress = number / total
        expert = next(one for one in experts if hosted[number] >= one.least)
        # a cached contribution is of the expert and the adapters that were on
        state = (id(expert), *conditions.at(progress))
        compute = computed is None or computed[number] or state != before
        before = state
        velocity_of = partial(_velocity, expert, conditions, table, t, progress, compute)
        velocity = velocity_of(0, latents) if windows is None else blend(windows, shares, latents, velocity_of)
        after = scheduler.step(velocity, t, latents, return_dict=False)[0]
        step = Step(
            number=number + 1,
            total=total,
            latents=after,
            seconds=time.monotonic() - began,
            before=latents,
            velocity=velocity,
            sigma=sigmas[number],
        )
        _tell(on_step, step, conditions.ranks)
        latents = after
        del step, velocity, velocity_of  # or their tensors would live through the next forward
    return latents


def _velocity(
    expert: Expert,
    conditions: Conditions,
    table: Table,
    timestep: Tensor,
    progress: float,
    compute: bool,
    window: int,
    latents: Tensor,
) -> Tensor:
    predictions = predict(expert, conditions, table, latents, timestep, progress, compute=compute, window=window)
    return combine(table, predictions)


def _sigmas(scheduler: Any, timesteps: Tensor) -> Sequence[Tensor]:
    """The noise level of each step, 0-dim, where the scheduler keeps them: nothing here waits for a device."""
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) >= len(timesteps):
        return sigmas[: len(timesteps)].unbind()
    return (timesteps / TIMESTEPS).unbind()


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
