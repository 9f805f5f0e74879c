"""The two aligned crops of a face: 112 px for the ArcFace encoder, 256 px for the reference term.

Both are a least-squares similarity (Umeyama 1991, proper rotations only) from the five points to the ArcFace template, and one
cv2.warpAffine with a black border. OpenCV 5 interpolates differently: the project stays on 4.x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lynx_video.errors import BadPicture, NoFace

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lynx_video.types import Picture, Points

ARCFACE_SIZE = 112
REFERENCE_SIZE = 256
# Where the five points belong in a 112 px crop (Deng et al., ArcFace, arXiv 1801.07698).
_TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


def require_picture(image: Picture) -> Picture:
    """The same array, if it is uint8 [H, W, 3] with at least one pixel.

    Raises BadPicture otherwise.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise BadPicture(f"The picture must be uint8 [height, width, 3] in RGB, not {got}.")
    return image


def require_points(points: ArrayLike) -> Points:
    """The five points as float32 [5, 2].

    Raises NoFace if they are not five finite points that differ from each other.
    """
    try:
        array = np.asarray(points, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise NoFace("The face points must be five pairs of numbers (x, y).") from None
    if array.shape != (5, 2):
        raise NoFace(f"A face has five points [5, 2] (eyes, nose, mouth corners), not {list(array.shape)}.")
    if not np.isfinite(array).all():
        raise NoFace("The face points must be finite numbers; at least one of them is not.")
    if float(np.ptp(array, axis=0).max()) < 1e-2:
        raise NoFace("The five face points lie on one spot, so they do not show how the face is turned.")
    return array


def arcface_template() -> NDArray[np.float32]:
    """float32 [5, 2]: where the points belong in the 112 px crop."""
    return np.array(_TEMPLATE, dtype=np.float32)


def reference_template(size: int = REFERENCE_SIZE) -> NDArray[np.float32]:
    """float32 [5, 2]: where the points belong in a reference crop of size px; the face is smaller and lower than in ArcFace's.

    Ten pixels down, 0.8 times about the centre, and from the 112 px square into the middle of a 128 px wide one, of which 256
    is the double.
    """
    template = arcface_template() + np.array([0, 10], dtype=np.float32)
    template = (template - 56) * 0.8 + 56
    template = template * 2 + np.array([16, 0], dtype=np.float32)
    if size != REFERENCE_SIZE:
        template = template * np.float32(size / REFERENCE_SIZE)
    return template.astype(np.float32)


def similarity(points: ArrayLike, template: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 [2, 3]: the similarity that carries the points nearest to the template, in the sense of least squares.

    Source: Umeyama 1991, equations 40 to 43. Raises NoFace for points that cannot be aligned.
    """
    # In float32 on purpose: cv2 rounds coordinates, whole-number points often fall on the border between two values, and the
    # reference's decomposition is float32. In float64 a few grey values of its crop come out different by one.
    source = require_points(points)
    source_mean, target_mean = source.mean(axis=0), template.mean(axis=0)
    centred = source - source_mean
    u, spread, vt = np.linalg.svd((template - target_mean).T @ centred / len(source))
    # The last axis flips where the best orthogonal matrix would be a reflection.
    signs = np.array([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])
    scale = float(1 / centred.var(axis=0).sum() * (spread @ signs))
    if not np.isfinite(scale) or scale <= 1e-6:
        raise NoFace("The five face points do not lie as those of a face do, so they cannot be aligned.")
    matrix = np.empty((2, 3), dtype=np.float64)
    rotation = u @ np.diag(signs) @ vt
    matrix[:, 2] = target_mean - scale * (rotation @ source_mean)
    matrix[:, :2] = scale * rotation
    return matrix


def arcface_crop(image: Picture, points: ArrayLike) -> Picture:
    """uint8 [112, 112, 3] RGB: what the face encoder sees, as the reference cuts it.

    image: uint8 [H, W, 3] RGB. points: [5, 2] in pixels, in the order of `lynx_video.types.Face`.
    Raises NoFace for points that cannot be aligned or lie outside the picture, BadPicture for another array.
    """
    return _crop(image, points, arcface_template(), ARCFACE_SIZE)


def reference_crop(image: Picture, points: ArrayLike, size: int = REFERENCE_SIZE) -> Picture:
    """uint8 [size, size, 3] RGB: what the reference term sees, as the reference cuts it at 256.

    Other sizes show the same part of the picture. Arguments and errors as for `arcface_crop`.
    """
    if size < 1:
        raise BadPicture(f"The reference crop must be at least 1 pixel wide, not {size}.")
    return _crop(image, points, reference_template(size), size)


def _crop(image: Picture, points: ArrayLike, template: NDArray[np.float32], size: int) -> Picture:
    import cv2

    height, width = require_picture(image).shape[:2]
    array = require_points(points)
    inside = (array >= 0).all(axis=1) & (array[:, 0] < width) & (array[:, 1] < height)
    if not inside.any():
        raise NoFace(f"All five face points lie outside the picture of {width}x{height} pixels; do they belong to another one?")
    matrix = similarity(array, template)
    crop: Picture = cv2.warpAffine(image, matrix, (size, size), borderValue=0.0)
    return crop
