"""Counting the places where the host waits for the device: each of them empties the queue of kernels, and compiled code ends there.

with count_host_syncs() as syncs: transformer(...); assert not syncs, syncs

A CPU never waits for itself, so there the operations are counted that would wait on a CUDA device: values read back, outputs whose
shape depends on values, copies between host and device. CUDA is asked itself.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class HostSync(NamedTuple):
    """One wait: what was asked, and the innermost line outside of torch that asked."""

    operation: str
    where: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.where}"


@contextmanager
def count_host_syncs(device: torch.device | str = "cpu") -> Iterator[list[HostSync]]:
    """The waits within it, in order, in this thread.

    device: where the work runs. "cuda": what CUDA itself reports, whatever happens around it in this process. Anything else: the
    operations that would wait if it were CUDA; what leaves torch without an operation (`tolist` and `numpy` of a tensor in host
    memory) is not seen, but it fails on the "meta" device, which can stand in for an accelerator. Compiled code runs uncompiled then.
    """
    found: list[HostSync] = []
    if torch.device(device).type == "cuda":
        with _asking_cuda(found):
            yield found
    else:
        with torch.compiler.set_stance("force_eager"), _Watch(found):
            yield found


class _Watch(TorchDispatchMode):
    """Notes every operation that would wait."""

    def __init__(self, found: list[HostSync]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func.overloadpacket)
        if name in _WAITING or (name in _MAYBE_WAITING and _MAYBE_WAITING[name](args, kwargs or {})):
            self.found.append(HostSync(name, _caller()))
        return func(*args, **(kwargs or {}))


_WAITING = {
    f"aten.{name}"
    for name in (
        # a value is read back
        "_local_scalar_dense",
        "equal",
        "allclose",
        "is_nonzero",
        "_linalg_check_errors",
        # the shape of the output depends on values
        "nonzero",
        "nonzero_static",
        "argwhere",
        "masked_select",
        "_unique",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "unique_dim_consecutive",
        "bincount",
        "histc",
    )
}


def _has_mask(args: Sequence[Any], _: Mapping[str, Any]) -> bool:
    """index and index_put with a mask, which becomes positions first."""
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])


def _has_no_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """repeat_interleave by a tensor of counts that is not told how many there will be."""
    return isinstance(args[-1], Tensor) and kwargs.get("output_size") is None


def _is_copied(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """A copy between host and device that the caller waits for."""
    source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
    return _apart(source, target) and not kwargs.get("non_blocking")


def _is_copied_over(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """copy_(target, source), as above."""
    waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    return isinstance(args[1], Tensor) and _apart(args[1].device, args[0].device) and waits


def _apart(one: torch.device, other: torch.device) -> bool:
    return (one.type == "cpu") != (other.type == "cpu")


_MAYBE_WAITING = {
    "aten.index": _has_mask,
    "aten.index_put": _has_mask,
    "aten.index_put_": _has_mask,
    "aten._index_put_impl_": _has_mask,
    "aten.repeat_interleave": _has_no_size,
    "aten._to_copy": _is_copied,
    "aten.copy_": _is_copied_over,
}
_BETWEEN = (str(Path(torch.__file__).parent), str(warnings.__file__), __file__)
"files that ask on behalf of others"


def _caller() -> str:
    """`file:line: code` of the innermost frame outside of `_BETWEEN`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"


@contextmanager
def _asking_cuda(found: list[HostSync]) -> Iterator[None]:
    """CUDA warns of every wait; those warnings are noted in place of being shown, all others are shown as ever."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation")
        show = warnings.showwarning

        def note(message: Warning | str, *rest: Any, **named: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                found.append(HostSync(str(message).partition("\n")[0], _caller()))
            else:
                show(message, *rest, **named)

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
