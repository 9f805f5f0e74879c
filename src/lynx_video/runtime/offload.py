"""Block offload: the blocks wait in host memory and come to the device one ahead of their turn, so that it never holds more than two.

diffusers' group offloading does the moving; which group comes after which is known here and need not be found out in a first forward.
What is small (embedders, norms, modulation, the output layer) stays on the device, where it is wanted outside the blocks too.

`record_stream` stays off. With it the host runs ahead of the device, and each block it has sent and left is kept until the device
gets there: transfers being faster than blocks, that is most of the model. Without it the host waits for a block before it fetches
the next but one.

And the text projections: a generation needs them once, before its first step. `placed` brings each to the device for its product,
`parked` keeps all of them away from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lynx_video.errors import BadRequest, LynxError

TEXT_PROJECTIONS = ("to_k", "to_v", "to_kv")
"""Layers of a block's `attn2` that only the prompt goes through."""
_HOOK = "group_offloading"  # the name diffusers looks for
_SEEN = "compiled blocks can't be offloaded when torchao quantized them (int8, fp8): quantize in fp8-storage, or leave out --compile."


@dataclass(frozen=True, kw_only=True, slots=True)
class Offload:
    """How blocks are offloaded.

    device: where they are computed. pinned: they wait in page-locked host memory, of which they take at least their size; False:
    mapped weights stay mapped, and each transfer goes through a copy, which costs time.
    """

    device: torch.device | str
    pinned: bool = True


@torch.no_grad()
def offload_(transformer: Any, offload: Offload) -> None:
    """Offload the blocks of a `WanTransformer3DModel` and put the rest on the device. Quantize, load LoRAs and compile first.

    On a device without streams (a CPU) the same hooks run and nothing overlaps. Raises BadRequest if it is offloaded already.
    """
    from diffusers.hooks.group_offloading import GroupOffloadingConfig, GroupOffloadingHook, GroupOffloadingType, ModuleGroup
    from diffusers.hooks.hooks import HookRegistry

    if is_offloaded(transformer):
        raise BadRequest("the transformer is offloaded already; load it again to offload it in another way.")
    if any("forward" in vars(block) and any(map(_is_composite, block.parameters())) for block in transformer.blocks):
        raise BadRequest(_SEEN)
    device, host = torch.device(offload.device), torch.device("cpu")
    stream = _stream(device) if len(transformer.blocks) > 1 else None
    config = GroupOffloadingConfig(
        onload_device=device,
        offload_device=host,
        offload_type=GroupOffloadingType.BLOCK_LEVEL,
        non_blocking=stream is not None,
        record_stream=False,
        low_cpu_mem_usage=not offload.pinned,
        num_blocks_per_group=1,
        stream=stream,
    )
    waiting = [list(_large(block)) for block in transformer.blocks]
    _move_rest(transformer, {part for layers in waiting for layer in layers for part in layer.modules()}, device)
    hooks: list[Any] = []
    for block, layers in zip(transformer.blocks, waiting, strict=True):
        _keep_statistics(layers, device)
        group = ModuleGroup(
            modules=layers,
            offload_device=host,
            onload_device=device,
            offload_leader=block,
            onload_leader=block,
            non_blocking=config.non_blocking,
            stream=stream,
            record_stream=False,
            low_cpu_mem_usage=config.low_cpu_mem_usage,
            onload_self=not hooks,
        )
        hook = GroupOffloadingHook(group, config=config)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, _HOOK)
        if hooks:
            hooks[-1].next_group = group
        hooks.append(hook)


def check_offload(quantize: str | None, compiled: bool) -> None:
    """Raises BadRequest for what goes together with block offload only until it moves."""
    if compiled and quantize in ("int8", "fp8"):
        raise BadRequest(_SEEN)


def is_offloaded(transformer: Any) -> bool:
    """Whether its blocks wait in host memory."""
    return any(_group(block) is not None for block in transformer.blocks)


class Away(nn.Module):
    """Stands where a text projection was while it is parked."""

    def forward(self, *_: Any) -> Any:
        """Raises LynxError: whoever comes here wants to project a prompt in the middle of a generation."""
        raise LynxError("the text projections are parked: give the prompt's keys and values (adapter.using(..., text=...)).")


@contextmanager
def parked(transformer: Any, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within it the text projections of all blocks are out of the transformer and lie on `device`; after it all is as it was."""
    put_back: list[Callable[[], None]] = []
    _settle(transformer)
    try:
        for block in transformer.blocks:
            for name, layer in _text_projections(block):
                put_back.append(_park(block, name, layer, torch.device(device)))
        yield
    finally:
        _settle(transformer)
        for back in reversed(put_back):
            back()


@contextmanager
def placed(transformer: Any, device: torch.device | str) -> Iterator[None]:
    """Within it each text projection comes to `device` for its product and goes back after it, wherever it lies.

        with placed(transformer, device): text = text_memory(transformer, embeddings)

    Nothing is moved that is there already.
    """
    _settle(transformer)
    with visiting((layer for block in transformer.blocks for _, layer in _text_projections(block)), device):
        yield


@contextmanager
def visiting(layers: Iterable[nn.Module], device: torch.device | str) -> Iterator[None]:
    """Within it each of the layers comes to `device` when it is called and goes back after that, wherever it lies.

    Their inputs must be on the device already. Nothing is moved that is there.
    """
    device = torch.device(device)
    returns: dict[nn.Module, Callable[[], None]] = {}

    def come(layer: nn.Module, _: Any) -> None:
        returns[layer] = _visit(layer, device)

    def go(layer: nn.Module, *_: Any) -> None:
        returns.pop(layer)()

    hooks = []
    try:
        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(come))
            hooks.append(layer.register_forward_hook(go, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _park(block: nn.Module, name: str, layer: nn.Module, device: torch.device) -> Callable[[], None]:
    attention: Any = block.attn2
    group = _group(block)
    modules = list(group.modules) if group else []
    back = _visit(layer, device)
    setattr(attention, name, Away())
    if group:
        parts = set(layer.modules())
        group.modules = [module for module in modules if module not in parts]

    def put_back() -> None:
        setattr(attention, name, layer)
        if group:
            group.modules = modules
        back()

    return put_back


def _visit(layer: nn.Module, device: torch.device) -> Callable[[], Any]:
    """Move a layer of any kind to `device`; how to bring it back, from a device to the very tensors it had in host memory."""
    home = next(layer.parameters()).device
    if home == torch.empty(0, device=device).device:  # which has a number
        return lambda: None
    if device.type == "cpu":  # nothing of what the layer had may be kept
        _move(layer, device)
        return lambda: _move(layer, home)
    kept: list[tuple[dict[str, Any], str, Any, Any]] = []
    for module in layer.modules():
        tables: Any = (module._parameters, module._buffers)
        kept += [(held, name, tensor, tensor.data) for held in tables for name, tensor in held.items() if tensor is not None]
    _move(layer, device)

    def back() -> None:
        for held, name, tensor, data in kept:
            if not _is_composite(tensor):
                tensor.data = data
            held[name] = tensor

    return back


def _move(layer: nn.Module, device: torch.device) -> None:
    """`layer.to(device)`, but for torchao's tensors, which torch would not move once a compiler has seen them."""
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if _is_composite(parameter):
                module._parameters[name] = nn.Parameter(parameter.to(device), requires_grad=False)
    layer.to(device)


def _is_composite(tensor: torch.Tensor) -> bool:
    """Whether it is several tensors in one."""
    return hasattr(tensor, "__tensor_flatten__")


def _text_projections(block: Any) -> Iterator[tuple[str, nn.Module]]:
    for name in TEXT_PROJECTIONS:
        layer = block.attn2._modules.get(name)
        if layer is not None and not isinstance(layer, Away):
            yield name, layer


def _group(block: Any) -> Any:
    """The block's module group, or None."""
    registry = getattr(block, "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    return hook.group if hook is not None else None


def _settle(transformer: Any) -> None:
    """Send home what was fetched ahead and not used, as when a step cache skips blocks."""
    for block in transformer.blocks:
        group = _group(block)
        if group is not None:
            if group.stream is not None:
                group.stream.synchronize()
            group.offload_()


def _large(module: nn.Module) -> Iterator[nn.Module]:
    """The layers with matrices in them, outermost first, each with all it is made of (a LoRA's layer with the one below it)."""
    for child in module.children():
        if any(parameter.ndim == 2 for parameter in child.parameters(recurse=False)):
            yield child
        else:
            yield from _large(child)


def _keep_statistics(layers: Sequence[nn.Module], device: torch.device) -> None:
    """What belongs to a weight of bitsandbytes does not move with it; it is small and goes to the device for good."""
    for layer in layers:
        for parameter in layer.parameters():
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                state.to(device)


def _move_rest(transformer: nn.Module, waiting: set[nn.Module], device: torch.device) -> None:
    for module in transformer.modules():
        if module not in waiting:
            module._apply(lambda tensor: tensor.to(device), recurse=False)


def _stream(device: torch.device) -> Any:
    """A stream for transfers; the device becomes the current one, as diffusers asks that one for the stream that computes."""
    if device.type not in ("cuda", "xpu"):
        return None
    backend: Any = torch.get_device_module(device)
    if device.index is not None:
        backend.set_device(device)
    return backend.Stream()
