"""Which safety gate a door puts before and behind its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.errors import BadRequest
from lynx_video.studio.setup import ModelFlags

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.safety import Gate, SafetyConfig

REAL_WIDTH = 1536
"""Hidden width from which a base draws real people (Wan2.1-T2V-1.3B has 1536) and `auto` insists on the safety checker."""


def gate_of(config: SafetyConfig, model: ModelFlags, blueprint: Blueprint) -> tuple[Gate, list[str]]:
    """The gate that the settings ask for, and a warning if a foreign base runs without anybody who looks at pictures.

    Raises MissingDependency for a classifier that is needed and not there, BadWeights for one that cannot be used.
    """
    from lynx_video.pipeline.models import MODELS
    from lynx_video.safety import resolve_gate

    real = blueprint.shape.width >= REAL_WIDTH
    own = model.base_model_path is None and not MODELS[model.model].needs_safety_checker
    gate = resolve_gate(config, needs_gate=real and not own, models_dir=model.models)
    if gate.pictures is not None or own:
        return gate, []
    return gate, [f"no safety checker looks at portrait and frames ({'switched off' if real else 'a toy base'})."]


def check_source(gate: Gate, portrait: Path | None, enrolment: Enrolment | None) -> None:
    """Look at the portrait, or at the crop of an identity file. Raises Refused."""
    from lynx_video.media.image import read_picture

    if portrait is not None:
        gate.portrait(read_picture(portrait))
    elif enrolment is not None:
        crop = enrolment.identity.crop if enrolment.identity.crop is not None else enrolment.identity.aligned
        if crop is not None:
            gate.portrait(crop)
        elif gate.pictures is not None:
            raise BadRequest(
                "the identity file holds no picture that the safety checker could look at: enroll the portrait again."
            )
