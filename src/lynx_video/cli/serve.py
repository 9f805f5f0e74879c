"""`lynx-video serve`: the HTTP service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from lynx_video.cli.options import given, options
from lynx_video.config import RuntimeConfig
from lynx_video.safety import SafetyConfig
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.studio.setup import FaceFlags, ModelFlags, Setup, SigningFlags


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeFlags:
    """Who says how alike a clip is."""

    recogniser: Path | None = None
    "ONNX file of the face recogniser that scores the clips, instead of the model's own: ArcFace (insightface) or CurricularFace"


@click.command()
@options(
    StoreFlags,
    ServeFlags,
    ModelFlags,
    RuntimeConfig,
    FaceFlags,
    SafetyConfig,
    JudgeFlags,
    SigningFlags,
    without=("face_index", "face_record", "pass_degree", "ulysses_degree", "ring_degree"),
)
def serve(
    store: StoreFlags,
    flags: ServeFlags,
    model: ModelFlags,
    runtime: RuntimeConfig,
    face: FaceFlags,
    safety: SafetyConfig,
    judge: JudgeFlags,
    signing: SigningFlags,
) -> None:
    """Serve the model over HTTP, in the shape of OpenAI's video API; docs/service.md has the requests.

    \b
    lynx-video serve                                  on this machine, without keys
    lynx-video keys add ada && lynx-video serve --host 0.0.0.0
    """
    from lynx_video.server.serve import serve as run

    setup = Setup(
        model=model,
        face=face,
        runtime=given(runtime),
        safety=safety,
        recogniser=judge.recogniser,
        signing=signing,
    )
    run(store, flags, setup, say=lambda line: click.echo(line, err=True))
