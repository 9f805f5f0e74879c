"""From a RuntimeConfig to a model that is held and run that way: checked before a weight is read, applied in one order.

The order of the verbs: quantization, LoRAs beside the quantized layers, the attention kernel, compilation of what the blocks compute,
and around it offloading and, when a generation asks for them, the step cache and the split over processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.runtime.parallel import started

if TYPE_CHECKING:
    import torch

    from lynx_video.adapters.weights import BaseShape
    from lynx_video.pipeline.components import Blueprint, Components
    from lynx_video.runtime.lora import LoraFile


def check_runtime(
    runtime: RuntimeConfig, shape: BaseShape, device: str, dtype: torch.dtype, *, channels: int | None = None, experts: int = 1
) -> tuple[tuple[LoraFile, ...], tuple[str, ...]]:
    """The LoRA files, and cautions in sentences. Raises for what this installation or device cannot do, before a weight is read."""
    import torch

    if runtime.offload == "block":
        from lynx_video.runtime.offload import check_offload

        check_offload(runtime.quantize, runtime.compile)

    from lynx_video.runtime.attention import choose_backend, is_exact

    cautions = []
    where = torch.device(device)
    choose_backend(runtime.attention_backend, where, dtype, shape.width // shape.heads, compiled=runtime.compile)
    if not is_exact(runtime.attention_backend):
        cautions.append(f"--attention-backend {runtime.attention_backend} is approximate: the clip is not the exact one.")
    if runtime.quantize is not None and runtime.quantize != "none":
        from lynx_video.runtime.quantize import check_quantization

        check_quantization(runtime.quantize, where, dtype)
    if runtime.gguf is not None:
        from lynx_video.runtime.gguf_file import check_gguf

        check_gguf(runtime.gguf, shape, channels)
        if runtime.quantize not in (None, "none"):
            raise BadRequest(f"--gguf brings quantized weights already: leave --quantize {runtime.quantize} away.")
    loras: tuple[LoraFile, ...] = ()
    if runtime.lora_path:
        from lynx_video.runtime.lora_file import check_lora

        loras = tuple(check_lora(spec, shape) for spec in runtime.lora_path)
    if experts > 1 and (loras or runtime.gguf is not None):
        what = "--lora-path" if loras else "--gguf"
        raise BadRequest(f"{what} is for bases of one transformer; this one has two experts, and nobody says which it is for.")
    if runtime.passes == "batched" and runtime.lora_passes == "prompt" and loras:
        raise BadRequest("--passes batched cannot have LoRAs in one pass only; say --lora-passes all, or --passes sequential.")
    return loras, tuple(cautions)


def settle(blueprint: Blueprint, config: GenerateConfig) -> Blueprint:
    """The same model with what its memory budget decides for this request. Raises BadRequest for a budget that no plan meets."""
    if blueprint.runtime.vram_budget is None:
        return blueprint
    if started()[1] > 1:
        raise BadRequest(
            "with torchrun each process would plan by itself: name --quantize, --offload and --vae-tiling, not --vram-budget."
        )
    from lynx_video.pipeline.forecast import forecast

    found = forecast(blueprint, config, blueprint.runtime)
    layout = found.layout
    runtime = replace(blueprint.runtime, quantize=layout.quantize, offload=layout.offload, vae_tiling=layout.vae_tiling)
    check_runtime(runtime, blueprint.shape, blueprint.device, blueprint.dtype)  # what was decided, too
    planned = "\n".join([found.summary, *found.facts["advice"]])
    return replace(blueprint, runtime=runtime, layout=layout, planned=planned)


def holds_whole(runtime: RuntimeConfig) -> bool:
    """Whether the transformer is put on the device as it is read: not if it is made smaller first, or comes block by block."""
    return runtime.quantize in (None, "none") and runtime.offload in (None, "none")


def tune_(components: Components, blueprint: Blueprint) -> None:
    """Apply what the blueprint says to loaded components."""
    runtime = blueprint.runtime
    for adapter, _ in components.adapters:
        transformer = adapter.transformer
        if runtime.quantize is not None and runtime.quantize != "none":
            from lynx_video.runtime.quantize import quantize_

            stays = runtime.offload != "block"
            quantize_(transformer, runtime.quantize, components.device, stay=stays)
            if stays:
                transformer.to(components.device)
        if blueprint.loras:
            from lynx_video.runtime.lora import load_loras_

            components.loras = load_loras_(transformer, blueprint.loras)
        _set_backend_(transformer, runtime, components)
        if runtime.compile:
            from lynx_video.runtime.compiling import compile_

            compile_(transformer)
        if runtime.offload == "block":
            from lynx_video.runtime.offload import Offload, offload_

            pinned = blueprint.layout is None or blueprint.layout.pinned
            offload_(transformer, Offload(device=components.device, pinned=pinned))


def _set_backend_(transformer: Any, runtime: RuntimeConfig, components: Components) -> None:
    from lynx_video.runtime.attention import choose_backend, set_backend_

    head_width = components.shape.width // components.shape.heads
    name = choose_backend(runtime.attention_backend, components.device, components.dtype, head_width, compiled=runtime.compile)
    set_backend_(transformer, name, components.device)
