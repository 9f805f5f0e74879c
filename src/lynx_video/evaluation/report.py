"""An evaluation of one system on one page: the axes, every metric with interval and n, breakdowns, clips beside their reference.

A single HTML file from a Summary and its records, see `page`. It says nothing that summary.json and scores.csv do not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lynx_video.evaluation.charts import histogram_svg, radar_svg
from lynx_video.evaluation.entry import Record
from lynx_video.evaluation.metrics.catalogue import part
from lynx_video.evaluation.page import (
    CLIP_BYTES,
    EXTREMES,
    INTERVALS,
    Held,
    Shelf,
    about_table,
    axis_head,
    beside,
    cell,
    check_page,
    counts,
    filter_box,
    head,
    line,
    mean,
    metric_heads,
    number,
    play,
    playable,
    subjects_of,
    table,
    write_page,
)
from lynx_video.evaluation.statistics import Estimate
from lynx_video.evaluation.summary import Axis, Summary, columns_of, describe, failure_of, in_order, label_of


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """A record with what it counts as, by metric, and its files on the page."""

    record: Record
    values: dict[str, float | None]
    clip: Held
    reference: Held

    def scores(self, names: Mapping[str, str]) -> str:
        return ", ".join(f"{label} {number(self.values.get(name))}" for name, label in names.items())


def write_report(
    summary: Summary, records: Iterable[Record], output: Path, *, clips: Path, title: str = "", clip_bytes: int = CLIP_BYTES
) -> None:
    """Write the page of a summary and its records to `output`.

    clips: the folder that the paths in the records start from. title: else `system` in what the summary is about, else the folder's
    name. clip_bytes: of clips and reference photos in the page; the best, the worst and the failed come first, then the others by
    key; what does not fit is linked. Raises BadOutput, MissingDependency without matplotlib, BadData as `in_order`.
    """
    check_page(output)
    found = in_order(records)
    columns = columns_of(found)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] or [{} for _ in found]
    shelf = Shelf(page=output, room=clip_bytes)
    by = _judged_by(summary)
    best, worst = _extremes(found, [row.get(by) for row in rows])
    failed = [i for i, record in enumerate(found) if record.failure]
    scored: dict[int, _Scored] = {}
    for i in dict.fromkeys([*best, *worst, *failed, *range(len(found))]):
        record = found[i]
        reference = shelf.reference(clips / record.reference)
        clip = shelf.clip(clips / record.clip, record.sha256, broken=bool(record.failure) and not record.frames)
        scored[i] = _Scored(record=record, values=rows[i], clip=clip, reference=reference)
    shown = columns_shown(summary.axes, summary.metrics)
    body = (
        _axes(summary)
        + _metrics(summary)
        + _histogram(summary, columns)
        + _extreme_clips(shelf, by, [scored[i] for i in best], [scored[i] for i in worst], shown)
        + _breakdown(summary, "By subject", "subject", summary.by_subject)
        + _breakdown(summary, "By prompt", "prompt", summary.by_prompt)
        + _clips(shelf, [scored[i] for i in range(len(found))], shown)
        + _failures(summary, [scored[i] for i in failed])
        + "<h2>What ran</h2>"
        + about_table(summary.about, "What ran")
    )
    title = title or str(summary.about.get("system") or "") or clips.resolve().name
    write_page(output, shelf, title=title, subtitle=_subtitle(summary), body=body)


def histogram_axis(axes: Iterable[Axis]) -> str:
    """The face similarity that is drawn as a histogram: the first that the model was not conditioned on; "" without any."""
    return next((axis.measure for axis in axes if axis.name == "face" and axis.measure), "")


def columns_shown(axes: Iterable[Axis], names: Iterable[str]) -> dict[str, str]:
    """The metrics of tables by clip, subject or prompt, with their heads: the faces, the coverage beside them, the other axes."""
    labels = {axis.measure: axis.label for axis in axes if axis.measure}
    coverages = {name: label_of(name) for name in names if name.split("/", 1)[0] == "coverage"}
    faces = {name: label for name, label in labels.items() if name.startswith("similarity/")}
    return faces | coverages | labels


def _subtitle(summary: Summary) -> str:
    prompts = f"{len(summary.prompts)} prompt{'' if len(summary.prompts) == 1 else 's'}"
    failed = f"{summary.failed} failed" if summary.failed else "none failed"
    return f"Evaluation: {summary.clips} clips of {subjects_of(len(summary.subjects))} and {prompts}, {failed}"


def _judged_by(summary: Summary) -> str:
    """The metric by which clips are the best and the worst: face similarity times coverage, if it was measured."""
    face = histogram_axis(summary.axes)
    choices = (f"kept/{part(face)}", face) if face else tuple(axis.measure for axis in summary.axes)
    return next((name for name in choices if name in summary.metrics and summary.metrics[name].n), "")


def _extremes(records: Sequence[Record], values: Sequence[float | None]) -> tuple[list[int], list[int]]:
    """The places of the best and of the worst clips that did not fail, none in both."""
    known = [(value, i) for i, value in enumerate(values) if value is not None and not records[i].failure]
    ranked = [i for _, i in sorted(known, key=lambda pair: (-pair[0], pair[1]))]
    most = min(EXTREMES, len(ranked) // 2)
    return ranked[:most], ranked[::-1][:most]


def _axes(summary: Summary) -> str:
    rows = []
    for axis in summary.axes:
        one = axis.estimate
        coverage = mean(axis.coverage, one.n if one else None) if axis.coverage else ""
        rows.append(axis_head(axis) + cell(mean(one)) + cell(coverage) + cell(counts(one, _aside(one))))
    chart = radar_svg([axis.label for axis in summary.axes], {"": [axis.estimate for axis in summary.axes]})
    return (
        f'<h2>The axes</h2><div class="two"><figure>{chart}</figure><div>'
        f"{table(('axis', 'mean', 'coverage', 'n'), rows, label='The axes')}"
        f"<p class=soft>{INTERVALS} Every axis runs from 0 to 1, outward is better. Coverage: the share of frames with a face to "
        "compare; a similarity says nothing of the others.</p></div></div>"
    )


def _aside(one: Estimate | None) -> str:
    """How many of the clips count as the worst, and how many are left out."""
    if one is None:
        return ""
    notes = [f"{one.worst} failed, as worst"] if one.worst else []
    return ", ".join([*notes, f"{one.left_out} left out"] if one.left_out else notes)


def _metrics(summary: Summary) -> str:
    rows = []
    for (name, one), first in zip(summary.metrics.items(), metric_heads(summary.metrics), strict=True):
        failed = f"{one.worst} <span class=soft>as {describe(name).worst:g}</span>" if one.worst else "0"
        rows.append(first + cell(mean(one)) + cell(counts(one)) + cell(failed) + cell(str(one.left_out)))
    heads = ("metric", "mean", "n", "failed, as the worst", "left out")
    return "<h2>All metrics</h2>" + table(heads, rows, label="All metrics")


def _histogram(summary: Summary, columns: Mapping[str, Sequence[float | None]]) -> str:
    name = histogram_axis(summary.axes)
    if not name:
        return ""
    values = [value for value in columns[name] if value is not None]
    coverage = next((f"{axis.coverage:.3f}" for axis in summary.axes if axis.measure == name and axis.coverage), "not measured")
    return (
        f"<h2>Face similarity</h2><figure>{histogram_svg({'': values}, label_of(name))}</figure>"
        f'<p class="soft">{escape(label_of(name))} of {len(values)} clips; dashed: their mean. Coverage {escape(coverage)}.</p>'
    )


def _extreme_clips(shelf: Shelf, by: str, best: Sequence[_Scored], worst: Sequence[_Scored], shown: Mapping[str, str]) -> str:
    if not best:
        return ""
    parts = [
        f"<h2>Best and worst</h2><p>By {escape(label_of(by))}, of the clips that did not fail. "
        '<button type="button" class="all" hidden>Pause all</button></p>'
    ]
    for title, some in (("Best", best), ("Worst", worst)):
        parts.append(f'<h3>{title}</h3><div class="people">')
        for one in some:
            caption = f"{one.record.prompt_id}: {one.scores({by: label_of(by), **shown})}"
            parts.append(beside(shelf, one.record.subject, caption, one.reference, {"clip": one.clip}))
        parts.append("</div>")
    return "".join(parts)


def _breakdown(summary: Summary, title: str, what: str, groups: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The axes and the coverage for each subject or prompt."""
    shown = columns_shown(summary.axes, summary.metrics)
    rows = []
    for group, row in groups.items():
        n = max((row[name].n for name in shown), default=0)
        subjects = max((row[name].subjects for name in shown), default=0)
        cells = [head(group, escape(summary.prompts.get(group, "")) if what == "prompt" else "")]
        cells.append(cell(str(n) if what == "subject" else f"{n}<div class=soft>of {subjects_of(subjects)}</div>", n))
        for name in shown:
            value = row[name].mean
            cells.append(cell(mean(row[name], n, stacked=True), "" if value is None else value))
        rows.append("".join(cells))
    about = "One subject a row, so without intervals." if what == "subject" else "Intervals over the subjects of each prompt."
    tall = table((what, "n", *shown.values()), rows, label=title, name=f"by-{what}", tall=len(rows) > 20)
    return f'<h2>{title}</h2><p class="soft">{about} n counts clips, and stands in a cell where it differs.</p>{tall}'


def _clips(shelf: Shelf, scored: Sequence[_Scored], shown: Mapping[str, str]) -> str:
    rows = []
    for one in scored:
        record = one.record
        cells = [cell(play(one.clip, "play", record.key)), cell(escape(record.subject)), cell(escape(record.prompt_id))]
        cells.append(line(record.prompt))
        cells.append(cell("" if record.seed is None else str(record.seed)))
        for name in shown:
            value = one.values.get(name)
            cells.append(cell(number(value), "" if value is None else value))
        cells.append(line(failure_of(record)))
        caption = f"{record.subject}, {record.prompt_id}: {record.prompt} {one.scores(shown)}"
        rows.append(playable("".join(cells), one.reference, caption, failed=bool(record.failure)))
    heads = ("", "subject", "prompt", "text", "seed", *shown.values(), "failure")
    return (
        "<h2>All clips</h2><p class=soft>A row plays its clip beside the reference; a head sorts. Failed clips count as the worst of a "
        f"metric that has one. {shelf.said()}</p>{filter_box('clips', len(rows))}"
        + table(heads, rows, label="All clips", name="clips", tall=len(rows) > 20)
    )


def _failures(summary: Summary, failed: Sequence[_Scored]) -> str:
    """Clips that failed, by reason and name, and scores that are missing, by metric and reason."""
    text = "<h2>Failures</h2>"
    if failed:
        counts = ", ".join(f"{reason.rstrip('.')}: {count}" for reason, count in summary.failures.items())
        text += f"<p>{len(failed)} of {summary.clips} clips failed: {escape(counts)}.</p>"
        rows = []
        for one in sorted(failed, key=lambda one: (failure_of(one.record), one.record.key)):
            cells = cell(play(one.clip, one.record.key, one.record.key)) + cell(escape(failure_of(one.record)), kind="words")
            rows.append(playable(cells, one.reference, f"{one.record.key}: {one.record.failure}"))
        text += table(("clip", "reason"), rows, label="Failed clips", tall=len(rows) > 20)
    else:
        text += "<p>No clip failed.</p>"
    rows = [
        head(label_of(name)) + cell(str(count)) + cell(escape(reason), kind="words")
        for name, reasons in summary.missing.items()
        for reason, count in reasons.items()
    ]
    return text + (
        "<h3>Missing scores</h3>" + table(("metric", "clips", "reason"), rows, label="Missing scores") if rows else ""
    )
