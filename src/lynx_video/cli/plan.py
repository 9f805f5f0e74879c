"""`lynx-video plan`: what a clip would take on this machine, in memory and time, without making it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options
from lynx_video.cli.speed import SpeedFlags, tuned
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.studio.models import survey_model
from lynx_video.studio.setup import FaceFlags, ModelFlags

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFlags:
    """How to answer."""

    json: bool = False
    "one JSON object on stdout instead of the table"


@click.command()
@options(ModelFlags, SpeedFlags, GenerateConfig, RuntimeConfig, PlanFlags)
def plan(model: ModelFlags, speed: SpeedFlags, config: GenerateConfig, runtime: RuntimeConfig, flags: PlanFlags) -> None:
    """Say what a clip would take here, in memory and time, without making it.

    \b
    lynx-video plan --model lynx-full --vram-budget 24

    Takes the options of `generate`; nothing needs to be downloaded for the released models.
    """
    from lynx_video.pipeline.forecast import forecast

    console = Console(as_json=flags.json)
    config, runtime = tuned(speed, model, config, runtime)
    blueprint = _survey(model, config, runtime)
    for caution in blueprint.cautions:
        console.warn(caution)
    found = forecast(blueprint, config, runtime)
    console.result(found.text, {"model": model.model, **found.facts})


def _survey(model: ModelFlags, config: GenerateConfig, runtime: RuntimeConfig) -> Blueprint:
    """As `generate` surveys it; known shapes stand for what of a released model is not there."""
    from lynx_video.pipeline.released import missing_parts, released

    missing = missing_parts(model.model, model.base_model_path, model.adapter_path, model.models)
    if not missing:
        return survey_model(model, FaceFlags(), config, runtime=runtime)
    return released(
        model.model,
        missing,
        models=model.models,
        adapter=model.adapter_path,
        dtype=model.torch_dtype,
        device=model.device,
        parts=frozenset(part for part, scale in (("identity", config.ip_scale), ("reference", config.ref_scale)) if scale != 0),
        runtime=runtime,
    )
