"""`lynx-video ui`: the page, for people who never open a terminal; somebody opens this one."""

from __future__ import annotations

import click

from lynx_video.cli.console import hush_libraries
from lynx_video.cli.options import given, options
from lynx_video.config import RuntimeConfig
from lynx_video.safety import SafetyConfig
from lynx_video.studio.setup import FaceFlags, ModelFlags, Setup, SigningFlags
from lynx_video.ui.serve import PageFlags, serve


@click.command()
@options(PageFlags, ModelFlags, RuntimeConfig, FaceFlags, SigningFlags, SafetyConfig, without=("face_index", "face_record"))
def ui(
    page: PageFlags, model: ModelFlags, runtime: RuntimeConfig, face: FaceFlags, signing: SigningFlags, safety: SafetyConfig
) -> None:
    """Show a page on which clips are made, in a browser of this machine.

    \b
    lynx-video ui --model nano --output-dir clips
    lynx-video ui --model lynx-full --host 0.0.0.0 --password ann:password.txt
    """
    hush_libraries()
    setup = Setup(
        model=model,
        face=face,
        runtime=given(runtime),
        safety=safety,
        recogniser=page.recogniser,
        signing=signing,
    )
    serve(page, setup, lambda address: click.echo(f"{address}  (Ctrl+C ends it; clips in {page.output_dir})"))
