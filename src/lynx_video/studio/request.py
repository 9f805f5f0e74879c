"""One clip that is wanted, as a value that every door fills in and that travels to workers; and reading its settings from texts."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.studio.setup import MarkFlags, SelectFlags, check_text

LONGEST_PROMPT = 8000
"""Characters. The text encoder reads 512 tokens, a few hundred words; who sends more means something else."""

LONGEST_BLOCKS = 1000
"""Characters of a list of blocks; there are 40."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Who, doing what, how.

    portrait or identity: one of the two. generation: the fields of GenerateConfig that were named; they replace what the preset says.
    shown: the portrait's name in messages and in the clip's record, if not its own.
    """

    prompt: str
    portrait: Path | None = None
    identity: Path | None = None
    face_index: int | None = None
    face_record: Path | None = None
    preset: str = "exact"
    generation: Mapping[str, Any] = field(default_factory=dict)
    select: SelectFlags = field(default_factory=SelectFlags)
    marks: MarkFlags = field(default_factory=MarkFlags)
    shown: str = ""

    def __post_init__(self) -> None:
        if (self.portrait is None) == (self.identity is None):
            raise BadRequest("say who: a portrait or an identity file, one of the two.")
        if self.identity is not None and (self.face_record is not None or self.face_index is not None):
            raise BadRequest("a face record and a face index belong to a portrait; an identity file needs neither.")
        if self.face_record is not None and self.face_index is not None:
            raise BadRequest(
                "a face index chooses among the faces that are found, a face record names one: give one of the two."
            )
        if self.face_index is not None and (isinstance(self.face_index, bool) or self.face_index < 0):
            raise BadRequest(f"face_index must be a whole number from 0, got {self.face_index!r}.")
        check_length(self.prompt)

    @property
    def source(self) -> Path:
        """The file that says who."""
        source = self.portrait or self.identity
        assert source is not None
        return source

    @property
    def name(self) -> str:
        """The source as messages name it; a private one is not named."""
        if self.marks.private:
            return "the portrait" if self.identity is None else "the identity file"
        return self.shown or str(self.source)


def check_length(prompt: str, what: str = "prompt") -> None:
    """Raises BadRequest for a prompt of which the model would read only the beginning by far, or with broken characters."""
    check_text(what, prompt)
    if len(prompt) > LONGEST_PROMPT:
        raise BadRequest(
            f"the {what} has {len(prompt)} characters, at most {LONGEST_PROMPT} are taken: the model reads a few hundred words."
        )


def generation_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of GenerateConfig from JSON values or from texts, with their types; empty texts and None are left out.

    ip_blocks and ref_blocks: a list of numbers or `0-9,20`. Raises BadRequest, naming the key, for an unknown name or another type.
    """
    hints = get_type_hints(GenerateConfig)
    known = {one.name for one in fields(GenerateConfig)}
    found = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise BadRequest(f"unknown setting {key!r}; the settings are {', '.join(sorted(known))}.")
        if value is not None and value != "":
            found[name] = _typed(name, value, hints[name])
    check_length(found.get("negative_prompt", ""), "negative prompt")
    GenerateConfig(**found)  # refuses what is out of range
    return found


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value as the type that a field has."""
    parts = [part for part in get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if value in words:
        return value
    for part in parts:
        if get_origin(part) is frozenset:
            return _blocks(name, value)
        if part is str and isinstance(value, str):
            return value
        if part in (int, float) and not isinstance(value, bool):
            try:
                number = float(value)
                if part is float:
                    return number
                if number.is_integer():
                    return int(value) if isinstance(value, (int, str)) else int(number)
            except (TypeError, ValueError, OverflowError):
                pass
    numbers = {int: "a whole number", float: "a number", str: "a text"}
    wanted = " or ".join([numbers[part] for part in parts if part in numbers] + [repr(word) for word in words])
    raise BadRequest(f"{name} must be {wanted}, got {value!r}.")


def _blocks(name: str, value: Any) -> frozenset[int]:
    """[0, 1, 20] or `0-9,20` -> block numbers."""
    if isinstance(value, (list, tuple, set, frozenset)) and all(
        isinstance(one, int) and not isinstance(one, bool) for one in value
    ):
        return frozenset(value)
    found: set[int] = set()
    if len(str(value)) > LONGEST_BLOCKS:
        raise BadRequest(f"{name} must be block numbers such as 0-9,20, got a text of {len(str(value))} characters.")
    for part in str(value).split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise BadRequest(f"{name} must be block numbers such as [0, 1, 2] or 0-9,20, got {value!r}.")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
