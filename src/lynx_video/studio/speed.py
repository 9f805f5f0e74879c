"""From a preset and what was named beside it to settings: what is named replaces what the preset says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.presets import SPEED
from lynx_video.studio.setup import ModelFlags


def tune(
    preset: str, model: ModelFlags, generation: Mapping[str, Any], runtime: Mapping[str, Any]
) -> tuple[GenerateConfig, RuntimeConfig]:
    """The settings of a preset for this model, with those replaced that are named: fields of GenerateConfig and of RuntimeConfig.

    Raises BadRequest for an unknown preset, one that needs a few-step LoRA where none is known, and for what a field cannot be.
    """
    if preset not in SPEED:
        raise BadRequest(f"unknown preset {preset!r}; the presets are {', '.join(SPEED)}.")
    chosen = SPEED[preset]()
    settings = {**chosen.runtime}
    if runtime.get("gguf") is not None:
        settings.pop("quantize", None)  # it brings quantized weights already
    if chosen.few_step and "lora_path" not in runtime:
        settings["lora_path"] = (_few_step(model, preset),)
    if settings.get("quantize") == "fp8" and "quantize" not in runtime:
        settings["quantize"] = _eight_bits(model, "fp8")
    return GenerateConfig(**{**chosen.generation, **generation}), RuntimeConfig(**{**settings, **runtime})


def _eight_bits(model: ModelFlags, kind: str) -> str:
    """fp8 where the device computes it, int8 elsewhere."""
    from lynx_video.pipeline.load import device_named, dtype_named
    from lynx_video.runtime.quantize import check_quantization

    try:
        check_quantization(kind, device_named(model.device), dtype_named(model.torch_dtype, model.device))
    except BadRequest:
        return "int8"
    return kind


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
