"""The step cache in a generation: which steps are computed, and the first run over a base, which measures that for the next ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.errors import BadOutput, BadRequest, LynxWarning
from lynx_video.runtime.cache import Calibration, cache_, computed_steps, load_calibration, save_calibration

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components

FILE = "step_cache.json"
"""Name of the calibration beside an adapter."""


def calibration_file(adapter: Path | None, base: str) -> Path | None:
    """Where the calibration of an adapter over a base lies: beside the adapter, or in a base's folder; None for a hub id alone."""
    folder = adapter if adapter is not None else Path(base)
    folder = folder.parent if folder.is_file() else folder
    return folder / FILE if folder.is_dir() else None


def steps_to_compute(components: Components, threshold: float | str, sigmas: Sequence[float]) -> tuple[bool, ...] | None:
    """For each step whether the blocks are computed, None for all. Where nothing was measured yet, this run measures instead.

    Raises BadRequest for a base of two experts, BadWeights for a calibration that cannot be read.
    """
    if components.cache is not None:
        components.cache.clear()
    if threshold == "off":
        return None
    if len(components.adapters) > 1:
        raise BadRequest("--step-cache does not work with a base of two experts; say --step-cache off.")
    if components.cache is None:
        components.cache = cache_(components.transformer)
    known = known_calibration(components.calibration)
    if known is None:
        components.cache.measure = True
        warnings.warn(
            "the step cache has not been measured for this base and adapter: this clip is computed in full and measures it for "
            "the next ones.",
            LynxWarning,
            stacklevel=3,
        )
        return None
    return computed_steps(known, sigmas, float(threshold))


def known_calibration(file: Path | None) -> Calibration | None:
    """The calibration in a file that may not be there."""
    return load_calibration(file) if file is not None and file.is_file() else None


def keep_measurement(components: Components, sigmas: Sequence[float]) -> Calibration | None:
    """After a run: what it measured, if it did, written where the next run finds it; then the cache forgets the clip."""
    cache, found = components.cache, None
    if cache is not None and cache.measure and len(sigmas) > 1:
        found = cache.calibration(sigmas)
        if components.calibration is not None and (components.ranks is None or components.ranks.first):
            try:
                save_calibration(components.calibration, found)
            except (BadOutput, OSError) as error:
                warnings.warn(f"what was measured for the step cache is not kept: {error}", LynxWarning, stacklevel=2)
    if cache is not None:
        cache.clear()
    return found
