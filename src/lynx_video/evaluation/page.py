"""The pieces that the report of one system and the comparison of several share: tables, clips beside their reference, the page.

Whatever is passed as text is foreign and is escaped here; what is called `html` is already. A page needs no network and works from a
file: clips are carried in it within a budget of bytes, the others are linked by their path relative to the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadPicture
from lynx_video.evaluation.statistics import ENOUGH, FEW, Estimate, decimals
from lynx_video.evaluation.summary import Axis, describe, label_of

CLIP_BYTES = 12_000_000
"""Of clips and references in a page, before they grow by a third as text."""
EXTREMES = 6
"""So many of the best and of the worst clips are shown."""

SMALL = "not in this page, to keep it small"
BROKEN = "does not decode"
_THUMBNAIL = 320  # longest side of a reference in the page, in pixels
INTERVALS = (
    "In brackets: 95% intervals by a bootstrap over subjects, each drawn with all of its clips; they say how far the mean would move "
    "with other people before the camera. n counts clips."
)

_KINDS = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A file on a page. number: its name there. href: where it lies, seen from the page. kind: "video" or "image".

    data: the file as a data: address; "" if it is not in the page, and then `note` says why.
    """

    number: int
    href: str
    kind: str
    data: str = ""
    note: str = ""


@dataclass(kw_only=True, slots=True)
class Shelf:
    """The files of a page, each once, as many as `room` bytes allow; those asked for first have the first turn.

    page: the HTML file, from whose folder links go out.
    """

    page: Path
    room: int = CLIP_BYTES
    _held: dict[tuple[str, Path], Held] = field(default_factory=dict)
    _inline: set[int] = field(default_factory=set)

    def clip(self, file: Path, sha256: str = "", broken: bool = False) -> Held:
        """A clip; `broken` ones are linked only. One whose bytes are no longer those that were scored says so."""
        return self._held.get(("clip", file)) or self._put("clip", file, *self._clip(file, sha256, broken))

    def reference(self, file: Path) -> Held:
        """A photo, as a small JPEG."""
        return self._held.get(("reference", file)) or self._put("reference", file, *_thumbnail(file))

    def inline(self, held: Held) -> str:
        """The file's address for a place of its own in the page; it is then not stored a second time."""
        self._inline.add(held.number)
        return held.data

    def stored(self) -> str:
        """What is in the page for the script alone, as JSON: numbers and base64, so that nothing in it can end the script."""
        rest = {str(one.number): one.data for one in self._held.values() if one.data and one.number not in self._inline}
        return json.dumps(rest)

    def said(self) -> str:
        """How many clips are not in the page for want of room, in a sentence; "" if none."""
        clips = [one for (what, _), one in self._held.items() if what == "clip"]
        small = sum(one.note == SMALL for one in clips)
        if not small:
            return ""
        return (
            f"To keep the page small, {small} of {len(clips)} clips (dotted) are not in it; they are played from their files, as long "
            "as those lie where they lay, seen from this page."
        )

    def _put(self, what: str, file: Path, data: bytes, kind: str, note: str) -> Held:
        if data and len(data) > self.room:
            data, note = b"", SMALL
        self.room -= len(data)
        way = os.path.relpath(file.resolve(), self.page.resolve().parent)
        held = Held(
            number=len(self._held),
            # Without ./ a name could pass for a scheme.
            href=quote(way.replace(os.sep, "/") if way.startswith("..") else "./" + way.replace(os.sep, "/")),
            kind="video" if kind.startswith("video") else "image",
            data=f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}" if data else "",
            note=note,
        )
        self._held[what, file] = held
        return held

    def _clip(self, file: Path, sha256: str, broken: bool) -> tuple[bytes, str, str]:
        kind = _KINDS.get(file.suffix.lower(), "")
        if not kind:
            return b"", "video", f"browsers do not play {file.suffix or 'files without an ending'}"
        if broken:
            return b"", kind, BROKEN
        try:
            if file.stat().st_size > self.room:
                return b"", kind, SMALL
            data = file.read_bytes()
        except OSError as error:
            return b"", kind, f"cannot be read ({error.strerror or error})"
        changed = sha256 and hashlib.sha256(data).hexdigest() != sha256
        return (b"", kind, "the file has changed since it was scored") if changed else (data, kind, "")


def _thumbnail(file: Path) -> tuple[bytes, str, str]:
    """A photo as a JPEG of at most 320 pixels a side, without what else its file says."""
    from PIL import Image

    from lynx_video.media.image import read_picture

    try:
        picture = Image.fromarray(read_picture(file))
    except (BadPicture, OSError) as error:
        return b"", "image/jpeg", str(error)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return stream.getvalue(), "image/jpeg", ""


def write_page(output: Path, shelf: Shelf, *, title: str, subtitle: str, body: str) -> None:
    """Write the page. title, subtitle: text. body: HTML. Raises BadOutput for an output that is not .html or cannot be written."""
    check_page(output)
    page = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    whole = page.substitute(title=escape(title), subtitle=escape(subtitle), body=body, media=shelf.stored())
    with draft(output) as temporary:
        temporary.write_text(whole, encoding="utf-8")


def check_page(output: Path) -> None:
    """Raises BadOutput for a page that does not end in .html."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise BadOutput(f"{output}: a report is written as .html.")


def number(value: float | None) -> str:
    """Three digits that tell, with a real minus; a dash for None."""
    return "–" if value is None else f"{value:.{decimals([value], 3)}f}".replace("-", "−")


def mean(one: Estimate | None, usual: int | None = None, *, signed: bool = False, stacked: bool = False, mark: str = "") -> str:
    """HTML of a mean with its interval, and of its n unless the table says it: unless n is the `usual` one of the row.

    signed: with a plus where it is one. stacked: the interval below the mean. mark: stands behind the mean.
    """
    if one is None or one.mean is None:
        return '<span class="soft">not measured</span>'
    known = [value for value in (one.mean, one.low, one.high) if value is not None]
    places = decimals(known, 3)
    shown = f"{one.mean:{'+' if signed else ''}.{places}f}{mark}"
    if one.low is not None and one.high is not None:
        tag = "div" if stacked else "span"
        shown += f' <{tag} class="soft">[{one.low:.{places}f}, {one.high:.{places}f}]</{tag}>'
    if usual is not None and one.n != usual:
        shown += f' <span class="soft">n = {one.n}</span>'
    return shown.replace("-", "−")


def cell(html: str, sort: float | str | None = None, kind: str = "") -> str:
    """A td; sort: what the column is sorted by, if that is not the text."""
    value = "" if sort is None else f' data-sort="{escape(str(sort))}"'
    return f"<td{f' class={kind}' if kind else ''}{value}>{html}</td>"


def line(text: str) -> str:
    """A td of one line, cut where it is too long; the whole text shows under the pointer."""
    return f'<td class="line" title="{escape(text)}">{escape(text)}</td>'


def table(head: Sequence[str], rows: Iterable[str], *, label: str, name: str = "", tall: bool = False) -> str:
    """A table in a box of its own in which it scrolls. head: text of the columns. rows: HTML of each row's cells.

    name: an id; with it a click on a column's head sorts. tall: the box scrolls downwards as well.
    """
    titles = []
    for text in head:
        shown = f'<button type="button">{escape(text)}</button>' if name and text else escape(text)
        titles.append(f'<th scope="col"{" aria-sort=none" if name and text else ""}>{shown}</th>')
    lines = "".join(row if row.startswith("<tr") else f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{f' id={name}' if name else ''}><thead><tr>{''.join(titles)}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def head(text: str, html: str = "") -> str:
    """The th of a row; html stands small below its text."""
    return f'<th scope="row">{escape(text)}{f"<div class=soft>{html}</div>" if html else ""}</th>'


def axis_head(axis: Axis, whom: Sequence[str] = ()) -> str:
    """The th of an axis: its name, what stands behind it, and whom its recogniser flatters, if there are several systems."""
    about = escape(label_of(axis.measure)) if axis.measure else "not measured"
    if axis.conditioned:
        about += f' <span class="warn">† conditioned on it, so it flatters {escape(", ".join(whom))}</span>'
    return head(axis.label, about)


def metric_heads(names: Iterable[str]) -> list[str]:
    """The th of each metric: its name, and at the first of its kind what it is and which way is better."""
    kinds: set[str] = set()
    heads = []
    for name in names:
        about, kind = describe(name), name.split("/", 1)[0]
        way = {"high": " Higher is better.", "low": " Lower is better.", "": " Neither way is better."}[about.better]
        heads.append(head(label_of(name), "" if kind in kinds else escape(about.text + way)))
        kinds.add(kind)
    return heads


def counts(one: Estimate | None, below: str = "") -> str:
    """HTML of n, and small below it what else is to be said."""
    n = f"{one.n} of {subjects_of(one.subjects)}" if one and one.n else "0"
    if one and one.subjects == 1:
        n += " <span class=soft>(no interval)</span>"
    elif one and 1 < one.subjects < ENOUGH:
        n += f" <span class=soft>{FEW.strip()}</span>"
    return f"{n}<div class=soft>{below}</div>" if below else n


def subjects_of(count: int) -> str:
    """`1 subject`, `40 subjects`."""
    return f"{count} subject{'' if count == 1 else 's'}"


def filter_box(name: str, count: int) -> str:
    """What narrows down the table `name` of `count` rows; the script shows it, since it needs the script."""
    return (
        f'<p class="filter" data-table="{name}" hidden><label>Filter <input type="search" placeholder="subject, prompt or failure">'
        f'</label> <label><input type="checkbox"> failed only</label> <output>{count} of {count}</output></p>'
    )


def play(held: Held, text: str, label: str) -> str:
    """A link that plays a clip: in the page with the script, from its file without."""
    aside = f' <span class="soft">{escape(held.note)}</span>' if held.note not in ("", SMALL, BROKEN) else ""
    linked = "" if held.data else " linked"
    return (
        f'<a class="play{linked}" href="{escape(held.href)}" data-number="{held.number}" data-kind="{held.kind}" '
        f'data-label="{escape(label)}" title="{escape(held.note or "play")}">{escape(text)}</a>{aside}'
    )


def playable(cells: str, reference: Held, caption: str, failed: bool = False) -> str:
    """A row on which a click plays its clips beside the reference."""
    kind = ' class="failed"' if failed else ""
    return (
        f'<tr{kind} data-reference="{reference.number}" data-href="{escape(reference.href)}" data-caption="{escape(caption)}">'
        f"{cells}</tr>"
    )


def beside(shelf: Shelf, title: str, caption: str, reference: Held, clips: Mapping[str, Held]) -> str:
    """Clips, by what stands below them, beside their reference; HTML. title, caption: text."""
    figures = [_figure(shelf, reference, "reference")] + [_figure(shelf, one, name) for name, one in clips.items()]
    return (
        f'<article class="person"><h4>{escape(title)}</h4><div class="clips">{"".join(figures)}</div>'
        f'<p class="soft">{escape(caption)}</p></article>'
    )


def _figure(shelf: Shelf, held: Held, name: str) -> str:
    label = escape(name)
    if not held.data:
        note = escape(held.note)
        return f'<figure><a class="absent" href="{escape(held.href)}">{note}</a><figcaption>{label}</figcaption></figure>'
    address = f'src="{shelf.inline(held)}" data-shown="{held.number}"'
    if held.kind == "video":
        shown = f'<video {address} aria-label="{label}" autoplay loop muted playsinline tabindex="0"></video>'
    else:
        shown = f'<img {address} alt="{label}">'
    return f"<figure>{shown}<figcaption>{label}</figcaption></figure>"


def legend(names: Sequence[str]) -> str:
    """Which colour is whose, for the charts of a page."""
    keys = (f'<li><span class="key k{i}"></span>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{"".join(keys)}</ul>'


def about_table(about: Mapping[str, Any], label: str) -> str:
    """What ran, as a table of dotted names; commands as they were typed."""
    rows = [f"{head(name)}{cell(escape(text), kind='words')}" for name, text in _flat(about)]
    return table(("what", "value"), rows, label=label) if rows else '<p class="soft">Nothing was noted.</p>'


def _flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Dotted names and values of nested JSON; lists of plain values stay in one row, a line each."""
    if isinstance(values, dict):
        return [row for key, value in values.items() for row in _flat(value, f"{name}.{key}" if name else str(key))]
    if isinstance(values, list) and any(isinstance(one, (dict, list)) for one in values):
        return [row for i, value in enumerate(values) for row in _flat(value, f"{name}.{i}")]
    shown = "\n".join(map(str, values)) if isinstance(values, list) else "" if values is None else str(values)
    return [(name, shown)]
