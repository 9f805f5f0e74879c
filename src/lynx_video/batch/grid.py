"""One line, many requests: lists, ranges of seeds and patterns of file names, multiplied out, the first key slowest."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_video.errors import BadRequest

MOST_REQUESTS = 100_000
"""Of a batch."""
FILES = ("portrait", "identity", "prompt_file")
"""Keys whose values are files, which a pattern may name."""
_BLOCKS = ("ip_blocks", "ref_blocks")
_RANGES = re.compile(r"\d+(\s*-\s*\d+)?(\s*,\s*\d+(\s*-\s*\d+)?)*")


def multiply(values: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The requests that a line stands for; one if nothing in it is a list, a range or a pattern.

    folder: what its paths are relative to. Raises BadRequest for an empty list, a pattern that no file fits, a bad range, and for more
    than MOST_REQUESTS.
    """
    choices = [[(key, one) for one in _choices(key, value, folder)] for key, value in values.items()]
    count = math.prod(len(one) for one in choices)
    if count > MOST_REQUESTS:
        raise BadRequest(f"stands for {count} requests; a batch has at most {MOST_REQUESTS}.")
    return [dict(pairs) for pairs in itertools.product(*choices)]


def _choices(key: str, value: Any, folder: Path) -> list[Any]:
    """The values that a key has in turn."""
    if key in _BLOCKS and isinstance(value, list) and all(isinstance(one, int) for one in value):
        return [value]  # block numbers are one value
    several = value if isinstance(value, list) else [value]
    if not several:
        raise BadRequest(f"{key} is an empty list.")
    if key == "seed":
        found = [seed for one in several for seed in seeds_of(one)]
    elif key in FILES:
        found = [file for one in several for file in _files(key, one, folder)]
    else:
        return several
    seen = set[str]()
    for one in found:
        if repr(one) in seen:
            raise BadRequest(f"{key} has {one} twice.")
        seen.add(repr(one))
    return found


def seeds_of(value: Any) -> list[Any]:
    """`1-3,7` -> 1, 2, 3, 7; anything but a text as it is. Raises BadRequest for another text."""
    if not isinstance(value, str):
        return [value]
    if not _RANGES.fullmatch(value.strip()):
        raise BadRequest(f"seed must be a whole number or a range such as 1-10 or 1-3,7, got {value!r}.")
    found: list[int] = []
    for part in value.split(","):
        ends = [one.strip() for one in part.split("-")]
        if any(len(one) > 19 for one in ends):
            raise BadRequest(f"seed must be below 2^63, got {value!r}.")
        first, last = int(ends[0]), int(ends[-1])
        if last < first or last - first >= MOST_REQUESTS:
            raise BadRequest(f"the seeds {part.strip()} are {'no range' if last < first else f'more than {MOST_REQUESTS}'}.")
        found.extend(range(first, last + 1))
    return found


def _files(key: str, value: Any, folder: Path) -> list[Any]:
    """The files that a name or pattern stands for, by name; what is no text is left for whoever reads it."""
    if not isinstance(value, str) or not glob.has_magic(value) or _is_there(folder / value):
        return [value]
    pattern = str(Path(glob.escape(str(folder))) / value)
    fitting = glob.iglob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute patterns)
    found = sorted(itertools.islice((one for one in fitting if Path(one).is_file()), MOST_REQUESTS + 1))
    if not found:
        raise BadRequest(f"{key} {value!r}: no file fits this pattern in {folder}.")
    return found


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
