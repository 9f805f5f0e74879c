"""A training run on one page: facts, curves and validation clips in a single HTML file, and the loss curves as a PNG.

Read from the run's folder: `log.jsonl` (see `journal`), `config.json` (any JSON) and `validation/`. A clip there has the name and
step under which the log knows it, else its file name says both (`anna-000500.mp4`); a picture without a step (`anna.png`,
`anna-reference.png`) is the reference of that name. The curves are drawn here, so that neither page nor code needs anything else.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lynx_video.draft import draft
from lynx_video.errors import BadData, BadOutput, BadRequest
from lynx_video.training.journal import Smooth, read_log

CLIP_BYTES = 7_000_000
"""Of clips on a page: as text they grow by a third, and the page stays under 10 MB."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of the runs in a PNG, told apart by all kinds of colour vision (Okabe and Ito)."""

_KINDS = {".mp4": "video/mp4", ".webp": "image/webp", ".png": "image/png"}
_NAMED = re.compile(r"^(?P<name>.*?)[-_. ]*(?:step)?[-_. ]*(?P<step>\d+)$")
_REFERENCE = re.compile(r"[-_. ]*reference[-_. ]*")
_MOST_POINTS = 400  # of a curve on the page

Point = tuple[int, float]
Log = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """From values to places between 0 and 1, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], may_log: bool = True) -> Axis:
        """An axis with room for all values; logarithmic, if it may be, where the largest is more than 50 times the smallest."""
        low, high = min(values), max(values)
        if may_log and low > 0 and high > 50 * low:
            return cls(low=low / 1.1, high=high * 1.1, log=True)
        room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low=low - room if low < 0 or low - room > 0 else 0.0, high=high + room)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers on the axis, about so many."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                inside = [x for d in decades for digit in digits if self.low <= (x := digit * 10.0**d) <= self.high]
                if len(inside) <= most:
                    return inside
            return inside[:: math.ceil(len(inside) / most)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (factor * step) <= most or factor == 10)
        return [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clip:
    """A file of the validation; step None: the reference picture of that name."""

    file: Path
    name: str
    step: int | None


def write_report(run: Path, output: Path) -> None:
    """Write the page of the run in folder `run` to `output`.

    A run that has only begun gives a page that says so. Raises BadData for a log that is missing or damaged and for a config.json
    that is no JSON, BadOutput for an output that is not .html or cannot be written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise BadOutput(f"{output}: a report is written as .html.")
    log = read_log(run)
    steps = [line for line in log if line["kind"] == "step"]
    config = _config(run / "config.json")
    facts = _table("Totals", _totals(steps)) + (_table("Configuration", _flat(config)) if config is not None else "")
    body = f'<section class="facts">{facts}</section>' if facts else ""
    if config is None:
        body += f'<p class="soft">{escape(str(run / "config.json"))} is not there, so the configuration is not shown.</p>'
    body += _training(steps) + _validation(log) + _clips(run, log) + _notes(log)
    name = run.resolve().name
    subtitle = f"Training run, steps logged: {len(steps):,}" if steps else "Training run: no step has been logged yet."
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    with draft(output) as temporary:
        temporary.write_text(page.substitute(title=escape(name), subtitle=subtitle, body=body), encoding="utf-8")


def curves_png(runs: Path | Sequence[Path], output: Path, *, size: tuple[int, int] = (1600, 800)) -> None:
    """Write the loss curves of one or several runs as a PNG: thin what each step gave, thick the smoothed loss.

    Raises BadData for a run without a log or without a step with a finite loss, BadRequest for more than six runs, BadOutput.
    """
    from PIL import Image, ImageDraw, ImageFont

    folders = [runs] if isinstance(runs, Path) else list(runs)
    if not 1 <= len(folders) <= len(COLOURS):
        raise BadRequest(f"one picture shows 1 to {len(COLOURS)} runs, got {len(folders)}.")
    if output.suffix.lower() != ".png":
        raise BadOutput(f"{output}: curves are written as .png.")
    curves = []
    for folder in folders:
        raw = _points([line for line in read_log(folder) if line["kind"] == "step"], "loss")
        if not raw:
            raise BadData(f"{folder}: its log has no step with a finite loss yet, so there is no curve to draw.")
        curves.append((folder.resolve().name, raw, _smoothed(raw)))
    y = Axis.over([value for _, raw, smooth in curves for _, value in (*_thin(raw), *smooth)])
    x = Axis(low=0, high=max(raw[-1][0] for _, raw, _ in curves) or 1)

    factor = 2  # drawn larger, then averaged: smooth lines
    width, height = size[0] * factor, size[1] * factor
    unit = height // 40
    left, top, right, bottom = 5 * unit, (2 + 2 * len(curves)) * unit, width - 2 * unit, height - 4 * unit
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(1.4 * unit)

    def at(point: Point) -> tuple[float, float]:
        return left + x.place(point[0]) * (right - left), bottom - y.place(point[1]) * (bottom - top)

    for tick in y.ticks(7):
        place = at((0, tick))[1]
        pen.line([(left, place), (right, place)], fill="#dddddd", width=factor)
        pen.text((left - unit // 2, place), _number(tick), fill="#444444", font=font, anchor="rm")
    for tick in x.ticks(9):
        pen.text((at((round(tick), y.low))[0], bottom + unit // 2), _number(tick), fill="#444444", font=font, anchor="mt")
    pen.text(((left + right) / 2, height - unit // 2), "step", fill="#444444", font=font, anchor="mb")
    pen.text((unit, unit), "loss" + (", logarithmic" if y.log else ""), fill="#444444", font=font, anchor="lt")
    for (_, raw, _), colour in zip(curves, COLOURS, strict=False):
        pale = "#" + "".join(f"{(int(colour[i : i + 2], 16) + 2 * 255) // 3:02x}" for i in (1, 3, 5))
        pen.line([at(point) for point in _thin(raw, 2000)], fill=pale, width=factor)
    for row, ((name, _, smooth), colour) in enumerate(zip(curves, COLOURS, strict=False)):
        pen.line([at(point) for point in _thin(smooth, 2000)], fill=colour, width=3 * factor, joint="curve")
        level = (2 + 2 * row) * unit + unit
        pen.line([(left, level), (left + 2 * unit, level)], fill=colour, width=3 * factor)
        label = f"{name}: {_number(smooth[-1][1])} at step {smooth[-1][0]}"
        pen.text((left + 2.5 * unit, level), label, fill="#222222", font=font, anchor="lm")
    with draft(output) as temporary:
        image.resize(size, Image.Resampling.LANCZOS).save(temporary, format="PNG", optimize=True)


def _config(file: Path) -> Any:
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: not a JSON file ({error}).") from error


def _flat(config: Any, name: str = "") -> list[tuple[str, str]]:
    """Dotted names and values of nested JSON; lists of plain values stay in one row."""
    nested = isinstance(config, dict) or (isinstance(config, list) and any(isinstance(one, (dict, list)) for one in config))
    if not nested:
        shown = ", ".join(map(str, config)) if isinstance(config, list) else "" if config is None else str(config)
        return [(name or "value", shown)]
    items = config.items() if isinstance(config, dict) else enumerate(config)
    return [row for key, value in items for row in _flat(value, f"{name}.{key}" if name else str(key))]


def _totals(steps: Log) -> list[tuple[str, str]]:
    """What a run did so far, in words; [] before its first step."""
    if not steps:
        return []
    seconds = sum(line.get("seconds") or 0 for line in steps)
    samples, tokens = (sum(line.get(name) or 0 for line in steps) for name in ("samples", "tokens"))
    memory = max(line.get("peak_memory") or 0 for line in steps)
    smooth = _smoothed(_points(steps, "loss"))
    rows = [
        ("Steps", f"{steps[-1]['step']:,}"),
        ("Samples", f"{samples:,}"),
        ("Video tokens", f"{tokens:,}"),
        ("Time", f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.0f} s"),
        ("Speed", f"{tokens / seconds:,.0f} tokens/s" if seconds else "unknown"),
        ("Smoothed loss", _number(smooth[-1][1]) if smooth else "no finite loss yet"),
        ("Skipped steps", f"{max(len(_lost(steps)), steps[-1].get('skipped') or 0):,}"),
    ]
    return [*rows, ("Peak memory", f"{memory / 2**30:.2f} GiB")] if memory else rows


def _training(steps: Log) -> str:
    """The curves of the training itself."""
    if not steps:
        return "<h2>Training</h2><p>No step has been logged yet; the curves appear with the first one.</p>"
    loss, lost = _points(steps, "loss"), _lost(steps)
    stages = [(line["step"], str(line.get("stage"))) for line in steps]
    changes = [now for before, now in zip([(0, ""), *stages], stages, strict=False) if now[1] != before[1]]
    about = "By step. Thin: each. Thick: smoothed."
    if lost:
        some = ", ".join(map(str, lost[:12])) + (", ..." if len(lost) > 12 else "")
        about += f" Marked below: steps skipped, as loss or gradient was not finite ({some})."
    charts = [_chart("Loss", _smoothed(loss), raw=loss, about=about, lost=lost, stages=changes, wide=True)]
    charts.append(_chart("Learning rate", _points(steps, "learning_rate"), may_log=False))
    gradient = _points(steps, "gradient_norm")
    charts.append(_chart("Gradient norm", _smoothed(gradient), raw=gradient, about="Before clipping. Thin: each step."))
    return f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>'


def _validation(log: Log) -> str:
    """A chart a metric; where a step was measured twice, the later counts."""
    measured: dict[str, dict[int, float]] = {}
    for line in log:
        if line["kind"] == "validation":
            for name, value in (line.get("facts") or {}).items():
                if value is not None:
                    measured.setdefault(name, {})[line["step"]] = value
    charts = [_chart(name.replace("_", " "), sorted(points.items()), dots=True) for name, points in measured.items()]
    return f'<h2>Validation</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _notes(log: Log) -> str:
    notes = [f"<li>Step {line['step']}: {escape(str(line.get('text')))}</li>" for line in log if line["kind"] == "note"]
    return f"<h2>Notes</h2><ul>{''.join(notes)}</ul>" if notes else ""


def _chart(
    title: str,
    points: Sequence[Point],
    *,
    raw: Sequence[Point] = (),
    about: str = "",
    lost: Sequence[int] = (),
    stages: Sequence[tuple[int, str]] = (),
    dots: bool = False,
    wide: bool = False,
    may_log: bool = True,
) -> str:
    """A figure: the curve of `points`, under it a thin one of `raw`, marks for `lost` steps and lines where a stage begins."""
    title = escape(title)
    if not points:
        return f"<figure><h3>{title}</h3><p>No finite value has been logged yet.</p></figure>"
    points, raw = _thin(points), _thin(raw)
    y = Axis.over([value for _, value in (*points, *raw)], may_log)
    x = Axis(low=0, high=max(points[-1][0], *lost, 1))

    def path(kind: str, places: Sequence[Point]) -> str:
        drawn = " ".join(f"{1000 * x.place(step):.1f} {1000 * (1 - y.place(value)):.1f}" for step, value in places)
        return f'<path class="{kind}" d="M{drawn}"/>'

    marks = "".join(f'<path class="grid" d="M0 {1000 * (1 - y.place(tick)):.1f}H1000"/>' for tick in y.ticks())
    marks += path("raw", raw) if raw else ""
    marks += path("curve", points)
    if dots:
        marks += "".join(
            f'<path class="dots" d="M{1000 * x.place(s):.1f} {1000 * (1 - y.place(v)):.1f}h.01"/>' for s, v in points
        )
    marks += "".join(f'<path class="lost" d="M{1000 * x.place(step):.1f} 1000v-50"/>' for step in lost)
    later = stages[1:]
    marks += "".join(f'<path class="stage" d="M{1000 * x.place(step):.1f} 0V1000"/>' for step, _ in later)
    labels = "".join(f'<span class="y" style="bottom:{100 * y.place(t):.2f}%">{_number(t)}</span>' for t in y.ticks())
    labels += "".join(f'<span class="x" style="left:{100 * x.place(t):.2f}%">{_number(t)}</span>' for t in x.ticks())
    if later:
        labels += "".join(
            f'<span class="name" style="left:{100 * x.place(step):.2f}%">{escape(name)}</span>' for step, name in stages
        )
    values = [[step, _number(value), round(100 * x.place(step), 2)] for step, value in points]
    summary = f"{title}: {_number(points[0][1])} at step {points[0][0]}, {_number(points[-1][1])} at step {points[-1][0]}."
    scale = " Logarithmic." if y.log else ""
    return (
        f"<figure{' class=wide' if wide else ''}><h3>{title}</h3><figcaption>{escape(about)}{scale}</figcaption>"
        f'<div class="plot" tabindex="0" role="img" aria-label="{summary}" data-points="{escape(json.dumps(values))}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{marks}</svg>{labels}'
        f'<span class="cursor" hidden></span></div><div class="soft reading" aria-live="polite"></div></figure>'
    )


def _clips(run: Path, log: Log) -> str:
    """Clips by name in the order of their steps beside the reference; as many as the page has room for."""
    clips = _found(run, log)
    if not clips:
        return ""
    room, kept = CLIP_BYTES, set()
    for clip in _by_weight(clips):
        size = clip.file.stat().st_size
        if size <= room:
            kept.add(clip.file)
            room -= size
    parts = []
    for name in sorted({clip.name for clip in clips}):
        mine = sorted((clip for clip in clips if clip.name == name), key=lambda clip: -1 if clip.step is None else clip.step)
        shown = "".join(_figure(clip) for clip in mine if clip.file in kept)
        if shown:
            parts.append(f'<div class="person"><h3>{escape(name) or "unnamed"}</h3><div class="clips">{shown}</div></div>')
    left = len(clips) - len(kept)
    if left:
        where = escape(str(run / "validation"))
        parts.append(f"<p>{left} of {len(clips)} files left out so that the page stays under 10 MB; all are in {where}.</p>")
    return '<h2>Validation clips</h2><p><button type="button" hidden>Pause all</button></p>' + "".join(parts)


def _found(run: Path, log: Log) -> list[_Clip]:
    """Every clip and picture of the validation folder, with its name and step."""
    known = {
        (run / path).resolve(): (name, line["step"])
        for line in log
        if line["kind"] == "validation"
        for name, path in (line.get("clips") or {}).items()
    }
    clips = []
    for file in sorted((run / "validation").glob("*")):
        if file.suffix.lower() not in _KINDS or file.name.startswith("."):
            continue
        match = _NAMED.match(file.stem)
        if file.resolve() in known:
            name, step = known[file.resolve()]
        elif match and "reference" not in file.stem:
            name, step = match["name"], int(match["step"])
        else:
            name, step = _REFERENCE.sub("", file.stem), None
        clips.append(_Clip(file=file, name=name, step=step))
    return clips


def _by_weight(clips: Sequence[_Clip]) -> list[_Clip]:
    """References first, then for every name its last clip, its first, the one in the middle, and so on by halves."""
    ranked: list[tuple[int, str, _Clip]] = [(-1, clip.name, clip) for clip in clips if clip.step is None]
    for name in {clip.name for clip in clips}:
        mine = sorted((clip for clip in clips if clip.name == name and clip.step is not None), key=lambda clip: clip.step or 0)
        halves = [
            len(mine) * odd // 2**depth for depth in range(1, len(mine).bit_length() + 1) for odd in range(1, 2**depth, 2)
        ]
        order = dict.fromkeys((len(mine) - 1, 0, *halves)) if mine else ()
        ranked += [(rank, name, mine[i]) for rank, i in enumerate(order)]
    return [clip for _, _, clip in sorted(ranked, key=lambda entry: entry[:2])]


def _figure(clip: _Clip) -> str:
    kind = _KINDS[clip.file.suffix.lower()]
    data = f"data:{kind};base64,{base64.b64encode(clip.file.read_bytes()).decode('ascii')}"
    caption = "reference" if clip.step is None else f"step {clip.step}"
    label = escape(f"{clip.name}, {caption}")
    if kind.startswith("video"):
        shown = f'<video src="{data}" aria-label="{label}" autoplay loop muted playsinline tabindex="0"></video>'
    else:
        shown = f'<img src="{data}" alt="{label}">'
    return f"<figure{' class=reference' if clip.step is None else ''}>{shown}<figcaption>{caption}</figcaption></figure>"


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    opened = " open" if len(rows) <= 16 else ""
    return f"<details{opened}><summary>{title}</summary><table>{lines}</table></details>"


def _points(steps: Log, name: str) -> list[Point]:
    """(step, value) of the steps at which the value is finite."""
    return [(line["step"], line[name]) for line in steps if line.get(name) is not None]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    smooth = Smooth()
    return [(step, value) for step, one in points if (value := smooth.add(one)) is not None]


def _lost(steps: Log) -> list[int]:
    """Steps whose loss or gradient was not finite."""
    return [line["step"] for line in steps if {"loss", "gradient_norm"} & set(line.get("not_finite") or ())]


def _thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most so many points: of each stretch the lowest and the highest, so that no spike is lost, and the last of all."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(len(points) / ((most - 1) // 2))
    found: list[Point] = []
    for i in range(0, len(points), length):
        stretch = points[i : i + length]
        found += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return found if found[-1] == points[-1] else [*found, points[-1]]


def _number(value: float) -> str:
    """Four digits at most, without the zeros nobody reads: 0.25, 1200, 40k, 1e-5."""
    if abs(value) >= 10_000:
        return f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value / 1e3:.4g}k"
    return re.sub(r"e([+-])0*", r"e\1", f"{value:.4g}").replace("e+", "e")
