"""`lynx-video demo`: a person drawn a moment ago, and a clip of that person."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lynx_video.cli.console import Console
from lynx_video.cli.flags import OutputFlags
from lynx_video.cli.generate import likeness_words, produce
from lynx_video.cli.options import options
from lynx_video.errors import BadRequest
from lynx_video.studio.request import Request
from lynx_video.studio.setup import ModelFlags, Setup

if TYPE_CHECKING:
    from lynx_video.types import Picture, Video

PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"
SHOWN, GAP = 9, 4  # frames on the sheet, and pixels between its pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFlags:
    """Who, doing what, and where to."""

    seed: int = 1
    "number of the person, and seed of the clip"
    prompt: str = PROMPT
    "what the person does, in the words that nano knows"
    model: Literal["nano", "nano-lite"] = "nano"
    "nano (full arm) or nano-lite"
    output_dir: Path = Path("demo")
    "folder for portrait.png, clip.mp4 and sheet.png"
    overwrite: bool = False
    "replace files that are there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result lines"


@click.command()
@options(DemoFlags)
def demo(flags: DemoFlags) -> None:
    """Draw a person that the nano model never saw and make a clip of them. Needs no download and no GPU."""
    from lynx_video.draft import draft
    from lynx_video.media.image import write_picture
    from lynx_video.media.video import check_output
    from lynx_video.nano.people import portrait

    console = Console(quiet=flags.quiet, as_json=flags.json)
    if flags.seed >= 2**32:
        raise BadRequest(f"--seed must be below {2**32} here, got {flags.seed}.")
    face, clip, sheet = (flags.output_dir / name for name in ("portrait.png", "clip.mp4", "sheet.png"))
    check_output(clip, flags.overwrite)
    for picture in (face, sheet):
        check_output(picture, flags.overwrite, extensions=("png",))
    drawn = portrait(flags.seed)
    with draft(face) as partial, draft(sheet) as partial_sheet:  # all three files or none
        write_picture(partial, drawn)
        made = produce(
            Request(prompt=flags.prompt, portrait=partial, generation={"seed": flags.seed}, shown=str(face)),
            Setup(model=ModelFlags(model=flags.model)),
            OutputFlags(output=clip, overwrite=flags.overwrite),
            console,
            before_writing=lambda clip: write_picture(partial_sheet, contact_sheet(drawn, clip.frames)),
        )
    command = ["lynx-video", "generate", "--subject-image", str(face), "--prompt", flags.prompt, "--seed", str(flags.seed)]
    if flags.model != "nano":
        command += ["--model", flags.model]
    console.result(
        f"portrait: {face}\nclip:     {clip}\nsheet:    {sheet}\n"
        f"{likeness_words(made)}, seed {flags.seed}, {made.clip.seconds:.1f} s\nthe same by hand: {shlex.join(command)}",
        {
            "portrait": str(face),
            "clip": str(clip),
            "sheet": str(sheet),
            "similarity": made.clip.similarity,
            "coverage": made.clip.coverage,
            "judge": made.judge or None,
            "seed": flags.seed,
            "seconds": round(made.clip.seconds, 3),
            "command": command,
        },
    )


def contact_sheet(portrait: Picture, frames: Video) -> Picture:
    """uint8 [H, W, 3]: the portrait, then up to nine frames of a clip, enlarged by whole numbers to about its height."""
    import numpy as np

    height = portrait.shape[0]
    chosen = frames[np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().astype(int)]
    times = max(1, height // frames.shape[1])
    enlarged = chosen.repeat(times, axis=1).repeat(times, axis=2)
    tall = max(height, enlarged.shape[1])
    tiles = []
    for picture in (portrait, *enlarged):
        tile = np.full((tall, picture.shape[1] + GAP, 3), 255, np.uint8)
        tile[: picture.shape[0], : picture.shape[1]] = picture
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)[:, :-GAP]
