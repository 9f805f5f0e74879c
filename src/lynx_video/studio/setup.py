"""How a door holds its model: values that a command line, a file or a server reads, and that travel to workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lynx_video.errors import BadRequest
from lynx_video.safety import SafetyConfig

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
class SelectFlags:
    """How good is good enough, and who says so."""

    best_of: int = 1
    "make so many clips, of successive seeds, and keep the best by face similarity x coverage (x prompt following for nano)"
    min_similarity: float | None = None
    "face similarity (-1 to 1) below which the clip is kept, labelled, and the exit code is 1"
    recogniser: Path | None = None
    "ONNX file of the face recogniser that scores the clip, instead of the model's own: ArcFace (insightface) or CurricularFace"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkFlags:
    """What a clip says of itself."""

    private: bool = False
    "leave the prompt, file names and the text of the consent out of the clip's record"
    consent: str = ""
    "who agreed to the use of this face, and how: a text, or a file, whose hash is noted"
    no_watermark: str = field(default="", metadata={"metavar": "REASON"})
    "put no invisible watermark into the frames, for the reason given, which is recorded"

    def __post_init__(self) -> None:
        check_text("consent", self.consent)
        check_text("reason for no watermark", self.no_watermark)
        if self.no_watermark and not self.no_watermark.strip():
            raise BadRequest("the watermark is left out for a reason, which is recorded: say it, or keep the watermark.")


def check_text(what: str, text: str) -> None:
    """Raises BadRequest for a text that no file can hold: half of a UTF-16 pair, or bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"the {what} has a broken character at place {error.start} ({text[error.start]!a}); give it as UTF-8."
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningFlags:
    """Whose signature a clip carries."""

    signing_key: Path | None = None
    "private key (PEM) that signs the clips; by default a self-made development key"
    signing_certificate: Path | None = None
    "certificate chain (PEM) of that key, its own first"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A model and all that goes with it, as one value.

    runtime: what was named of RuntimeConfig; it replaces what a preset says.
    """

    model: ModelFlags = field(default_factory=ModelFlags)
    face: FaceFlags = field(default_factory=FaceFlags)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    recogniser: Path | None = None
    signing: SigningFlags = field(default_factory=SigningFlags)
