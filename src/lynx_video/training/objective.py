"""The objective: flow matching over a pack, loss per sample, then the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lynx_video import flow
from lynx_video.training.model import PackedModel
from lynx_video.training.sample import Pack, Sample

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedStep:
    """What a pack gave. outputs: a velocity [C, T, h, w] a sample, float32. losses: [n]. loss: their mean, with its graph."""

    outputs: list[Tensor]
    losses: Tensor

    @property
    def loss(self) -> Tensor:
        """The mean over samples."""
        return self.losses.mean()


def packed_step(components: Components, samples: Sequence[Sample], timestep: float | Tensor) -> PackedStep:
    """One forward over samples of any shapes packed into one sequence; `.loss.backward()` gives the adapter's gradients.

    timestep: 0 to 1000, one number for the pack (as the reference trains), or a tensor [n] with one a sample. The adapter's
    parameters must require a gradient for a backward: `load` freezes them. Raises BadRequest for samples that don't fit.
    """
    timesteps = timestep if isinstance(timestep, Tensor) else torch.tensor([float(timestep)])
    return step(PackedModel(components.adapter), samples, timesteps, components.transformer.device, components.dtype)


def step(
    model: PackedModel, samples: Sequence[Sample], timesteps: Tensor, device: torch.device, dtype: torch.dtype
) -> PackedStep:
    """The same on a model that is kept from step to step; timesteps: [1] or [n]."""
    outputs = model(Pack.of(samples, timesteps, device, dtype))
    losses = [
        (output - flow.velocity(one.latents.float(), one.noise.float()).to(device)).pow(2).mean()
        for output, one in zip(outputs, samples, strict=True)
    ]
    return PackedStep(outputs=outputs, losses=torch.stack(losses))
