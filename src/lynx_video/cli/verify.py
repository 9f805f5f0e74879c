"""`lynx-video verify`: what made a clip, who signed it, and whether it was altered since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options
from lynx_video.errors import BadRequest, Unverified

if TYPE_CHECKING:
    from lynx_video.media.provenance import Provenance

LOOKED_AT = 121
LOOKED_AT_BYTES = 2**29
"""Frames in which the watermark is looked for, and their bytes, at most: somebody else's video may be hours long, and large."""
_HASHES = {"base": "base_hash", "adapter": "adapter_hash", "LoRAs": "lora_hash", "portrait": "portrait_hash"}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyFlags:
    """Whom to trust, and what is looked for."""

    trust_anchors: Path | None = None
    "PEM file of the root certificates whose signers you trust; without it no signer is trusted"
    watermark: bool = field(default=True, metadata={"switch": True})
    "whether to look for the invisible watermark in the frames"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the lines"


@click.command()
@click.argument("clips", metavar="CLIP...", type=click.Path(path_type=Path), nargs=-1, required=True)
@options(VerifyFlags)
def verify(clips: tuple[Path, ...], flags: VerifyFlags) -> None:
    """Tell what made each CLIP, who signed it, and whether a bit of it was altered.

    The exit code is 0 if all are untouched, 1 if one was altered or is unsigned, 2 if one is no video. Nothing is asked over the
    network.
    """
    from lynx_video.media.provenance import read_provenance

    console = Console(quiet=flags.quiet, as_json=flags.json)
    lines, facts, failed = list[str](), list[dict[str, Any]](), list[str]()
    for clip in clips:
        found = read_provenance(clip, flags.trust_anchors)
        mark, words = _watermark(clip, found) if flags.watermark else (None, "not looked for")
        lines += [f"{clip}: {found.sentence}", *(f"   {line}" for line in _told(found)), f"   watermark: {words}"]
        facts.append({"clip": str(clip), **asdict(found), "sentence": found.sentence, "watermark": mark})
        if found.state != "untouched":
            failed.append(f"{clip} is {printable(found.sentence)}.")
    console.result("\n".join(printable(line) for line in lines), {"clips": facts})
    if failed:
        raise Unverified(" ".join(failed))


def printable(text: str) -> str:
    """A text that can do nothing to a terminal: what stands in a clip was written by whoever made it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _told(found: Provenance) -> Iterator[str]:
    """What the record and the signature say, a line each."""
    record = found.record
    if record and found.state != "untouched":
        yield "what follows is what the file claims; anybody could have written it"
    if found.state == "untouched":
        yield from (f"note: {problem}" for problem in found.problems)
    elif found.state == "unsigned":
        yield from found.problems
    if found.generator:
        yield f"made with: {found.generator}"
    named = ", ".join(str(record[name]) for name in ("model", "arm", "preset") if record.get(name))
    if named:
        yield f"model: {named}"
    for what, name in _HASHES.items():
        if record.get(name):
            said = f"{record[what]}, " if record.get(what) else ""
            yield f"{what}: {said}{record[name]}"
    if record:
        yield f"prompt: {_prompt(record)}"
        yield f"consent: {record.get('consent') or 'none recorded'}"
    if record.get("seed") is not None:
        yield f"seed: {record['seed']}"
    versions = record.get("versions")
    if isinstance(versions, dict):
        yield f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"
    if found.signed_at:
        yield f"signed: {found.signed_at} (by its own account)"
    if found.fingerprint:
        yield f"certificate: sha256 {found.fingerprint}"


def _prompt(record: Mapping[str, Any]) -> str:
    prompt = record.get("prompt")
    if prompt is None:
        return "private" if record.get("private") else "none recorded"
    return " ".join(str(prompt).split())


def _watermark(clip: Path, found: Provenance) -> tuple[dict[str, Any] | None, str]:
    """Whether the invisible watermark is in the frames, as plain JSON values and in words."""
    from lynx_video.media.video import read_video
    from lynx_video.media.watermark import detect

    try:
        frames, _ = read_video(clip, LOOKED_AT, LOOKED_AT_BYTES)
    except BadRequest as error:
        if found.state == "unsigned":  # nothing at all could be told of it
            raise
        return None, f"cannot be looked for: {error}"
    seen = detect(frames)
    meant = found.record.get("watermark")
    reason = found.record.get("no_watermark_reason")
    aside = f" (switched off: {reason})" if meant is False and reason else ""
    words = f"{'found' if seen.found else 'not found'}, score {seen.score:.2f}, from {seen.threshold:.2f} it is one{aside}"
    return {"found": seen.found, "score": seen.score, "threshold": seen.threshold}, words
