"""What the faces of a clip tell: whose they are, whether they stay the same, whether the photo was copied, how they are turned.

The largest face of a frame counts (`face.likeness.largest_faces`). Face vectors are float [K, E], one for each of the K frames
with a face, by a recogniser the model was not conditioned on; they need not be of unit length. Cosines are taken row by row in
float64 and added without rounding, so a score does not depend on batches, nor on the order of frames where their order means
nothing. Where no frame has a face the value is None, but for coverage, which is then 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.errors import MissingDependency
from lynx_video.evaluation.metrics.picture import one_thread
from lynx_video.evaluation.metrics.score import NO_FACE, Score
from lynx_video.face.align import ARCFACE_SIZE
from lynx_video.face.quality import pitch_of, yaw_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lynx_video.types import Face, Picture, Points

    Floats = NDArray[np.float64]

FRONTAL_DEGREES = 15.0
_WINDOW = 7  # pixels, of the structural similarity
_SMOOTH = 5  # pixels over which grey values are smoothed while two faces are laid over each other


def cosines(vectors: ArrayLike, reference: ArrayLike) -> Floats:
    """float64 [K]: the cosine of each vector [K, E] with the reference [E]."""
    rows, one = _unit(np.atleast_2d(np.asarray(vectors, np.float64))), _unit(np.asarray(reference, np.float64)[None])[0]
    # Not a matrix product, whose sums are split otherwise with the number of rows.
    return np.array([float(np.sum(row * one)) for row in rows], dtype=np.float64)


def similarity(vectors: ArrayLike, reference: ArrayLike) -> Score:
    """Cosine between a frame's face and that in the reference photo, mean over the frames with a face.

    vectors: [K, E]. reference: [E]. n: K.
    """
    if not len(np.asarray(vectors)):
        return Score(value=None, n=0, reason=NO_FACE)
    values = cosines(vectors, reference)
    return Score(value=_mean(values), n=len(values))


def worst_tenth(vectors: ArrayLike, reference: ArrayLike) -> Score:
    """Mean of the lowest tenth of the frames' cosines: K // 10 of them, at least one. Arguments as for `similarity`. n: K."""
    if not len(np.asarray(vectors)):
        return Score(value=None, n=0, reason=NO_FACE)
    values = np.sort(cosines(vectors, reference))
    return Score(value=_mean(values[: max(1, len(values) // 10)]), n=len(values))


def coverage(faces: Sequence[object | None]) -> Score:
    """Share of the frames in which a face was found. faces: for each frame what was found, None where nothing was. n: frames."""
    if not len(faces):
        return Score(value=None, n=0, reason="no frames")
    return Score(value=sum(face is not None for face in faces) / len(faces), n=len(faces))


def kept(vectors: ArrayLike, reference: ArrayLike, frames: int) -> Score:
    """Face similarity times coverage: a frame without a face counts as a stranger's, 0.

    vectors: [K, E]. reference: [E]. frames: how many the clip has, with a face or without. n: frames.
    """
    found = similarity(vectors, reference)
    if found.value is None:
        return Score(value=None, n=frames, reason=found.reason)
    return Score(value=found.value * found.n / frames, n=frames)


def consistency(vectors: ArrayLike) -> Score:
    """Cosine between the first face of the clip and each later one, mean: the clip against itself, whoever it shows.

    vectors: [K, E] in the order of the frames. n: the later ones, K - 1. With one face there is nothing to compare: None.
    """
    rows = np.asarray(vectors)
    if len(rows) < 2:
        return Score(value=None, n=0, reason="only one frame has a face" if len(rows) else NO_FACE)
    return Score(value=_mean(cosines(rows[1:], rows[0])), n=len(rows) - 1)


def copying(vectors: ArrayLike, reference: ArrayLike, others: ArrayLike) -> Score:
    """Similarity to the reference photo less the similarity to other photos of the person; above 0 the photo is copied.

    vectors: [K, E]. reference: [E]. others: [P, E], other photos of the same person; none is None. n: K.
    """
    if not len(np.asarray(vectors)):
        return Score(value=None, n=0, reason=NO_FACE)
    if not len(np.asarray(others)):
        return Score(value=None, n=0, reason="there are no other photos of the person")
    elsewhere = [_mean(cosines(vectors, other)) for other in np.asarray(others)]
    values = cosines(vectors, reference)
    return Score(value=_mean(values) - _mean(elsewhere), n=len(values))


def pasted(crops: NDArray[np.uint8], spans: Sequence[float], reference: Picture, reference_span: float) -> Score:
    """Structural similarity (SSIM) of a frame's aligned face with that of the reference photo, mean over the frames with a face.

    1 for the photo's very pixels, whatever their size; less where the person has moved, speaks, or is lit otherwise.
    Both are first brought to the resolution of the coarser one: a face of 40 px in a clip has no more than 40 px of detail in its
    112 px crop, and one of 300 px in the photo has. Then the photo's is laid over the frame's as an affine map does it best (ECC,
    Evangelidis and Psarakis 2008), since detectors place points differently at different sizes; the better of with and without
    counts. SSIM (Wang et al. 2004) with a window of 7 px, on red, green and blue, at the coarser one's size or 112 px.

    crops: uint8 [K, 112, 112, 3] RGB. spans: [K], pixels of the frame that a crop shows (`face.quality.span`).
    reference, reference_span: the same of the photo. n: K. Raises MissingDependency without scikit-image.
    """
    try:
        from skimage import metrics
    except ImportError:
        raise MissingDependency(
            "The pixels of two faces are compared by scikit-image, which is not installed: pip install 'lynx-video[evaluate]'"
        ) from None
    if not len(crops):
        return Score(value=None, n=0, reason=NO_FACE)
    ssim: Callable[..., float] = metrics.structural_similarity
    values = []
    with one_thread():
        for crop, span in zip(crops, spans, strict=True):
            pixels = min(span, reference_span, float(ARCFACE_SIZE))
            mine, photo = _coarser(crop, span, pixels), _coarser(reference, reference_span, pixels)
            side = max(_WINDOW, round(pixels))
            values.append(
                max(
                    float(ssim(_shrunk(mine, side), _shrunk(one, side), win_size=_WINDOW, channel_axis=2, data_range=255))
                    for one in (photo, _laid_over(photo, mine))
                )
            )
    return Score(value=_mean(values), n=len(values))


def frontal(points: Sequence[Points]) -> Score:
    """Share of the frames with a face in which it is turned to the side by less than 15 degrees (`face.quality.yaw_of`).

    points: [K, 5, 2] in pixels. n: K.
    """
    if not len(points):
        return Score(value=None, n=0, reason=NO_FACE)
    return Score(value=sum(abs(yaw_of(one)) < FRONTAL_DEGREES for one in points) / len(points), n=len(points))


def yaw_spread(points: Sequence[Points]) -> Score:
    """Standard deviation of the head's turn over the frames with a face, in degrees. points: [K, 5, 2]. n: K; one face: None."""
    return _spread([yaw_of(one) for one in points])


def pitch_spread(points: Sequence[Points]) -> Score:
    """Standard deviation of the head's nod (`face.quality.pitch_of`), else as `yaw_spread`."""
    return _spread([pitch_of(one) for one in points])


def face_size(faces: Sequence[Face], height: int, width: int) -> Score:
    """Area of a face's box within the frame over the area of the frame, mean over the frames with a face: 0 to 1.

    faces: the K largest faces, boxes in pixels of frames height x width. n: K.
    """
    if not len(faces):
        return Score(value=None, n=0, reason=NO_FACE)
    shares = []
    for face in faces:
        left, top, right, bottom = face.box
        across, down = min(right, width) - max(left, 0.0), min(bottom, height) - max(top, 0.0)
        shares.append(max(0.0, across) * max(0.0, down) / (height * width))
    return Score(value=_mean(shares), n=len(shares))


def _unit(rows: Floats) -> Floats:
    lengths = np.array([math.sqrt(float(np.sum(row * row))) for row in rows]).reshape(-1, 1)
    unit: Floats = rows / np.maximum(lengths, 1e-30)
    return unit


def _mean(values: Iterable[float]) -> float:
    """The mean, whatever the order: the sum is exact before it is rounded."""
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers)


def _spread(degrees: list[float]) -> Score:
    if len(degrees) < 2:
        return Score(value=None, n=0, reason="only one frame has a face" if degrees else NO_FACE)
    middle = _mean(degrees)
    return Score(value=math.sqrt(_mean((one - middle) ** 2 for one in degrees)), n=len(degrees))


def _coarser(crop: Picture, span: float, pixels: float) -> Picture:
    """The crop as it were, had its face spanned no more than so many pixels: shrunk, and enlarged again as crops are cut."""
    import cv2

    if span <= pixels:
        return crop
    small = _shrunk(crop, max(1, round(pixels)))
    coarse: Picture = cv2.resize(small, (ARCFACE_SIZE, ARCFACE_SIZE), interpolation=cv2.INTER_LINEAR)
    return coarse


def _shrunk(crop: Picture, side: int) -> Picture:
    import cv2

    small: Picture = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return small


def _laid_over(photo: Picture, mine: Picture) -> Picture:
    """The photo's crop, moved onto the other by the affine map under which their grey values agree best; as it is if none is found."""
    import cv2

    grey = [cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in (mine, photo)]
    rounds = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-4)
    try:
        _, matrix = cv2.findTransformECC(
            grey[0], grey[1], np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, rounds, None, _SMOOTH
        )
    except cv2.error:  # one of them is flat, or they have nothing in common
        return photo
    moved: Picture = cv2.warpAffine(
        photo,
        matrix,
        (ARCFACE_SIZE, ARCFACE_SIZE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return moved
