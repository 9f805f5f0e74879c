"""Frames of a clip without the clip in memory: when each of them is shown, and some of them, decoded in passing.

An animated .webp is the exception: Pillow has no other way than from its first frame on, and such files are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lynx_video.errors import BadData, BadRequest

if TYPE_CHECKING:
    from lynx_video.types import Picture

_BT709 = 1  # its number among the matrices of ISO 23091-2
_SEEK_SECONDS = 2.0  # a start nearer than this is reached sooner by decoding
_LOST = 0.05  # of the frames or seconds that the file says it has, how many may be missing before it counts as cut


@dataclass(frozen=True, kw_only=True, slots=True)
class Footage:
    """A clip as its file describes it. times: seconds at which frames are shown, ascending. height, width: pixels, upright."""

    times: tuple[float, ...]
    fps: float
    height: int
    width: int


def is_animated(file: Path) -> bool:
    """Whether a .webp file holds more than one picture. False for what is no .webp or cannot be read."""
    from PIL import Image

    if file.suffix.lower() != ".webp":
        return False
    try:
        with Image.open(file) as image:
            return bool(getattr(image, "is_animated", False))
    except (OSError, ValueError):
        return False


def survey_footage(file: Path) -> Footage:
    """When the frames of a clip are shown, from its packets; only the first frame is decoded.

    Raises BadData for a file that is missing, no video, damaged, or shorter than it says.
    """
    if file.suffix.lower() == ".webp":
        frames, fps = _read_webp(file)
        height, width = frames.shape[1:3]
        return Footage(times=tuple(i / fps for i in range(len(frames))), fps=fps, height=height, width=width)
    import av

    try:
        with av.open(str(file)) as container:
            stream = _video(container)
            times = sorted(float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None)
            promised, rate = stream.frames, stream.average_rate or stream.guessed_rate
            length = float(container.duration / av.time_base) if container.duration else 0.0
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(error) from error
    if not times:
        raise BadData("no frames in it")
    if promised and len(times) < promised * (1 - _LOST):
        raise BadData(f"cut short: {len(times)} of {promised} frames are there")
    fps = float(rate) if rate else (len(times) - 1) / max(times[-1] - times[0], 1e-6)
    if not promised and length and times[-1] + 1 / fps < length * (1 - _LOST) - 1 / fps:
        raise BadData(f"cut short: {times[-1]:.1f} of {length:.1f} seconds are there")
    first = next(frames_at(file, times[:1]))
    return Footage(times=tuple(times), fps=fps, height=first.shape[0], width=first.shape[1])


def frames_at(file: Path, times: Sequence[float]) -> Iterator[Picture]:
    """The frames shown at these times, which ascend and are among `Footage.times`: uint8 [H, W, 3] RGB each, upright.

    Raises BadData where the file breaks off or its data are damaged.
    """
    if file.suffix.lower() == ".webp":
        frames, fps = _read_webp(file)
        for time in times:
            yield frames[min(round(time * fps), len(frames) - 1)]
        return
    import av

    waiting = list(times)
    try:
        with av.open(str(file)) as container:
            for frame in _decoded(container, waiting[0]):
                # A time wanted twice is a frame shown twice, in a clip slower than the model.
                while waiting and frame.time is not None and frame.time >= waiting[0] - 1e-3:
                    yield _upright(frame)
                    waiting.pop(0)
                if not waiting:
                    return
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(error) from error
    raise BadData(f"breaks off: there is no frame at {waiting[0]:.2f} s")


def _decoded(container: Any, first: float) -> Iterator[Any]:
    """Frames in the order they are shown, from the last key frame before `first` if that is far in."""
    stream = _video(container)
    if first > _SEEK_SECONDS:
        container.seek(int(first / stream.time_base), stream=stream, backward=True)
        frames = container.decode(stream)
        frame = next(frames, None)
        if frame is not None and frame.time is not None and frame.time <= first + 1e-3:
            yield frame
            yield from frames
            return
        container.seek(0, stream=stream, backward=True)  # landed too late: some containers have no good index
    yield from container.decode(stream)


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise BadData("no video stream in it")
    stream = container.streams.video[0]
    stream.thread_count = 1  # the parallel work is that of many clips
    return stream


def _upright(frame: Any) -> Picture:
    # Untagged files are taken for BT.601, as the decoders of small videos take them (`media.video.read_video` does the same).
    picture = frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if frame.colorspace == _BT709 else "ITU601")
    quarters = round(frame.rotation / 90) % 4  # counter-clockwise; telephones store sideways what they show upright
    return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture


def _read_webp(file: Path) -> tuple[Any, float]:
    from lynx_video.media.video import read_video

    try:
        return read_video(file)
    except BadRequest as error:
        raise BadData(str(error)) from error


def _unreadable(error: Exception) -> BadData:
    if isinstance(error, BadData):
        return error
    return BadData(f"not a video that can be read ({getattr(error, 'strerror', None) or error})")
