"""Bases of two experts (Wan 2.2 T2V-A14B): one transformer for high noise, one for low noise. Experimental.

The adapters were trained on Wan 2.1, which the experts were made from; nobody has measured what of the likeness survives. The same
adapter weights are put on both, and each keeps memories of its own, since keys, values and reference features come from its blocks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lynx_video.errors import BadWeights, LynxError
from lynx_video.flow import TIMESTEPS
from lynx_video.pipeline.checkpoint import base_shape

SECOND = "transformer_2"
CAUTION = "this base has two experts (Wan 2.2); that is experimental: the adapters were trained on Wan 2.1."


def boundary_of(base: str) -> float:
    """The timestep below which the second expert serves, 0 for a base of one.

    Raises BadWeights for a second expert of another shape than the first, or of which nobody says when it serves.
    """
    folder = Path(base)
    if not folder.is_dir():
        ratio = _hub_index(base).get("boundary_ratio")
        return _timestep(base, ratio) if ratio is not None else 0.0
    index = folder / "model_index.json"
    said: Any = {}
    if index.is_file():
        try:
            said = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadWeights(f"{index} can't be read as JSON ({error}); download the base again.") from error
    ratio = said.get("boundary_ratio") if isinstance(said, dict) else None
    there = (folder / SECOND / "config.json").is_file()
    if not there and ratio is None:
        return 0.0
    if not there:
        raise BadWeights(f"{index} speaks of two experts, but {folder / SECOND} is not there; download the base again.")
    if ratio is None:
        raise BadWeights(f"{folder / SECOND} is there, but {index} has no boundary_ratio that says when it serves.")
    first, second = base_shape(base), base_shape(base, SECOND)
    if first != second:
        raise BadWeights(
            f"{folder}: {SECOND} has {second.blocks} blocks of width {second.width}, transformer {first.blocks} of {first.width}; "
            "one adapter can't fit both."
        )
    return _timestep(base, ratio)


def _timestep(base: str, ratio: Any) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        raise BadWeights(f"{base}: boundary_ratio in model_index.json must lie between 0 and 1, got {ratio!r}.")
    return float(ratio) * TIMESTEPS


def _hub_index(base: str) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    try:
        return dict(DiffusionPipeline.load_config(base))
    except (OSError, ValueError) as error:
        raise LynxError(f"the base {base} can't be fetched from the hub ({str(error).splitlines()[0][:300]}).") from error
