"""The options that commands share, as values; the string under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lynx_video.errors import BadRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectFlags:
    """Who, doing what."""

    subject_image: Path | None = None
    "portrait of the person"
    identity: Path | None = None
    "identity file of `lynx-video enroll`, instead of a portrait"
    prompt: str | None = None
    "what the person does: a text, or the path of a text file"
    prompt_file: Path | None = None
    "text file with the prompt"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkFlags:
    """Where work is done that many share, and what is said about it."""

    workers: int | None = None
    "workers on this machine; all its cores by default"
    ray_address: str | None = None
    "a running Ray cluster instead; all folders must be at the same path on all its machines"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result lines"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise BadRequest(f"--workers must be 1 or more, got {self.workers}.")
        if self.workers is not None and self.ray_address is not None:
            raise BadRequest(
                "--workers are of this machine, --ray-address is a cluster with workers of its own: give one of the two."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFlags:
    """Where the clip goes and what is said about it."""

    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "file of the clip, .mp4 or .webp; by default OUTPUT_DIR/PORTRAIT/NAME-frFRAMES-sSEED.EXT"
    output_dir: Path = Path("results")
    "folder of the clips, where no --output is given"
    ext: Literal["mp4", "webp"] = "mp4"
    "kind of file, where no --output is given"
    name: str = "demo"
    "first part of the file's name, where no --output is given"
    save_tensors: Path | None = None
    ".safetensors file for initial_latents, latents (final, as the transformer sees them) and frames"
    overwrite: bool = False
    "replace files that are there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result line"


def absolute(name: str) -> str:
    """A folder or file as an absolute path, for workers that were started elsewhere; a hub id as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name
