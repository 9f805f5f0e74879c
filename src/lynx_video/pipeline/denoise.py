"""The only sampling loop, and the noise it starts from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lynx_video.adapters.attach import FULL_STRENGTH, Adapter, Influence
from lynx_video.adapters.memory import Memory, TextMemory
from lynx_video.flow import reference_sigmas
from lynx_video.pipeline.guidance import Pass


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


def set_timesteps(scheduler: Any, steps: int, device: torch.device | str) -> Tensor:
    """Put `scheduler` on the reference's sigma grid where it takes one, on its own grid otherwise; the timesteps, [steps]."""
    import inspect

    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=reference_sigmas(steps), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    timesteps: Tensor = scheduler.timesteps
    return timesteps


@torch.no_grad()
def denoise(
    adapter: Adapter,
    scheduler: Any,
    latents: Tensor,
    timesteps: Tensor,
    table: Sequence[Pass],
    texts: Mapping[str, TextMemory],
    memories: Mapping[str, Memory],
    *,
    identity: Influence = FULL_STRENGTH,
    reference: Influence = FULL_STRENGTH,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Latents [1, C, T, h, w] float32 from noise to clean.

    texts: memories of "prompt" and "negative"; memories: of "person" and "nobody". A callback may raise to stop.
    """
    transformer = adapter.transformer
    began = time.monotonic()
    for number, t in enumerate(timesteps):
        progress = number / len(timesteps)
        velocity = torch.zeros_like(latents)
        for one in table:
            text = texts[one.text]
            model_input = latents.to(text.embeddings.dtype)
            with adapter.using(
                memories.get(one.who), text=text, identity=identity.at(progress), reference=reference.at(progress)
            ):
                # the text projections are in memory: the transformer itself only needs the dtype and one token to embed
                predicted = transformer(model_input, t.expand(len(latents)), text.embeddings[:, :1], return_dict=False)[0]
            velocity += one.weight * predicted.float()
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        if on_step:
            on_step(Step(number=number + 1, total=len(timesteps), latents=latents, seconds=time.monotonic() - began))
    return latents
