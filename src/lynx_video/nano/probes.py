"""Did the clip do what the prompt said? Exact answers, since everything was drawn: wall, shirt and motion of a nano clip.

And is it well drawn? A drawn wall has one colour, all over and all the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lynx_video.nano import faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Video

    Floats = NDArray[np.float64]

# what each sign is in a drawn clip of that motion at ordinary strength, in distances between the eyes (the roll in radians, the move
# in half widths of the frame): scores near 1 say that it happened
_TURN, _SWAY, _NOD, _ROLL, _MOVE, _SPREAD, _RISE = 0.08, 0.41, 0.27, 0.38, 0.40, 0.36, 0.29
_SPOT = 10.0  # grey levels: a pixel that is off by as much is seen
_STILL = 0.45  # below this every sign is noise
_BAD_FRAME = 0.1  # one frame that makes more than nine tenths of the squared error is the detector's mistake
SIGNS = ("shakes the head", "nods", "tilts the head", "moves to the left", "moves to the right", "smiles")


def wall(frames: Video) -> str:
    """The wall's colour: the nearest palette entry to the upper corners of all frames [F, H, W, 3]."""
    return _nearest(_corners(frames))


def clean(frames: Video) -> float:
    """Share of the wall that has the wall's colour: the upper corners of all frames [F, H, W, 3], 0 to 1."""
    corners = _corners(frames).astype(np.float64)
    off = np.abs(corners - np.median(corners.reshape(-1, 3), 0)).max(-1)
    return float((off < _SPOT).mean())


def steady(frames: Video) -> float:
    """Share of the wall that keeps its colour from a frame to the next: as `clean`; 1 for a single frame."""
    corners = _corners(frames).astype(np.float64)
    return float((np.abs(np.diff(corners, axis=0)).max(-1) < _SPOT).mean()) if len(frames) > 1 else 1.0


def _corners(frames: Video) -> NDArray[np.uint8]:
    """The upper corners side by side: [F, h, 2 w, 3]."""
    corner = max(1, frames.shape[2] // 12)
    return np.concatenate([frames[:, :corner, :corner], frames[:, :corner, -corner:]], 2)


def shirt(frames: Video) -> str:
    """The shirt's colour, at the lower edge about the middle."""
    height, width = frames.shape[1:3]
    return _nearest(frames[:, -max(1, height // 20) :, width // 3 : -width // 3])


def _nearest(pixels: NDArray[np.uint8]) -> str:
    seen = np.median(pixels.reshape(-1, 3), 0) / 255
    names = list(faces.COLOURS)
    return names[int(np.argmin([np.square(seen - np.array(faces.COLOURS[name])).sum() for name in names]))]


def motion(points: NDArray[np.float32], width: int) -> str:
    """The motion told by the tracks of the five points [F, 5, 2] in pixels of frames `width` wide: one of faces.MOTIONS."""
    scores = signs(points, width)
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > _STILL else "stays still"


def signs(points: NDArray[np.float32], width: int) -> dict[str, float]:
    """How strongly the tracks show each motion; about 1 where it was drawn.

    A shake is told by the nose, which moves between the eyes, and by the face that goes along; a smile by the mouth, whose corners move
    apart and rise. Half of such a pair is no sign.
    """
    left, right, nose, mouth_left, mouth_right = (points[:, i].astype(np.float64) for i in range(5))
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    apart = right - left
    distance = np.linalg.norm(apart, axis=1)
    unit = np.median(distance)
    roll = np.arctan2(apart[:, 1], apart[:, 0])
    nose_at = _turned(nose - eyes, roll) / unit
    mouth_at = _turned(mouth - eyes, roll) / unit
    place = _turned(eyes, np.full_like(roll, np.median(roll))) / unit
    spread = np.linalg.norm(mouth_right - mouth_left, axis=1) / distance
    turn, sway = _fit(nose_at[:, 0])[1], _fit(place[:, 0])[1]
    along = max(0.0, sway * np.sign(turn))
    tilt = abs(_fit(roll)[0])
    travelled = _fit(eyes[:, 0] * 2 / width)[0]
    upright_enough = float(tilt < _ROLL * 0.4)
    return {
        "shakes the head": _both(abs(turn) / _TURN, along / _SWAY),
        "nods": abs(_fit(place[:, 1])[1]) / _NOD * upright_enough,
        "tilts the head": tilt / _ROLL,
        "moves to the left": max(0.0, -travelled) / _MOVE * upright_enough,
        "moves to the right": max(0.0, travelled) / _MOVE * upright_enough,
        "smiles": _both(_fit(spread)[0] / _SPREAD, -_fit(mouth_at[:, 1])[0] / _RISE),
    }


def _both(one: float, other: float) -> float:
    """High where both are: the geometric mean, 0 where either goes the wrong way."""
    return float(np.sqrt(max(0.0, one) * max(0.0, other)))


def _turned(vectors: Floats, roll: Floats) -> Floats:
    """Vectors [F, 2] as they are in a head that is not tilted."""
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([vectors[:, 0] * cos + vectors[:, 1] * sin, vectors[:, 1] * cos - vectors[:, 0] * sin], -1)


def _fit(values: Floats) -> tuple[float, float]:
    """Drift and wave in a track [F]: least squares. A frame that alone makes most of what is left over is left out."""
    t = np.linspace(0, 1, len(values))
    shapes = np.stack([np.ones_like(t), t, np.sin(2 * np.pi * t)], -1)  # a rest, a drift, a wave
    parts, left_over = _least_squares(shapes, values)
    if len(values) > shapes.shape[1] + 2:
        without = [_least_squares(np.delete(shapes, i, 0), np.delete(values, i)) for i in range(len(values))]
        better, remains = min(without, key=lambda one: one[1])
        if remains < _BAD_FRAME * left_over:
            parts = better
    return float(parts[1]), float(parts[2])


def _least_squares(shapes: Floats, values: Floats) -> tuple[Floats, float]:
    parts: Floats = np.linalg.lstsq(shapes, values, rcond=None)[0].astype(np.float64)
    return parts, float(np.square(values - shapes @ parts).sum())
