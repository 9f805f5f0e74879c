"""The workers of a service, as rows: who is there, who can take work, and why one could not start."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import delete, func, select

from lynx_video.server.database import Database, workers

FORGOTTEN = 24 * 3600.0
"""Seconds after which a worker that gives no sign of life is forgotten."""


class Doubt:
    """Whether leases that ran out tell of dead workers: not before everybody had a whole lease to give a sign of life."""

    def __init__(self, lease: float) -> None:
        """As after an outage: nobody knows what was before."""
        self._lease = lease
        self.renew()

    def renew(self) -> None:
        """The database could not be had: others could not give a sign of life either."""
        self._until = time.monotonic() + self._lease

    @property
    def is_over(self) -> bool:
        """Whether a lease that ran out means something."""
        return time.monotonic() >= self._until


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The workers in a database. lease: seconds without a sign of life after which one counts as dead."""

    database: Database
    lease: float

    def report(self, worker: str, *, ready: bool, note: str = "") -> None:
        """A worker's sign of life. note: what keeps it from working."""
        news = {"ready": ready, "seen": time.time(), "note": note}
        with self.database.write(lasting=False) as connection:
            connection.execute(self.database.upsert(workers, {"name": worker, **news}, **news))

    def leave(self, worker: str) -> None:
        """A worker is gone."""
        with self.database.write(lasting=False) as connection:
            connection.execute(delete(workers).where(workers.c.name == worker))

    def note(self, worker: str) -> str:
        """What a worker said last; empty if nothing."""
        with self.database.read() as connection:
            return connection.execute(select(workers.c.note).where(workers.c.name == worker)).scalar() or ""

    def is_ready(self, worker: str) -> bool:
        """Whether a worker ever was ready."""
        with self.database.read() as connection:
            return bool(connection.execute(select(workers.c.ready).where(workers.c.name == worker)).scalar())

    def ready(self) -> int:
        """How many can take work."""
        alive = workers.c.seen > time.time() - self.lease
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).where(workers.c.ready, alive)).scalar_one())

    def forget(self) -> None:
        """Drop the rows of workers that are long gone."""
        with self.database.write(lasting=False) as connection:
            connection.execute(delete(workers).where(workers.c.seen < time.time() - FORGOTTEN))
