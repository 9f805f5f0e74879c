"""Where the microseconds of one block go: its operations under torch's profiler, the largest first, and by kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lynx_video.bench.side import Held

REPEATS = 5
KINDS = {
    "attention": r"attention|flash|fmha|sdpa|sage",
    "matrix products": r"gemm|cutlass|nvjet|cublas|\bmm\b|addmm|bmm|linear|matmul|_int_mm|_scaled_mm|triton_tem",
    "copies": r"copy|memcpy|memset|\bcat\b|clone|contiguous|CatArray|fill",
}
"""Kinds by a pattern of the operation's or kernel's name; what fits none is elementwise, norms among it."""
FUSED = r"triton_(poi|red|per)_"
"""What a compiler made of several elementwise operations; its name lists them, copies too."""
REST = "elementwise and norms"


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A kernel on a GPU, an operation on a CPU. microseconds: of its own, in one run of the block, the least of REPEATS."""

    name: str
    kind: str
    calls: int
    microseconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """The operations of one block, the largest first."""

    operations: tuple[Operation, ...]

    @property
    def total(self) -> float:
        """Microseconds."""
        return sum(one.microseconds for one in self.operations)

    @property
    def kinds(self) -> dict[str, float]:
        """Microseconds by kind."""
        found = dict.fromkeys((*KINDS, REST), 0.0)
        for one in self.operations:
            found[one.kind] += one.microseconds
        return found


def kind_of(name: str) -> str:
    """The kind of an operation, by its name."""
    if re.match(FUSED, name):
        return REST
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), REST)


def profile_block(one: Held, number: int = 1) -> Profile:
    """Block `number` of a side's transformer, as it runs in the prompt's pass at the first step. Memories and texts are there."""
    blocks = one.way.components.transformer.blocks
    block = blocks[min(number, len(blocks) - 1)]
    found: list[Profile] = []

    def look(_: Any, args: Any, kwargs: Any) -> None:
        if not found:
            found.append(Profile(operations=()))  # the runs in here come here again
            found[0] = _profiled(lambda: block(*args, **kwargs), one.way.device)

    hook = block.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), one.way.ready():
            one.way.forward()
    finally:
        hook.remove()
    return found[0]


def _profiled(run: Callable[[], Any], device: torch.device) -> Profile:
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"

    def once() -> None:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)

    once()
    runs: list[dict[str, tuple[int, float]]] = []
    for _ in range(REPEATS):
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            once()
        runs.append(dict(_spent(seen.key_averages(), on_gpu)))
    operations = [
        Operation(
            name=name,
            kind=kind_of(name),
            calls=calls,
            microseconds=min(one[name][1] for one in runs if name in one),
        )
        for name, (calls, _) in runs[-1].items()
    ]
    return Profile(operations=tuple(sorted(operations, key=lambda one: -one.microseconds)))


def _spent(averages: Iterable[Any], on_gpu: bool) -> Iterator[tuple[str, tuple[int, float]]]:
    """By name, calls and microseconds of an operation's own."""
    for average in averages:
        spent = float(average.self_device_time_total if on_gpu else average.self_cpu_time_total)
        if spent > 0 and not average.key.startswith(("cuda", "ProfilerStep", "Activity Buffer")):
            yield average.key, (average.count, spent)
