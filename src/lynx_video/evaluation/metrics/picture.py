"""What whole frames tell without knowing what they show: how much moves, how much flickers, how sharp it is.

Frames are uint8 [F, H, W, 3] RGB throughout. OpenCV runs in one thread, so that a number does not depend on the machine's cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.errors import BadRequest
from lynx_video.evaluation.metrics.score import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Picture, Video

FLOW_HEIGHT = 256  # pixels a frame is scaled to before the flow is sought, so that its window covers the same share of any clip
FLOW_PYRAMID, FLOW_LEVELS, FLOW_WINDOW, FLOW_ROUNDS, FLOW_REACH, FLOW_SIGMA = 0.5, 3, 15, 3, 5, 1.2
FLAT = 1.0  # grey levels squared; a frame that varies less shows nothing that could be sharp


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV in one thread, and as it was afterwards."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def motion_amount(frames: Video, fps: float) -> Score:
    """Mean length of the optical flow between neighbouring frames, over all pixels, in frame heights per second.

    Dense flow by Farneback 2003 on grey values at a height of 256 px (proportions kept): pyramid of 3 levels, each half the one
    below, window 15 px, 3 iterations, polynomials over 5 px with a sigma of 1.2, OpenCV's example values, which OpenS2V-Eval uses
    too. Smooth areas show less motion than they have, those of one colour none.
    n: pairs of frames. One frame has no motion: None. Raises BadRequest for a rate that is not above 0.
    """
    import cv2

    if not 0 < fps < np.inf:
        raise BadRequest(f"The motion of a clip needs its frames per second, a number above 0, not {fps}.")
    if len(frames) < 2:
        return Score(value=None, n=0, reason="a single frame has no motion" if len(frames) else "no frames")
    with one_thread():
        greys = [_small_grey(frame) for frame in frames]
        lengths = []
        for before, after in pairwise(greys):
            flow = cv2.calcOpticalFlowFarneback(
                before, after, None, FLOW_PYRAMID, FLOW_LEVELS, FLOW_WINDOW, FLOW_ROUNDS, FLOW_REACH, FLOW_SIGMA, 0
            )
            lengths.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean(dtype=np.float64)))
    return Score(value=sum(lengths) / len(lengths) * fps / FLOW_HEIGHT, n=len(lengths))


def flicker(frames: Video) -> Score:
    """Mean difference of a frame from the mean of its two neighbours, over pixels and colours, 0 to 1 of full scale.

    Steady motion and a slow change of light leave little of it; frames out of order, noise and jumps much. Fast motion counts too:
    compare clips of like motion. n: the frames with two neighbours. Fewer than three frames: None.
    """
    if len(frames) < 3:
        return Score(value=None, n=0, reason="fewer than three frames" if len(frames) else "no frames")
    total = 0  # whole numbers, so that no order of summing can matter
    for before, frame, after in zip(frames, frames[1:], frames[2:], strict=False):
        total += int(np.abs(2 * frame.astype(np.int16) - before.astype(np.int16) - after.astype(np.int16)).sum(dtype=np.int64))
    inner = len(frames) - 2
    return Score(value=total / (2 * 255 * inner * frames[0].size), n=inner)


def sharpness(frames: Video) -> Score:
    """Variance of the Laplacian of a frame's grey values over the variance of the values themselves, mean over frames.

    At the size the clip has, so enlarging a clip lowers it. White noise has 20; a frame of one colour counts as 0. n: frames.
    """
    import cv2

    if not len(frames):
        return Score(value=None, n=0, reason="no frames")
    values = []
    with one_thread():
        for frame in frames:
            grey = _grey(frame).astype(np.float32)
            variance = float(grey.var(dtype=np.float64))
            edges = float(cv2.Laplacian(grey, cv2.CV_32F).var(dtype=np.float64))
            values.append(edges / variance if variance >= FLAT else 0.0)
    return Score(value=sum(values) / len(values), n=len(values))


def _grey(frame: Picture) -> NDArray[np.uint8]:
    import cv2

    grey: NDArray[np.uint8] = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return grey


def _small_grey(frame: Picture) -> NDArray[np.uint8]:
    import cv2

    height, width = frame.shape[:2]
    size = (max(1, round(width * FLOW_HEIGHT / height)), FLOW_HEIGHT)
    way = cv2.INTER_AREA if height > FLOW_HEIGHT else cv2.INTER_LINEAR
    scaled: NDArray[np.uint8] = cv2.resize(_grey(frame), size, interpolation=way)
    return scaled
