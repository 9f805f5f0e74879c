"""A comparison on one page: all systems in one radar chart and one histogram, and clip by clip beside the reference."""

from __future__ import annotations

from html import escape
from pathlib import Path

from lynx_video.evaluation.charts import histogram_svg, radar_svg
from lynx_video.evaluation.compare import Comparison, Difference, System, similarity, spokes, values_of
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
    legend,
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
from lynx_video.evaluation.statistics import Estimate, Rank
from lynx_video.evaluation.summary import label_of


def write_compare_page(comparison: Comparison, output: Path, *, clip_bytes: int = CLIP_BYTES) -> None:
    """Write the page. clip_bytes: of clips and references in it; the largest gains and losses first, then by key.

    Raises BadOutput, MissingDependency without matplotlib.
    """
    check_page(output)
    shelf = Shelf(page=output, room=clip_bytes)
    names = [one.name for one in comparison.systems]
    first, *others = comparison.systems
    chart = radar_svg([axis.label for axis in comparison.axes], spokes(comparison))
    parts = [
        _pairs(comparison),
        f"<h2>The axes</h2>{legend(names)}<figure>{chart}</figure>{_axes(comparison)}",
        f'<p class="soft">{INTERVALS} Differences are of the same subject, prompt and seed, against {escape(first.name)}; those whose ',
        "interval excludes 0 are marked ●. Wins: share of the pairs in which the later system is better, a tie counts half.</p>",
        _metrics(comparison),
    ]
    name = similarity(comparison)
    if name:
        drawn = histogram_svg(values_of(comparison, name), label_of(name))
        covered = "; ".join(f"{one.name}: {_coverage(one, name)}" for one in comparison.systems)
        parts.append(
            f"<h2>Face similarity</h2>{legend(names)}<figure>{drawn}</figure>"
            f'<p class="soft">{escape(label_of(name))}, clips by system; dashed: means. Coverage: {escape(covered)}.</p>'
        )
    by = name or next((axis.measure for axis in comparison.axes if axis.measure), "")
    if by:
        parts += [*(_extremes(shelf, comparison, one, by) for one in others), _clips(shelf, comparison, by)]
    parts.append("<h2>What ran</h2>")
    parts += [f"<h3>{escape(one.name)}</h3>{about_table(one.summary.about, one.name)}" for one in comparison.systems]
    subjects = subjects_of(len(first.summary.subjects))
    subtitle = f"Paired comparison: {len(comparison.keys)} clips each of {subjects}"
    write_page(output, shelf, title=f"{', '.join(names[1:])} against {first.name}", subtitle=subtitle, body="".join(parts))


def _pairs(comparison: Comparison) -> str:
    """How many clips pair, and which do not."""
    text = f"<p>{len(comparison.keys)} clips are in every evaluation and pair by their key; all numbers here are of these.</p>"
    for one in comparison.systems:
        if one.only:
            keys = "".join(f"<li>{escape(key)}</li>" for key in one.only)
            said = f"{len(one.only)} clips of {escape(one.name)} do not pair"
            text += f"<details><summary>{said}</summary><ul>{keys}</ul></details>"
    failed = [f"{one.name}: {one.summary.failed}" for one in comparison.systems if one.summary.failed]
    if failed:
        text += f'<p class="soft">Failed, counted as the worst of a metric that has one: {escape(", ".join(failed))}.</p>'
    unshared = [f"{name}: {', '.join(map(label_of, names))}" for name, names in comparison.unshared.items() if names]
    return text + (
        f'<p class="soft">Not measured in all, so not compared: {escape("; ".join(unshared))}.</p>' if unshared else ""
    )


def _heads(comparison: Comparison, kind: str) -> list[str]:
    first, *others = comparison.systems
    each = (text for one in others for text in (f"{one.name} − {first.name}", f"wins of {one.name}"))
    return [kind, *(one.name for one in comparison.systems), *each, "n"]


def _row(comparison: Comparison, name: str) -> str:
    """The cells of a metric: what each system has and where it ranks, the differences with win rates, n."""
    cells = []
    row = comparison.ranks.get(name, {})
    pairs = comparison.differences[comparison.systems[1].name][name].mean
    n = pairs.n
    for one in comparison.systems:
        estimate = one.summary.metrics[name]
        place = f'<div class="soft">{_place(row[one.name])}</div>' if one.name in row else ""
        cells.append(cell(mean(estimate, n, stacked=True) + place))
    for one in comparison.systems[1:]:
        found = comparison.differences[one.name][name]
        cells.append(cell(_difference(found, n)))
        cells.append(cell(mean(found.wins, n, stacked=True) if found.wins else ""))
    return "".join(cells) + cell(counts(pairs, f"{pairs.left_out} left out" if pairs.left_out else ""))


def _place(rank: Rank) -> str:
    return f"rank {rank.place}" + ("" if rank.low is None else f" [{rank.low}, {rank.high}]") + f" of {rank.systems}"


def _difference(found: Difference, usual: int) -> str:
    return mean(found.mean, usual, signed=True, stacked=True, mark=" ●" if found.mean.excludes_zero else "")


def _axes(comparison: Comparison) -> str:
    width = 2 + 3 * (len(comparison.systems) - 1)
    empty = cell('<span class="soft">not measured in all</span>') + cell("") * width
    rows = []
    for axis in comparison.axes:
        whom = [one.name for one in comparison.systems if part(axis.measure) in one.summary.conditioned_on]
        rows.append(axis_head(axis, whom) + (_row(comparison, axis.measure) if axis.measure else empty))
    faces = sum(axis.name == "face" for axis in comparison.axes)
    rows[faces:faces] = [head(label_of(name)) + _row(comparison, name) for name in _coverages(comparison)]
    return table(_heads(comparison, "axis"), rows, label="The axes")


def _metrics(comparison: Comparison) -> str:
    rows = [
        first + _row(comparison, name) for first, name in zip(metric_heads(comparison.metrics), comparison.metrics, strict=True)
    ]
    return "<h2>All metrics</h2>" + table(_heads(comparison, "metric"), rows, label="All metrics")


def _coverages(comparison: Comparison) -> list[str]:
    return [name for name in comparison.metrics if name.split("/", 1)[0] == "coverage"]


def _told(comparison: Comparison, system: System, i: int, by: str) -> str:
    """A system's clip in a pair: its similarity, never without its coverage."""
    numbers = [f"{label_of(name)} {number(system.columns[name][i])}" for name in _coverages(comparison)]
    return ", ".join([f"{system.name} {number(system.columns[by][i])}", *numbers])


def _coverage(system: System, name: str) -> str:
    """The coverage that goes with a face similarity, as text."""
    found = next((axis.coverage for axis in system.summary.axes if axis.measure == name), None)
    return f"{found:.3f}" if isinstance(found, Estimate) else "not measured"


def _gains(comparison: Comparison, system: System, by: str) -> list[tuple[float, int]]:
    """Difference and place of each pair that has one, the largest gain first."""
    pairs = zip(comparison.systems[0].columns[by], system.columns[by], strict=True)
    gains = [(after - before, i) for i, (before, after) in enumerate(pairs) if before is not None and after is not None]
    return sorted(gains, key=lambda pair: (-pair[0], pair[1]))


def _held(shelf: Shelf, system: System, i: int) -> Held:
    record = system.records[i]
    return shelf.clip(system.clips / record.clip, record.sha256, broken=bool(record.failure) and not record.frames)


def _extremes(shelf: Shelf, comparison: Comparison, system: System, by: str) -> str:
    """The pairs that a later system gains and loses most in."""
    first = comparison.systems[0]
    gains = _gains(comparison, system, by)
    most = min(EXTREMES, len(gains) // 2)
    text = (
        f"<h2>Largest differences: {escape(system.name)} against {escape(first.name)}</h2><p>By {escape(label_of(by))}, clip by clip. "
        '<button type="button" class="all" hidden>Pause all</button></p>'
    )
    for title, some in (("Gains", gains[:most]), ("Losses", gains[::-1][:most])):
        text += f'<h3>{title}</h3><div class="people wide">'
        for gain, i in some:
            record = first.records[i]
            clips = {_told(comparison, one, i, by): _held(shelf, one, i) for one in (first, system)}
            reference = shelf.reference(first.clips / record.reference)
            caption = f"{record.prompt_id}: {'+' if gain > 0 else ''}{number(gain)}"
            text += beside(shelf, record.subject, caption, reference, clips)
        text += "</div>"
    return text


def _clips(shelf: Shelf, comparison: Comparison, by: str) -> str:
    """Every pair with its values and differences."""
    first, *others = comparison.systems
    rows = []
    for i, record in enumerate(first.records):
        values = [one.columns[by][i] for one in comparison.systems]
        gains = [None if value is None or values[0] is None else value - values[0] for value in values[1:]]
        links = " ".join(play(_held(shelf, one, i), one.name, one.name) for one in comparison.systems)
        cells = [cell(links), cell(escape(record.subject)), cell(escape(record.prompt_id)), line(record.prompt)]
        cells += [cell(number(value), "" if value is None else value) for value in (*values, *gains)]
        failures = "; ".join(f"{one.name}: {one.records[i].failure}" for one in comparison.systems if one.records[i].failure)
        cells.append(line(failures))
        reference = shelf.reference(first.clips / record.reference)
        shown = "; ".join(_told(comparison, one, i, by) for one in comparison.systems)
        caption = f"{record.subject}, {record.prompt_id}: {record.prompt} {label_of(by)}: {shown}"
        rows.append(playable("".join(cells), reference, caption, failed=bool(failures)))
    names = [one.name for one in comparison.systems]
    heads = ("", "subject", "prompt", "text", *names, *(f"{one.name} − {first.name}" for one in others), "failure")
    return (
        f"<h2>All pairs</h2><p class=soft>By {escape(label_of(by))}. A row plays its clips beside the reference; a head sorts. "
        f"{shelf.said()}</p>{filter_box('clips', len(rows))}"
        + table(heads, rows, label="All pairs", name="clips", tall=len(rows) > 20)
    )
