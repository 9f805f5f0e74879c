"""The settings a visitor can turn, as a table: the field of GenerateConfig, and what it is called in plain words.

What is shown at first are the values of the chosen preset and model; only what differs from them is asked of the studio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lynx_video.config import GenerateConfig
from lynx_video.errors import LynxError
from lynx_video.studio.request import generation_of
from lynx_video.studio.speed import tune

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.studio.setup import Setup


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One setting. A slider goes from low to high; a choice has words; else it is a number or a text to be typed."""

    name: str
    label: str
    help: str
    kind: Literal["slider", "whole", "choice", "text"]
    fold: Literal["likeness", "advanced"]
    low: float = 0
    high: float = 1
    step: float = 0.05
    words: tuple[str, ...] = ()


KNOBS = (
    Knob(
        name="ip_scale",
        label="How strongly the face vector pulls",
        help="Who it is, at a glance. 1 as trained, 0 off; more makes the person stiffer rather than more alike.",
        kind="slider",
        fold="likeness",
        high=1.5,
    ),
    Knob(
        name="ref_scale",
        label="How closely the photo's details are kept",
        help="Skin, hair, glasses. 1 as trained, 0 off; less leaves more freedom to light and pose.",
        kind="slider",
        fold="likeness",
        high=1.5,
    ),
    Knob(
        name="guidance_scale_i",
        label="How much the person is insisted on",
        help="Guidance towards the identity. At 1 it is not guided; from about 2.5 on there is hardly more to gain.",
        kind="slider",
        fold="likeness",
        high=8,
        step=0.1,
    ),
    Knob(
        name="guidance_scale",
        label="How much the description is insisted on",
        help="Guidance towards the prompt. At 1 or less there is none: one pass a step in place of two or three.",
        kind="slider",
        fold="advanced",
        high=12,
        step=0.1,
    ),
    Knob(
        name="num_inference_steps",
        label="Steps",
        help="More steps, cleaner pictures, proportionally more time.",
        kind="whole",
        fold="advanced",
    ),
    Knob(
        name="num_frames",
        label="Frames",
        help="Length of the clip; one more than a multiple of {factor}.",
        kind="whole",
        fold="advanced",
    ),
    Knob(name="width", label="Width", help="Pixels, a multiple of {grid}.", kind="whole", fold="advanced"),
    Knob(name="height", label="Height", help="Pixels, a multiple of {grid}.", kind="whole", fold="advanced"),
    Knob(
        name="ip_start",
        label="Face vector: comes on after",
        help="Share of the steps. Who it is is decided early: a late start costs likeness.",
        kind="slider",
        fold="advanced",
    ),
    Knob(
        name="ip_stop",
        label="Face vector: goes off after",
        help="Share of the steps. An early stop leaves the end to the prompt.",
        kind="slider",
        fold="advanced",
    ),
    Knob(
        name="ref_start",
        label="Photo's details: come on after",
        help="Share of the steps.",
        kind="slider",
        fold="advanced",
    ),
    Knob(
        name="ref_stop",
        label="Photo's details: go off after",
        help="Share of the steps.",
        kind="slider",
        fold="advanced",
    ),
    Knob(
        name="scheduler",
        label="Sampler",
        help="unipc is what the model is meant to run with.",
        kind="choice",
        fold="advanced",
        words=("unipc", "euler", "dpm"),
    ),
    Knob(
        name="negative_prompt",
        label="What the clip should not be",
        help="Words that guidance moves away from.",
        kind="text",
        fold="advanced",
    ),
)


CARRIED = (
    "fps",
    "window_frames",
    "window_overlap",
    "ip_blocks",
    "ref_blocks",
    "reference_latent",
    "flow_shift",
    "guidance_stop",
    "step_cache",
)
"""Settings without a knob that a clip may have been made with."""


def knobs_of(blueprint: Blueprint) -> tuple[Knob, ...]:
    """The knobs that do something with this model: lite has no photo details, and guides text and identity together."""
    adapter = blueprint.files.config if blueprint.files is not None else None
    without: set[str] = set()
    if adapter is None or not adapter.reference_blocks:
        without |= {"ref_scale", "ref_start", "ref_stop"}
    if adapter is None or not adapter.identity_blocks:
        without |= {"ip_scale", "ip_start", "ip_stop"}
    if blueprint.defaults.guidance_scale_i is None:
        without |= {"guidance_scale_i"}
    return tuple(
        replace(knob, help=knob.help.format(factor=blueprint.temporal_factor, grid=blueprint.grid))
        for knob in KNOBS
        if knob.name not in without
    )


def settings_of(setup: Setup, blueprint: Blueprint, preset: str, knobs: Sequence[Knob]) -> dict[str, Any]:
    """What each knob stands at with a preset: what it says, or else the model's own value. Raises as `tune`."""
    config, _ = tune(preset, setup.model, {}, setup.runtime)

    def value(name: str) -> Any:
        said = getattr(config, name)
        return getattr(blueprint.defaults, name) if said is None else said

    return {knob.name: value(knob.name) for knob in knobs}


def turned(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a visitor asked for beside the preset: the values that differ from it. An emptied field asks for nothing."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not _same(value, settings.get(name)) and (value != "" or name == "negative_prompt")
    }


def moved(values: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs under another preset: those the visitor turned stay, the others go to what it says."""
    asked = turned(values, before)
    return {name: asked.get(name, after[name]) for name in after}


def recorded(record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs as a clip's record says they stood; what it does not say, or says in another kind, is left as it is."""
    known = GenerateConfig.__dataclass_fields__
    return {
        name: record[name] if name in known and _fits(record.get(name), value) else value for name, value in settings.items()
    }


def carried(record: Mapping[str, Any], setup: Setup, blueprint: Blueprint, preset: str) -> dict[str, Any]:
    """What a clip's record has otherwise than preset and model say, among the settings that are no knobs."""
    try:
        config, _ = tune(preset, setup.model, {}, setup.runtime)
        own = {"fps": blueprint.defaults.fps, "reference_latent": "sample", "flow_shift": _own_shift(blueprint)}
        found = {}
        for name in CARRIED:
            said = getattr(config, name)
            value = record.get(name)
            if value is not None and not _same(value, own.get(name) if said is None else said):
                found[name] = value
        return generation_of(found)
    except LynxError:
        return {}


def _own_shift(blueprint: Blueprint) -> float | None:
    """The base's own shift of the noise schedule; None where it is not known without asking the hub."""
    try:
        config = json.loads((Path(blueprint.base_name) / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        return float(config["flow_shift"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return abs(one - other) < 1e-6
    return bool(one == other)


def _fits(value: Any, like: Any) -> bool:
    if isinstance(like, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(like))
