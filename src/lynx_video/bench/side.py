"""The sides that are compared: how each is held and run, and a model held that way beside the others, on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lynx_video.bench.made import Scene
from lynx_video.bench.way import Way
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.pipeline.tuning import check_runtime, settle, tune_
from lynx_video.runtime.attention import is_exact

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint, Components

EXACT = "exact"


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of those compared. unable: why it cannot be run, where that is known already."""

    name: str
    way: Literal["plain", "ours", "wan"] = "ours"
    config: GenerateConfig = field(default_factory=GenerateConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    unable: str = ""

    @property
    def own_weights(self) -> bool:
        """Whether its weights are moved about, so that it needs a copy of its own."""
        moved = self.runtime.offload == "block" or self.config.idle_models != "keep"
        return moved or self.runtime.vram_budget is not None


@dataclass(kw_only=True, slots=True)
class Held:
    """A side with its model. layout: what a memory budget decided. estimate: bytes by phase that this should take."""

    side: Side
    way: Way
    runtime: RuntimeConfig
    layout: str = ""
    estimate: Mapping[str, int] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether its predictions should be those of `exact` up to rounding."""
        rounded = self.runtime.quantize not in (None, "none") or self.runtime.gguf is not None or self.runtime.lora_path
        return self.side.way != "wan" and not rounded and is_exact(self.runtime.attention_backend)

    def resting(self) -> int:
        """Bytes of its weights that lie on the device now."""
        held = self.way.components
        parts = (held.transformer, held.adapter, held.vae, held.text_encoder)
        seen = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for part in parts
            if part is not None
            for tensor in _tensors(part)
            if tensor.device.type == held.device.type
        }
        return sum(seen.values())


def hold(
    components: Components,
    blueprint: Blueprint,
    side: Side,
    scene: Scene,
    others: Mapping[str, Held] = {},
) -> Held:
    """A model held as `side` says, on the weights of `components`: shared, or copied to host memory where it moves them.

    others: sides held already; a compiled one takes the quantized weights of its twin among them. Raises BadRequest or
    MissingDependency for what this machine cannot do.
    """
    from lynx_video.bench.ours import Ours
    from lynx_video.bench.plain import Plain
    from lynx_video.bench.stock import Stock

    if side.way != "ours":
        twin = twin_of(components)
        way = Plain if side.way == "plain" else Stock
        return Held(side=side, way=way(twin, scene, side.config), runtime=side.runtime)
    loras, _ = check_runtime(side.runtime, blueprint.shape, blueprint.device, blueprint.dtype)
    chosen = settle(replace(blueprint, runtime=side.runtime, loras=loras), side.config)
    layout, blocks = chosen.layout, chosen.runtime.offload == "block"
    idle = layout.idle_models if layout is not None else side.config.idle_models
    quantized = None if blocks else _quantized(side, others)
    if quantized is not None:
        components, chosen = quantized.way.components, replace(chosen, runtime=replace(chosen.runtime, quantize=None))
    twin = twin_of(components, apart=blocks or idle != "keep")
    twin = replace(twin, idle_models=idle, runtime=chosen.runtime, layout=layout)
    if not blocks:
        twin.transformer.to(components.device)
    if idle == "keep":
        for part in (twin.adapter, twin.vae, twin.text_encoder):
            part.to(components.device)
    tune_(twin, chosen)
    return Held(
        side=side,
        way=Ours(twin, scene, replace(side.config, idle_models=idle)),
        runtime=replace(chosen.runtime, quantize=chosen.runtime.quantize or side.runtime.quantize),
        layout=str(layout) if layout is not None else "",
        estimate=dict(layout.device) if layout is not None else {},
    )


def _quantized(side: Side, others: Mapping[str, Held]) -> Held | None:
    """Among others the one that differs in not being compiled."""
    if not side.runtime.compile or side.runtime.quantize is None:
        return None
    plain = replace(side.runtime, compile=False)
    return next((one for one in others.values() if one.side.way == "ours" and one.side.runtime == plain), None)


def twin_of(components: Components, *, apart: bool = False) -> Components:
    """The same model in modules of its own, which can be changed without changing the others.

    apart: the weights are copied to host memory; otherwise they are the very same tensors, which nobody may change in place.
    """
    moved = (components.adapter, components.transformer, *((components.vae, components.text_encoder) if apart else ()))
    memo: dict[int, Any] = {}
    for module in moved:
        for tensor in (*module.parameters(), *module.buffers()):
            memo[id(tensor)] = _at_home(tensor) if apart else tensor
    adapter, transformer, *rest = copy.deepcopy(moved, memo)
    vae, text_encoder = rest or (components.vae, components.text_encoder)
    return replace(
        components, adapter=adapter, transformer=transformer, vae=vae, text_encoder=text_encoder, cache=None, loras=None
    )


def _at_home(tensor: Tensor) -> Tensor:
    copied = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """What a module holds, tensors made of several taken apart, with the statistics that bitsandbytes keeps beside a weight."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield from _pieces(tensor)
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            yield from (one for one in (state.absmax, state.code) if one is not None)
            state = state.state2


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor.data
        return
    for name in flatten()[0]:
        yield from _pieces(getattr(tensor, name))
