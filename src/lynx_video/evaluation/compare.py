"""Two or more systems on the same subjects, prompts and seeds: paired differences, win rates and ranks, each with its interval.

Clips pair by the key of their records; only keys that every system has a record of count, everywhere, and the others are named.
Differences are against the first system. `write_comparison` writes comparison.json, comparison.csv (a line a pair and metric),
radar.png, similarity.png and, by `compare_page`, a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_video.errors import BadData, BadRequest
from lynx_video.evaluation.charts import COLOURS, histogram_png, radar_png
from lynx_video.evaluation.entry import Record
from lynx_video.evaluation.metrics.catalogue import part
from lynx_video.evaluation.statistics import Estimate, Rank, estimate, paired, ranks
from lynx_video.evaluation.summary import (
    CONDITIONED,
    SCORES,
    SUMMARY,
    Axis,
    Summary,
    axes_of,
    columns_of,
    describe,
    in_order,
    label_of,
    names_of,
    read_scores,
    read_summary,
    summarise,
    write_csv,
    write_json,
)

_NAMED = 3  # so many of the keys that differ stand in a message


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One of the compared. folder: where its scores.jsonl lies. clips: the folder that the paths in its records start from.

    records: of the common keys, in their order. columns: what these count as, by metric. summary: of these alone.
    only: keys that not every system has.
    """

    name: str
    folder: Path
    clips: Path
    records: tuple[Record, ...]
    columns: Mapping[str, Sequence[float | None]]
    summary: Summary
    only: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Of a later system against the first, over the pairs. mean: of later - first.

    wins: share of the pairs in which the later is better, a tie counts half; None where neither direction is better.
    """

    mean: Estimate
    wins: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """systems: the first is what the others are compared with. keys: the common ones.

    metrics: that every system was scored with. unshared: those that only some were, by system. axes: of the first system, where
    every system has the measure. differences: by system, but the first, then metric. ranks: by metric that has a direction.
    """

    systems: tuple[System, ...]
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    unshared: dict[str, list[str]]
    axes: tuple[Axis, ...]
    differences: dict[str, dict[str, Difference]]
    ranks: dict[str, dict[str, Rank]]

    def of_axis(self, axis: Axis, system: System) -> Estimate | None:
        """What a system has on an axis."""
        return system.summary.metrics[axis.measure] if axis.measure else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "pairs": len(self.keys),
            "systems": [
                {
                    "name": one.name,
                    "folder": str(one.folder),
                    "about": one.summary.about,
                    "conditioned_on": list(one.summary.conditioned_on),
                    "not_paired": list(one.only),
                    "metrics": {name: one.summary.metrics[name].to_json() for name in self.metrics},
                }
                for one in self.systems
            ],
            "first": self.systems[0].name,
            "axes": {axis.label: axis.measure for axis in self.axes},
            "differences": {
                system: {
                    name: {
                        "difference": one.mean.to_json(),
                        "excludes_zero": one.mean.excludes_zero,
                        "wins": one.wins and one.wins.to_json(),
                    }
                    for name, one in row.items()
                }
                for system, row in self.differences.items()
            },
            "ranks": {name: {system: one.to_json() for system, one in row.items()} for name, row in self.ranks.items()},
            "not_in_all": self.unshared,
        }


def compare(folders: Sequence[Path], names: Sequence[str] = ()) -> Comparison:
    """Compare the evaluations in these folders, each with scores.jsonl and summary.json, against the first.

    names: of the systems; else `system` in what a summary is about, else the folder's name, numbered where two are equal.

    Raises:
        BadRequest: fewer than two folders or more than six, as many names as not, two equal names; no common key; the same key for
            another subject, prompt or seed; other recognisers.
        BadData: a folder without scores or summary, or with damaged ones.
    """
    if not 2 <= len(folders) <= len(COLOURS):
        raise BadRequest(f"a comparison is of 2 to {len(COLOURS)} evaluations, got {len(folders)}.")
    read = [_read(folder) for folder in folders]
    titles = _titles(folders, [summary for _, summary in read], names)
    found = {title: {record.key: record for record in records} for title, (records, _) in zip(titles, read, strict=True)}
    common = sorted(set.intersection(*(set(records) for records in found.values())))
    if not common:
        examples = ", ".join(f"{title} has {next(iter(records))!r}" for title, records in found.items())
        raise BadRequest(f"no clip pairs: the evaluations have no key in common ({examples}).")
    _check_same(found, common)
    _check_recognisers(titles, read)
    systems = []
    for folder, title, (_, summary) in zip(folders, titles, read, strict=True):
        records = tuple(found[title][key] for key in common)
        systems.append(
            System(
                name=title,
                folder=folder,
                clips=clips_folder(summary, folder),
                records=records,
                columns=columns_of(records),
                summary=summarise(records, summary.about, summary.conditioned_on),
                only=tuple(sorted(set(found[title]) - set(common))),
            )
        )
    first, *others = systems
    metrics = tuple(name for name in first.columns if all(name in one.columns for one in others))
    return Comparison(
        systems=tuple(systems),
        keys=tuple(common),
        metrics=metrics,
        unshared={one.name: [name for name in one.columns if name not in metrics] for one in systems},
        axes=_axes(systems, metrics),
        differences={one.name: {name: _difference(first, one, name) for name in metrics} for one in others},
        ranks={name: places for name in metrics if (places := _ranks(systems, name))},
    )


def clips_folder(summary: Summary, folder: Path) -> Path:
    """Where the clips of an evaluation in `folder` lie: `clips` in what its summary is about, from that folder; else the folder."""
    return folder / str(summary.about.get("clips") or "")


def similarity(comparison: Comparison) -> str:
    """The metric by which clips are compared one by one: the first recogniser nobody was conditioned on; "" without a face axis."""
    return next((axis.measure for axis in comparison.axes if axis.name == "face"), "")


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, comparison.csv, radar.png and, where faces were compared, similarity.png. Raises BadOutput."""
    write_json(folder / "comparison.json", comparison.to_json())
    write_csv(folder / "comparison.csv", _lines(comparison))
    note = CONDITIONED if any(axis.conditioned for axis in comparison.axes) else ""
    radar_png([axis.label for axis in comparison.axes], spokes(comparison), folder / "radar.png", note=note)
    name = similarity(comparison)
    if name:
        histogram_png(values_of(comparison, name), label_of(name), folder / "similarity.png")


def spokes(comparison: Comparison) -> dict[str, list[Estimate | None]]:
    """By system: its estimate on each axis."""
    return {one.name: [comparison.of_axis(axis, one) for axis in comparison.axes] for one in comparison.systems}


def values_of(comparison: Comparison, name: str) -> dict[str, list[float]]:
    """By system: what its clips count as, those without a value left out."""
    return {one.name: [value for value in one.columns[name] if value is not None] for one in comparison.systems}


def _read(folder: Path) -> tuple[list[Record], Summary]:
    for name in (SCORES, SUMMARY):
        if not (folder / name).is_file():
            raise BadData(f"{folder}: no {name} there; score the clips first: lynx-video evaluate score.")
    return in_order(read_scores(folder / SCORES)), read_summary(folder / SUMMARY)


def _titles(folders: Sequence[Path], summaries: Sequence[Summary], names: Sequence[str]) -> list[str]:
    if names:
        if len(names) != len(folders) or len(set(names)) != len(names):
            raise BadRequest(f"{len(folders)} evaluations need as many different names, got {', '.join(names)}.")
        return list(names)
    plain = [str(one.about.get("system") or folder.resolve().name) for one, folder in zip(summaries, folders, strict=True)]
    return [f"{name} ({i})" if plain.count(name) > 1 else name for i, name in enumerate(plain, start=1)]


def _check_same(found: Mapping[str, Mapping[str, Record]], keys: Sequence[str]) -> None:
    """Raises BadRequest where one key means different clips."""
    facts: dict[str, Callable[[Record], object]] = {
        "prompt": lambda record: record.prompt,
        "subject": lambda record: record.subject,
        "seed": lambda record: record.seed,
        "prompt_id": lambda record: record.prompt_id,
    }
    for what, fact in facts.items():
        differing = [key for key in keys if len({fact(records[key]) for records in found.values()}) > 1]
        if differing:
            key = differing[0]
            each = "; ".join(f"{name}: {fact(records[key])!r}" for name, records in found.items())
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise BadRequest(f"the same key with another {what}: {key!r}{more} ({each}); these clips cannot be paired.")


def _check_recognisers(titles: Sequence[str], read: Sequence[tuple[Sequence[Record], Summary]]) -> None:
    """Raises BadRequest where faces were compared by other recognisers, or otherwise, as far as `scored_by` says it."""
    used = [{part(name) for name in names_of(records) if name.startswith("similarity/")} for records, _ in read]
    if any(one != used[0] for one in used):
        each = "; ".join(f"{title}: {', '.join(sorted(names)) or 'none'}" for title, names in zip(titles, used, strict=True))
        raise BadRequest(f"faces were compared by different recognisers ({each}); score all with the same.")
    noted = [_yardsticks(summary) for _, summary in read]
    for name in sorted(set().union(*noted)):
        known = {title: one[name] for title, one in zip(titles, noted, strict=True) if name in one}
        if any(value != next(iter(known.values())) for value in known.values()):
            each = "; ".join(f"{title}: {value}" for title, value in known.items())
            raise BadRequest(f"{name} is not the same everywhere ({each}); score all in the same way.")


def _yardsticks(summary: Summary) -> dict[str, object]:
    """What was measured by, as far as it was noted: recognisers, detector, frames, version, CLIP model, the judge and its question."""
    noted, judge = summary.about.get("scored_by"), summary.about.get("judge")
    found: dict[str, object] = {}
    if isinstance(noted, dict):
        recognisers = noted.get("recognisers")
        found |= {f"the recogniser {name!r}": it for name, it in recognisers.items()} if isinstance(recognisers, dict) else {}
        found |= {f"`{name}`": noted[name] for name in ("detector", "frames", "metrics_version", "clip_model") if name in noted}
    if isinstance(judge, dict):
        asked = ("model", "rubric", "votes", "frames", "temperature")
        found |= {f"the judge's {name}": judge[name] for name in asked if name in judge}
    return found


def _axes(systems: Sequence[System], metrics: Sequence[str]) -> tuple[Axis, ...]:
    """The axes by measures that every system has; a recogniser that any of them was conditioned on is marked."""
    conditioned = sorted({name for one in systems for name in one.summary.conditioned_on})
    measured = [name for name in metrics if all(one.summary.metrics[name].n for one in systems)]
    noted = systems[0].summary.about.get("scored_by")
    order = list(noted.get("recognisers", ())) if isinstance(noted, dict) else []
    return axes_of({name: systems[0].summary.metrics[name] for name in measured}, conditioned, order)


def _difference(first: System, other: System, name: str) -> Difference:
    before, after = first.columns[name], other.columns[name]
    subjects = [record.subject for record in first.records]
    better = describe(name).better
    wins = None
    if better:
        sign = 1 if better == "high" else -1
        pairs = zip(before, after, strict=True)
        won = [None if a is None or b is None else 0.5 if a == b else float(sign * (b - a) > 0) for a, b in pairs]
        wins = estimate(won, subjects)
    return Difference(mean=paired(before, after, subjects), wins=wins)


def _ranks(systems: Sequence[System], name: str) -> dict[str, Rank]:
    better = describe(name).better
    if not better:
        return {}
    return ranks({one.name: one.columns[name] for one in systems}, [one.subject for one in systems[0].records], better)


def _lines(comparison: Comparison) -> Iterable[list[str]]:
    """A head, then a line a pair and metric: the values of all systems and the differences against the first."""
    first, *others = comparison.systems
    names = [one.name for one in comparison.systems]
    yield ["key", "subject", "prompt_id", "metric", *names, *(f"{one.name} - {first.name}" for one in others)]
    for i, record in enumerate(first.records):
        for metric in comparison.metrics:
            values = [one.columns[metric][i] for one in comparison.systems]
            start = values[0]
            gains = [None if value is None or start is None else value - start for value in values[1:]]
            shown = ["" if value is None else repr(value) for value in (*values, *gains)]
            yield [record.key, record.subject, record.prompt_id, metric, *shown]
