"""Likeness: which frames count, and that a detector's nonsense does not lose a finished clip."""

import numpy as np
import pytest
import torch

from lynx_video.face.align import arcface_template
from lynx_video.face.likeness import largest_faces, likeness
from lynx_video.types import Face

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)


class Script:
    """A detector that finds points by frame."""

    name = "script"

    def __init__(self, *points):
        self.points = points

    def __call__(self, image):
        for frame, points in zip(FRAMES, self.points, strict=True):
            if np.array_equal(image, frame) and points is not None:
                return [Face(box=(0, 0, 112, 112), points=np.array(points, np.float32), score=1.0)]
        return []


def recogniser(crops):
    return torch.nn.functional.normalize(crops.flatten(1), dim=1)


@pytest.mark.parametrize("bad", [np.full((5, 2), 3.0), np.full((5, 2), -900.0) + arcface_template(), np.full((5, 2), np.nan)])
def test_a_face_that_cannot_be_aligned_is_none(bad):
    detector = Script(arcface_template(), bad, None, arcface_template())
    found = largest_faces(FRAMES, detector)
    assert [one is not None for one in found] == [True, False, False, True]
    score = likeness(FRAMES, found[0].crop, detector, recogniser)
    assert score.coverage == 0.5
    assert score.similarity is not None
    nothing = likeness(FRAMES, found[0].crop, Script(bad, bad, None, None), recogniser)
    assert nothing == (None, 0.0)
