"""A picture of a training set to look at: examples as the model will see them, decoded from the latents that are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lynx_video.pipeline.decoding import decode

if TYPE_CHECKING:
    from lynx_video.types import Example, Picture

ROWS = 12
_CELL, _GAP, _LABEL = 128, 6, 16  # pixels: height of pictures, space between them, height of a line of text
_WIDEST = 2.5  # of a picture, in heights

T = TypeVar("T")


def spread(things: Sequence[T], count: int = ROWS) -> list[T]:
    """So many of the things, evenly from first to last; all if there are fewer."""
    if len(things) <= count:
        return list(things)
    return [things[round(index)] for index in np.linspace(0, len(things) - 1, count)]


def draw_sheet(examples: Iterable[Example], vae: Any) -> Picture:
    """uint8 [H, W, 3]: a row for each example, its first frame, then its references, with person, key and caption above."""
    rows = [_row(example, vae) for example in examples]
    width = max((row.shape[1] for row in rows), default=1)
    sheet: Picture = np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
        or [np.full((1, 1, 3), 255, np.uint8)]
    )
    return sheet


def _row(example: Example, vae: Any) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    # A first latent frame is one frame alone, so one frame is all that has to be decoded.
    device = next(vae.parameters()).device
    latents = [example.latents[:, :1], *example.references]
    pictures = [_fitted(decode(vae, one[None].float().to(device))[0].numpy()) for one in latents]
    width = sum(picture.shape[1] + _GAP for picture in pictures)
    font = ImageFont.load_default(11)
    lines = [f"{example.person} · {example.key} · {example.frames}x{example.height}x{example.width}", example.caption]
    width = max(width, *(int(font.getlength(line)) for line in lines if len(line) < 120)) + 2 * _GAP
    row = Image.new("RGB", (width, _CELL + 2 * _LABEL + 3 * _GAP), "white")
    pen, left = ImageDraw.Draw(row), _GAP
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * _LABEL), line, fill="black", font=font)
    for picture in pictures:
        row.paste(Image.fromarray(picture), (left, 2 * _LABEL + 2 * _GAP))
        left += picture.shape[1] + _GAP
    return np.asarray(row)


def _fitted(picture: Picture) -> Picture:
    import cv2

    height, width = picture.shape[:2]
    scale = min(_CELL / height, _WIDEST * _CELL / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    fitted: Picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    return fitted
