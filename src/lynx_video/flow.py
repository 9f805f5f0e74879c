"""Flow matching, shared by training and sampling: x_t = (1 - s) x + s n, target n - x, s in [0, 1] (1 is pure noise)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

TIMESTEPS = 1000


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The noisy sample at `sigma` (broadcast over [B, C, T, h, w])."""
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the model learns to predict."""
    return noise - clean


def reference_sigmas(steps: int) -> NDArray[np.float64]:
    """The grid the reference implementation samples on, before the flow shift: from 1 - 1/1000 down, evenly, without zero.

    Newer diffusers start at 1 and end higher, which alone moves the final latents by a tenth.
    """
    import numpy as np

    return np.linspace(1 - 1 / TIMESTEPS, 0, steps + 1)[:-1]
