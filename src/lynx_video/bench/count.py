"""What a piece of work asks for, counted while it runs: operations, host syncs, and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lynx_video.runtime.compiling import is_compiled
from lynx_video.runtime.syncs import count_host_syncs

_VIEWS = {"aten.detach", "aten.alias", "aten.lift_fresh", "prim.device", "aten._unsafe_view", "aten._reshape_alias"}
"what is no kernel, though it is not marked as a view"
_EMPTY = {"aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Operations by torch's counter, two for each multiplication. attention: those of fused attention; total: with all else."""

    total: int
    attention: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What one forward asks for.

    syncs: waits of the host for the device, on a CPU those that would be on a GPU. kernels: launched on a GPU; on a CPU, operations
    that are no views; None where compiled code on a CPU hides them.
    """

    flops: Flops
    syncs: tuple[str, ...]
    kernels: int | None


def count_flops(run: Callable[[], Any]) -> Flops:
    """Operations of what `run` does; compiled code runs uncompiled for it."""
    with _flop_counter() as found:
        run()
    return found[0]


def count_forward(run: Callable[[], Any], transformer: Any, device: torch.device) -> Counts:
    """Everything that is counted of one forward: on a CPU in one run, on a GPU in two, one of them as it is."""
    with _flop_counter() as flops, _Operations() as operations, count_host_syncs(device) as syncs:
        run()
    hidden = device.type != "cuda" and is_compiled(transformer)
    kernels = _kernels(run) if device.type == "cuda" else None if hidden else operations.count
    return Counts(flops=flops[0], syncs=tuple(str(one) for one in syncs), kernels=kernels)


@contextmanager
def _flop_counter() -> Iterator[list[Flops]]:
    """Within it operations are counted; the list has them after it."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def of_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def of_product(a: Any, b: Any, *_: Any, **__: Any) -> int:
        return 2 * int(a[0]) * int(a[1]) * int(b[1])

    aten: Any = torch.ops.aten
    known: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: of_attention,
        aten._int_mm: of_product,
    }
    found: list[Flops] = []
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=known) as counter:
        yield found
    by_operation: Mapping[Any, int] = counter.get_flop_counts().get("Global", {})
    attention = sum(number for name, number in by_operation.items() if "attention" in str(name))
    found.append(Flops(total=sum(by_operation.values()), attention=attention))


def _kernels(run: Callable[[], Any]) -> int:
    """Kernels launched on the GPU, copies and fills aside."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return sum(is_kernel(event) for event in seen.events() or ())


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is a kernel on a GPU."""
    on_gpu = event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    annotation = getattr(event, "is_user_annotation", False)
    return on_gpu and not annotation and not event.name.startswith(("Memcpy", "Memset", "ProfilerStep"))


class _Operations(TorchDispatchMode):
    """Counts what is dispatched, views aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket)
        self.count += not (func.is_view or name in _VIEWS or name in _EMPTY)
        return func(*args, **(kwargs or {}))
