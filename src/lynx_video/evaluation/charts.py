"""The radar chart of the axes and the histogram of face similarity, of one or several systems, as SVG for a page and as PNG files.

Drawn by matplotlib from figures of their own, without pyplot and its state. The SVG has no fixed size and takes its colours from the
page's variables --text, --soft, --rule and --series-0 to --series-5, so that it follows a dark page.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest, MissingDependency
from lynx_video.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of the systems, told apart by all kinds of colour vision (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P")
BIN = 0.05  # width of a bar of the histogram

_TEXT, _SOFT, _RULE = "#1c1c1a", "#5f5e5a", "#dcdbd6"
_DPI = 220
_LABEL = 13  # letters in a line of a label
_EDGE = 1e-9
_STYLE: dict[Any, Any] = {"svg.hashsalt": "lynx-video", "svg.fonttype": "none", "font.family": ["DejaVu Sans"], "font.size": 9}

Systems = Mapping[str, Sequence[Estimate | None]]  # by name, one estimate an axis; None: not measured
Values = Mapping[str, Sequence[float]]  # by name, one value a clip


def radar_svg(axes: Sequence[str], systems: Systems) -> str:
    """The radar chart as an <svg> element without a legend; scale 0 to 1, pale bands are intervals.

    Raises BadRequest for no or more than six systems, MissingDependency without matplotlib.
    """
    with _drawing():
        return _svg(_radar(axes, systems, legend=False), "Radar chart: " + "; ".join(_words(axes, systems)))


def radar_png(axes: Sequence[str], systems: Systems, output: Path, *, note: str = "") -> None:
    """The radar chart with its legend, and a note below it, as a PNG. Raises as `radar_svg`, and BadOutput."""
    with _drawing():
        _png(_radar(axes, systems, legend=True, note=note), output)


def histogram_svg(systems: Values, label: str) -> str:
    """How many clips have which value, as an <svg> element without a legend; `label` stands below the axis.

    Raises BadRequest for no or more than six systems or without any value, MissingDependency without matplotlib.
    """
    with _drawing():
        counts = ", ".join(
            f"{name} of {len(values)} clips" if name else f"{len(values)} clips" for name, values in systems.items()
        )
        return _svg(_histogram(systems, label, legend=False), f"Histogram of {label}: {counts}")


def histogram_png(systems: Values, label: str, output: Path) -> None:
    """The histogram with its legend as a PNG. Raises as `histogram_svg`, and BadOutput."""
    with _drawing():
        _png(_histogram(systems, label, legend=True), output)


@contextmanager
def _drawing() -> Iterator[None]:
    """matplotlib with our style; letters that its font lacks become boxes without a warning."""
    try:
        import matplotlib
    except ImportError:
        raise MissingDependency("charts need matplotlib, which is not installed: pip install 'lynx-video[evaluate]'") from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _check(systems: Mapping[str, object]) -> None:
    if not 1 <= len(systems) <= len(COLOURS):
        raise BadRequest(f"one chart shows 1 to {len(COLOURS)} systems, got {len(systems)}.")


def _radar(axes: Sequence[str], systems: Systems, legend: bool, note: str = "") -> Figure:
    from matplotlib.figure import Figure

    _check(systems)
    below = (0.4 + 0.2 * len(systems)) * legend  # inches
    figure = Figure(figsize=(4.8, 3.7 + below), facecolor="white" if legend else "none")
    plot = figure.add_axes((0.0, below / (3.7 + below), 1.0, 3.7 / (3.7 + below)))
    plot.set(xlim=(-1.66, 1.66), ylim=(-1.2, 1.36), aspect="equal")
    plot.axis("off")
    spokes = [(math.sin(2 * math.pi * i / len(axes)), math.cos(2 * math.pi * i / len(axes))) for i in range(len(axes))]
    for ring in (0.2, 0.4, 0.6, 0.8, 1.0):
        plot.add_patch(_polygon([(ring * x, ring * y) for x, y in spokes], edgecolor=_RULE, facecolor="none", linewidth=0.8))
        plot.text(0.02, ring * spokes[0][1], f"{ring:.1f}", color=_SOFT, fontsize=6.5, va="center", parse_math=False)
    for i, ((x, y), name) in enumerate(zip(spokes, axes, strict=True)):
        plot.plot([0, x], [0, y], color=_RULE, linewidth=0.8, zorder=0)
        unseen = all(values[i] is None for values in systems.values())
        plot.text(
            1.09 * x,
            1.09 * y,
            "\n".join(textwrap.wrap(name, _LABEL) if len(name) > _LABEL else [name]) + ("\nnot measured" if unseen else ""),
            color=_SOFT if unseen else _TEXT,
            ha="center" if abs(x) < 0.2 else "left" if x > 0 else "right",
            va="bottom" if y > 0.5 else "top" if y < -0.5 else "center",
            linespacing=1.1,
            parse_math=False,
        )
    for series, values in enumerate(systems.values()):
        _spokes(plot, spokes, values, series)
    if legend:
        _legend(figure, [_counted(name, values) for name, values in systems.items()])
        about = "0 to 1, outward is better. Bands and bars: 95% intervals over subjects."
        figure.text(0.5, 0.012, f"{about}\n{note}" if note else about, color=_SOFT, fontsize=7, ha="center", parse_math=False)
    return figure


def _spokes(plot: Axes, spokes: Sequence[tuple[float, float]], values: Sequence[Estimate | None], series: int) -> None:
    """The curve of one system: a band between the ends of neighbouring intervals, whiskers, a mark for each mean."""
    colour = COLOURS[series]

    def at(i: int, value: float | None) -> tuple[float, float]:
        inside = min(max(value or 0.0, 0.0), 1.0)
        return inside * spokes[i][0], inside * spokes[i][1]

    for i, one in enumerate(values):
        if one is None or one.mean is None:
            continue
        j = (i + 1) % len(values)
        other = values[j]
        if other is not None and other.mean is not None and len(values) > 2:
            (x, y), (next_x, next_y) = at(i, one.mean), at(j, other.mean)
            plot.plot([x, next_x], [y, next_y], color=colour, linewidth=1.6, solid_capstyle="round", zorder=3)
            if one.low is not None and other.low is not None:
                corners = [at(i, one.low), at(i, one.high), at(j, other.high), at(j, other.low)]
                plot.add_patch(_polygon(corners, facecolor=colour, edgecolor="none", alpha=0.22, zorder=1))
        if one.low is not None:
            (x, y), (far_x, far_y) = at(i, one.low), at(i, one.high)
            plot.plot([x, far_x], [y, far_y], color=colour, linewidth=2.6, alpha=0.55, solid_capstyle="butt", zorder=2)
        x, y = at(i, one.mean)
        plot.plot([x], [y], marker=MARKERS[series], markersize=4.5, color=colour, markeredgecolor="none", zorder=4)


def _histogram(systems: Values, label: str, legend: bool) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    _check(systems)
    everything = [value for values in systems.values() for value in values]
    if not everything:
        raise BadRequest(f"there is no value of {label} to draw a histogram of.")
    # A value on an edge belongs to the bar above it, whatever its last bit.
    first, last = (math.floor((value + _EDGE) / BIN) for value in (min(everything), max(everything)))
    edges = np.arange(first, last + 2) * BIN
    figure = Figure(figsize=(4.8, 2.7 + (0.3 * len(systems) if legend else 0)), facecolor="white" if legend else "none")
    plot = figure.add_axes((0.12, 0.17, 0.85, 0.8 - 0.08 * len(systems) * legend))
    for series, values in enumerate(systems.values()):
        counts, _ = np.histogram(np.asarray(values, dtype=float) + _EDGE, bins=edges)
        pale = 0.75 if len(systems) == 1 else 0.18
        plot.stairs(counts, edges, fill=True, color=COLOURS[series], alpha=pale, zorder=2)
        if len(systems) > 1:
            plot.stairs(counts, edges, color=COLOURS[series], linewidth=1.5, zorder=3)
        if values:
            mean = math.fsum(values) / len(values)
            plot.axvline(mean, color=COLOURS[series], linewidth=1.2, linestyle=(0, (4, 2)), zorder=4)
    plot.set_xlabel(label, color=_TEXT, parse_math=False)
    plot.set_ylabel("clips", color=_TEXT)
    plot.set_xlim(edges[0], edges[-1])
    plot.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    plot.tick_params(colors=_SOFT, labelcolor=_SOFT, length=3)
    plot.grid(axis="y", color=_RULE, linewidth=0.8)
    plot.set_axisbelow(True)
    plot.patch.set_visible(False)
    for side, spine in plot.spines.items():
        spine.set(visible=side == "bottom", color=_SOFT, linewidth=0.8)
    if legend:
        names = [f"{name}, n = {len(values)}" if name else f"n = {len(values)}" for name, values in systems.items()]
        _legend(figure, names, top=True)
    return figure


def _polygon(corners: Sequence[tuple[float, float]], **style: object) -> Any:
    from matplotlib.patches import Polygon

    return Polygon(corners, closed=True, **style)


def _legend(figure: Figure, names: Sequence[str], top: bool = False) -> None:
    """One line a system. The names are put in afterwards: matplotlib reads dollars and leading underscores as its own."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[i], marker=MARKERS[i], markersize=4.5) for i in range(len(names))]
    legend = figure.legend(
        handles,
        ["x"] * len(names),
        loc="upper center" if top else "lower center",
        bbox_to_anchor=(0.5, 0.995 if top else 0.065),
        frameon=False,
        fontsize=8,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
        text.set_color(_TEXT)


def _counted(name: str, values: Sequence[Estimate | None]) -> str:
    """The name with its n, or the smallest and the largest of its axes."""
    found = [one for one in values if one is not None]
    counts = sorted({one.n for one in found}) or [0]
    n = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    subjects = max((one.subjects for one in found), default=0)
    return f"{name}, {n} of {subjects} subjects" if name else f"{n} of {subjects} subjects"


def _words(axes: Sequence[str], systems: Systems) -> Iterator[str]:
    """The chart for those who do not see it."""
    for name, values in systems.items():
        told = (f"{axis} {'not measured' if one is None else one}" for axis, one in zip(axes, values, strict=True))
        yield (f"{name}: " if name else "") + ", ".join(told)


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element that stands in HTML: no header, no size, no names that two charts would share."""
    stream = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=metadata)
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn).replace("font-family: 'DejaVu Sans'; ", "")
    box = re.search(r'viewBox="[^"]*"', drawn)
    assert box is not None, "matplotlib writes a viewBox"
    opened = f'<svg {box[0]} stroke-linejoin="round" role="img" aria-label="{escape(label)}">'
    drawn = re.sub(r"^<svg[^>]*>", lambda _: opened, drawn)
    variables = {_TEXT: "text", _SOFT: "soft", _RULE: "rule"} | {colour: f"series-{i}" for i, colour in enumerate(COLOURS)}
    for colour, name in variables.items():
        drawn = drawn.replace(f": {colour}", f": var(--{name}, {colour})")
    return drawn.strip()


def _png(figure: Figure, output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise BadOutput(f"{output}: charts are written as .png.")
    with draft(output) as temporary:
        try:
            figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
        except OSError as error:
            raise BadOutput(f"{output}: cannot be written ({error.strerror or error}).") from error
