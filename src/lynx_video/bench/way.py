"""A way to compute a clip, in pieces that can be timed apart, and the clock that times them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lynx_video.bench.made import Scene
from lynx_video.config import GenerateConfig
from lynx_video.pipeline.denoise import initial_noise
from lynx_video.pipeline.generate import plan
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components


class Clock:
    """Time at which the device is done with what it was given.

    processor: with one thread on a CPU, seconds are the processor's, which other work on the machine lengthens less.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.processor = device.type == "cpu" and torch.get_num_threads() == 1

    def now(self) -> float:
        """Seconds."""
        if self.processor:
            return time.process_time()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, run: Callable[[], object]) -> float:
        """How long `run` takes."""
        began = self.now()
        run()
        return self.now() - began


class Steps(NamedTuple):
    """Denoising, timed. kinds, seconds: of each step. latents: where it ended."""

    kinds: list[str]
    seconds: list[float]
    latents: Tensor

    @staticmethod
    def between(marks: Sequence[float], kinds: list[str], latents: Tensor) -> Steps:
        """From the time before the first step and after each."""
        return Steps(kinds, [after - before for before, after in pairwise(marks)], latents)


class Way(ABC):
    """One way. `memories`, `texts`, then within `ready` any of `forward`, `predictions`, `steps`, then `decode` and `forget`.

    A way that is asked for the first again begins anew.
    """

    def __init__(self, components: Components, scene: Scene, config: GenerateConfig) -> None:
        self.components, self.scene, self.config = components, scene, config
        self.plan = plan(components, config)
        self.device = components.device
        self.noise = initial_noise(self.plan.latent_shape, config.seed).to(self.device)
        self.scheduler = make_scheduler(components.scheduler, config)
        self.timesteps = set_timesteps(self.scheduler, self.plan.steps, self.device)

    @property
    def tokens(self) -> int:
        """Video tokens of a pass."""
        return self.plan.tokens(tuple(self.components.transformer.config.patch_size))

    @property
    @abstractmethod
    def kinds(self) -> list[str]:
        """Of every step of the whole clip: steps of one kind take the same time."""

    @property
    @abstractmethod
    def forwards(self) -> int:
        """Forwards of the whole clip whose blocks are computed."""

    @abstractmethod
    def memories(self) -> None:
        """What the person contributes, up to what is done once for a clip."""

    @abstractmethod
    def texts(self) -> None:
        """What the prompts contribute, likewise."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within it the transformer is as it is while denoising."""
        yield

    @abstractmethod
    def forward(self) -> Tensor:
        """The prediction of the prompt's pass at the first step, float32."""

    @abstractmethod
    def predictions(self) -> Mapping[str, Tensor]:
        """Of every pass at the first step, by its name, as a step computes them."""

    @abstractmethod
    def steps(self, limit: int | None, clock: Clock) -> Steps:
        """Denoise: every step of the clip, or so many, with at least one of each kind."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The frames, on the host."""

    def forget(self) -> None:  # noqa: B027 (most have nothing)
        """Drop what was remembered."""
