"""A picture that was dropped on the page: the faces in it, numbered as everywhere else, and what about each costs likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.errors import LynxError, NoFace

if TYPE_CHECKING:
    from lynx_video.studio.studio import Studio
    from lynx_video.types import Face, Picture

SHOWN_SIDE = 720
"""Pixels of the longer side of what the page shows."""
CHOSEN, OTHER, INK = (79, 70, 229), (255, 255, 255), (17, 24, 39)


@dataclass(frozen=True, kw_only=True, slots=True)
class Portrait:
    """path: the file as it came. name: what its owner calls it. faces: largest first, each with its warnings. hash: sha256, hex.

    shown: uint8 [h, w, 3], the picture at the size of the page. scale: pixels of it for a pixel of the picture.
    """

    path: Path
    name: str
    hash: str
    faces: tuple[tuple[Face, tuple[str, ...]], ...]
    shown: Picture
    scale: float

    def warnings(self, index: int) -> tuple[str, ...]:
        """What about a face costs likeness."""
        return self.faces[index][1]

    def label(self, index: int) -> str:
        """A face in words."""
        left, _, right, _ = self.faces[index][0].box
        largest = ", the largest" if index == 0 and len(self.faces) > 1 else ""
        return f"Face {index}{largest}: {right - left:.0f} pixels wide"

    def at(self, x: float, y: float) -> int | None:
        """The face at a pixel of what is shown; of several the one whose middle is nearest. None beside all of them."""
        x, y = x / self.scale, y / self.scale
        hit = []
        for index, (face, _) in enumerate(self.faces):
            left, top, right, bottom = face.box
            if left <= x <= right and top <= y <= bottom:
                hit.append(((x - (left + right) / 2) ** 2 + (y - (top + bottom) / 2) ** 2, index))
        return min(hit)[1] if hit else None

    def drawn(self, chosen: int) -> Picture:
        """What is shown, with a box and its number on each face; uint8 [h, w, 3]."""
        boxes = [tuple(value * self.scale for value in face.box) for face, _ in self.faces]
        return mark_faces(self.shown, boxes, chosen)


def look(studio: Studio, path: Path, name: str) -> Portrait:
    """The faces of a picture. Raises BadPicture, naming it as its owner does, and NoFace."""
    from lynx_video.face.detect import choose_face
    from lynx_video.media.image import file_hash, read_picture
    from lynx_video.studio.models import explained

    try:
        found = studio.faces(path)
        picture = read_picture(path)
        choose_face([face for face, _ in found])
    except NoFace as error:
        raise explained(error, Path(name), studio.setup.model, studio.setup.face) from error
    except LynxError as error:
        raise type(error)(str(error).replace(str(path), name)) from error
    shown, scale = _at_page_size(picture)
    return Portrait(
        path=path,
        name=name,
        hash=file_hash(path),
        faces=tuple((face, tuple(warnings)) for face, warnings in found),
        shown=shown,
        scale=scale,
    )


def mark_faces(picture: Picture, boxes: Sequence[Sequence[float]], chosen: int) -> Picture:
    """A copy with a box and a number for each (left, top, right, bottom): the chosen one in colour."""
    import cv2

    drawn: Picture = np.ascontiguousarray(picture).copy()
    height, width = drawn.shape[:2]
    line = max(2, round(max(height, width) / 240))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, max(height, width) / 720
    for number in sorted(range(len(boxes)), key=lambda one: one == chosen):  # the chosen one last, over the others
        left, top, right, bottom = (round(float(value)) for value in boxes[number])
        colour = CHOSEN if number == chosen else OTHER
        cv2.rectangle(drawn, (left, top), (right, bottom), INK, line + 2, cv2.LINE_AA)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, line, cv2.LINE_AA)
        (text_width, text_height), _ = cv2.getTextSize(str(number), font, size, line)
        pad = 3 * line
        x = min(max(left, 0), max(0, width - text_width - 2 * pad))
        y = min(max(top, 0), max(0, height - text_height - 2 * pad))
        cv2.rectangle(drawn, (x, y), (x + text_width + 2 * pad, y + text_height + 2 * pad), colour, -1)
        ink = OTHER if number == chosen else INK
        cv2.putText(drawn, str(number), (x + pad, y + pad + text_height), font, size, ink, line, cv2.LINE_AA)
    return drawn


def _at_page_size(picture: Picture) -> tuple[Picture, float]:
    """The picture with its longer side at SHOWN_SIDE, so that boxes and numbers are as sharp in a small one."""
    import cv2

    height, width = picture.shape[:2]
    scale = SHOWN_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown: Picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return shown, scale
