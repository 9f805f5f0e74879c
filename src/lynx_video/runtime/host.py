"""Host memory of this process: what it has of its own, and what it has mapped from files and the system can take back.

A base in its own dtype is only mapped: it counts as `mapped` once it was read, costs no swap and is shared by processes. What is
cast, quantized or pinned is `anonymous`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """Bytes in memory now; peak: the most that both were together in the life of the process. None where the system does not say."""

    anonymous: int | None
    mapped: int | None
    peak: int | None

    @property
    def total(self) -> int | None:
        """Both together."""
        return None if self.anonymous is None or self.mapped is None else self.anonymous + self.mapped


def host_memory() -> HostMemory:
    """As Linux tells it; elsewhere only the peak is known, and on Windows nothing."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return HostMemory(anonymous=None, mapped=None, peak=_most_ever())
    said = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return HostMemory(
        anonymous=said.get("RssAnon"),
        mapped=said["RssFile"] + said.get("RssShmem", 0) if "RssFile" in said else None,
        peak=said.get("VmHWM"),
    )


@dataclass(kw_only=True, slots=True)
class PeakHostMemory:
    """The most that was seen while it was watched, in bytes, each for itself; 0 where the system does not say."""

    anonymous: int = 0
    mapped: int = 0
    total: int = 0

    def see(self, now: HostMemory) -> None:
        """Take one more look into account."""
        self.anonymous = max(self.anonymous, now.anonymous or 0)
        self.mapped = max(self.mapped, now.mapped or 0)
        self.total = max(self.total, now.total or 0)


@contextmanager
def peak_host_memory(every: float = 0.005) -> Iterator[PeakHostMemory]:
    """Within it a thread looks `every` so many seconds; what lives shorter may be missed."""
    peak, stop = PeakHostMemory(), threading.Event()

    def watch() -> None:
        while not stop.wait(every):
            peak.see(host_memory())

    peak.see(host_memory())
    thread = threading.Thread(target=watch, name="peak host memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.see(host_memory())


def _most_ever() -> int | None:
    try:
        import resource
        import sys
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
