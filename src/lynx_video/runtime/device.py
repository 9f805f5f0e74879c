"""What a device is and what it can do, measured on it: estimates of time come from this machine and not from a table of products."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROBE_SECONDS = 0.08
"""How long each measurement goes on, after one run to warm up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device and the host it is in. Bytes; 0 where the system does not say."""

    name: str
    kind: str
    "cuda, cpu, mps, ..."
    memory: int
    "of the device; of the host where the device is the CPU"
    free: int
    "of it, now"
    host_memory: int
    host_free: int
    capability: tuple[int, int] | None = None
    "compute capability of an NVIDIA GPU"

    @property
    def fp8(self) -> bool:
        """Whether it multiplies float8 matrices."""
        return self.capability is not None and self.capability >= (8, 9)

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 is more than emulated."""
        return self.kind != "cuda" or (self.capability is not None and self.capability >= (8, 0))

    @property
    def apart(self) -> bool:
        """Whether its memory is another than the host's."""
        return self.kind != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was measured on a device in one dtype: operations and bytes a second."""

    matmul: float
    "operations of a matrix product, two for each multiplication"
    attention: float
    "operations of scaled dot product attention"
    convolution: float
    "operations of a 3D convolution"
    traffic: float
    "bytes read and written by an elementwise operation"
    link: float
    "bytes from pinned host memory to the device; infinite where they are one"
    start: float
    "seconds until a small operation is done or, on a device of its own, handed over"


def device_of(device: str | torch.device) -> Device:
    """The device by torch's name."""
    import torch

    total, free = host_bytes()
    chosen = torch.device(device)
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        there, _ = torch.cuda.mem_get_info(chosen)
        return Device(
            name=properties.name,
            kind="cuda",
            memory=int(properties.total_memory),
            free=int(there),
            host_memory=total,
            host_free=free,
            capability=(properties.major, properties.minor),
        )
    if chosen.type == "cpu":
        return Device(name=_processor(), kind="cpu", memory=total, free=free, host_memory=total, host_free=free)
    return Device(name=str(chosen), kind=chosen.type, memory=0, free=0, host_memory=total, host_free=free)


def measure(device: str | torch.device, dtype: torch.dtype) -> Rates:
    """Rates of a device, measured once in a process; under a second."""
    return _measured(str(device), dtype)


@functools.cache
def _measured(name: str, dtype: torch.dtype) -> Rates:
    import torch

    device = torch.device(name)
    big = device.type != "cpu"

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    rows, width = (8192, 5120) if big else (1024, 1024)
    left, right = noise(rows, width), noise(width, width)
    heads, tokens = (16, 8192) if big else (4, 1024)
    query, key, value = (noise(1, heads, tokens, 128) for _ in range(3))
    channels, side = (96, 256) if big else (48, 48)
    picture, kernel = noise(1, channels, 4, side, side), noise(channels, channels, 3, 3, 3)
    source, dot = noise(2**27 if big else 2**24), noise(1)
    target = torch.empty_like(source)

    def rate(amount: float, run: Callable[[], Any]) -> float:
        return amount / _seconds(run, device)

    with torch.inference_mode():
        return Rates(
            matmul=rate(2 * rows * width * width, lambda: left @ right),
            attention=rate(
                4 * heads * tokens**2 * 128, lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value)
            ),
            convolution=rate(2 * channels**2 * 27 * 2 * (side - 2) ** 2, lambda: torch.nn.functional.conv3d(picture, kernel)),
            traffic=rate(2 * source.nbytes, lambda: torch.add(source, 1, out=target)),
            link=_link(source, device) if big else float("inf"),
            start=_seconds(lambda: dot + dot, device, waiting=False),
        )


def _link(target: Tensor, device: torch.device) -> float:
    import torch

    try:
        waiting = torch.empty(target.shape, dtype=target.dtype, pin_memory=True)
    except RuntimeError:  # no pinned memory to be had
        waiting = torch.empty(target.shape, dtype=target.dtype)
    return target.nbytes / _seconds(lambda: target.copy_(waiting, non_blocking=True), device)


def _seconds(run: Callable[[], Any], device: torch.device, *, waiting: bool = True) -> float:
    """The best of the runs that fit into PROBE_SECONDS; waiting: until the device is done."""
    import torch

    wait = torch.get_device_module(device).synchronize if waiting and device.type != "cpu" else lambda: None
    run()
    wait()
    best, end = float("inf"), time.perf_counter() + PROBE_SECONDS
    while True:
        began = time.perf_counter()
        run()
        wait()
        done = time.perf_counter()
        best = min(best, done - began)
        if done > end:
            return best


@dataclass(kw_only=True, slots=True)
class Peak:
    """The most memory that was taken on a device; None where that is not counted (a CPU)."""

    allocated: int | None = None
    "bytes of tensors"
    reserved: int | None = None
    "bytes that torch took from the device for them"


@contextmanager
def peak_memory(device: str | torch.device) -> Iterator[Peak]:
    """Within it the device's peak is watched anew; it is known after it."""
    import torch

    chosen, peak = torch.device(device), Peak()
    if chosen.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize(chosen)
    torch.cuda.reset_peak_memory_stats(chosen)
    try:
        yield peak
    finally:
        torch.cuda.synchronize(chosen)
        peak.allocated, peak.reserved = torch.cuda.max_memory_allocated(chosen), torch.cuda.max_memory_reserved(chosen)


def host_bytes() -> tuple[int, int]:
    """Bytes of host memory, and of these what is free or can be freed at once; a container's share where it has one."""
    total = free = 0
    with suppress(OSError, ValueError, AttributeError):
        total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with suppress(OSError, ValueError):
        share = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        taken = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        kinds = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines())
        taken -= int(kinds.get("inactive_file", 0))  # of files, and given up as soon as somebody wants the room
        total, free = min(total, share), min(free, max(0, share - taken))
    return total, free


def _processor() -> str:
    """The CPU by its maker's name."""
    import platform

    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
