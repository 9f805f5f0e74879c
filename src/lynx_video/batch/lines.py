"""A requests file as lines of keys and values: JSONL, an object a line, or CSV with a header. What they mean is read elsewhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lynx_video.errors import BadRequest

MOST_BYTES = 64 * 2**20
"""Of a requests file."""
KINDS = (".jsonl", ".ndjson", ".csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong, and where: `requests.jsonl:3`."""

    where: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line that could be read. where: `requests.jsonl:3`."""

    where: str
    values: dict[str, Any]


def read_lines(file: Path) -> tuple[list[Line], list[Problem]]:
    """The lines of a requests file, and those that are none. Empty lines are passed over.

    Raises BadRequest for a file that is not there, too large, no UTF-8, empty or of another kind, and for a bad CSV header.
    """
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise BadRequest(
            f"{file}: unknown kind {file.suffix!r}; requests come as .jsonl (an object a line) or .csv (with a header)."
        )
    try:
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise BadRequest(f"{file}: larger than {MOST_BYTES >> 20} MB; split it, and take an output folder for each part.")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{file}: no UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise BadRequest(f"{file}: can't be read ({error.strerror or error}).") from error
    lines: list[Line] = []
    problems: list[Problem] = []
    for number, values in (_csv_rows if kind == ".csv" else _json_objects)(file, text):
        where = f"{file}:{number}"
        if isinstance(values, str):
            problems.append(Problem(where=where, text=values))
        else:
            lines.append(Line(where=where, values=values))
    if not lines and not problems:
        raise BadRequest(f"{file}: there is no request in it.")
    return lines, problems


def _json_objects(_: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, the object or what is wrong) of each line that is not empty."""
    # not splitlines, which also splits at characters that JSON allows in a text
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            yield number, f"no JSON ({error.msg} at column {error.colno})"
        except (ValueError, RecursionError) as error:
            yield number, f"no usable JSON ({' '.join(str(error).split())[:200]})"
        else:
            yield number, value if isinstance(value, dict) else f"expected a JSON object, got {_short(value)}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(number of its first line, the cells that are not empty or what is wrong) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    first = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            where = f"{file}:{reader.line_num}"
            raise BadRequest(f"{where}: no CSV ({error}); what follows can't be told apart.") from error
        if row is None:
            return
        number, first = first, reader.line_num + 1
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [cell.strip() for cell in row]
            twice = next((name for name in header if not name or header.count(name) > 1), None)
            if twice is not None:
                what = f"the column {twice!r} is there twice" if twice else "a column has no name"
                raise BadRequest(f"{file}:{number}: {what}; the first line names each column once.")
        elif len(row) > len(header):
            yield number, f"{len(row)} cells under {len(header)} columns; a text with commas goes in double quotes"
        else:
            yield number, {name: cell for name, cell in zip(header, row, strict=False) if cell.strip()}
