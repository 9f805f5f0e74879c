"""Everything that can be refused before a batch begins, line by line: nothing is made while a line is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.batch.grid import MOST_REQUESTS
from lynx_video.batch.lines import Line, Problem, read_lines
from lynx_video.batch.wanted import Reader, Wanted, collect
from lynx_video.errors import BadRequest, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lynx_video.studio.studio import Studio

MOST_NAMED = 20
"""Lines that are named in an error; of more their number is told."""


def read_requests(file: Path, defaults: Mapping[str, Any], studio: Studio) -> tuple[list[Wanted], list[str]]:
    """The requests of a file, checked, and what may spoil their clips, in sentences.

    Raises BadRequest that names the lines that cannot be used.
    """
    lines, problems = read_lines(file)
    return _checked(lines, problems, Reader(folder=file.absolute().parent, defaults=defaults), studio)


def grid_requests(values: Mapping[str, Any], defaults: Mapping[str, Any], studio: Studio) -> tuple[list[Wanted], list[str]]:
    """The same for a grid that is given as one line, with paths relative to where we are."""
    line = Line(where="the grid", values=dict(values))
    return _checked([line], [], Reader(folder=Path.cwd(), defaults=defaults), studio)


def read_prompts(file: Path) -> list[str]:
    """The prompts in a text file, a line each; empty lines are passed over. Raises BadRequest."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"the prompts {file} can't be read as UTF-8 text ({error}).") from error
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise BadRequest(f"the prompts {file} are empty; write what the person should do, a line each.")
    if len(found) > MOST_REQUESTS:
        raise BadRequest(f"{file} has {len(found)} prompts; a batch has at most {MOST_REQUESTS} requests.")
    return found


def _checked(lines: Sequence[Line], problems: list[Problem], reader: Reader, studio: Studio) -> tuple[list[Wanted], list[str]]:
    wanted = collect(lines, reader, problems)
    cautions = _try(wanted, studio, problems)
    if problems:
        raise BadRequest(_named(problems))
    return wanted, cautions


def _try(wanted: Sequence[Wanted], studio: Studio, problems: list[Problem]) -> list[str]:
    """Every source and all settings once before the model; the cautions that came."""
    said: dict[Any, str] = {}
    cautions: dict[str, None] = {}
    wrong: set[str] = {one.where for one in problems}

    def once(key: Any, do: Callable[[], object]) -> str:
        """What is wrong; empty if nothing."""
        if key not in said:
            try:
                do()
                said[key] = ""
            except Refused:  # noted when its turn comes; whether the settings are right, another request will tell
                return ""
            except BadRequest as error:
                said[key] = str(error)
        return said[key]

    for one in wanted:
        text = once((one.request.portrait, one.request.identity), lambda one=one: _look(one)) or once(  # type: ignore[misc]
            settings_key(one),
            lambda one=one: cautions.update(dict.fromkeys(studio.check(one.request).cautions)),  # type: ignore[misc]
        )
        if text and one.where not in wrong:
            wrong.add(one.where)
            problems.append(Problem(where=one.where, text=text))
    return list(cautions)


def _look(one: Wanted) -> None:
    """Raises BadRequest for a portrait that is no picture, and for an identity file that is none."""
    from lynx_video.media.image import read_picture
    from lynx_video.pipeline.enrol import load_enrolment

    if one.request.portrait is not None:
        read_picture(one.request.portrait)
    else:
        load_enrolment(one.request.source)


def settings_key(one: Wanted) -> tuple[Any, ...]:
    """Requests of the same key need the model held alike, and are right or wrong alike."""
    request = one.request
    generation = tuple(sorted((key, repr(value)) for key, value in request.generation.items() if key != "seed"))
    who = "" if request.portrait is not None else one.source_hash  # identity files bring memories, which must fit
    return (request.preset, generation, str(request.select), who)


def _named(problems: Sequence[Problem]) -> str:
    """All that is wrong, as one sentence after the other."""
    ordered = sorted(problems, key=lambda one: _place(one.where))
    said = [f"{one.where}: {one.text if one.text[-1:] in '.?' else one.text + '.'}" for one in ordered[:MOST_NAMED]]
    more = len(ordered) - MOST_NAMED
    return " ".join([*said, *([f"And {more} more lines are wrong."] if more > 0 else []), "Nothing was begun."])


def _place(where: str) -> tuple[str, int]:
    file, _, number = where.rpartition(":")
    return (file, int(number)) if number.isdigit() else (where, 0)
