"""What looking at an item brings to light, and how it is kept: words and numbers as JSON, the rest as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lynx_video.face.align import reference_template, similarity
from lynx_video.training.dataset.config import Bucket
from lynx_video.training.dataset.framing import View
from lynx_video.training.dataset.source import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Picture, Points

THUMBNAIL = 16  # pixels, height and width
_ROOM = 2.0  # side of the portrait, in sides of the reference crop: steps on references need something around the head
_FINER = 1.25  # pixels of the portrait for a pixel of the reference crop, at most: the crop would lose more anyway


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is known of an item that may be used.

    content: hash of the file. clip, still: how it becomes an example of this kind; None: not at all. moment: seconds of the best
    frame, 0 in a picture. span: pixels from forehead to chin. yaw: degrees.
    """

    item: Item
    kind: Literal["clip", "photo"]
    content: str
    clip: View | None
    still: View | None
    moment: float
    span: float
    sharpness: float
    yaw: float

    @property
    def is_target(self) -> bool:
        """Whether examples are made of it; if not, it can only be a reference."""
        return self.clip is not None or self.still is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """The inverse of `to_json`, through JSON."""
        views = {name: view_from_json(value[name]) if value[name] else None for name in ("clip", "still")}
        return cls(**{**value, **views, "item": Item(**value["item"])})


class Evidence(NamedTuple):
    """The arrays of a finding.

    vector: float32 [512], the best frame's face. mean: float32 [512], that of all looks, which tells people apart far better.
    thumbnails: uint8 [looks, 16, 16] grey. portrait: uint8 [H, W, 3] RGB, what surrounds the best frame's face. points: float32
    [5, 2] in the portrait.
    """

    vector: NDArray[np.float32]
    mean: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]
    portrait: Picture
    points: Points


def view_from_json(value: Mapping[str, Any]) -> View:
    """A view from plain values."""
    return View(
        bucket=Bucket(*value["bucket"]),
        times=tuple(value["times"]),
        scaled=(value["scaled"][0], value["scaled"][1]),
        corner=(value["corner"][0], value["corner"][1]),
    )


def thumbnail(picture: Picture) -> NDArray[np.uint8]:
    """uint8 [16, 16]: the picture in grey, each value the mean of its part. What duplicates are told by."""
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small: NDArray[np.uint8] = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return small


def cut_portrait(picture: Picture, points: Points, reference_size: int) -> tuple[Picture, Points]:
    """The square around a face from which references are made, where the picture has it, and the points in it.

    Twice as wide as the reference crop, and no finer than that crop can use.
    """
    import cv2

    matrix = similarity(points, reference_template(reference_size))
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    centre = np.linalg.solve(matrix[:, :2], np.full(2, reference_size / 2) - matrix[:, 2])
    half = _ROOM * reference_size / scale / 2
    height, width = picture.shape[:2]
    left, top = (max(0, math.floor(value - half)) for value in centre)
    right, bottom = (min(size, math.ceil(value + half)) for value, size in zip(centre, (width, height), strict=True))
    part, moved = picture[top:bottom, left:right], points - np.array([left, top], dtype=np.float32)
    shrink = scale * _FINER
    if shrink < 1:
        size = max(1, round(part.shape[1] * shrink)), max(1, round(part.shape[0] * shrink))
        ratio = np.array([size[0] / part.shape[1], size[1] / part.shape[0]], dtype=np.float32)
        # Points name pixel centres, which lie half a pixel in.
        part, moved = cv2.resize(part, size, interpolation=cv2.INTER_AREA), (moved + 0.5) * ratio - 0.5
    return np.ascontiguousarray(part), moved.astype(np.float32)
