"""Flow matching, shared by training and sampling: x_t = (1 - s) x + s n, target n - x, s in [0, 1] (1 is pure noise)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lynx_video.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

TIMESTEPS = 1000


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noisy sample at `sigma` (broadcast over [B, C, T, h, w])."""
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the model learns to predict."""
    return noise - clean


@dataclass(frozen=True, kw_only=True, slots=True)
class TimestepSampling:
    """Which noise levels a model is trained at."""

    kind: Literal["uniform", "logit-normal"] = "logit-normal"
    "uniform in (0, 1), or the sigmoid of a normal draw, which favours the middle"
    mean: float = 0.0
    "of the normal draw; above 0 favours noise"
    spread: float = 1.0
    "standard deviation of the normal draw"
    shift: float = 1.0
    "pushes towards noise as the flow shift of sampling does, s' = shift s / (1 + (shift - 1) s); 1 leaves it"

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit-normal"):
            raise BadRequest(f"timestep sampling must be uniform or logit-normal, got {self.kind!r}.")
        if not (self.spread > 0 and self.shift > 0 and math.isfinite(self.mean)):
            raise BadRequest(
                f"timestep sampling needs spread and shift above 0 and a finite mean, got spread {self.spread}, "
                f"shift {self.shift}, mean {self.mean}."
            )


def sample_sigmas(count: int, sampling: TimestepSampling, generator: torch.Generator) -> Tensor:
    """`count` noise levels, float32 [count] in [0, 1]."""
    import torch

    if sampling.kind == "uniform":
        sigma = torch.rand(count, generator=generator)
    else:
        sigma = torch.sigmoid(torch.randn(count, generator=generator) * sampling.spread + sampling.mean)
    return shifted(sigma, sampling.shift)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Noise levels after a flow shift."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def reference_sigmas(steps: int) -> NDArray[np.float64]:
    """The grid the reference implementation samples on, before the flow shift: from 1 - 1/1000 down, evenly, without zero.

    Newer diffusers start at 1 and end higher, which alone moves the final latents by a tenth.
    """
    import numpy as np

    return np.linspace(1 - 1 / TIMESTEPS, 0, steps + 1)[:-1]
