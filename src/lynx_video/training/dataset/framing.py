"""From a clip or picture to the pixels of a bucket: which bucket, which frames, and which part of the picture.

The picture is scaled to cover the bucket and cut in the middle; where that would cut the face, the cut moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lynx_video.training.dataset.config import Bucket
from lynx_video.training.dataset.source import Dropped

if TYPE_CHECKING:
    from lynx_video.training.dataset.footage import Footage
    from lynx_video.types import Picture

SLOWEST = 0.8  # of the model's frame rate; below it more than every fifth frame would be shown twice


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How an item becomes an example.

    times: seconds of its frames in the clip; empty for a picture. scaled: height and width the picture is scaled to.
    corner: row and column in it at which the bucket begins.
    """

    bucket: Bucket
    times: tuple[float, ...]
    scaled: tuple[int, int]
    corner: tuple[int, int]


def choose_bucket(buckets: Sequence[Bucket], height: int, width: int) -> Bucket:
    """The bucket of the nearest aspect ratio; of equal ones that with the most frames, then the most pixels."""

    def distance(bucket: Bucket) -> tuple[float, int, int]:
        ratio = abs(math.log(bucket.width / bucket.height) - math.log(width / height))
        return round(ratio, 6), -bucket.frames, -bucket.height * bucket.width

    return min(buckets, key=distance)


def choose_window(
    footage: Footage, buckets: Sequence[Bucket], fps: float, start: float | None, stop: float | None
) -> tuple[Bucket, tuple[float, ...]]:
    """The bucket of a clip, and the times of its frames: at the model's rate, from the middle of what lies in start to stop.

    Raises Dropped for a clip that is too short or too slow for every bucket.
    """
    if footage.fps < fps * SLOWEST:
        raise Dropped("too slow", f"{footage.fps:.4g} frames a second, the model has {fps:.4g}")
    times = [
        time
        for time in footage.times
        if time >= footage.times[0] + (start or 0) and (stop is None or time < footage.times[0] + stop)
    ]
    seconds = times[-1] - times[0] if times else 0.0
    slack = 0.5 / footage.fps
    fitting = [bucket for bucket in buckets if times and (bucket.frames - 1) / fps <= seconds + slack]
    if not fitting:
        shown = seconds + 1 / footage.fps if times else 0.0
        shortest = min(bucket.frames for bucket in buckets)
        raise Dropped("too short", f"{shown:.2f} s, and {shortest} frames at {fps:.4g} a second take {shortest / fps:.2f} s")
    bucket = choose_bucket(fitting, footage.height, footage.width)
    begin = times[0] + max(0.0, seconds - (bucket.frames - 1) / fps) / 2
    return bucket, tuple(_nearest(times, [begin + number / fps for number in range(bucket.frames)]))


def place(
    bucket: Bucket, height: int, width: int, box: tuple[float, float, float, float], enlargement: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """`View.scaled` and `View.corner` for a picture of this size whose face lies in the box (left, top, right, bottom).

    Raises Dropped if the face cannot be inside, or the picture would be enlarged more than so many times.
    """
    scale = max(bucket.height / height, bucket.width / width)
    if scale > enlargement:
        raise Dropped("picture too small", f"{width}x{height} pixels would be enlarged {scale:.1f} times for {bucket}")
    scaled = max(bucket.height, round(height * scale)), max(bucket.width, round(width * scale))
    left, top, right, bottom = box
    corner = tuple(
        _corner(whole, part, max(0.0, low) * whole / size, min(float(size), high) * whole / size)
        for whole, part, size, low, high in (
            (scaled[0], bucket.height, height, top, bottom),
            (scaled[1], bucket.width, width, left, right),
        )
    )
    return scaled, (corner[0], corner[1])


def cut(picture: Picture, view: View) -> Picture:
    """The part of the picture that the view shows, uint8 [H, W, 3] of its bucket's size."""
    import cv2
    import numpy as np

    if picture.shape[:2] != view.scaled:
        shrinks = view.scaled[0] < picture.shape[0]
        picture = cv2.resize(
            picture, (view.scaled[1], view.scaled[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
    row, column = view.corner
    part: Picture = np.ascontiguousarray(picture[row : row + view.bucket.height, column : column + view.bucket.width])
    return part


def _corner(whole: int, part: int, low: float, high: float) -> int:
    """Where to begin a cut of `part` pixels in `whole`: in the middle, or as near to it as keeps low to high inside."""
    first, last = max(0, math.ceil(high) - part), min(whole - part, math.floor(low))
    if first > last:
        raise Dropped("face outside the bucket", f"it spans {high - low:.0f} of {part} pixels there")
    return min(max((whole - part) // 2, first), last)


def _nearest(times: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """For each wanted time the nearest of the times; both ascend."""
    found, index = [], 0
    for moment in wanted:
        while index + 1 < len(times) and abs(times[index + 1] - moment) <= abs(times[index] - moment):
            index += 1
        found.append(times[index])
    return found
