"""Sources and sets, as the tests of the training-set builder write and read them."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from lynx_video.cli.dataset import EncoderFlags, survey_encoders
from lynx_video.media.image import write_picture
from lynx_video.media.video import write_video

FPS = 8.0
NANO = partial(survey_encoders, EncoderFlags(model="nano", device="cpu"))
"""Describes the model that every set here is made with."""


def shelf_in(root):
    """What `shelve` is, for another folder."""
    root.mkdir()

    def write(name, pixels, caption=None, fps=FPS):
        file = root / name
        if file.suffix in {".png", ".jpg"}:
            write_picture(file, pixels)
        else:
            write_video(file, pixels, fps)
        if caption is not None:
            file.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return file

    write.root = root
    return write


def fill(shelve, drawn, people=3, clips=2, photos=1):
    """Fill a source folder with people in captioned clips and bare photos; the names of the files."""
    names = []
    for person in range(people):
        for number in range(clips):
            names.append(f"p{person}/clip{number}.mp4")
            shelve(names[-1], drawn.clips[number][person], drawn.captions[number][person])
        for number in range(photos):
            names.append(f"p{person}/photo{number}.png")
            shelve(names[-1], drawn.photos[number][person])
    return names


def contents(folder: Path):
    """The bytes of all files in a folder by their names."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def dropped(out):
    """item -> (reason, detail) as `dropped.jsonl` has it."""
    lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len({line["item"] for line in lines}) == len(lines), "an item is dropped once"
    return {line["item"]: (line["reason"], line["detail"]) for line in lines}


def nobody(height=64, width=64, tone=60):
    """A picture of a wall in the sun."""
    row = np.linspace(tone, tone + 120, width).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))
