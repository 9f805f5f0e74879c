"""The sampler of a generation and the noise levels it visits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest
from lynx_video.flow import TIMESTEPS, reference_sigmas

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lynx_video.config import GenerateConfig


def set_timesteps(scheduler: Any, steps: int, device: torch.device | str) -> Tensor:
    """Put `scheduler` on the reference's sigma grid where it takes one, on its own grid otherwise; the timesteps, [steps]."""
    import inspect

    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=reference_sigmas(steps), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    scheduler.set_begin_index(0)  # or its first step looks the timestep up, and waits for the device to do so
    timesteps: Tensor = scheduler.timesteps
    return timesteps


def levels(timesteps: Tensor) -> list[float]:
    """The noise level of each step, 1 is pure noise; on the host."""
    return [float(t) / TIMESTEPS for t in timesteps.tolist()]


def make_scheduler(scheduler: Any, config: GenerateConfig) -> Any:
    """A fresh scheduler of the asked kind from the base's own configuration; a loaded one of another kind stays what it is.

    Raises BadRequest for a flow shift that a scheduler of another kind has no place for.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    shift = config.flow_shift if config.flow_shift is not None else shift_of(scheduler) or 1.0
    if config.scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    if config.scheduler == "dpm":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    if is_unipc(scheduler):
        return UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=shift)
    if config.flow_shift is None:
        return type(scheduler).from_config(scheduler.config)
    name = next((name for name in _SHIFTS if name in scheduler.config), None)
    if name is None:
        raise BadRequest(f"flow_shift: the scheduler {type(scheduler).__name__} has no shift; set it in the scheduler itself.")
    return type(scheduler).from_config(scheduler.config, **{name: shift})


_SHIFTS = ("flow_shift", "shift")  # as UniPC and DPM call it, and as Euler does


def shift_of(scheduler: Any) -> float | None:
    """The shift of a scheduler's noise schedule, if it has one."""
    return next((float(value) for name in _SHIFTS if (value := scheduler.config.get(name)) is not None), None)


def is_unipc(scheduler: Any) -> bool:
    from diffusers import UniPCMultistepScheduler

    return isinstance(scheduler, UniPCMultistepScheduler)
