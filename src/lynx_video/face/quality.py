"""What about a face will cost likeness, in sentences with numbers: small, blurred, turned, cut by the edge, hardly found.

None of it is an error: the reference would go on without a word.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.face.align import (
    ARCFACE_SIZE,
    REFERENCE_SIZE,
    arcface_crop,
    arcface_template,
    reference_template,
    require_picture,
    require_points,
    similarity,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from lynx_video.types import Face, Picture

SMALL_PIXELS = 112  # below this the encoder's crop is enlarged: it has fewer pixels of the face than it could use
GOOD_PIXELS = 180  # from here the 256 px reference crop is not enlarged either
BLURRED = 0.02  # see sharpness(): a sharp portrait has about 0.3; blurred by 1.5 px (Gaussian) in the 112 px crop, 0.02
TURNED_DEGREES = 35.0  # past this one side of the face is hidden; the reference crop then fixes the pose of the clip
ROLLED_DEGREES = 35.0  # the crop is turned upright again, but detectors place points badly beyond this
EDGE_PIXELS = 1.0  # a box this near to the edge is taken to go on beyond it
LOW_SCORE = 0.65  # detectors here start at 0.5 and 0.6; a clear frontal face has 0.75 and more
_NOSE_DEPTH = 0.42  # how far the nose tip stands out before eyes and mouth, in eye distances (27 of 63 mm, adult mean)
_FACE_HEIGHT = 1.15  # from the eyes to the mouth, in eye distances, as in the ArcFace template
_NOSE_HEIGHT = 0.495  # how far down from the eyes to the mouth the nose tip lies in a frontal face, in the same template


def face_warnings(image: Picture, face: Face) -> list[str]:
    """One sentence for each thing about the face that costs likeness; an empty list if there is none.

    image: uint8 [H, W, 3] RGB, the picture the face was found in.
    Raises NoFace for points that cannot be aligned, BadPicture for another array.
    """
    warnings = []
    pixels, sharp, yaw, roll = span(face.points), sharpness(image, face.points), yaw_of(face.points), roll_of(face.points)
    if pixels < SMALL_PIXELS:
        warnings.append(
            f"The face is small: it spans {pixels:.0f} pixels, the encoder looks at {SMALL_PIXELS}; "
            f"use a picture in which it spans {GOOD_PIXELS} or more."
        )
    if sharp < BLURRED:
        warnings.append(f"The face is blurred: sharpness {sharp:.3f}, expected {BLURRED} or more; use a sharper picture.")
    if abs(yaw) > TURNED_DEGREES:
        side = "right" if yaw > 0 else "left"
        warnings.append(
            f"The face is turned about {abs(yaw):.0f} degrees to the viewer's {side}, more than {TURNED_DEGREES:.0f}; "
            "use a picture that shows it from the front."
        )
    if abs(roll) > ROLLED_DEGREES:
        warnings.append(
            f"The head is tilted by {abs(roll):.0f} degrees, more than {ROLLED_DEGREES:.0f}; "
            "rotate the picture until the eyes are level."
        )
    edges = touched_edges(image, face)
    if edges:
        missing = 100 * outside_share(image, face.points)
        warnings.append(
            f"The face touches the {' and '.join(edges)} edge of the picture, {missing:.0f}% of the reference crop is black; "
            "use a picture with room around the head."
        )
    if face.score < LOW_SCORE:
        warnings.append(
            f"The detector is unsure of this face: score {face.score:.2f}, expected {LOW_SCORE} or more; "
            "check that it is a face, and use a clearer picture."
        )
    return warnings


def span(points: ArrayLike) -> float:
    """Side in pixels of the square of the picture that the 112 px ArcFace crop shows: forehead to chin, about."""
    matrix = similarity(points, arcface_template())
    return ARCFACE_SIZE / math.hypot(matrix[0, 0], matrix[1, 0])


def sharpness(image: Picture, points: ArrayLike) -> float:
    """Variance of the Laplacian of the 112 px crop's grey values, over the variance of the grey values themselves.

    The crop makes it independent of the picture's size, the division of its contrast, so that dark and evenly lit faces are
    not taken for blurred ones. White noise has 20, a sharp portrait about 0.3.
    """
    import cv2

    grey = cv2.cvtColor(arcface_crop(image, points), cv2.COLOR_RGB2GRAY).astype(np.float32)
    # The middle only: hair, background and the black border have edges of their own.
    inner = grey[28:106, 20:92]
    variance = float(inner.var())
    if variance < 1.0:  # a flat surface; one grey level of noise is no detail
        return 0.0
    return float(cv2.Laplacian(inner, cv2.CV_32F).var()) / variance


def yaw_of(points: ArrayLike) -> float:
    """How far the head is turned, in degrees: 0 from the front, positive with the nose towards the viewer's right.

    From how far the nose lies off the line between the middle of the eyes and the middle of the mouth. A rough measure:
    good to about 10 degrees, since noses differ.
    """
    left_eye, right_eye, nose, left_mouth, right_mouth = require_points(points).astype(np.float64)
    middle, chin = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    down = (chin - middle) / max(float(np.linalg.norm(chin - middle)), 1e-9)
    across = np.array([down[1], -down[0]])
    distance = float(np.dot(right_eye - left_eye, across))
    offset = float(np.dot(nose - middle, across))
    return math.degrees(math.atan2(offset / _NOSE_DEPTH, max(distance, 1e-9)))


def pitch_of(points: ArrayLike) -> float:
    """How far the head nods, in degrees: 0 from the front, positive with the nose down.

    From where the nose lies between the eyes and the mouth, along the line that joins their middles. Rougher than `yaw_of`: faces
    differ by some 10 degrees, and a smile, which lifts the corners of the mouth, counts as a nod; what is told is a change.
    """
    left_eye, right_eye, nose, left_mouth, right_mouth = require_points(points).astype(np.float64)
    middle, chin = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    distance = float(np.linalg.norm(chin - middle))
    offset = float(np.dot(nose - middle, chin - middle)) / max(distance, 1e-9)
    # Both shrink alike with the nod; what the nose moves beyond its place in a frontal face is its depth times the sine.
    return math.degrees(math.atan2((offset - _NOSE_HEIGHT * distance) / (_NOSE_DEPTH / _FACE_HEIGHT), max(distance, 1e-9)))


def roll_of(points: ArrayLike) -> float:
    """How far the head is tilted in the plane of the picture, in degrees; positive is clockwise for the viewer."""
    matrix = similarity(points, arcface_template())
    return -math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def touched_edges(image: Picture, face: Face) -> list[str]:
    """Which edges of the picture the face's box reaches: of left, top, right, bottom."""
    height, width = require_picture(image).shape[:2]
    left, top, right, bottom = face.box
    gaps = {"left": left, "top": top, "right": width - right, "bottom": height - bottom}
    return [edge for edge, gap in gaps.items() if gap <= EDGE_PIXELS]


def outside_share(image: Picture, points: ArrayLike) -> float:
    """Share of the reference crop that lies outside the picture, 0 to 1."""
    height, width = require_picture(image).shape[:2]
    matrix = similarity(points, reference_template())
    y, x = np.mgrid[0:REFERENCE_SIZE, 0:REFERENCE_SIZE]
    there = np.stack([x.ravel() - matrix[0, 2], y.ravel() - matrix[1, 2]])
    source = np.linalg.solve(matrix[:, :2], there)
    inside = (source[0] > -0.5) & (source[1] > -0.5) & (source[0] < width - 0.5) & (source[1] < height - 0.5)
    return 1.0 - float(inside.mean())
