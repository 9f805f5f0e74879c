"""What a service is started with, as values; the string under a field is its help on the command line."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lynx_video.errors import BadRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFlags:
    """Where a service keeps what must outlive it."""

    data: Path = Path("lynx-video-data")
    "folder of the clips, identities and uploads, and of the database where no other is named"
    database: str | None = field(default=None, metadata={"metavar": "URL"})
    "postgresql://USER:PASSWORD@HOST/NAME instead of DATA/lynx-video.db (SQLite)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeFlags:
    """Who may ask for how much."""

    host: str = "127.0.0.1"
    "address to listen on; without any key (`lynx-video keys add`) only this machine's own"
    port: int = 8000
    "port to listen on; 0 takes a free one"
    workers: int = 1
    "worker processes, each with a model of its own, on the GPUs in turn; 0: the workers run elsewhere"
    queue_limit: int = 100
    "jobs that may wait; one more is told to come back later (429)"
    rate_limit: int | None = None
    "requests a minute for each key; one more is told to wait (429)"
    largest: float = 16.0
    "largest request, in clips of the model's own size and steps: pixels of all windows x passes of all steps x best-of"
    max_upload_mb: int = 25
    "largest picture that is taken, in MiB"
    allow_url_fetch: tuple[str, ...] = field(default=(), metadata={"metavar": "HOST"})
    "fetch portraits that a request names by address from this host (*.example, * for every public one); may be given several times"
    require_consent: bool = False
    "refuse portraits that come without `consent`: who agreed to the use of this face, and how"
    keep_days: float | None = None
    "delete finished clips after so many days; kept for good by default"
    lease: float = 15.0
    "seconds without a sign of life after which a worker's job is given to another"

    def __post_init__(self) -> None:
        _range("--port", self.port, 0, 65_535)
        _range("--workers", self.workers, 0, 256)
        _range("--queue-limit", self.queue_limit, 1, 1_000_000)
        _range("--rate-limit", self.rate_limit, 1, 1_000_000)
        _range("--largest", self.largest, 0.001, 1_000_000)
        _range("--max-upload-mb", self.max_upload_mb, 1, 1024)
        _range("--keep-days", self.keep_days, 0.0001, 36_500)
        _range("--lease", self.lease, 0.5, 3600)


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _range(name: str, value: Any, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} must be from {low:g} to {high:g}, got {value}.")
