"""The clips in a folder, read from their own records: what was made here before a restart, or put there by another command."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadRequest

if TYPE_CHECKING:
    from lynx_video.types import Picture

KINDS = (".mp4", ".webp")
STILL_SIDE = 320
"""Pixels of the longer side of the still that stands for a clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A clip and what it says of itself. made: when the file was written. stamp: changes whenever the file does."""

    path: Path
    record: Mapping[str, Any]
    made: datetime
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        """Its file name."""
        return self.path.name

    @property
    def title(self) -> str:
        """What it shows, in a line."""
        prompt = self.record.get("prompt")
        return " ".join(prompt.split()) if isinstance(prompt, str) and prompt.strip() else "private: the prompt is not told"


def entries(folder: Path, most: int) -> tuple[list[Entry], int]:
    """The newest clips of a folder, newest first, `most` at most; and how many files there are beyond them.

    What carries no record of ours is passed over.
    """
    files = []
    for path in folder.glob("*") if folder.is_dir() else ():
        with suppress(OSError):  # gone meanwhile
            if path.suffix.lower() in KINDS and not path.name.startswith(".") and not path.is_symlink() and path.is_file():
                files.append((path.stat().st_mtime_ns, path))
    files.sort(reverse=True)
    found: list[Entry] = []
    for at, (_, path) in enumerate(files):
        if len(found) == most:
            return found, len(files) - at
        if (entry := read_entry(path)) is not None:
            found.append(entry)
    return found, 0


def find_entry(folder: Path, name: str) -> Entry:
    """The clip of that name in the folder. Raises BadRequest if there is none (any more)."""
    path = folder / name
    entry = read_entry(path) if path.name == name and path.parent == folder and not path.is_symlink() else None
    if entry is None:
        raise BadRequest(f"{Path(name).name}: no such clip any more; it was moved or removed.")
    return entry


def read_entry(path: Path) -> Entry | None:
    """A clip with its record; None if it is none of ours, or gone."""
    try:
        facts = path.stat()
    except OSError:
        return None
    stamp = (facts.st_mtime_ns, facts.st_size)
    record = _record(path, stamp)
    if not record:
        return None
    return Entry(path=path, record=record, made=datetime.fromtimestamp(facts.st_mtime), stamp=stamp)


def still(entry: Entry) -> Picture | None:
    """The first frame, uint8 [h, w, 3], its longer side at STILL_SIDE; None if it can't be read."""
    return _still(entry.path, entry.stamp)


def lend(entry: Entry, folder: Path) -> tuple[Path, Path]:
    """A copy of the clip, and its record as JSON, in a folder that the page may serve; the clips' own folder stays closed.

    Raises BadRequest if the clip can't be read any more, or there is no room.
    """
    place = folder / f"{entry.path.stem[:80]}-{entry.stamp[0]:x}"
    clip, settings = place / entry.name, place / f"{entry.path.stem}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not clip.is_file():
            with draft(clip) as partial:  # two visitors may ask at once
                shutil.copyfile(entry.path, partial)
        if not settings.is_file():
            with draft(settings) as partial:
                partial.write_text(json.dumps(dict(entry.record), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadRequest(f"{entry.name}: can't be shown ({error.strerror or error}).") from error
    return clip, settings


@functools.lru_cache(maxsize=2048)
def _record(path: Path, stamp: tuple[int, int]) -> Mapping[str, Any]:  # noqa: ARG001 (a file that changed is read anew)
    from lynx_video.media.video import read_metadata

    try:
        record = read_metadata(path)
    except (BadRequest, OSError):
        return {}
    return record if "num_inference_steps" in record and "seed" in record else {}


@functools.lru_cache(maxsize=512)
def _still(path: Path, stamp: tuple[int, int]) -> Picture | None:  # noqa: ARG001
    import av
    import numpy as np
    from PIL import Image

    try:
        if path.suffix.lower() == ".webp":
            image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        else:
            with av.open(str(path)) as container:
                image = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, OSError, ValueError, StopIteration, IndexError, Image.DecompressionBombError):
        return None
    scale = STILL_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS))
