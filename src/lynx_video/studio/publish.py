"""A finished clip as a file: watermarked, with its record in the container and in a signed manifest; whole or not there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadOutput, BadRequest
from lynx_video.studio.setup import MarkFlags

if TYPE_CHECKING:
    from lynx_video.media.certificate import Signer
    from lynx_video.types import Clip, Video

PRIVATE = ("prompt", "negative_prompt", "portrait", "identity_file", "loras", "gguf")
"""What a private record leaves out."""
FILE_NAME = re.compile(
    r"\S+\.[A-Za-z]\w{1,4}|.+\.(?:pdf|png|jpe?g|heic|tiff?|txt|md|docx?|odt|rtf|eml|html?|p7[ms]|sig|asc)", re.IGNORECASE
)
"""What is taken for the name of a file: one word with an ending, or several with that of a document."""
WITHHELD = "given; its text is private"


def consent_noted(text: str) -> str:
    """What a record says of a consent: the text; of a file its name and hash. For words of somebody at this machine only.

    Raises BadRequest for what looks like the name of a file that is not there.
    """
    from lynx_video.media.image import file_hash

    try:
        is_file = bool(text) and Path(text).is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file and FILE_NAME.fullmatch(text):
        raise BadRequest(
            f"--consent {text}: there is no such file; give one that is there, or say it in words that end otherwise."
        )
    return f"{Path(text).name}, sha256 {file_hash(text)}" if is_file else text


def frames_hash(frames: Video) -> str:
    """sha256, hex, of the shape and bytes of uint8 [F, H, W, 3]: equal if every pixel is."""
    digest = hashlib.sha256(repr(frames.shape).encode())
    for frame in frames:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def record_of(clip: Clip, facts: Mapping[str, Any], marks: MarkFlags) -> dict[str, Any]:
    """Everything a file says of its clip, as plain JSON values: settings, facts, what was measured, and how it is marked.

    frames_hash is that of the frames before watermark and compression: what a replay is compared with.
    """
    record = {
        **clip.settings,
        **facts,
        "similarity": clip.similarity,
        "coverage": clip.coverage,
        "seconds": round(clip.seconds, 3),
        "frames_hash": frames_hash(clip.frames),
        "watermark": not marks.no_watermark,
        "no_watermark_reason": marks.no_watermark or None,
        "consent": marks.consent or None,
        "private": marks.private,
    }
    if Path(str(record.get("base", ""))).exists():
        record["base"] = Path(record["base"]).name  # where it lies is nobody's business; its hash tells which it is
    if marks.private:
        record |= dict.fromkeys(PRIVATE)
        record["consent"] = WITHHELD if marks.consent else None
    return record


def publish(
    target: Path, clip: Clip, record: Mapping[str, Any], marks: MarkFlags, signer: Signer, tensors: Path | None = None
) -> None:
    """Write the clip, and its tensors if a file is named. Raises BadOutput if they cannot be written; there is no clip then."""
    from lynx_video.draft import draft
    from lynx_video.media.provenance import sign
    from lynx_video.media.video import write_video
    from lynx_video.media.watermark import mark

    frames = clip.frames if marks.no_watermark else mark(clip.frames)
    with draft(target) as partial:
        write_video(partial, frames, clip.fps, record)
        sign(partial, record, signer, shown=target)
        if tensors is not None:
            with draft(tensors) as beside:
                _save_tensors(beside, clip)


def _save_tensors(file: Path, clip: Clip) -> None:
    import torch
    from safetensors.torch import save

    tensors = {
        "initial_latents": clip.initial_latents.contiguous(),
        "latents": clip.latents.contiguous(),
        "frames": torch.tensor(clip.frames).contiguous(),
    }
    try:
        file.write_bytes(save(tensors))  # save_file would leave a file that only its owner can read
    except OSError as error:
        raise BadOutput(f"{file}: cannot be written ({error.strerror or error}).") from error
