"""All records of one system in numbers: the seven axes, every metric with its interval, breakdowns, failures, what is missing.

Written as `summary.json` (read back by `read_summary`), `scores.csv` (a line a clip, as it counts in the means) and `radar.png`.
The order of the records changes no byte of them.

A clip that does not decode counts as the documented worst of every metric that has one (see `metrics.catalogue`), one without a face
as the worst of those that need a face; a score that is missing otherwise is left out of the mean and counted by its reason. A metric
that no clip which did not fail has a value of was not measured: there nothing counts as the worst.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

from lynx_video.draft import draft
from lynx_video.errors import BadData
from lynx_video.evaluation.entry import REFERENCE, UNSCORED, Record
from lynx_video.evaluation.metrics.catalogue import METRICS, Metric, metric, part
from lynx_video.evaluation.metrics.score import NO_FACE
from lynx_video.evaluation.statistics import Estimate, estimate

SCORES = "scores.jsonl"
SUMMARY = "summary.json"
CONDITIONED = "† the model was conditioned on this recogniser, so its similarity flatters"
FACE_AXES = 3
OF_FACES = ("similarity", "worst_tenth", "kept", "consistency", "coverage")
"""Metrics of which a clip without a face has the worst."""
AXES = {
    "prompt": ("judge/prompt_following", "probe/prompt"),
    "aesthetics": ("judge/aesthetics", "probe/clean"),
    "motion": ("judge/motion_naturalness", "probe/motion"),
    "quality": ("judge/video_quality", "probe/steady"),
}
"""Beside the face: what stands behind an axis, the first of these that was measured."""

Columns = Mapping[str, Sequence[float | None]]  # by metric, one value a clip


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One of the seven axes. name: `face`, `prompt`, ... measure: the metric behind it, "" if nobody measured it.

    estimate: its mean, None without a measure. coverage: of the clips, for a face axis. conditioned: the model was conditioned on
    this very recogniser, so that its similarity flatters.
    """

    name: str
    measure: str = ""
    estimate: Estimate | None = None
    coverage: Estimate | None = None
    conditioned: bool = False

    @property
    def label(self) -> str:
        """For charts and tables: `face: nano judge`, `face: facexlib †` (see CONDITIONED), `prompt`, `motion: probe` for a stand-in."""
        what = part(self.measure) if self.name == "face" else "probe" if self.measure.startswith("probe/") else ""
        return (f"{self.name}: {what}" if what else self.name) + (" †" if self.conditioned else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Everything that is said of a system. about: what ran, plain JSON values. failed: clips that failed as a whole.

    prompts: by prompt_id. conditioned_on: recognisers the model was conditioned on. metrics: by name, in the order of the catalogue.
    by_subject, by_prompt: the same, for the clips of one. failures: clips by reason. missing: by metric, clips by reason.
    """

    about: dict[str, Any]
    clips: int
    failed: int
    subjects: tuple[str, ...]
    prompts: dict[str, str]
    conditioned_on: tuple[str, ...]
    axes: tuple[Axis, ...]
    metrics: dict[str, Estimate]
    by_subject: dict[str, dict[str, Estimate]]
    by_prompt: dict[str, dict[str, Estimate]]
    failures: dict[str, int]
    missing: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the tables as nested dictionaries."""
        return {
            "about": self.about,
            "clips": self.clips,
            "failed": self.failed,
            "subjects": list(self.subjects),
            "prompts": self.prompts,
            "conditioned_on": list(self.conditioned_on),
            "axes": [_axis_json(one) for one in self.axes],
            "metrics": _plain(self.metrics),
            "by_subject": {name: _plain(row) for name, row in self.by_subject.items()},
            "by_prompt": {name: _plain(row) for name, row in self.by_prompt.items()},
            "failures": self.failures,
            "missing": self.missing,
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> Summary:
        """The summary in JSON values. Raises BadData, naming `where`, for what is none."""

        def row(found: Any) -> dict[str, Estimate]:
            return {name: Estimate.from_json(one, f"{where}: {name}") for name, one in found.items()}

        try:
            return cls(
                about=dict(values["about"]),
                clips=values["clips"],
                failed=values["failed"],
                subjects=tuple(values["subjects"]),
                prompts=dict(values["prompts"]),
                conditioned_on=tuple(values["conditioned_on"]),
                axes=tuple(_axis_of(one, where) for one in values["axes"]),
                metrics=row(values["metrics"]),
                by_subject={name: row(found) for name, found in values["by_subject"].items()},
                by_prompt={name: row(found) for name, found in values["by_prompt"].items()},
                failures=dict(values["failures"]),
                missing={name: dict(found) for name, found in values["missing"].items()},
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, BadData):
                raise
            raise BadData(f"{where}: not a summary of an evaluation ({error!r}).") from error


def summarise(
    records: Iterable[Record],
    about: Mapping[str, Any] | None = None,
    conditioned_on: Sequence[str] = (),
    recognisers: Sequence[str] = (),
) -> Summary:
    """The summary of records in any order.

    about: what ran (versions, hashes, commands, settings, the judge's tally), plain JSON values, shown as they are.
    conditioned_on: names of recognisers the model was conditioned on. recognisers: the order of the face axes. Raises BadData without
    records or for a key that comes twice.
    """
    found = in_order(records)
    columns = columns_of(found)
    missing: dict[str, Counter[str]] = {name: Counter() for name in columns}
    for name, values in columns.items():
        missing[name].update(why_missing(one, name) for one, value in zip(found, values, strict=True) if value is None)
    metrics = _row(found, columns, range(len(found)))
    return Summary(
        about=dict(about or {}),
        clips=len(found),
        failed=sum(bool(record.failure) for record in found),
        subjects=tuple(sorted({record.subject for record in found})),
        prompts={record.prompt_id: record.prompt for record in sorted(found, key=lambda one: one.prompt_id)},
        conditioned_on=tuple(sorted(conditioned_on)),
        axes=axes_of(metrics, conditioned_on, recognisers),
        metrics=metrics,
        by_subject=_breakdown(found, columns, [record.subject for record in found]),
        by_prompt=_breakdown(found, columns, [record.prompt_id for record in found]),
        failures=_by_number(Counter(failure_of(record) for record in found if record.failure)),
        missing={name: _by_number(counts) for name, counts in missing.items() if counts},
    )


def in_order(records: Iterable[Record]) -> list[Record]:
    """The records by key. Raises BadData without any, or for a key that comes twice."""
    found = sorted(records, key=lambda record: record.key)
    if not found:
        raise BadData("there is no record of a scored clip, so there is nothing to sum up.")
    for before, record in pairwise(found):
        if before.key == record.key:
            raise BadData(f"two records have the key {record.key!r} ({before.clip}, {record.clip}); a clip counts once.")
    return found


def describe(name: str) -> Metric:
    """The metric behind a name; one that this version does not know is shown as it is, without a direction."""
    try:
        return metric(name)
    except KeyError:
        return Metric(label=name, text="Not in the catalogue of this version.", better="")


def label_of(name: str) -> str:
    """For tables: `face similarity (nano judge)`."""
    return f"{describe(name).label} ({part(name).replace('_', ' ')})" if part(name) else describe(name).label


def names_of(records: Iterable[Record]) -> list[str]:
    """All metrics that some record speaks of, in the order of the catalogue."""
    order = {name: i for i, name in enumerate(METRICS)}
    seen = {name for record in records for name in (*record.scores, *record.missing)}
    return sorted(seen, key=lambda name: (order.get(name.split("/", 1)[0], len(order)), name))


def columns_of(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """By metric, what each clip counts as in its mean, in the order of the records; None: it is left out."""
    return {name: _column(records, name) for name in names_of(records)}


def _column(records: Sequence[Record], name: str) -> list[float | None]:
    known = [_known(record, name) for record in records]
    sound = [value for record, value in zip(records, known, strict=True) if not record.failure]
    # Where all clips failed there is nothing to tell by; then they count as the worst.
    measured = not sound or any(value is not None for value in sound)
    return [_worst(record, name) if measured and v is None else v for record, v in zip(records, known, strict=True)]


def _worst(record: Record, name: str) -> float | None:
    """What a clip counts as that has no value, where that is the clip's own fault; None: it is left out."""
    if not record.failure or record.failure.startswith(UNSCORED) or record.missing.get(name, "").startswith(REFERENCE):
        return None
    # no frame at all, or no frame with a face and a metric that needs one; a judge that did not answer is another matter
    needs_face = name.split("/", 1)[0] in OF_FACES and record.missing.get(name, NO_FACE) == NO_FACE
    return describe(name).worst if needs_face or not record.frames else None


def _known(record: Record, name: str) -> float | None:
    """What was measured of a clip; None for nothing, and for what is no finite number."""
    value = record.scores.get(name)
    return value if value is not None and math.isfinite(value) else None


def why_missing(record: Record, name: str) -> str:
    """Why a clip is left out of a metric, in a few words."""
    if name in record.missing:
        return record.missing[name]
    if record.failure.startswith(UNSCORED):
        return UNSCORED
    if record.failure:
        return record.missing.get(name) or "the clip failed"
    return "no score in the record" if record.scores.get(name) is None else "the score is no finite number"


def failure_of(record: Record) -> str:
    """The failure without the name of its file before it, so that equal reasons count together."""
    before, _, after = record.failure.partition(f"{PurePath(record.clip).name}: ")
    return after if after and len(before.split()) <= 1 else record.failure


def axes_of(
    metrics: Mapping[str, Estimate], conditioned_on: Sequence[str] = (), recognisers: Sequence[str] = ()
) -> tuple[Axis, ...]:
    """The seven axes: up to three recognisers, those the model was not conditioned on first, then what AXES names.

    recognisers: in which order they come beyond that; by name where it is silent.
    """
    measured = [name for name, one in metrics.items() if one.n]
    order = {name: i for i, name in enumerate(recognisers)}

    def place(name: str) -> tuple[bool, int, str]:
        return part(name) in conditioned_on, order.get(part(name), len(order)), name

    faces = [(part(n) in conditioned_on, n) for n in sorted((n for n in measured if n.startswith("similarity/")), key=place)]
    axes = []
    for conditioned, name in faces[:FACE_AXES]:
        coverage = metrics.get(f"coverage/{part(name)}") or metrics.get("coverage")
        axes.append(Axis(name="face", measure=name, estimate=metrics[name], coverage=coverage, conditioned=conditioned))
    for axis, choices in AXES.items():
        name = next((one for one in choices if one in measured), "")
        axes.append(Axis(name=axis, measure=name, estimate=metrics[name] if name else None))
    return tuple(axes if faces else [Axis(name="face"), *axes])


def write_summary(summary: Summary, records: Iterable[Record], folder: Path) -> None:
    """Write summary.json, scores.csv and radar.png to `folder`. Raises BadOutput."""
    from lynx_video.evaluation.charts import radar_png

    found = in_order(records)
    write_json(folder / SUMMARY, summary.to_json())
    columns = columns_of(found)
    facts = ("key", "subject", "prompt_id", "prompt", "seed", "clip", "reference", "sha256", "frames", "fps", "height", "width")
    lines = [[*facts, "failure", *columns]]
    for record, *scores in zip(found, *columns.values(), strict=True):
        lines.append([*(_cell(getattr(record, name)) for name in facts), record.failure, *map(_cell, scores)])
    write_csv(folder / "scores.csv", lines)
    name = str(summary.about.get("system") or "")
    note = CONDITIONED if any(one.conditioned for one in summary.axes) else ""
    axes = [one.label for one in summary.axes]
    radar_png(axes, {name: [one.estimate for one in summary.axes]}, folder / "radar.png", note=note)


def read_summary(file: Path) -> Summary:
    """The summary in a summary.json. Raises BadData for a file that is missing or none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: not a summary that can be read ({getattr(error, 'strerror', None) or error}).") from error
    return Summary.from_json(values, str(file))


def read_scores(file: Path) -> list[Record]:
    """The records in a scores.jsonl, one a line. Raises BadData, naming the line, for what is none, and for a file without any."""
    try:
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a prompt may hold other ends of line
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{file}: no scores can be read ({getattr(error, 'strerror', None) or error}).") from error
    if lines == [""]:
        raise BadData(f"{file}: holds no scores.")
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        try:
            records.append(Record.from_json(json.loads(line), where))
        except ValueError as error:
            raise error if isinstance(error, BadData) else BadData(f"{where}: no JSON ({error}).") from error
    return records


def write_json(file: Path, values: Any) -> None:
    """Indented JSON with a newline at the end. Raises BadOutput."""
    with draft(file) as temporary:
        temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(file: Path, lines: Iterable[Sequence[str]]) -> None:
    """Lines as CSV, ended by newlines alone. Raises BadOutput."""
    with draft(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(lines)


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _row(records: Sequence[Record], columns: Columns, places: Sequence[int]) -> dict[str, Estimate]:
    """Every metric over the clips at these places."""
    subjects = [records[i].subject for i in places]
    found = {}
    for name, values in columns.items():
        worst = sum(values[i] is not None and _known(records[i], name) is None for i in places)
        found[name] = estimate([values[i] for i in places], subjects, worst=worst)
    return found


def _breakdown(records: Sequence[Record], columns: Columns, groups: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Every metric over the clips of each group, whose names stand in the order of the records."""
    places: dict[str, list[int]] = {name: [] for name in sorted(set(groups))}
    for i, name in enumerate(groups):
        places[name].append(i)
    return {name: _row(records, columns, mine) for name, mine in places.items()}


def _by_number(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _plain(row: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in row.items()}


def _axis_json(axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "measure": axis.measure,
        "estimate": axis.estimate and axis.estimate.to_json(),
        "coverage": axis.coverage and axis.coverage.to_json(),
        "conditioned": axis.conditioned,
    }


def _axis_of(values: Any, where: str) -> Axis:
    """The axis in JSON values; from_json of the summary turns what it raises into BadData."""
    found = {name: values[name] and Estimate.from_json(values[name], where) for name in ("estimate", "coverage")}
    return Axis(name=values["name"], measure=values["measure"], conditioned=values["conditioned"], **found)
