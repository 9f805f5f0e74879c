"""The step cache in a generation: what is known of its drift for a model, which steps are computed, and how it is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.draft import draft
from lynx_video.errors import BadRequest, BadWeights
from lynx_video.pipeline.schedule import levels, make_scheduler, set_timesteps
from lynx_video.runtime.cache import Calibration, cache_, computed_steps

if TYPE_CHECKING:
    from lynx_video.config import GenerateConfig
    from lynx_video.pipeline.components import Blueprint, Components
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.types import Identity

FILE = "step_cache.json"
"""Name of the calibration beside an adapter."""
FORMAT = "lynx-video step cache 1"


def calibration_file(adapter: Path | None, base: str) -> Path | None:
    """Where the calibration of an adapter over a base lies: beside the adapter, or in the base's folder; None for a hub id alone."""
    folder = adapter if adapter is not None else Path(base)
    folder = folder.parent if folder.is_file() else folder
    return folder / FILE if folder.is_dir() else None


def made_for(model: Blueprint | Components) -> dict[str, str]:
    """What a calibration belongs to: another base or LoRA drifts otherwise."""
    return {"base_hash": model.base_hash, "arm": model.arm, "loras": model.lora_hash}


def known_calibration(model: Blueprint | Components) -> Calibration | None:
    """What was measured for this model; None where nothing was. Raises BadWeights for a file that is no calibration."""
    file = model.calibration
    if file is None or not file.is_file():
        return None
    about, calibration = read_calibration(file)
    return calibration if about == made_for(model) else None


def check_step_cache(model: Blueprint | Components, threshold: float | str) -> None:
    """Raises BadRequest, before a weight is read, where a step cache is asked for and cannot be used."""
    if threshold == "off":
        return
    if model.boundary:
        raise BadRequest("--step-cache does not work with a base of two experts; say --step-cache off.")
    if known_calibration(model) is None:
        where = f" ({model.calibration} has none)" if model.calibration is not None else ""
        raise BadRequest(
            f"the step cache has not been measured for this base{' with these LoRAs' if model.lora_hash else ''}{where}: "
            "`lynx-video calibrate` does that, with one clip and the same options; --step-cache off computes every step."
        )


def steps_to_compute(components: Components, threshold: float | str, sigmas: Sequence[float]) -> tuple[bool, ...] | None:
    """For each step, at noise level sigmas[i], whether the blocks are computed; None: all. Puts the cache on the transformer.

    Raises as `check_step_cache`.
    """
    check_step_cache(components, threshold)
    if threshold == "off":
        return None
    known = known_calibration(components)
    assert known is not None
    if components.cache is None:
        components.cache = cache_(components.transformer)
    components.cache.clear()
    return computed_steps(known, sigmas, float(threshold))


def calibrate(components: Components, who: Identity | Enrolment, prompt: str, config: GenerateConfig) -> Calibration:
    """Make one clip in full, with guidance in every step, and measure how what the blocks add drifts.

    Raises BadRequest for a base of two experts, for one step, and for steps so many that two have one noise level.
    """
    from lynx_video.pipeline.generate import generate, plan

    if components.boundary:
        raise BadRequest("a base of two experts has no step cache to calibrate.")
    config = replace(config, step_cache="off", guidance_stop=1.0)
    scheduler = make_scheduler(components.scheduler, config)
    sigmas = levels(set_timesteps(scheduler, plan(components, config).steps, "cpu"))
    if len(sigmas) < 2 or len(set(sigmas)) < len(sigmas):
        raise BadRequest(
            f"a calibration needs from 2 steps on, each at a noise level of its own; {len(sigmas)} steps are not that."
        )
    if components.cache is None:
        components.cache = cache_(components.transformer)
    components.cache.clear()
    components.cache.measure = True
    runtime = components.runtime
    components.runtime = replace(runtime, passes="sequential")
    try:
        generate(components, who, prompt, config)
        return components.cache.calibration(sigmas)
    finally:
        components.runtime = runtime
        components.cache.clear()


def save_calibration(file: Path, calibration: Calibration, about: dict[str, str]) -> None:
    """Write a calibration as JSON. Raises BadOutput where that cannot be."""
    said = {"format": FORMAT, **about, "clips": calibration.clips, "sigmas": calibration.sigmas, "drift": calibration.drift}
    with draft(file) as partial:
        partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def read_calibration(file: Path) -> tuple[dict[str, str], Calibration]:
    """What a calibration belongs to, and itself. Raises BadWeights for a file that is none."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {said['format']!r}, expected {FORMAT!r}")
        about = {name: str(said[name]) for name in ("base_hash", "arm", "loras")}
        return about, Calibration(
            sigmas=tuple(float(one) for one in said["sigmas"]),
            drift=tuple(float(one) for one in said["drift"]),
            clips=int(said["clips"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadWeights):
            raise
        raise BadWeights(f"{file} is no calibration of the step cache ({error}); remove it, or calibrate again.") from error
