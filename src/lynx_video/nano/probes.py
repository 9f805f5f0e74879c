"""Did the clip do what the prompt said? Exact answers, since everything was drawn: wall, shirt and motion of a nano clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lynx_video.nano import faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Video

# what each sign is in a drawn clip of that motion at ordinary strength: scores near 1 say that it happened
_YAW, _PITCH, _ROLL, _MOVE, _SMILE = 0.075, 0.30, 0.38, 0.39, 0.36
_STILL = 0.45  # below this every sign is noise


def wall(frames: Video) -> str:
    """The wall's colour: the nearest palette entry to the upper corners of all frames [F, H, W, 3]."""
    corner = max(1, frames.shape[2] // 12)
    return _nearest(np.concatenate([frames[:, :corner, :corner], frames[:, :corner, -corner:]], 1))


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
    """How strongly the tracks show each motion; about 1 where it was drawn."""
    left, right, nose, mouth_left, mouth_right = (points[:, i].astype(np.float64) for i in range(5))
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    apart = right - left
    roll = np.arctan2(apart[:, 1], apart[:, 0])
    upright = np.stack([np.stack([np.cos(roll), np.sin(roll)], -1), np.stack([-np.sin(roll), np.cos(roll)], -1)], 1)
    face_height = np.median(np.linalg.norm(mouth - eyes, axis=1))
    nose_at = np.einsum("fij,fj->fi", upright, nose - eyes) / face_height
    body = np.einsum("fij,fj->fi", upright, eyes)[:, 1] / face_height  # a nod carries the eyes up and down too
    mouth_width = np.linalg.norm(mouth_right - mouth_left, axis=1) / np.linalg.norm(apart, axis=1)
    t = np.linspace(0, 1, len(points))
    shapes = np.stack([np.ones_like(t), t, np.sin(2 * np.pi * t)], -1)  # a rest, a drift, a wave

    def fit(values: NDArray[np.float64]) -> tuple[float, float]:
        _, drift, wave = np.linalg.lstsq(shapes, values, rcond=None)[0]
        return float(drift), float(abs(wave))

    travelled, _ = fit(eyes[:, 0] * 2 / width)
    tilt = abs(fit(roll)[0])
    upright_enough = float(tilt < _ROLL * 0.4)
    return {
        "shakes the head": fit(nose_at[:, 0])[1] / _YAW,
        "nods": fit(body)[1] / _PITCH * upright_enough,
        "tilts the head": tilt / _ROLL,
        "moves to the left": max(0.0, -travelled) / _MOVE * upright_enough,
        "moves to the right": max(0.0, travelled) / _MOVE * upright_enough,
        "smiles": max(0.0, fit(mouth_width)[0]) / _SMILE,
    }
