"""The table of a batch: a row for each request that is finished, in their order, as JSON lines and as CSV, always whole.

request     where it was asked for: `requests.jsonl:3`
id          its name
status      done; missed: the clip is there but less alike than was asked for; failed; refused: by the safety check
reason      why it is not done
clip        its file, relative to the folder
queued started finished   when it was taken up by the run that made it, begun and finished; ISO 8601, UTC
seconds     that the generation took
...         seed, what was measured, and `frames_hash`, what `lynx-video replay` compares
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lynx_video.batch.jobs import take_key
from lynx_video.batch.wanted import Wanted
from lynx_video.draft import draft
from lynx_video.errors import BadOutput
from lynx_video.work import Shelf, disk_full, is_full

RESULTS, TABLE, CLIPS = "results.jsonl", "results.csv", "clips"
COLUMNS = (
    *("request", "id", "status", "reason", "clip", "portrait", "identity", "prompt", "preset", "seed"),
    *("queued", "started", "finished", "seconds", "similarity", "coverage", "judge", "frames_hash", "warnings"),
)
SECONDS = 2.0
"""Between two writings of the table, at least."""
SHARE = 20
"""How many times as long as it took the next writing waits."""


@dataclass(kw_only=True, slots=True)
class Table:
    """The rows of a batch as its workers finish them.

    earlier: rows of requests that were made in this folder before and are not asked for any more; they come last.
    """

    folder: Path
    wanted: Sequence[Wanted]
    shelf: Shelf
    earlier: Sequence[Mapping[str, Any]] = ()
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: list[Wanted] = field(default_factory=list)
    due: float = 0.0

    def __post_init__(self) -> None:
        self.waiting = list(self.wanted)

    def update(self, *, now: bool = False) -> None:
        """Look what was finished since, and write the table if it is time, or `now`. Raises BadOutput if it cannot be written."""
        began = time.monotonic()
        if not now and began < self.due:
            return
        left = []
        for one in self.waiting:
            value = self.shelf.value(take_key(one), one.stamp)
            if value is None:
                left.append(one)
            else:
                self.rows[one.id] = row_of(one, value)
        if now or len(left) < len(self.waiting):
            self.waiting = left
            self._write()
        self.due = time.monotonic() + max(SECONDS, SHARE * (time.monotonic() - began))

    def counts(self) -> dict[str, int]:
        """How many requests there are, and how many of each status."""
        found = Counter(row["status"] for row in self.rows.values())
        return {"requests": len(self.wanted), **{status: found[status] for status in ("done", "missed", "failed", "refused")}}

    def _write(self) -> None:
        rows = [self.rows[one.id] for one in self.wanted if one.id in self.rows] + [dict(row) for row in self.earlier]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, text in ((RESULTS, lines), (TABLE, _csv(rows))):
            with draft(self.folder / name) as partial:
                try:
                    partial.write_text(text, encoding="utf-8", newline="")
                except OSError as error:
                    if is_full(error):
                        raise disk_full(self.folder) from error
                    raise BadOutput(f"{self.folder / name}: cannot be written ({error.strerror or error}).") from error


def row_of(wanted: Wanted, value: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table; what is private is left out of it, too."""
    request = wanted.request
    private = request.marks.private
    made = value["status"] in ("done", "missed")
    said = {
        "request": wanted.where,
        "id": wanted.id,
        "clip": f"{CLIPS}/{wanted.file}" if made else None,
        "portrait": request.portrait.name if request.portrait is not None and not private else None,
        "identity": request.identity.name if request.identity is not None and not private else None,
        "prompt": None if private else request.prompt,
        "preset": request.preset,
        "seed": wanted.seed,
        **{key: one for key, one in value.items() if one is not None and key in COLUMNS},
    }
    return {column: said.get(column) for column in COLUMNS}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a table that is there; what cannot be read is left out."""
    try:
        text = (folder / RESULTS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return list(_rows(text.split("\n")))


def _rows(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("status"), str):
            yield row


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "warnings": " ".join(row.get("warnings") or ())} for row in rows)
    return stream.getvalue()
