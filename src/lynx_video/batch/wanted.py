"""A request of a batch as a value, from the keys and values of a line: typed, with its files hashed and a name of its own."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lynx_video.batch.grid import MOST_REQUESTS, multiply
from lynx_video.batch.lines import Line, Problem
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.media.video import EXTENSIONS
from lynx_video.studio.publish import consent_noted
from lynx_video.studio.request import Request, generation_of
from lynx_video.studio.setup import MarkFlags, SelectFlags, check_text

SETTINGS = tuple(one.name for one in fields(GenerateConfig))
KEYS = (
    *("id", "name", "portrait", "identity", "prompt", "prompt_file", "face_index", "preset", "best_of", "min_similarity"),
    *("consent", "private", "no_watermark", "ext", *SETTINGS),
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_UNSAID = ("prompt", "negative_prompt", "consent")
"""What the name of a private clip's file does not depend on: short texts can be guessed from a hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A clip that is wanted.

    id: its name in results and files. where: `requests.jsonl:3`. source_hash: sha256 of the portrait or identity file. stamp: sha256
    of all that shapes the clip, but for the model, which the clip's own record carries, too; of a private one see `keyed`.
    """

    id: str
    where: str
    request: Request
    source_hash: str
    stamp: str
    ext: str = "mp4"
    nameless: bool = False
    "whether its id is only what may be said of a private request; `keyed` completes it"

    @property
    def file(self) -> str:
        """The name of its clip."""
        return f"{self.id}.{self.ext}"

    @property
    def seed(self) -> int:
        """Its seed, or the first of several."""
        return int(self.request.generation["seed"])


@dataclass(kw_only=True, slots=True)
class Reader:
    """Reads lines whose paths are relative to a folder. defaults: what a line says that does not say otherwise."""

    folder: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hashes: dict[Path, str] = field(default_factory=dict)
    prompts: dict[Path, str] = field(default_factory=dict)

    def requests(self, line: Line) -> list[Wanted]:
        """The requests of a line. Raises BadRequest, saying what is wrong."""
        values = _normal(line.values)
        every = multiply({**self.defaults, **values}, self.folder)
        return [self._wanted(line.where, one, several=len(every) > 1) for one in every]

    def _wanted(self, where: str, values: dict[str, Any], *, several: bool) -> Wanted:
        prompt = self._prompt(values)
        portrait, identity = self._source("portrait", values), self._source("identity", values)
        generation = generation_of({key: value for key, value in values.items() if key in SETTINGS})
        generation.setdefault("seed", GenerateConfig().seed)
        if generation.get("idle_models") == "free":
            raise BadRequest("idle_models free is for a single clip, a worker makes one after the other: say offload.")
        least = values.get("min_similarity")
        select = SelectFlags(
            best_of=_whole("best_of", values.get("best_of", 1)),
            min_similarity=None if least is None else _number("min_similarity", least),
        )
        if select.best_of > 1:
            generation_of({"seed": generation["seed"] + select.best_of - 1})  # refuses a last seed that is none
        marks = MarkFlags(
            private=_flag("private", values.get("private", False)),
            consent=self._consent(_text("consent", values.get("consent", ""))),
            no_watermark=_text("no_watermark", values.get("no_watermark", "")),
        )
        index = values.get("face_index")
        request = Request(
            prompt=prompt,
            portrait=portrait,
            identity=identity,
            face_index=None if index is None else _whole("face_index", index),
            preset=_text("preset", values.get("preset", "exact")),
            generation=generation,
            select=select,
            marks=marks,
        )
        ext = _text("ext", values.get("ext", "mp4")).lower().removeprefix(".")
        if ext not in EXTENSIONS:
            raise BadRequest(f"ext must be {' or '.join(EXTENSIONS)}, got {ext!r}.")
        source_hash = self._hash(request.source)
        content = _content(request, source_hash, ext)
        return Wanted(
            id=_id(values, request, content, several=several),
            where=where,
            request=request,
            source_hash=source_hash,
            stamp=_digest(content),
            ext=ext,
            nameless=marks.private and not (values.get("id", values.get("name")) and not several),
        )

    def _prompt(self, values: Mapping[str, Any]) -> str:
        from lynx_video.pipeline.condition import clean_prompt, read_prompt_file

        if "prompt" in values and "prompt_file" in values:
            raise BadRequest("prompt and prompt_file are both given; say one of the two.")
        if "prompt_file" in values:
            file = self._path("prompt_file", values["prompt_file"])
            if file not in self.prompts:
                self.prompts[file] = read_prompt_file(file)
            return self.prompts[file]
        prompt = _text("prompt", values.get("prompt", ""))
        if re.fullmatch(r"\S+\.txt", prompt.strip()):
            raise BadRequest(f"the prompt is {prompt.strip()!r}, which looks like a file: say prompt_file for one.")
        if not clean_prompt(prompt):
            raise BadRequest("there is no prompt, or an empty one; say what the person should do.")
        return prompt

    def _source(self, key: str, values: Mapping[str, Any]) -> Path | None:
        return self._path(key, values[key]) if key in values else None

    def _path(self, key: str, value: Any) -> Path:
        path = self.folder / _text(key, value)
        try:
            if "\0" not in str(path) and path.is_file():
                return path
            what = "a folder, not a file" if "\0" not in str(path) and path.is_dir() else "no such file"
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            what = error.strerror or str(error)
        raise BadRequest(f"{key} {str(path)!r}: {what}.")

    def _hash(self, file: Path) -> str:
        from lynx_video.media.image import file_hash

        if file not in self.hashes:
            try:
                self.hashes[file] = file_hash(file)
            except OSError as error:
                raise BadRequest(f"{file}: cannot be read ({error.strerror or error}).") from error
        return self.hashes[file]

    def _consent(self, text: str) -> str:
        """The text, or name and hash of the file that it names."""
        beside = str(self.folder / text)
        noted = consent_noted(beside) if text else ""
        return noted if noted != beside else text


def keyed(wanted: Wanted, key: bytes) -> Wanted:
    """The request as a folder knows it: a private one by a stamp that nobody can try words on who has not the folder's key.

    The stamp is in its id, too, if it was given none: its file is called the same whatever else is asked for.
    """
    if not wanted.request.marks.private:
        return wanted
    stamp = hmac.new(key, wanted.stamp.encode(), hashlib.sha256).hexdigest()
    return replace(wanted, stamp=stamp, id=f"{wanted.id}-{stamp[:16]}" if wanted.nameless else wanted.id)


def collect(lines: Sequence[Line], reader: Reader, problems: list[Problem]) -> list[Wanted]:
    """The requests of all lines, in order, each with a name of its own; what is wrong is added to `problems`.

    Raises BadRequest for more than MOST_REQUESTS.
    """
    found: list[Wanted] = []
    names: dict[str, Wanted] = {}
    for line in lines:
        try:
            for one in reader.requests(line):
                name = f"{one.id} {one.stamp}" if one.nameless else one.id
                other = names.setdefault(name.casefold(), one)  # on some disks A.mp4 and a.mp4 are one file
                if other is not one:
                    raise BadRequest(_twice(one, other))
                found.append(one)
        except BadRequest as error:
            problems.append(Problem(where=line.where, text=str(error)))
        if len(found) > MOST_REQUESTS:
            raise BadRequest(f"{line.where}: with this line there are more than {MOST_REQUESTS} requests; split the batch.")
    return found


def _twice(one: Wanted, other: Wanted) -> str:
    if one.stamp == other.stamp:
        return f"asks for the same clip as {other.where}; leave one out, or give it an id of its own."
    return f"the id {one.id!r} is taken by {other.where}; each request needs one of its own."


def _normal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with underscores, without those that say nothing. Raises BadRequest for one that is unknown or there twice."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, 1)
            raise BadRequest(
                f"unknown key {key!r}; did you mean {near[0]}?"
                if near
                else f"unknown key {key!r}; the keys are {', '.join(KEYS)}."
            )
        if name in found:
            raise BadRequest(f"{name} is there twice.")
        if value is not None and value != "":
            found[name] = value
    if "id" in found and "name" in found:
        raise BadRequest("id and name are the same; say one of the two.")
    return found


def _id(values: Mapping[str, Any], request: Request, content: Mapping[str, Any], *, several: bool) -> str:
    given = values.get("id", values.get("name"))
    name = "" if given is None else str(given) if isinstance(given, int) and not isinstance(given, bool) else _text("id", given)
    if name and (not _ID.fullmatch(name) or name.endswith(".")):
        raise BadRequest(
            f"the id {name!r} can't be a file's name: letters, digits, - _ and dots are taken, a letter or digit first, at most 100."
        )
    if name and not several:
        return name
    private = request.marks.private
    stem = name[:60] or ("" if private else re.sub(r"[^A-Za-z0-9]+", "-", request.source.stem)[:40].strip("-")) or "clip"
    apart = {key: value for key, value in content.items() if key != "seed" and not (private and key in _UNSAID)}
    return f"{stem}-{_digest(apart)[:12]}-s{content['seed']}"


def _content(request: Request, source_hash: str, ext: str) -> dict[str, Any]:
    """All that shapes a clip, as plain JSON values."""
    said = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in request.generation.items()}
    return {
        **said,
        "source": [request.portrait is not None, source_hash, request.face_index or 0],
        "prompt": request.prompt,
        "preset": request.preset,
        "best_of": request.select.best_of,
        "min_similarity": request.select.min_similarity,
        "consent": request.marks.consent,
        "private": request.marks.private,
        "no_watermark": request.marks.no_watermark,
        "ext": ext,
    }


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{key} must be a text, got {value!r}.")
    check_text(key, value)
    return value


def _whole(key: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{key} must be a whole number, got {value!r}.")
    return value


def _number(key: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRequest(f"{key} must be a number, got {value!r}.") from None


def _flag(key: str, value: Any) -> bool:
    word = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(word, bool):
        raise BadRequest(f"{key} must be true or false, got {value!r}.")
    return word
