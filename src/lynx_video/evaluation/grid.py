"""The grid of a benchmark: subjects x prompts x seeds, each a clip with a name that is the same for every system.

Subjects are drawn by code (for nano), or lie in a folder: a folder each, with `reference.*` and perhaps other photos of the person,
or a photo each.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lynx_video.errors import BadData, BadRequest
from lynx_video.evaluation.entry import Entry
from lynx_video.evaluation.prompts import Prompt

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".heic"})
SUBJECTS, CLIPS = "subjects", "clips"
DRAWN = 40
"""People that are drawn where nobody says how many: as many as the paper filmed."""
OTHERS = 3
"""Other pictures of a drawn person, for the copying measure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """Who does what, how often."""

    subjects: Path | None = None
    "folder of the subjects: a photo each, or a folder each with reference.jpg and other photos; drawn people by default (nano)"
    people: int | None = None
    "so many of the folder, the first by name; all of them by default, of drawn people 40"
    prompts: Path | None = None
    "file of prompts, a line each (.txt) or .jsonl; by default the 20 of this package, for nano those in its words"
    tasks: int | None = None
    "so many of the prompts, spread over the list; all by default"
    seeds: int = 1
    "clips of each subject and prompt, each from noise of its own, the same for every model"

    def __post_init__(self) -> None:
        for name in ("people", "tasks", "seeds"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= 100_000:
                raise BadRequest(f"{name} must be a whole number from 1, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A person: the photo the clips are made from, and other photos of them (may be none)."""

    name: str
    reference: Path
    others: tuple[Path, ...] = ()


def entries(
    folder: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], seeds: int, extension: str = "mp4"
) -> list[Entry]:
    """All clips of a grid that lies in `folder`, subject by subject.

    The seed of each is of its own, the same for every system and however large the grid is. Raises BadRequest for names that occur
    twice.
    """
    for what, names in (("subject", [one.name for one in subjects]), ("prompt", [one.id for one in prompts])):
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise BadRequest(f"the {what} {twice!r} is there twice; each needs a name of its own.")
    return [
        _entry(folder, subject, prompt, number, extension)
        for subject in subjects
        for prompt in prompts
        for number in range(seeds)
    ]


def _entry(folder: Path, subject: Subject, prompt: Prompt, number: int, extension: str) -> Entry:
    name = f"{prompt.id}-s{number}"
    seed = int.from_bytes(hashlib.sha256(f"{subject.name}/{name}".encode()).digest()[:4], "big")
    return Entry(
        key=f"{subject.name}/{prompt.id}-s{seed}",
        clip=folder / CLIPS / subject.name / f"{name}.{extension}",
        subject=subject.name,
        reference=subject.reference,
        prompt=prompt.text,
        prompt_id=prompt.id,
        seed=seed,
        others=subject.others,
    )


def read_subjects(folder: Path) -> list[Subject]:
    """The subjects in a folder, by name.

    Raises BadData for a folder that is not there or holds nobody, and for a person whose photos do not say which is the reference.
    """
    if not folder.is_dir():
        raise BadData(f"{folder} is not there; name a folder with a photo, or a folder of photos, for each subject.")
    found = []
    for item in sorted(folder.iterdir()):
        if item.name.startswith("."):
            continue
        if item.is_file() and item.suffix.lower() in PICTURES:
            found.append(Subject(name=_name(item.stem), reference=item))
        elif item.is_dir():
            photos = sorted(
                one
                for one in item.iterdir()
                if one.suffix.lower() in PICTURES and not one.name.startswith(".") and one.is_file()
            )
            chosen = [one for one in photos if one.stem.lower() == "reference"] or (photos if len(photos) == 1 else [])
            if len(chosen) != 1:
                raise BadData(f"{item} has {len(photos)} photos and none, or more than one, is called reference; name one so.")
            others = tuple(one for one in photos if one != chosen[0])
            found.append(Subject(name=_name(item.name), reference=chosen[0], others=others))
    if not found:
        raise BadData(
            f"{folder} holds no subject; put a photo, or a folder with reference.jpg and other photos, there for each."
        )
    return found


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "subject"


def draw_subjects(folder: Path, count: int) -> list[Subject]:
    """`count` drawn people that no nano model was trained on, as pictures below `folder`/subjects; drawn once, then kept.

    The reference looks almost straight ahead, the others look elsewhere, in other clothes, before other walls.
    """
    from lynx_video.media.image import write_picture
    from lynx_video.nano.people import album

    subjects = []
    for number in range(count):
        place = folder / SUBJECTS / f"person{number:03d}"
        files = [place / "reference.png", *(place / f"other-{i + 1}.png" for i in range(OTHERS))]
        if not all(file.is_file() for file in files):
            for file, picture in zip(files, album(number, OTHERS), strict=True):
                write_picture(file, picture)
        subjects.append(Subject(name=place.name, reference=files[0], others=tuple(files[1:])))
    return subjects
