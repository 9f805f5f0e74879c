"""`lynx-video replay`: a clip made again from its own record, and whether it is the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import click

from lynx_video.cli.console import Console
from lynx_video.cli.flags import OutputFlags
from lynx_video.cli.generate import prepare, shoot
from lynx_video.cli.options import given, options
from lynx_video.config import RuntimeConfig
from lynx_video.errors import Missed
from lynx_video.safety import SafetyConfig
from lynx_video.studio.setup import FaceFlags, ModelFlags, Setup, SigningFlags


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayFlags:
    """What the record does not hold, and where the new clip goes."""

    subject_image: Path | None = None
    "the portrait: a record holds only its hash"
    identity: Path | None = None
    "the identity file, for a clip that was made from one"
    prompt: str | None = None
    "the prompt, for a private record"
    negative_prompt: str | None = None
    "the negative prompt, for a private record that withholds one"
    face_record: Path | None = None
    "the face record, for a clip that was made with one"
    face_detector: Path | None = None
    "face detector instead of the model's own: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead of the model's own: ArcFace IR-SE50 weights"
    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "file of the new clip; by default CLIP-replay beside CLIP"
    overwrite: bool = False
    "replace a file that is there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result line"


@click.command()
@click.argument("clip", type=click.Path(path_type=Path))
@options(
    ReplayFlags,
    ModelFlags,
    RuntimeConfig,
    SigningFlags,
    SafetyConfig,
    # what shapes the clip is in its record
    without=(
        "model",
        "vram_budget",
        "quantize",
        "vae_tiling",
        "attention_backend",
        "lora_passes",
        "pass_degree",
        "ulysses_degree",
        "ring_degree",
    ),
)
def replay(
    clip: Path,
    flags: ReplayFlags,
    model: ModelFlags,
    runtime: RuntimeConfig,
    signing: SigningFlags,
    safety: SafetyConfig,
) -> None:
    """Make CLIP again from its own record, and say whether every pixel is the same.

    \b
    lynx-video replay CLIP --subject-image me.jpg

    The same machine and versions give the same bits; where they differ, the frames may, and it is said.
    """
    from lynx_video.media.provenance import read_provenance
    from lynx_video.studio.replay import check_same, differences, request_of, same_pictures, setup_of

    console = Console(quiet=flags.quiet, as_json=flags.json)
    found = read_provenance(clip)
    if found.state != "untouched":
        console.warn(f"{clip} is {found.state}: its record may not be the one it was made with.")
    record = found.record
    request = request_of(
        record,
        portrait=flags.subject_image,
        identity=flags.identity,
        prompt=flags.prompt,
        negative_prompt=flags.negative_prompt,
        face_record=flags.face_record,
    )
    face = FaceFlags(face_detector=flags.face_detector, arcface=flags.arcface)
    setup = setup_of(record, Setup(model=model, face=face, runtime=given(runtime), safety=safety, signing=signing))
    threads = (record.get("machine") or {}).get("threads")
    if isinstance(threads, int) and threads > 0:
        import torch

        torch.set_num_threads(min(threads, os.cpu_count() or 1))  # sums in another order end in other bits
    target = flags.output or clip.with_name(f"{clip.stem}-replay{clip.suffix}")
    output = OutputFlags(output=target, overwrite=flags.overwrite)
    ready = prepare(request, setup, output, console)
    check_same(record, ready.order, ready.guest)
    made = shoot(ready, output, console)
    same = made.record["frames_hash"] == record["frames_hash"]
    why = [] if same else differences(record, made.record)
    # A record tells what was made, and whoever signs it may have put it to other frames: those in the file are what counts.
    shown = same and same_pictures(clip, target)
    untouched = found.state == "untouched"
    verdict = "the same frames, bit for bit" if shown and untouched else "other frames"
    if same and not untouched:
        verdict = f"the frames that the record claims, but {clip} is {found.state}: its own may be others"
    elif same and not shown:
        verdict = f"the frames that the record claims, but those in {clip} are others"
    console.result(
        f"{target}: {verdict}",
        {
            "clip": str(clip),
            "output": str(target),
            "same": same,
            "same_pictures": shown,
            "state": found.state,
            "frames_hash": made.record["frames_hash"],
            "recorded_frames_hash": record["frames_hash"],
            "differences": why,
        },
    )
    if not same:
        reason = " ".join(why) or "Nothing that the record holds explains it."
        raise Missed(f"{target} has other frames than {clip}. {reason}")
    if not untouched:
        raise Missed(f"{clip} is {found.state}: it cannot be told whether its frames are those of {target}.")
    if not shown:
        raise Missed(
            f"{clip} shows other frames than its record tells of, or was encoded by other versions; {target} has those."
        )
