"""The queue: jobs that wait, are worked on, and are done, as rows; every change of hands is one statement that says from whom.

A worker that takes a job gets a token. Whoever holds the token that is in the row owns the job: progress, publishing and failing are
updates of the row *with this token*, so a worker whose job was cancelled (the row is gone), or given to another after its lease ran
out (the token is another), changes nothing and finds that out with its next step.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from lynx_video.errors import LynxError
from lynx_video.server.database import Database, jobs, meta, repeats
from lynx_video.server.folder import is_id

Kind = Literal["video", "identity"]
Status = Literal["queued", "in_progress", "completed", "failed"]
ATTEMPTS = 2
"""Times that a job may take its worker along; then the job is to blame."""
UNSEEN_ATTEMPTS = 5
"""The same, where nobody saw how the worker ended: the whole machine may have gone, several times."""
REPEAT_SECONDS = 24 * 3600.0
"""How long an idempotency key is remembered."""
RECENT = 20
_BACK: dict[str, Any] = {"status": "queued", "worker": None, "token": None, "lease": None, "step": 0, "preview": None}
"""What a job is that goes back to its old place."""
PREFIX: dict[Kind, str] = {"video": "video_", "identity": "ident_"}


class QueueFull(LynxError):
    """As many jobs wait as may wait."""


class KeyReused(LynxError):
    """An idempotency key that came with another request before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A row of the queue. request: what a worker needs. facts: what is told of it from the beginning. Times: seconds since 1970.

    attempts: how often work on it began and did not end in an orderly way. deaths: how often its worker was seen dead. step, steps:
    of all its clips together. preview: the step of which there is a picture. work_seconds: from its beginning to its end.
    """

    seq: int
    id: str
    kind: Kind
    owner: str
    status: Status
    priority: int
    request: dict[str, Any]
    facts: dict[str, Any]
    created_at: float
    started_at: float | None
    completed_at: float | None
    attempts: int
    deaths: int
    worker: str | None
    token: str | None
    lease: float | None
    step: int
    steps: int
    step_seconds: float | None
    preview: int | None
    work_seconds: float | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job to be queued. steps: how many it will take, 0 if unknown. repeat: idempotency key and hash of the request."""

    id: str
    kind: Kind
    owner: str
    request: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    repeat: tuple[str, str] | None = None


def new_id(kind: Kind) -> str:
    """An id that nobody can guess and that is safe as a file name."""
    return PREFIX[kind] + uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """The jobs in a database. lease: seconds that a worker owns a job without a sign of life."""

    database: Database
    lease: float = 15.0

    def submit(self, new: NewJob, limit: int) -> tuple[Job, bool]:
        """Queue a job; and whether it is new. One with an idempotency key that was seen is the job of then.

        Raises QueueFull if `limit` jobs wait already, KeyReused if the key came with another request.
        """
        with self.database.write() as connection:
            connection.execute(select(meta.c.value).where(meta.c.name == "queue").with_for_update())  # one after the other
            if new.repeat is not None and (found := _repeated(connection, new.owner, *new.repeat)) is not None:
                return found, False
            waiting = connection.execute(select(func.count()).where(jobs.c.status == "queued")).scalar_one()
            if waiting >= limit:
                raise QueueFull(f"{waiting} jobs wait already; try again later.")
            values = {
                "id": new.id,
                "kind": new.kind,
                "owner": new.owner,
                "status": "queued",
                "priority": 0 if new.kind == "identity" else 1,  # somebody waits for it, and it takes moments
                "request": dict(new.request),
                "facts": dict(new.facts),
                "created_at": time.time(),
                "attempts": 0,
                "deaths": 0,
                "step": 0,
                "steps": new.steps,
            }
            row = connection.execute(insert(jobs).values(values).returning(jobs)).one()
            if new.repeat is not None:
                key, digest = new.repeat
                news = {"digest": digest, "job": new.id, "created_at": time.time()}  # of an old one that is forgotten
                connection.execute(self.database.upsert(repeats, {"owner": new.owner, "key": key, **news}, **news))
            return _job(row), True

    def repeated(self, owner: str, key: str, digest: str) -> Job | None:
        """The job that came with this idempotency key, if any. Raises KeyReused if the request was another."""
        with self.database.read() as connection:
            return _repeated(connection, owner, key, digest)

    def knows(self, owner: str, key: str) -> bool:
        """Whether an idempotency key came before."""
        with self.database.read() as connection:
            return (
                connection.execute(select(repeats.c.job).where(repeats.c.owner == owner, repeats.c.key == key)).first()
                is not None
            )

    def get(self, owner: str, kind: Kind, identifier: str) -> Job | None:
        """A job of this owner."""
        with self.database.read() as connection:
            return _find(connection, owner, kind, identifier)

    def page(
        self, owner: str, kind: Kind, *, limit: int, after: str | None = None, newest_first: bool = True
    ) -> tuple[list[Job], bool] | None:
        """Jobs of this owner that follow the job `after`, and whether there are more; None if there is no such job."""
        with self.database.read() as connection:
            wanted = select(jobs).where(jobs.c.owner == owner, jobs.c.kind == kind)
            if after is not None:
                last = _find(connection, owner, kind, after) if is_id(after) else None
                if last is None:
                    return None
                wanted = wanted.where(jobs.c.seq < last.seq if newest_first else jobs.c.seq > last.seq)
            order = jobs.c.seq.desc() if newest_first else jobs.c.seq.asc()
            rows = connection.execute(wanted.order_by(order).limit(limit + 1)).all()
            return [_job(row) for row in rows[:limit]], len(rows) > limit

    def position(self, job: Job) -> int:
        """How many wait before it."""
        before = or_(jobs.c.priority < job.priority, and_(jobs.c.priority == job.priority, jobs.c.seq < job.seq))
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).where(jobs.c.status == "queued", before)).scalar_one())

    def waiting(self) -> int:
        """How many wait."""
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).where(jobs.c.status == "queued")).scalar_one())

    def clip_seconds(self) -> float | None:
        """What a clip took lately; None if none was made."""
        with self.database.read() as connection:
            recent = (
                select(jobs.c.work_seconds)
                .where(jobs.c.status == "completed", jobs.c.kind == "video")
                .order_by(jobs.c.completed_at.desc())
                .limit(RECENT)
                .subquery()
            )
            found = connection.execute(select(func.avg(recent.c.work_seconds))).scalar()
            return None if found is None else float(found)

    def delete(self, owner: str, kind: Kind, identifier: str, *, forget_key: bool = False) -> Job | None:
        """Take a job of this owner out, whatever its state; what was taken. Whoever works on it finds out with the next step.

        forget_key: its idempotency key may come again.
        """
        with self.database.write() as connection:
            if forget_key:
                connection.execute(delete(repeats).where(repeats.c.owner == owner, repeats.c.job == identifier))
            gone = delete(jobs).where(jobs.c.owner == owner, jobs.c.kind == kind, jobs.c.id == identifier)
            row = connection.execute(gone.returning(jobs)).first()
            return None if row is None else _job(row)

    def claim(self, worker: str) -> Job | None:
        """Take the next job; nobody else gets it."""
        with self.database.read() as connection:  # looking takes no lock
            if connection.execute(select(jobs.c.seq).where(jobs.c.status == "queued").limit(1)).first() is None:
                return None
        now = time.time()
        following = (
            select(jobs.c.seq)
            .where(jobs.c.status == "queued")
            .order_by(jobs.c.priority, jobs.c.seq)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        taken = (
            update(jobs)
            .where(jobs.c.seq == following, jobs.c.status == "queued")
            .values(
                status="in_progress",
                worker=worker,
                token=uuid.uuid4().hex,
                lease=now + self.lease,
                started_at=now,
                attempts=jobs.c.attempts + 1,
                step=0,
                preview=None,
            )
            .returning(jobs)
        )
        with self.database.write() as connection:
            row = connection.execute(taken).first()
            return None if row is None else _job(row)

    def advance(self, job: Job, step: int, steps: int, step_seconds: float, preview: int | None) -> bool:
        """Note progress; False if the job is not its worker's any more."""
        news = {"step": step, "steps": steps, "step_seconds": step_seconds, "preview": preview}
        return self._change(job, lasting=False, lease=time.time() + self.lease, **news)

    def renew(self, job: Job) -> bool:
        """A sign of life; False if the job is not its worker's any more."""
        return self._change(job, lasting=False, lease=time.time() + self.lease)

    def put_back(self, job: Job) -> bool:
        """Queue it again at its old place, as if it had not begun: its worker was told to stop."""
        attempts = max(0, job.attempts - 1)
        return self._change(job, **_BACK, attempts=attempts)

    def finish(
        self,
        job: Job,
        result: Mapping[str, Any],
        place: Callable[[], None] = lambda: None,
        note: Callable[[Connection], None] = lambda _: None,
    ) -> bool:
        """The job is done; False, and nothing happens, if it is not its worker's any more.

        place: puts the files in their place, while nobody else can take the job; if it raises, the job stays as it was. It may be
        called again, if the database could not be written after it. note: writes what else should be known, in the same transaction.
        """
        now = time.time()
        with self.database.write() as connection:
            values = {**_ended(job, now), "status": "completed", "result": dict(result), "step": jobs.c.steps}
            if connection.execute(_mine(job).values(values)).rowcount != 1:
                return False
            note(connection)
            place()
            return True

    def fail(self, job: Job, error: Mapping[str, Any], note: Callable[[Connection], None] = lambda _: None) -> bool:
        """The job cannot be done; False if it is not its worker's any more."""
        with self.database.write() as connection:
            values = {**_ended(job, time.time()), "status": "failed", "error": dict(error)}
            if connection.execute(_mine(job).values(values)).rowcount != 1:
                return False
            note(connection)
            return True

    def reclaim(self, worker: str | None = None) -> list[Job]:
        """Take back what dead workers had: those whose lease ran out, or those of a worker that was seen dead.

        They are queued again at their old place, or failed if they took their worker along too often. As they are now.
        """
        dead = jobs.c.lease < time.time() if worker is None else jobs.c.worker == worker
        wanted = select(jobs).where(jobs.c.status == "in_progress", dead)
        with self.database.read() as connection:
            if connection.execute(wanted.limit(1)).first() is None:
                return []
        found = []
        with self.database.write() as connection:
            for row in connection.execute(wanted.with_for_update(skip_locked=True)).all():
                job = _job(row)
                deaths = job.deaths + (worker is not None)
                values: dict[str, Any] = {**_BACK, "deaths": deaths}
                if job.attempts >= UNSEEN_ATTEMPTS or (worker is not None and deaths >= ATTEMPTS):
                    times = job.attempts if worker is None else deaths
                    message = f"the worker died {times} times while it worked on this; it is not tried again."
                    values = {
                        **_ended(job, time.time()),
                        "status": "failed",
                        "deaths": deaths,
                        "error": {"code": "worker_died", "message": message},
                    }
                found.append(
                    _job(connection.execute(update(jobs).where(jobs.c.seq == job.seq).values(values).returning(jobs)).one())
                )
        return found

    def release(self, worker: str) -> None:
        """As `put_back`, for whatever a worker has that was made to stop."""
        back = update(jobs).where(jobs.c.status == "in_progress", jobs.c.worker == worker)
        with self.database.write() as connection:
            connection.execute(back.values(**_BACK, attempts=jobs.c.attempts - 1))

    def expire(self, keep_seconds: float | None) -> list[Job]:
        """Forget what is too old: idempotency keys, and videos that ended so many seconds ago; the videos."""
        now = time.time()
        with self.database.write() as connection:
            connection.execute(delete(repeats).where(repeats.c.created_at < now - REPEAT_SECONDS))
            if keep_seconds is None:
                return []
            old = delete(jobs).where(jobs.c.kind == "video", jobs.c.completed_at < now - keep_seconds)
            return [_job(row) for row in connection.execute(old.returning(jobs)).all()]

    def known(self) -> set[str]:
        """The ids of all jobs."""
        with self.database.read() as connection:
            return set(connection.execute(select(jobs.c.id)).scalars())

    def unfinished(self) -> set[str]:
        """The ids of those that wait or are worked on."""
        with self.database.read() as connection:
            return set(connection.execute(select(jobs.c.id).where(jobs.c.status.in_(("queued", "in_progress")))).scalars())

    def counts(self) -> dict[tuple[str, str], int]:
        """How many there are of each kind and status."""
        with self.database.read() as connection:
            counted = select(jobs.c.kind, jobs.c.status, func.count()).group_by(jobs.c.kind, jobs.c.status)
            return {(kind, status): number for kind, status, number in connection.execute(counted)}

    def _change(self, job: Job, *, lasting: bool = True, **values: Any) -> bool:
        with self.database.write(lasting=lasting) as connection:
            return bool(connection.execute(_mine(job).values(values)).rowcount == 1)


def _mine(job: Job) -> Any:
    """An update of this job, if its token is still the one in the row."""
    return update(jobs).where(jobs.c.seq == job.seq, jobs.c.token == job.token, jobs.c.status == "in_progress")


def _ended(job: Job, now: float) -> dict[str, Any]:
    """What changes with the end of a job; of a private one nothing is kept of what was asked."""
    values = {"completed_at": now, "work_seconds": now - (job.started_at or now), "lease": None, "token": None, "preview": None}
    return {**values, "request": {}} if job.facts.get("private") else values


def _repeated(connection: Connection, owner: str, key: str, digest: str) -> Job | None:
    row = connection.execute(select(repeats).where(repeats.c.owner == owner, repeats.c.key == key)).first()
    if row is None or row.created_at < time.time() - REPEAT_SECONDS:
        return None
    if row.digest != digest:
        raise KeyReused(f"the idempotency key {key!r} came with another request before; take a new key for a new request.")
    found = connection.execute(select(jobs).where(jobs.c.id == row.job, jobs.c.owner == owner)).first()
    if found is None:
        raise KeyReused(
            f"the idempotency key {key!r} belongs to a {row.job.partition('_')[0]} that was deleted; take a new key."
        )
    return _job(found)


def _find(connection: Connection, owner: str, kind: Kind, identifier: str) -> Job | None:
    wanted = select(jobs).where(jobs.c.owner == owner, jobs.c.kind == kind, jobs.c.id == identifier)
    row = connection.execute(wanted).first()
    return None if row is None else _job(row)


def _job(row: Row[Any]) -> Job:
    return Job(**row._mapping)
