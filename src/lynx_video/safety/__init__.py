"""The safety gate: prompts and portraits before the work, frames after it. `resolve_gate` makes the `Gate` that doors ask."""

from __future__ import annotations

from os import PathLike

from lynx_video.safety.gate import Gate, SafetyConfig, resolve_gate
from lynx_video.safety.picture import (
    BATCH,
    EVERY,
    THRESHOLD,
    PictureClassifier,
    SafetyChecker,
    check_frames,
    check_portrait,
)
from lynx_video.safety.place import PICTURES, place_of
from lynx_video.safety.prompt import TextClassifier, check_prompt

__all__ = [
    "BATCH",
    "EVERY",
    "THRESHOLD",
    "Gate",
    "PictureClassifier",
    "SafetyChecker",
    "SafetyConfig",
    "TextClassifier",
    "check_frames",
    "check_portrait",
    "check_prompt",
    "load_safety_checker",
    "resolve_gate",
    "resolve_safety",
]


def load_safety_checker(path: str | PathLike[str], device: str = "cpu") -> PictureClassifier:
    """The picture classifier in a local folder. Raises BadWeights as `PictureClassifier`."""
    return PictureClassifier(place_of(PICTURES, str(path), "models"), device)


def resolve_safety(
    setting: str, needs_gate: bool, models_dir: str | PathLike[str], device: str = "cpu"
) -> SafetyChecker | None:
    """The picture classifier alone of `resolve_gate`, None where none looks."""
    return resolve_gate(
        SafetyConfig(safety_checker=setting), needs_gate=needs_gate, models_dir=models_dir, device=device
    ).pictures
