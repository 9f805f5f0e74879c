"""From `--preset` and the options beside it to settings: what is named on the command line replaces what the preset says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import click
from click.core import ParameterSource

from lynx_video.cli.flags import ModelFlags
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.presets import SPEED

Config = TypeVar("Config", GenerateConfig, RuntimeConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedFlags:
    """How much exactness is given for speed."""

    preset: Literal["exact", "balanced", "fast", "draft"] = "exact"
    "exact, or how much of the likeness is given for speed: docs/speed.md has the price of each; the options here replace its settings"


def tuned(
    flags: SpeedFlags, model: ModelFlags, config: GenerateConfig, runtime: RuntimeConfig
) -> tuple[GenerateConfig, RuntimeConfig]:
    """The settings of the preset for this model, with those replaced that were named on the command line.

    Raises BadRequest for a preset that needs a few-step LoRA where none is known.
    """
    preset = SPEED[flags.preset]()
    settings = dict(preset.runtime)
    if preset.few_step and not _named("lora_path"):
        settings["lora_path"] = (_few_step(model, flags.preset),)
    return _changed(config, preset.generation), _changed(runtime, settings)


def _changed(config: Config, settings: Mapping[str, Any]) -> Config:
    known = {one.name for one in fields(config)}
    assert settings.keys() <= known, "a preset sets fields that exist"
    return replace(config, **{name: value for name, value in settings.items() if not _named(name)})


def _named(option: str) -> bool:
    """Whether an option was given on the command line; outside of one, nothing was."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is ParameterSource.COMMANDLINE


def _few_step(model: ModelFlags, preset: str) -> str:
    """The few-step LoRA of a model. Raises BadRequest where it is not there."""
    from lynx_video.pipeline.models import MODELS

    own = MODELS[model.model]
    file = own.few_step if model.base_model_path is None else None
    if file is not None and not file.is_absolute():
        file = model.models / file
    if file is None or not file.is_file():
        where = f" ({file} is not there)" if file is not None else ""
        raise BadRequest(
            f"--preset {preset} needs a few-step LoRA of this base{where}: name one with --lora-path, such as lightx2v's step "
            "distillation of Wan2.1-T2V-14B."
        )
    return str(file)
