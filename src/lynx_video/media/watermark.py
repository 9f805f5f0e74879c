"""An invisible mark in the frames of a clip that says "made by lynx-video", and whether a clip carries it.

The mark is a fixed sum of cosines over the whole picture, of 4 to 18 half waves each way, with signs from a known key: the same in
every frame, so it does not flicker. Since it is laid out in shares of the picture's size, scaling does not move it. To find it, each frame is brought
to 64x64 grey values, a bilateral filter takes out what is picture, the rest is averaged over the frames, and its cosine coefficients,
each over the mean size of its neighbours, are compared with the signs. For a clip without the mark that sum has mean 0 and
deviation 1 whatever it shows, as the signs are random: the threshold is a rate of false alarms.

It survives lossy compression, scaling and cutting frames. It does not survive cropping, turning, or somebody who wants to remove it: the key
is public, so that everybody can look. Nothing but its presence can be read from it.

Source: spread spectrum watermarking, Cox et al. 1997.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lynx_video.types import Picture, Video

    Floats = NDArray[np.floating[Any]]

KEY = 1
"""Seed of the signs. With another, marks of earlier clips would not be found."""
LOWEST, HIGHEST = 4, 18
"""Half waves over a side: below, pictures are; above, compression is."""
GRID = 64
"""Side, in pixels, of what is looked at."""
STRENGTH = 2.0
"""Root mean square of the mark in grey values."""
THRESHOLD = 4.8
"""Deviations from 0: one false alarm in 1.3 million clips, were the sum normal."""
LUMA = (0.2126, 0.7152, 0.0722)
_SPREAD, _EDGE, _CLIP = 8.0, 4.0, 4.0  # of the bilateral filter: pixels, grey values; what of the rest counts, grey values
_NEIGHBOURS, _LIMIT = 1.5, 1.5  # deviation of the mean over neighbours; coefficients beyond so many of it count no more


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """Whether a clip carries the mark. score: deviations from what clips without it have; found: it is threshold or more."""

    found: bool
    score: float
    threshold: float = THRESHOLD


def mark(frames: Video) -> Video:
    """The frames, uint8 [F, H, W, 3] RGB, with the mark; new ones. Raises ValueError for another array."""
    import numpy as np

    _check(frames)
    height, width = frames.shape[1:3]
    pattern = _pattern(height, width)[..., None]
    marked = np.empty_like(frames)
    for number, frame in enumerate(frames):
        marked[number] = np.clip(np.rint(frame + pattern), 0, 255)
    return marked


def detect(frames: Video) -> Detection:
    """Look for the mark in uint8 [F, H, W, 3] RGB. Raises ValueError for another array."""
    _check(frames)
    score = _score(_coefficients(frames))
    return Detection(found=score >= THRESHOLD, score=score)


def _score(coefficients: Floats) -> float:
    import numpy as np

    band, signs = _band()
    length = float(np.linalg.norm(coefficients))
    return float(coefficients @ signs) / length if length else 0.0


def _coefficients(frames: Iterable[Picture]) -> Floats:
    """The coefficients of the band, each over the mean size of its neighbours, limited."""
    import cv2
    import numpy as np

    mean = np.zeros((GRID, GRID), np.float64)
    count = 0
    for frame in frames:
        mean += _residue(frame)
        count += 1
    band, _ = _band()
    basis = _basis(GRID)
    found = (basis @ (mean / count) @ basis.T)[band]
    sizes = np.zeros(band.shape, np.float64)
    sizes[band] = np.abs(found)
    near = cv2.GaussianBlur(sizes, (0, 0), _NEIGHBOURS) / np.maximum(
        cv2.GaussianBlur(band.astype(np.float64), (0, 0), _NEIGHBOURS), 1e-6
    )
    scaled: Floats = _LIMIT * np.tanh(found / (near[band] + 0.01) / _LIMIT)
    return scaled


def _residue(frame: Picture) -> Floats:
    """What is left of a frame, [64, 64], when its edges and surfaces are taken out."""
    import cv2
    import numpy as np

    grey = frame.astype(np.float32) @ np.array(LUMA, np.float32)
    shrinks = frame.shape[0] > GRID or frame.shape[1] > GRID
    small = cv2.resize(grey, (GRID, GRID), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    rest = small - cv2.bilateralFilter(small, 2 * int(1.5 * _SPREAD) + 1, _EDGE, _SPREAD)
    limited: Floats = _CLIP * np.tanh(rest / _CLIP)
    return limited


@functools.cache
def _band() -> tuple[NDArray[np.bool_], Floats]:
    """Which of the [18, 18] coefficients carry the mark, and their signs."""
    import numpy as np

    down, across = np.mgrid[:HIGHEST, :HIGHEST]
    radius = np.hypot(down, across)
    band = (radius >= LOWEST) & (radius < HIGHEST) & (down > 0) & (across > 0)
    return band, np.random.default_rng(KEY).choice([-1.0, 1.0], int(band.sum()))


def _basis(size: int) -> Floats:
    """[18, size]: cosines of 0 to 17 half waves over a side of `size` pixels, of unit length for a side of 64."""
    import numpy as np

    where = (np.arange(size) + 0.5) / size
    basis: Floats = np.cos(np.pi * np.outer(np.arange(HIGHEST), where)) * np.sqrt(2 / GRID)
    return basis


def _pattern(height: int, width: int) -> Floats:
    """The mark, float32 [H, W], in grey values."""
    import numpy as np

    band, signs = _band()
    weights = np.zeros(band.shape)
    weights[band] = signs * np.sqrt(STRENGTH**2 * GRID * GRID / len(signs))
    pattern: Floats = (_basis(height).T @ weights @ _basis(width)).astype(np.float32)
    return pattern


def _check(frames: Video) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or str(frames.dtype) != "uint8" or 0 in frames.shape:
        raise ValueError(f"expected uint8 frames [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
