"""What the page says, as texts and small pieces of HTML. All that comes from visitors or files is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_video.types import Picture
    from lynx_video.ui.jobs import Job
    from lynx_video.ui.portrait import Portrait
    from lynx_video.ui.session import Outlook

CONSENT = "Make clips only of people who agreed to it. Every clip is signed, and says that a model made it."
LEAVE = "You may close this page: the clip goes on, and will be among the past clips."
REFUSED = "Refused by the safety check: "
LOOKING = '<p class="hint">Looking for faces …</p>'
EMPTY_STAGE = '<div class="stage empty"><p>Your clip will appear here.</p></div>'


def alert(text: str) -> str:
    """Something that went wrong."""
    return f'<div class="note bad" role="alert">{escape(sentence(text))}</div>' if text else ""


def note(text: str) -> str:
    """Something worth knowing."""
    return f'<div class="note" role="status">{escape(sentence(text))}</div>' if text else ""


def sentence(text: str) -> str:
    """A message in one line, with a capital at its beginning if a word stands there and no name of a file or setting."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] if text.partition(" ")[0].strip(",;:").isalpha() else text


def about_faces(portrait: Portrait, chosen: int) -> str:
    """How many faces were found, and what about the chosen one costs likeness."""
    count = len(portrait.faces)
    head = (
        "One face found."
        if count == 1
        else f"{count} faces found. Face {chosen} is chosen{' because it is the largest' if chosen == 0 else ''}; "
        "click another one, or choose it below."
    )
    warnings = portrait.warnings(chosen)
    if not warnings:
        return f'<div class="note good" role="status">{head} It is large, sharp and upright enough.</div>'
    items = "".join(f"<li>{escape(one)}</li>" for one in warnings)
    return f'<div class="note warn" role="status">{head} This will cost likeness:<ul>{items}</ul></div>'


def progress(job: Job, ahead: int) -> str:
    """A job that is not done: its preview, a bar and a sentence."""
    said = where(job, ahead)
    if job.ended:
        kind = "bad" if job.state in ("failed", "refused") else "warn"
        return f'<div class="stage empty"><div class="note {kind}" role="alert">{escape(said)}</div></div>'
    picture = (
        f'<img alt="The first frame after step {job.step}" src="{data_url(job.preview)}">'
        if job.preview is not None
        else '<p class="wait" aria-hidden="true">…</p>'
    )
    bar = (
        f'<progress aria-label="Steps" max="{job.steps}" value="{job.step}"></progress>'
        if job.steps
        else '<progress aria-label="Steps"></progress>'
    )
    leave = f'<p class="hint">{LEAVE}</p>'
    return f'<div class="stage">{picture}{bar}<p role="status">{escape(said)}</p>{leave}</div>'


def where(job: Job, ahead: int) -> str:
    """How far a job is, in a sentence."""
    stopping = job.stop.is_set()
    if job.state == "waiting":
        return f"In the queue: {ahead} {'clip comes' if ahead == 1 else 'clips come'} before yours."
    if job.state == "preparing":
        return "Getting ready." if not stopping else "Stopping."
    if job.state == "denoising":
        left = job.seconds / max(1, job.step) * (job.steps - job.step)
        return f"Step {job.step} of {job.steps}" + (", stopping." if stopping else f", about {duration(left)} left.")
    if job.state == "finishing":
        return "All steps are done; decoding and signing." if not stopping else "Stopping."
    if job.state == "done":
        return "Done."
    head = {"cancelled": "", "refused": REFUSED, "failed": "No clip was made: "}[job.state]
    return sentence(head + job.said)


def facts(record: Mapping[str, Any], *, alike: float, cautions: Iterable[str] = (), origin: str = "") -> str:
    """What a clip says of itself, as a list. alike: from which similarity on two clips show one person.

    cautions: sentences on what may have spoiled it. origin: what its signature says.
    """
    size = "{} × {}, {} frames".format(*(record.get(name, "?") for name in ("width", "height", "num_frames")))
    rows = {
        "Prompt": record.get("prompt") or ("kept private" if record.get("private") else ""),
        "Falls short": record.get("missed"),
        "Seed": record.get("seed"),
        "Made with": _made_with(record),
        "Size": size,
        "Took": duration(record["seconds"]) if isinstance(record.get("seconds"), (int, float)) else None,
        "Consent": record.get("consent") or "none noted",
        "Watermark": _watermark(record),
        "Signature": origin,
    }
    lines = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in rows.items() if value not in (None, ""))
    told = "".join(f"<li>{escape(sentence(one))}</li>" for one in cautions)
    verdict = f'<p class="verdict"><strong>{escape(likeness(record, alike))}</strong></p>'
    return f'{verdict}<dl class="facts">{lines}</dl>' + (f'<div class="note warn"><ul>{told}</ul></div>' if told else "")


def likeness(record: Mapping[str, Any], alike: float) -> str:
    """How alike the person is, as a number and in words."""
    similarity, coverage = record.get("similarity"), record.get("coverage")
    if not isinstance(similarity, (int, float)):
        return (
            "No face was found in the clip."
            if coverage is not None
            else "Similarity not measured: no face recogniser is at hand."
        )
    words = (
        "the same person"
        if similarity >= alike
        else "less than one person's pictures have"
        if similarity > 0
        else "another person"
    )
    judge = f", says the {record['judge']}" if record.get("judge") else ""
    seen = f"; a face in {coverage:.0%} of the frames" if isinstance(coverage, (int, float)) else ""
    return f"Similarity {similarity:.2f}: {words}{judge}{seen}."


def outlook_label(outlook: Outlook) -> str:
    """A preset with what it takes."""
    from lynx_video.runtime.memory import gib

    if outlook.refusal:
        return f"{outlook.preset}: not possible"
    return f"{outlook.preset}: about {duration(outlook.seconds)}, {gib(outlook.memory)}"


def about_preset(outlook: Outlook) -> str:
    """What a preset means, and why it is not possible or what would be better."""
    meaning = {
        "exact": "What the paper computes.",
        "balanced": "Guidance in the first steps only, some steps taken from the one before.",
        "fast": "As balanced, further; the model in 8 bits.",
        "draft": "Four steps, for a first look at a prompt.",
    }.get(outlook.preset, "")
    if outlook.refusal:
        return f'<div class="note bad" role="status">{escape(sentence(outlook.refusal))}</div>'
    said = [meaning, "Time and memory are estimates.", *outlook.advice]
    return f'<p class="hint">{escape(" ".join(one for one in said if one))}</p>'


def duration(seconds: float) -> str:
    """3700 -> `1 h 2 min`."""
    if seconds < 1:
        return "1 s"
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def data_url(picture: Picture) -> str:
    """A picture within the page: previews leave no files behind."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def taken_over(
    carried: Mapping[str, Any], record: Mapping[str, Any], model: str, portrait_hash: str | None, private: bool
) -> str:
    """What is to be known after the settings of a clip were taken over."""
    theirs = str(record.get("portrait_hash") or "")
    said = ["The settings are those of the clip."]
    if portrait_hash is None:
        said.append("Clips hold no portrait: drop it above.")
    elif theirs and portrait_hash != theirs:
        said.append("The portrait above is another picture than the clip's.")
    if record.get("consent") and not private and portrait_hash != theirs:
        said.append("Who agreed to it was not taken over.")
    if record.get("no_watermark_reason"):
        said.append("The clip has no watermark; a new one has, unless you say why not.")
    if private:
        said.append("The clip is private, so its prompt has to be written again.")
    other = record.get("model")
    if other not in (None, model):
        said.append(f"It was made with {other}, this page runs {model}.")
    if carried:
        listed = ", ".join(f"{name} {_plain(value)}" for name, value in carried.items())
        said.append(f"Without a control here, but kept until you choose a preset: {listed}.")
    return note(" ".join(said))


def captions(titles: Sequence[str]) -> list[str]:
    """Titles short enough to stand under a still."""
    return [title if len(title) <= 70 else title[:67].rstrip() + "..." for title in titles]


def _plain(value: Any) -> str:
    return ", ".join(str(one) for one in sorted(value)) if isinstance(value, frozenset) else str(value)


def _made_with(record: Mapping[str, Any]) -> str:
    parts = [record.get("model"), record.get("preset") and f"preset {record['preset']}"]
    steps = record.get("num_inference_steps")
    return ", ".join(str(one) for one in [*parts, f"{steps} steps" if steps else None] if one)


def _watermark(record: Mapping[str, Any]) -> str | None:
    if "watermark" not in record:
        return None
    return (
        "invisible, in every frame" if record["watermark"] else f"none: {record.get('no_watermark_reason') or 'no reason told'}"
    )
