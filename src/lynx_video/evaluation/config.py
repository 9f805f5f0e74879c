"""How clips are scored, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from lynx_video.errors import BadRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """How clips are looked at."""

    frames: int | None = None
    "look for faces in so many evenly spaced frames of a clip; in all by default"
    clip_model: str | None = None
    "CLIP model for a text-image score: a folder or a hub id; none by default"

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise BadRequest(f"frames must be 1 or more, got {self.frames}.")
