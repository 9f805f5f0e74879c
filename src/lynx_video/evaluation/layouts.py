"""Folders of clips, ours and those that other projects' scripts make, as entries to score. Nothing in a folder is changed.

- `lynx`: FOLDER/manifest.jsonl, a line a clip, see `read_folder`.
- `opens2v`: OpenS2V-Eval. Clips are named by their item (`singleface_3.mp4`); a JSON object maps items to `prompt` and `img_paths`
  (relative to the data set's root, usually below `Images/`). An item can be scored if exactly one of its images lies in a folder
  `man`, `woman`, `crop_man` or `crop_woman`: that one is the reference, as in their script.
  https://github.com/PKU-YuanGroup/OpenS2V-Nexus/tree/main/eval, https://huggingface.co/datasets/BestWishYsh/OpenS2V-Eval
- `consisid`: ConsisID's evaluation. A clip is `IMAGE--INDEX/SEED_COUNT.mp4`: IMAGE is a file name in `eval/face_images`
  (`NUMBER_GROUP_man_NAME_PHOTO.png`), INDEX a row of a CSV (`index, Class, Refined_man, Refined_woman`); the column is chosen by
  "woman" in the name and `{class_token}` in it stands for the Class, as in their script. Photos of one name are one person.
  https://github.com/PKU-YuanGroup/ConsisID/tree/main/eval, https://huggingface.co/datasets/BestWishYsh/ConsisID-preview-Data
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lynx_video.errors import BadData
from lynx_video.evaluation.entry import Entry
from lynx_video.evaluation.prompts import slug

LAYOUTS = ("lynx", "opens2v", "consisid")
CLIPS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".webp", ".gif"})
MANIFEST = "manifest.jsonl"

_PICTURES_TOO = frozenset({".webp", ".gif"})
_ITEM = re.compile(r"((single|multi)(face|human|obj|object)|(face|human)obj)_\d+\.")
_PAIR = re.compile(r"(?P<image>.+)--(?P<index>\d+)")
_PERSON = re.compile(r"^\d+_([^_]+_(?:wo)?man_.+)_\d+$")
_PEOPLE = frozenset({"man", "woman", "crop_man", "crop_woman"})
_KEYS = ("clip", "subject", "reference", "others", "prompt", "prompt_id", "seed")
_LOOKED_FOR = (
    f"lynx (a {MANIFEST} in the folder), opens2v (clips such as singleface_1.mp4, with their .json) or "
    "consisid (clips such as 1_stars_man_NAME_1.png--0/42_0000.mp4, with their .csv)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as it should be. item: which, as a person finds it: a file, FILE:LINE, an item's name.

    reason: a few words, the same for all of a kind, to count by. detail: what exactly, and what was done about it.
    """

    item: str
    reason: str
    detail: str


Reading = Iterator[Entry | Problem]


def read_folder(
    folder: Path, *, layout: str = "auto", manifest: Path | None = None, references: Path | None = None
) -> tuple[list[Entry], list[Problem]]:
    """The clips of a folder in the order of their keys, and what is wrong with which.

    layout: one of LAYOUTS, or "auto", see `tell_layout`. manifest: the file that says what the clips are, where it is not where the
    project keeps it. references: the folder that reference photos are relative to, likewise.

    A line of our manifest: {"clip": "clips/anna/nods-s0.mp4", "subject": "anna", "reference": "subjects/anna/reference.png",
    "others": ["subjects/anna/other-1.png"], "prompt": "...", "prompt_id": "nods", "seed": 0}; the last two and `others` may be left
    out. `clip` is relative to the folder and stays in it (links in the folder are followed); photos are relative to the manifest,
    or to `references`, and may lie anywhere.

    A line or clip that cannot be understood gives a problem and no entry; a clip or reference that is listed and not there gives
    both; an item of OpenS2V-Eval without a clip gives a problem.

    Raises:
        BadData: no such folder; no clip in it, or none that can be scored; a layout that is unknown or can't be told; no manifest,
            several, or one that can't be read; none of the reference photos there.
    """
    if not folder.is_dir():
        raise BadData(f"{folder} is {'no folder' if folder.exists() else 'not there'}; expected a folder of clips.")
    for given, fits, kind in ((manifest, Path.is_file, "manifest"), (references, Path.is_dir, "folder of reference photos")):
        if given is not None and not fits(given):
            raise BadData(f"{given} is {'something else' if given.exists() else 'not there'}; expected a {kind}.")
    found = _clips(folder)
    if not found:
        raise BadData(f"{folder} has no clips in it; looked there and below for files ending in {', '.join(sorted(CLIPS))}.")
    if layout == "auto":
        layout = tell_layout(folder, manifest=manifest)
    if layout not in LAYOUTS:
        raise BadData(f"The layout {layout!r} is unknown; expected auto, {_LOOKED_FOR}.")
    reader = {"lynx": _read_lynx, "opens2v": _read_opens2v, "consisid": _read_consisid}[layout]
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    clips: dict[Path, str] = {}
    for one in reader(folder, found, manifest, references):
        if isinstance(one, Problem):
            problems.append(one)
            continue
        name = _name(one.clip, folder)
        if one.key in entries:
            detail = f"{one.key} is {_name(entries[one.key].clip, folder)} already; left out (a seed tells clips apart)"
            problems.append(Problem(item=name, reason="same key twice", detail=detail))
        elif one.clip in clips:
            detail = f"scored as {clips[one.clip]} already; its entry as {one.key} is left out"
            problems.append(Problem(item=name, reason="same clip twice", detail=detail))
        else:
            entries[one.key], clips[one.clip] = one, one.key
    if not entries or not any(_there(entry.clip) for entry in entries.values()):
        first = f" First {problems[0].item}: {problems[0].detail}." if problems else ""
        raise BadData(f"{folder} as {layout}: none of its {len(found)} clips can be scored, {len(problems)} problems.{first}")
    checked = [_check(entries[key], folder, problems) for key in sorted(entries)]
    if not any(_there(entry.reference) for entry in checked):
        raise BadData(f"No reference photo is there; {checked[0].reference} is the first. Name their folder (--references).")
    first_of: dict[str, Entry] = {}
    for entry in checked:
        known = first_of.setdefault(entry.prompt_id, entry)
        if known.prompt != entry.prompt:
            detail = f"the prompt differs from that of {known.key} under the same prompt_id {entry.prompt_id!r}"
            problems.append(Problem(item=entry.key, reason="prompt_id of two prompts", detail=detail))
    return checked, problems


def tell_layout(folder: Path, *, manifest: Path | None = None) -> str:
    """Which of LAYOUTS a folder has: by the kind of manifest where one is given, else by what is there.

    Raises:
        BadData: it looks like none, or like more than one; the message lists all three.
    """
    if manifest is not None:
        kinds = {".jsonl": "lynx", ".json": "opens2v", ".csv": "consisid"}
        if manifest.suffix.lower() not in kinds:
            raise BadData(f"{manifest}: no manifest by its name; name the layout (--layout): {_LOOKED_FOR}.")
        return kinds[manifest.suffix.lower()]
    found = _clips(folder)
    told = ["lynx"] if (folder / MANIFEST).is_file() else []
    told += ["opens2v"] if any(_ITEM.match(clip.name) for clip in found) else []
    told += ["consisid"] if any(_pair(clip) for clip in found) else []
    if len(told) != 1:
        what = f"looks like {' and '.join(told)}" if told else f"has {len(found)} clips and looks like no known layout"
        raise BadData(f"{folder} {what}; name one (--layout), or its manifest: {_LOOKED_FOR}.")
    return told[0]


def _read_lynx(folder: Path, found: list[Path], manifest: Path | None, references: Path | None) -> Reading:
    file = manifest or folder / MANIFEST
    photos = references or file.parent
    unknown: dict[str, list[int]] = {}
    named: set[Path] = set()
    for number, line in enumerate(_read(file, "a line of JSON a clip").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            entry = _entry(values, folder, photos)
        except (ValueError, RecursionError) as error:
            yield Problem(item=f"{file.name}:{number}", reason="malformed line", detail=f"{_short(error)}; left out")
            continue
        for key in values.keys() - set(_KEYS):
            unknown.setdefault(key, []).append(number)
        named |= {entry.clip, entry.reference, *entry.others}
        yield entry
    for key, numbers in sorted(unknown.items()):
        detail = f"{key!r} in {len(numbers)} lines, ignored; the keys are {', '.join(_KEYS)}"
        yield Problem(item=f"{file.name}:{numbers[0]}", reason="unknown key", detail=detail)
    beside = {path.parent for path in named if path.suffix.lower() in CLIPS}
    for clip in found:
        if clip not in named and (clip.suffix.lower() not in _PICTURES_TOO or clip.parent in beside):
            yield Problem(item=_name(clip, folder), reason="not listed", detail=f"no line of {file.name} names it; left out")


def _entry(values: Any, folder: Path, photos: Path) -> Entry:
    """Raises ValueError, saying what is wrong, for a line of our manifest that is none."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}, got {type(values).__name__}")
    if lost := [name for name in ("clip", "subject", "reference", "prompt") if name not in values]:
        raise ValueError(f"the key {lost[0]} is missing")
    others, seed = values.get("others", []), values.get("seed")
    if not isinstance(others, list):
        raise ValueError(f"others must be a list of paths, got {others!r}")
    texts = {name: values[name] for name in ("clip", "subject", "reference", "prompt", "prompt_id") if name in values}
    for name, given in [*texts.items(), *(("others", one) for one in others)]:
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise ValueError(f"{name} must be text and not empty, got {given!r}")
        given.encode()  # a lone surrogate is no text
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    clip = PurePosixPath(texts["clip"])
    if clip.is_absolute() or ".." in clip.parts or re.match(r"[A-Za-z]:", texts["clip"]):
        raise ValueError(f"clip must be a path within the folder, got {texts['clip']!r}")
    if clip.suffix.lower() not in CLIPS:
        raise ValueError(f"no clip by its name: {texts['clip']!r}")
    subject, prompt = texts["subject"].strip(), texts["prompt"].strip()
    prompt_id = texts.get("prompt_id", "").strip() or slug(prompt)
    return Entry(
        key=f"{subject}/{prompt_id}" + ("" if seed is None else f"-s{seed}"),
        clip=_find(folder, texts["clip"]),
        subject=subject,
        reference=_find(photos, texts["reference"]),
        prompt=prompt,
        prompt_id=prompt_id,
        seed=seed,
        others=tuple(_find(photos, one) for one in others),
    )


def _read_opens2v(folder: Path, found: list[Path], manifest: Path | None, references: Path | None) -> Reading:
    file = manifest or _only([folder, references, references and references.parent, folder.parent], "*_Eval.json", "opens2v")
    try:
        items = json.loads(_read(file, "OpenS2V-Eval's JSON of items"))
    except (ValueError, RecursionError) as error:
        raise BadData(f"{file}: no JSON ({_short(error)}); expected OpenS2V-Eval's object of items.") from error
    if not isinstance(items, dict):
        raise BadData(f"{file}: expected an object of items such as singleface_1, got {type(items).__name__}.")
    root = references or file.parent
    told: dict[str, tuple[str, str] | Problem] = {name: _item(name, values) for name, values in items.items()}
    seen = set()
    for clip in found:
        name = clip.name.split(".")[0]
        one = told.get(name)
        seen.add(name)
        if one is None:
            yield Problem(item=_name(clip, folder), reason="unknown item", detail=f"{file.name} has no item {name!r}; left out")
        elif isinstance(one, Problem):
            yield replace(one, item=_name(clip, folder))
        else:
            prompt, image = one
            # their root holds Images/; its Images folder may be named instead
            places = [_find(root, image), _find(root, image.partition("/")[2])]
            reference = next((one for one in places if _there(one)), places[0])
            subject = (PurePosixPath(image).parent / PurePosixPath(image).stem).as_posix().removeprefix("Images/")
            yield Entry(key=name, clip=clip, subject=subject, reference=reference, prompt=prompt, prompt_id=name)
    for name, one in told.items():
        if name not in seen and not isinstance(one, Problem):
            yield Problem(item=name, reason="no clip", detail=f"an item of {file.name} that could be scored; left out")


def _item(name: str, values: Any) -> tuple[str, str] | Problem:
    """Prompt and reference of an OpenS2V-Eval item, or why there are none."""
    images, prompt = (values.get("img_paths"), values.get("prompt")) if isinstance(values, dict) else (None, None)
    listed = isinstance(images, list) and all(isinstance(one, str) and one and "\0" not in one for one in images)
    if not isinstance(images, list) or not listed or not isinstance(prompt, str) or not prompt.strip():
        detail = f"item {name!r} needs img_paths, a list of paths, and prompt, a text that is not empty; left out"
        return Problem(item=name, reason="malformed item", detail=detail)
    people = [one for one in images if _PEOPLE & set(PurePosixPath(one).parts[:-1])]
    if not people and len(images) == 1 and re.match("single(face|human)_", name):
        people = images
    if len(people) == 1:
        return prompt.strip(), people[0]
    if people:
        return Problem(item=name, reason="several people", detail=f"item {name!r} shows {len(people)} people; left out")
    return Problem(item=name, reason="no person", detail=f"item {name!r} is not about a person; left out")


def _read_consisid(folder: Path, found: list[Path], manifest: Path | None, references: Path | None) -> Reading:
    places = [folder, references, references and references.parent, references and references.parent.parent, folder.parent]
    file = manifest or _only(places, "video_caption_eval*.csv", "consisid")
    try:
        rows = list(csv.DictReader(io.StringIO(_read(file, "ConsisID's CSV of prompts").decode(), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{file}: no CSV in UTF-8 ({_short(error)}).") from error
    columns = {"index", "Class", "Refined_man", "Refined_woman"}
    if lost := sorted(columns - set(rows[0] if rows else ())):
        raise BadData(f"{file}: no column {lost[0]!r}; expected ConsisID's CSV with {', '.join(sorted(columns))}.")
    prompts = {(row["index"] or "").strip(): row for row in rows}
    root = references or file.parent
    photos = next((one for one in (root / "eval" / "face_images", root / "face_images") if one.is_dir()), root)
    pictures = sorted(one for one in photos.iterdir() if one.is_file() and not one.name.startswith("."))
    by_name = {_same_form(name): one for one in reversed(pictures) for name in (one.stem, one.name)}
    people: dict[str, list[Path]] = {}
    for one in pictures:
        people.setdefault(_PERSON.sub(r"\1", one.stem), []).append(one)
    for clip in found:
        pair = _pair(clip)
        if pair is None:
            yield Problem(item=_name(clip, folder), reason="unknown item", detail="not named IMAGE--INDEX; left out")
            continue
        image, index = pair
        photo = by_name.get(_same_form(image))
        row = prompts.get(index)
        column = "Refined_woman" if "woman" in image else "Refined_man"
        prompt = (row[column] or "").replace("{class_token}", row["Class"] or "").strip() if row else ""
        if not prompt:
            detail = f"{file.name} has no {column} of index {index}; left out"
            yield Problem(item=_name(clip, folder), reason="unknown item", detail=detail)
            continue
        stem = (photo or Path(image)).stem
        subject = _PERSON.sub(r"\1", stem)
        seed = re.fullmatch(r"(\d+)_\d+", clip.stem)
        yield Entry(
            key=f"{stem}/{index}" + (f"-s{seed[1]}" if seed else ""),
            clip=clip,
            subject=subject,
            reference=photo or photos / image,
            prompt=prompt,
            prompt_id=index + column.removeprefix("Refined").replace("_", "-"),
            seed=int(seed[1]) if seed else None,
            others=tuple(one for one in people.get(subject, []) if one != photo) if photo else (),
        )


def _clips(folder: Path) -> list[Path]:
    """Clips in the folder and below by their names, sorted; links are followed, what is hidden is passed over."""
    clips: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = deque([folder])
    while waiting:
        here = waiting.pop()
        try:
            facts = here.stat()
            inside = sorted(os.scandir(here), key=lambda one: one.name)
        except OSError as error:
            raise BadData(f"{here} can't be read ({error.strerror or error}).") from error
        if (facts.st_dev, facts.st_ino) in seen:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        for one in inside:
            if one.name.startswith("."):
                continue
            if one.is_dir():  # linked ones last: what can be reached in two ways has its real path
                (waiting.appendleft if one.is_symlink() else waiting.append)(here / one.name)
            elif Path(one.name).suffix.lower() in CLIPS:
                clips.append(here / one.name)
    return sorted(clips)


def _find(base: Path, name: str) -> Path:
    """A path as written, or the file of the same name in another Unicode form, as some archives unpack to."""
    here = base
    for part in PurePosixPath(name).parts:
        if not part.isascii() and here.is_dir() and not (here / part).exists():
            part = next((one.name for one in here.iterdir() if _same_form(one.name) == _same_form(part)), part)
        here = here / part
    return here


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file, a folder that may not be read
        return False


def _check(entry: Entry, folder: Path, problems: list[Problem]) -> Entry:
    """The entry without other photos that are no use; what is not there is added to the problems."""
    if not _there(entry.clip):
        detail = f"{entry.key}: the clip is not there; it counts as a failed one"
        problems.append(Problem(item=_name(entry.clip, folder), reason="missing clip", detail=detail))
    if not _there(entry.reference):
        detail = f"{entry.key}: the reference photo {entry.reference} is not there"
        problems.append(Problem(item=_name(entry.clip, folder), reason="missing reference", detail=detail))
    useless = [one for one in entry.others if one == entry.reference or not _there(one)]
    for other in useless:
        detail = f"{entry.key}: the other photo {other} is {'the reference itself' if _there(other) else 'not there'}; left out"
        problems.append(Problem(item=_name(entry.clip, folder), reason="useless other photo", detail=detail))
    return replace(entry, others=tuple(one for one in entry.others if one not in useless))


def _only(places: list[Path | None], pattern: str, layout: str) -> Path:
    """The only file of this name in the first of the places that has one. Raises BadData for none or several."""
    looked = list(dict.fromkeys(place for place in places if place))
    for place in looked:
        files = sorted(one for one in place.glob(pattern) if one.is_file())
        if len(files) > 1:
            raise BadData(f"{place} has {', '.join(one.name for one in files)}; say which is meant (--manifest).")
        if files:
            return files[0]
    raise BadData(f"No {pattern} in {', '.join(map(str, looked))}; name the {layout} manifest (--manifest).")


def _read(file: Path, expected: str) -> bytes:
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise BadData(f"{file}: can't be read ({error.strerror or error}); expected {expected}.") from error


def _pair(clip: Path) -> tuple[str, str] | None:
    """Image and index of a ConsisID clip, from its folder's name, or its own."""
    told = _PAIR.fullmatch(clip.parent.name) or _PAIR.fullmatch(clip.stem)
    return (told["image"], told["index"]) if told else None


def _same_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return os.fsencode(name).decode(errors="replace")  # a name in another encoding can be printed too


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
