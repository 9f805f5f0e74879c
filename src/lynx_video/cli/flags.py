"""The options that commands share, as values; the string under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ModelName = Literal["nano", "nano-lite", "lynx-full", "lynx-lite"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFlags:
    """Which model, and where its files are."""

    model: ModelName = "nano"
    "nano (in the package) or the real ones, read from the models folder"
    base_model_path: str | None = None
    "base model instead of the model's own: a folder in the diffusers layout, or a hub id"
    adapter_path: tuple[str, ...] = ()
    "adapter instead of the model's own: a folder or a file; may be given several times"
    models: Path = Path("models")
    "folder of the downloaded models"
    torch_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    "number format of the weights; by default bf16 on CUDA, fp32 elsewhere"
    device: str | None = None
    "cuda, cuda:1, cpu, ...; by default CUDA where there is one"


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceFlags:
    """Which face of the portrait, and what finds and encodes it."""

    face_index: int | None = None
    "which face, as `lynx-video faces` numbers them; the largest (0) by default"
    face_record: Path | None = None
    "points and embedding of the face as `lynx-video faces --record` writes them; no face model is loaded then"
    face_detector: Path | None = None
    "face detector instead of the model's own: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead of the model's own: ArcFace IR-SE50 weights"


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
    safety_checker: str = field(default="auto", metadata={"metavar": "auto|off|PATH"})
    "picture classifier for portrait and frames: auto (real models need it), off, or its folder"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result line"
