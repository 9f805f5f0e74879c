"""An invisible mark in the pixels that says "made by lynx-video", and its blind detector.

What it is: a sum of cosines over the whole picture (a DCT in coordinates of the picture, so that it scales with it), each with a
sign from a fixed public key, added to the brightness of every frame alike. Spread spectrum after Cox et al. 1997, with one bit:
there or not.
The detector scales each frame to a small square, keeps what an edge-preserving filter takes away from flat parts, averages it over the
frames and correlates its cosines with the key.

The score: with x the cosines found and k the signs, `x @ k / |x|`. If k is independent of the clip, this has mean 0 and variance 1
whatever the clip shows, and Hoeffding's inequality bounds the chance of a score of t and more by exp(-t^2 / 2). Two bands are tried, so
a false alarm has a chance of at most 2 exp(-THRESHOLD^2 / 2), 7.5e-6; of 6e-7 where the sum is as good as normal. "Chance" is over
the draw of the key, which was drawn once: clips that are nearly equal share their luck.

It survives re-encoding, scaling (also unequal in width and height), cut and repeated frames, another frame rate. It does not survive a
crop or a border (the picture's edges are its coordinates), a turn, a mirror image, or anybody who wants it gone: the key is public.
So a clip without the mark is no proof of anything, and a clip with it is no proof against one who forges.
docs/watermark.md has the rates and the limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lynx_video.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lynx_video.types import Picture, Video

    Floats = NDArray[np.float32]

KEY = b"lynx-video watermark 1"
THRESHOLD = 5.0
GRID = 128  # side of the square that frames are scaled to before they are searched
LOWEST, LOW, WIDE = 4, 18, 36  # half waves over the picture (root of the sum of squares): the bands are [4, 18) and [4, 36)
WIDE_FROM = 128  # pixels of the short side from which a picture holds the wide band; smaller ones hold the low one
FLAT_TINY, FLAT_LARGE, MOST = (
    1.8,
    0.6,
    2.0,
)  # levels (root mean square): flat parts up to 64 px and from 576 px, texture anywhere
TEXTURE = 3.0  # levels of local spread that hide twice the mark of flat parts
_LUMA = (0.2126, 0.7152, 0.0722)  # BT.709
_EDGE, _REACH, _LIMIT = 4.0, 8.0, 4.0  # of the residual, in levels, grid points, levels
_SMOOTH, _CALM = 1.5, 1.5  # of the whitening: neighbourhood in half waves, and where large cosines are bent down


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """Whether a clip carries the mark. score: about normal with mean 0 and variance 1 without it; found: score >= threshold."""

    found: bool
    score: float
    threshold: float


def mark(frames: Video) -> Video:
    """The clip, uint8 [F, H, W, 3] RGB, with the mark in every frame; the same frames give the same bits.

    A frame changes by 0.6 to 2.0 levels (root mean square), most where its texture hides it: never under 42 dB. Pictures under 48 px
    hold too little of it to be found reliably.

    Raises:
        BadRequest: not uint8 [F, H, W, 3], or empty.
    """
    import cv2
    import numpy as np

    _check(frames)
    height, width = frames.shape[1:3]
    side = min(height, width)
    signs = _signs() * _band(WIDE if side >= WIDE_FROM else LOW)
    flat = float(np.clip(FLAT_TINY * (64 / side) ** 0.5, FLAT_LARGE, FLAT_TINY))
    pattern = _cosines(height).T @ signs @ _cosines(width)
    pattern *= np.float32(flat * 2 / np.abs(signs).sum() ** 0.5)  # each product of cosines has a mean square of 1/4
    reach = 2 * round(side / 64) + 1
    marked = np.empty_like(frames)
    for number, frame in enumerate(frames):
        grey = _grey(frame)
        mean = cv2.blur(grey, (reach, reach))
        spread = np.sqrt(np.maximum(cv2.blur(grey * grey, (reach, reach)) - mean * mean, 0))
        # The least nearby: an edge hides nothing in the flat parts beside it, texture does all over.
        texture = cv2.blur(cv2.erode(spread, np.ones((reach, reach), np.uint8)), (reach, reach))
        gain = np.minimum(1 + texture / TEXTURE, MOST / flat)
        marked[number] = np.rint(frame + (pattern * gain)[..., None]).clip(0, 255)
    return marked


def detect(frames: Video) -> Detection:
    """Whether a clip, uint8 [F, H, W, 3] RGB, carries the mark, told from the clip alone.

    Raises:
        BadRequest: not uint8 [F, H, W, 3], or empty.
    """
    score = max(float(scores[0]) for scores in correlations(frames, _signs()[None]).values())
    return Detection(found=score >= THRESHOLD, score=score, threshold=THRESHOLD)


def correlations(frames: Video, keys: Floats) -> dict[str, Floats]:
    """By band the score of each of `keys` [N, 36, 36] of signs: with keys other than ours, what a clip scores by chance."""
    import numpy as np

    found = _found(frames)
    scores = {}
    for name, top in (("low", LOW), ("wide", WIDE)):
        band = _band(top)
        calm = _whitened(found * band, band)
        # Where there is nothing but rounding errors there is nothing to be sure of: what shows a picture has a length of ten and more.
        scores[name] = np.tensordot(keys, calm, 2) / max(float(np.linalg.norm(calm)), 1.0)
    return scores


def _found(frames: Video) -> Floats:
    """The cosines [36, 36] of what is left of the frames without their large features, mean over frames."""
    import cv2
    import numpy as np

    _check(frames)
    total = np.zeros((GRID, GRID), np.float32)
    shrinks = min(frames.shape[1:3]) > GRID
    for frame in frames:
        grey = cv2.resize(_grey(frame), (GRID, GRID), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        rest = grey - cv2.bilateralFilter(grey, 2 * int(_REACH) + 1, _EDGE, _REACH)
        total += _LIMIT * np.tanh(rest / _LIMIT)
    basis = _cosines(GRID)
    found: Floats = basis @ (total / np.float32(len(frames))) @ basis.T
    return found


def _whitened(found: Floats, band: Floats) -> Floats:
    """The cosines over the usual size of their neighbours in the band, large ones bent down so that none decides alone."""
    import cv2
    import numpy as np

    usual = cv2.GaussianBlur(np.abs(found), (0, 0), _SMOOTH) / np.maximum(cv2.GaussianBlur(band, (0, 0), _SMOOTH), 1e-6)
    calm: Floats = _CALM * np.tanh(found / (_CALM * usual + 1e-3)) * band
    return calm


def _signs() -> Floats:
    """The key: +1 or -1 for each pair of half waves, float32 [36, 36]."""
    import hashlib

    import numpy as np

    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(KEY).digest(WIDE * WIDE // 8), np.uint8))
    return bits.reshape(WIDE, WIDE).astype(np.float32) * 2 - 1


def _band(top: int) -> Floats:
    """1 for the pairs of half waves in [LOWEST, top), float32 [36, 36]; waves along one axis look too much like walls and doors."""
    import numpy as np

    rows, columns = np.mgrid[:WIDE, :WIDE]
    size = np.hypot(rows, columns)
    band: Floats = ((size >= LOWEST) & (size < top) & (rows > 0) & (columns > 0)).astype(np.float32)
    return band


def _cosines(points: int) -> Floats:
    """cos(pi n y) for n < 36 half waves at the middles of `points` pixels, float32 [36, points]."""
    import numpy as np

    return np.cos(np.pi * np.outer(np.arange(WIDE), (np.arange(points) + 0.5) / points)).astype(np.float32)


def _grey(frame: Picture) -> Floats:
    import numpy as np

    return frame.astype(np.float32) @ np.asarray(_LUMA, np.float32)


def _check(frames: Video) -> None:
    if getattr(frames, "ndim", 0) != 4 or frames.shape[3] != 3 or str(frames.dtype) != "uint8" or 0 in frames.shape:
        got = f"{frames.dtype} {list(frames.shape)}" if hasattr(frames, "shape") else type(frames).__name__
        raise BadRequest(f"a watermark needs a clip, uint8 [F, H, W, 3] with a frame at least, got {got}.")
