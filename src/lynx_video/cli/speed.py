"""From `--preset` and the options beside it to settings: what is named on the command line replaces what the preset says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lynx_video.cli.flags import ModelFlags
from lynx_video.cli.options import named, over
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.presets import SPEED

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.generate import Plan
    from lynx_video.runtime.parallel import Degrees, Ranks


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
    settings = {**preset.runtime}
    if runtime.gguf is not None:
        settings.pop("quantize", None)  # it brings quantized weights already
    if preset.few_step and not named("lora_path"):
        settings["lora_path"] = (_few_step(model, flags.preset),)
    if settings.get("quantize") == "fp8" and not named("quantize"):
        settings["quantize"] = _eight_bits(model, "fp8")
    return over(GenerateConfig(**preset.generation), config), over(RuntimeConfig(**settings), runtime)


def shares(blueprint: Blueprint, chosen: Plan) -> Degrees:
    """How the processes that torchrun started share the generation.

    Raises BadRequest for a number of them that fits nothing, and for an attention kernel that cannot share heads.
    """
    from lynx_video.runtime.attention import can_share_tokens
    from lynx_video.runtime.parallel import choose_degrees, started

    runtime = blueprint.runtime
    degrees = choose_degrees(
        started()[1],
        len(chosen.tables[0]),
        blueprint.shape.heads,
        chosen.tokens(blueprint.patch_size),
        pass_degree=runtime.pass_degree,
        ulysses_degree=runtime.ulysses_degree,
        ring_degree=runtime.ring_degree,
    )
    if degrees.ulysses > 1 and not can_share_tokens(runtime.attention_backend):
        raise BadRequest(
            f"--attention-backend {runtime.attention_backend} can't share heads among {degrees.ulysses} processes: say native, or "
            f"--ulysses-degree 1 --ring-degree {degrees.tokens}."
        )
    return degrees


@contextmanager
def sharing(blueprint: Blueprint, degrees: Degrees) -> Iterator[Ranks | None]:
    """Within it they know each other; None where there is one."""
    from lynx_video.runtime.parallel import ranks

    if degrees.count == 1:
        yield None
        return
    with ranks(blueprint.device, degrees) as mine:
        yield mine


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
