"""How much the faces of a clip resemble a portrait, by a recogniser that the model was not conditioned on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lynx_video.errors import NoFace
from lynx_video.face.align import arcface_crop
from lynx_video.face.detect import Detector, find_faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Face, Picture, Video

Recogniser = Callable[[Tensor], Tensor]


class Found(NamedTuple):
    """The largest face of a frame and its aligned crop [112, 112, 3]."""

    face: Face
    crop: Picture


class Likeness(NamedTuple):
    """similarity: mean cosine over the frames with a face (None if there is none). coverage: the share of frames with one."""

    similarity: float | None
    coverage: float


def likeness(frames: Video, portrait: Picture, detector: Detector, recogniser: Recogniser) -> Likeness:
    """Compare every frame [F, H, W, 3] uint8 with the aligned crop [112, 112, 3] of a portrait; the largest face counts."""
    crops = [found.crop for found in largest_faces(frames, detector) if found]
    if not crops:
        return Likeness(None, 0.0)
    vectors = recogniser(signed(np.stack([portrait, *crops])))
    return Likeness(float((vectors[1:] @ vectors[0]).mean()), len(crops) / len(frames))


def largest_faces(frames: Video, detector: Detector) -> list[Found | None]:
    """The largest face of every frame [F, H, W, 3] uint8; None where there is none, or none that can be aligned."""
    return [_largest(find_faces(frame, detector), frame) for frame in frames]


def _largest(faces: list[Face], frame: Picture) -> Found | None:
    if not faces:
        return None
    try:
        return Found(faces[0], arcface_crop(frame, faces[0].points))
    except NoFace:  # a detector may put its points on one spot or outside of the frame
        return None


def signed(crops: NDArray[np.uint8]) -> Tensor:
    """Crops [B, H, W, 3] uint8 -> [B, 3, H, W] float32 in [-1, 1]."""
    return torch.tensor(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
