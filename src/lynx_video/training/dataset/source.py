"""What a training set is made from: a folder, or a manifest of lines {"file", "caption", "person", "start", "stop"}.

In a folder a caption is a `.txt` of the same name beside the file; subfolders are read too. In a manifest (`.jsonl`) `file` is
relative to the manifest; `caption`, `person` (who it is, if known), `start` and `stop` (seconds) may be left out. Nothing is
skipped silently: whatever cannot become an item is a `Drop` with its reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lynx_video.errors import BadData

CLIPS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif"})  # .webp: or a clip
_NUMBER = (int, float)
_KEYS: dict[str, type | tuple[type, ...]] = {"file": str, "caption": str, "person": str, "start": _NUMBER, "stop": _NUMBER}


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file, or one part of a clip, as the source names it.

    key: stable, of letters, digits, - and _. file: relative to `root`, with forward slashes. caption, person: None if unknown.
    start, stop: seconds; None is the beginning or the end.
    """

    key: str
    file: str
    caption: str | None = None
    person: str | None = None
    start: float | None = None
    stop: float | None = None

    @property
    def name(self) -> str:
        """What people call it: the file, and the part if it is not all of it."""
        if self.start is None and self.stop is None:
            return self.file
        return f"{self.file} [{self.start or 0:g} s to {'the end' if self.stop is None else f'{self.stop:g} s'}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Something that is not in the set. item: its name. reason: a few words, the same for all of a kind. detail: what exactly."""

    item: str
    reason: str
    detail: str


class Dropped(BadData):
    """An item cannot be used. reason: as in `Drop`; the message is the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The items in the order of their keys, the folder their files are relative to, and what could not become an item."""

    root: Path
    items: tuple[Item, ...]
    drops: tuple[Drop, ...]


def read_source(path: Path) -> Source:
    """The items of a folder or manifest. Raises BadData if it is neither, cannot be read, or names nothing at all."""
    try:
        if path.is_dir():
            root, found = path, list(_walk(path))
        elif path.is_file() and path.suffix.lower() == ".jsonl":
            root, found = path.parent, list(_lines(path))
        else:
            raise BadData(
                f"{path} is {'no manifest' if path.exists() else 'not there'}; name a folder of clips and pictures, or a .jsonl file."
            )
    except OSError as error:
        raise BadData(f"{path} can't be read ({error.strerror or error}).") from error
    items: dict[str, Item] = {}
    drops: list[Drop] = []
    for one in found:
        if isinstance(one, Drop):
            drops.append(one)
        elif one.key in items:
            drops.append(Drop(item=one.name, reason="duplicate", detail="listed twice; the first one counts"))
        else:
            items[one.key] = one
    if not found:
        raise BadData(f"{path} names no clips or pictures; expected {', '.join(sorted(CLIPS | PICTURES))}.")
    return Source(root=root, items=tuple(items[key] for key in sorted(items)), drops=tuple(drops))


def item_key(file: str, start: float | None = None, stop: float | None = None) -> str:
    """The readable part of a name, and a hash of the whole of it: the same on every machine."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(file).stem).strip("-")[:40]
    digest = hashlib.sha256(json.dumps([file, start, stop]).encode()).hexdigest()[:12]
    return f"{stem or 'item'}-{digest}"


def _walk(root: Path) -> Iterator[Item | Drop]:
    files, problems = [], list[OSError]()
    for folder, folders, names in os.walk(root, onerror=problems.append):
        here = Path(folder).relative_to(root)
        files += [(here / name).as_posix() for name in names]
        for name in folders:
            if (root / here / name).is_symlink():
                yield Drop(item=(here / name).as_posix(), reason="linked folder", detail="links to folders are not followed")
    for problem in problems:
        where = Path(problem.filename).relative_to(root).as_posix()
        yield Drop(item=where, reason="unreadable folder", detail=problem.strerror or _line(problem))
    files.sort()
    captions = {file for file in files if file.lower().endswith(".txt")}
    used = set()
    for file in files:
        if file in captions:
            continue
        if PurePosixPath(file).suffix.lower() not in CLIPS | PICTURES:
            yield Drop(item=file, reason="unknown kind of file", detail=f"no clip or picture by its name ({_suffix(file)})")
            continue
        beside = str(PurePosixPath(file).with_suffix(".txt"))
        caption = None
        if beside in captions:
            used.add(beside)
            try:
                caption = (root / beside).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                yield Drop(item=file, reason="unreadable caption", detail=f"{beside}: {_line(error)}")
                continue
        yield Item(key=item_key(file), file=file, caption=caption)
    for file in sorted(captions - used):
        yield Drop(item=file, reason="caption without a file", detail="no clip or picture of this name lies beside it")


def _lines(manifest: Path) -> Iterator[Item | Drop]:
    with manifest.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield _item(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Drop(item=f"{manifest.name}:{number}", reason="malformed line", detail=_line(error))


def _item(value: Any) -> Item:
    """Raises ValueError, saying what is wrong, for a line that is none."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object with file and caption, got {type(value).__name__}")
    if unknown := sorted(set(value) - set(_KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}")
    for name, kind in _KEYS.items():
        given = value.get(name)
        if given is not None and (not isinstance(given, kind) or isinstance(given, bool)):
            raise ValueError(f"{name} must be {'text' if kind is str else 'a number of seconds'}, got {given!r}")
    file, person = value.get("file"), value.get("person")
    start, stop = (None if value.get(name) is None else float(value[name]) for name in ("start", "stop"))
    if not file:
        raise ValueError("the key file is missing or empty")
    if "\0" in file or PurePosixPath(file).is_absolute() or re.match(r"[A-Za-z]:|\\", file):
        raise ValueError(f"file must be a path relative to the manifest, got {file!r}")
    if PurePosixPath(file).suffix.lower() not in CLIPS | PICTURES:
        raise ValueError(f"no clip or picture by its name: {file!r}")
    if person is not None and not person.strip():
        raise ValueError("person must not be empty; leave it out where it is unknown")
    for name, seconds in (("start", start), ("stop", stop)):
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{name} must be 0 or more seconds, got {seconds}")
    if stop is not None and stop <= (start or 0):
        raise ValueError(f"stop must come after start, got {start or 0:g} to {stop:g}")
    caption = value.get("caption")
    file = PurePosixPath(file).as_posix()
    return Item(
        key=item_key(file, start, stop),
        file=file,
        caption=caption.strip() if caption is not None else None,
        person=person.strip() if person else None,
        start=start,
        stop=stop,
    )


def fingerprint_item(item: Item, root: Path) -> str:
    """What changes when the item, or the file it names, may have changed."""
    try:
        facts = (root / item.file).stat()
        state = [facts.st_size, facts.st_mtime_ns]
    except OSError:
        state = []
    return hashlib.sha256(json.dumps([asdict(item), state]).encode()).hexdigest()


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix or "no extension"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
