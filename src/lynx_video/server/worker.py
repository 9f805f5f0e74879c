"""A worker: one process, one model, one job after the other, until it is told to stop.

    python -m lynx_video.server.worker < order     what `supervisor.py` starts; when stdin ends, its supervisor is gone or wants it gone

It stops at the next step, and what it worked on goes back to its old place in the queue.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadOutput, BadRequest, Cancelled, LynxError
from lynx_video.server.config import StoreFlags
from lynx_video.server.crew import Crew, Doubt
from lynx_video.server.database import Database, DatabaseFull, Unavailable, open_database
from lynx_video.server.desk import unpacked, worded
from lynx_video.server.faults import code_of, log, speak
from lynx_video.server.folder import Folder, sync
from lynx_video.server.jobs import Job, Queue
from lynx_video.server.meters import CLIP_SECONDS, ENDED, FAILURES, STEP_SECONDS, add_up, spread
from lynx_video.studio.request import Request
from lynx_video.studio.setup import Setup
from lynx_video.studio.studio import Made, Studio

if TYPE_CHECKING:
    from lynx_video.pipeline.denoise import Step

IDLE_SECONDS = 0.2
PREVIEW_SECONDS, PREVIEW_SHARE = 0.5, 0.05
"""A preview at most so often, and at most this share of the time goes into them."""
GRACE = 60.0
"""Seconds that a worker whose supervisor is gone gets to the end of its step."""
CANNOT_START = 78
"""Exit code of a worker whose setup is at fault (EX_CONFIG)."""


class SetupFault(LynxError):
    """The model can't be loaded: another worker would fare no better."""


class Lost(Cancelled):
    """The job was cancelled, or given to another worker."""


class Stopped(Cancelled):
    """This worker was told to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkOrder:
    """What a worker is told when it is started."""

    name: str
    store: StoreFlags
    setup: Setup
    lease: float


class Worker:
    """Takes jobs and does them. One thread works; another gives signs of life."""

    def __init__(self, name: str, database: Database, folder: Folder, studio: Studio, lease: float) -> None:
        """Takes nothing yet."""
        self.name, self.folder, self.studio = name, folder, studio
        self.queue = Queue(database=database, lease=lease)
        self.crew = Crew(database=database, lease=lease)
        self._doubt = Doubt(lease)
        self.stopping = threading.Event()
        self._job: Job | None = None
        self.ready = False
        self._over = threading.Event()

    def run(self) -> None:
        """Load the model and do jobs until told to stop.

        Raises SetupFault if the model can't be loaded; and what is no fault of a job: then this process should end.
        """
        self.crew.report(self.name, ready=False)
        signs = threading.Thread(target=self._give_signs, daemon=True)
        signs.start()
        try:
            try:
                self.studio.open()
            except LynxError as error:
                raise SetupFault(str(error)) from error
            self.ready = True
            self.crew.report(self.name, ready=True)
            while not self.stopping.is_set():
                try:
                    done = self.turn()
                except (Unavailable, DatabaseFull) as error:
                    log.warning("%s: %s", self.name, error)
                    done = False
                if not done:
                    self.stopping.wait(IDLE_SECONDS)
        finally:
            self._over.set()
            signs.join()
            if self.stopping.is_set() or not self.ready:  # else the supervisor should see that it was ready before it failed
                with suppress(LynxError):
                    self.crew.leave(self.name)

    def turn(self) -> bool:
        """Do the next job, if there is one."""
        job = self.queue.claim(self.name)
        if job is None:
            return False
        log.info("%s: %s begins (attempt %d)", self.name, job.id, job.attempts)
        self._job = job
        try:
            self._do(job)
        finally:
            self._job = None
        return True

    def _do(self, job: Job) -> None:
        """Do a job and say what came of it. Raises what leaves this process in doubt, after saying so."""
        try:
            ended = self._clip(job) if job.kind == "video" else self._identity(job)
        except Stopped:
            if self._surely(lambda: self.queue.put_back(job)):
                log.info("%s: %s goes back to the queue", self.name, job.id)
            return
        except Lost:
            ended = False
        except Exception as error:
            if self._failed(job, error):
                self.folder.forget(job.id)
            else:  # perhaps only because it was deleted, and its files from under our hands
                self._drop(job)
            if not isinstance(error, (LynxError, OSError)):
                raise
            return
        if ended:
            self.folder.forget_source(job.id)
            log.info("%s: %s is done", self.name, job.id)
        else:  # deleted: nothing of it may stay; with another worker: that one has files of its own
            log.info("%s: %s is not ours any more", self.name, job.id)
            self._drop(job)

    def _clip(self, job: Job) -> bool:
        from lynx_video.media.image import write_picture

        assert job.token is not None
        request = unpacked(job.request, self.folder)
        self._check_there(job, request)
        final, thumbnail = self.folder.video(job.id), self.folder.thumbnail(job.id)
        target, still = (self.folder.draft(file, job.token) for file in (final, thumbnail))
        steps = _Steps(self, job)
        order = self.studio.check(request)
        steps.look()
        guest = self.studio.meet(order)
        steps.look()
        made = self.studio.film(
            order, guest, target, on_step=steps, on_candidate=steps.next_clip, before_writing=lambda _: steps.look(ending=True)
        )
        write_picture(still, made.clip.frames[len(made.clip.frames) // 2])
        place = self._place({still: thumbnail, target: final})
        seconds = time.time() - (job.started_at or time.time())
        tally = {
            (ENDED, "completed"): 1.0,
            **spread("clip_seconds", [seconds], CLIP_SECONDS),
            **spread("step_seconds", steps.seconds, STEP_SECONDS),
        }
        result = self._result(job, request, made)
        return self._surely(lambda: self.queue.finish(job, result, place, lambda connection: self._add(connection, tally)))

    def _result(self, job: Job, request: Request, made: Made) -> dict[str, Any]:
        """What is told of a finished clip."""
        cautions = list(dict.fromkeys([*job.facts["warnings"], *(worded(one, request) for one in made.cautions)]))
        settings = {key: value for key, value in made.record.items() if key not in ("prompt", "similarity", "coverage")}
        return {
            "seed": made.clip.seed,
            "similarity": made.clip.similarity,
            "coverage": made.clip.coverage,
            "judge": made.judge or None,
            "missed": made.missed or None,
            "warnings": cautions,
            "settings": settings,
        }

    def _identity(self, job: Job) -> bool:
        from lynx_video.pipeline.enrol import save_enrolment

        assert job.token is not None
        values = job.request
        portrait = self.folder.upload(values["portrait"])
        enrolment = self.studio.enrol(portrait, values["face_index"], consent=values["consent"], shown=values["shown"])
        final = self.folder.identity(job.id)
        draft = self.folder.draft(final, job.token)
        save_enrolment(draft, enrolment)
        place = self._place({draft: final})
        tally = {(ENDED, "completed"): 1.0}
        return self._surely(lambda: self.queue.finish(job, {}, place, lambda connection: self._add(connection, tally)))

    def _place(self, drafts: Mapping[Path, Path]) -> Callable[[], None]:
        """What puts drafts in their place; they are on the disk when this returns, so that no power cut leaves names without bytes."""
        for draft in drafts:
            sync(draft)
        return lambda: self.folder.place(drafts)

    def _check_there(self, job: Job, request: Request) -> None:
        if request.identity is not None and not request.identity.is_file():
            raise BadRequest(f"the identity {job.request['identity']} was deleted before the clip could be made.")

    def _failed(self, job: Job, error: Exception) -> bool:
        code = code_of(error)
        message = str(error)
        if code == "internal_error":
            log.error("%s: %s failed", self.name, job.id, exc_info=error)
            message = f"internal error ({type(error).__name__}); the service's log has it."
        elif code == "out_of_memory":
            message = "out of memory; ask for fewer frames or a smaller size."
        elif code == "disk_full":
            message = "the service's disk is full; ask again later."
        elif isinstance(error, BadOutput):  # its own words name our files
            message = "the service's disk can't be written just now; ask again later."
        elif job.kind == "video":
            message = worded(message, unpacked(job.request, self.folder))
        else:
            message = message.replace(str(self.folder.upload(job.request["portrait"])), job.request["shown"])
        log.warning("%s: %s failed: %s: %s", self.name, job.id, code, "(private)" if job.facts.get("private") else message)
        tally = {(ENDED, "failed"): 1.0, (FAILURES, code): 1.0}
        said = {"code": code, "message": message}
        return self._surely(lambda: self.queue.fail(job, said, lambda connection: self._add(connection, tally)))

    def _drop(self, job: Job) -> None:
        """Remove what this attempt has written."""
        assert job.token is not None
        finals = (self.folder.video(job.id), self.folder.thumbnail(job.id), self.folder.identity(job.id))
        for file in (self.folder.preview(job.id), *(self.folder.draft(final, job.token) for final in finals)):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _add(self, connection: Any, tally: Mapping[tuple[str, str], float]) -> None:
        add_up(self.queue.database, connection, tally)

    def _surely(self, say: Any) -> bool:
        """Say how a job ended, and again if the database can't be had: a clip of an hour is not lost to a locked file."""
        while True:
            try:
                return bool(say())
            except (Unavailable, DatabaseFull) as error:
                log.warning("%s: %s", self.name, error)
                time.sleep(1.0)

    def beat(self) -> None:
        """A sign of life, and a look at whether others are without one."""
        job, began = self._job, time.monotonic()
        try:
            if job is not None:
                self.queue.renew(job)
            self.crew.report(self.name, ready=self.ready)
        except LynxError:
            self._doubt.renew()
            raise
        if time.monotonic() - began > self.queue.lease / 2:  # it hung: the others' beats may have as well
            self._doubt.renew()
        if not self._doubt.is_over:
            return
        for taken in self.queue.reclaim():
            log.warning("%s: the worker of %s gives no sign of life; it is %s", self.name, taken.id, taken.status)
            if taken.status == "failed":
                self.folder.forget(taken.id)

    def _give_signs(self) -> None:
        while not self._over.wait(self.queue.lease / 4):  # also while the last step comes to its end
            try:
                self.beat()
            except LynxError as error:
                log.warning("%s: %s", self.name, error)


class _Steps:
    """The step callback of a job: notes progress, makes previews, and stops the work if it is for nothing."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self.worker, self.job = worker, job
        self.seconds: list[float] = []
        self._clips = 0
        self._since = time.monotonic()
        self._preview: int | None = None
        self._next_preview = time.monotonic() + PREVIEW_SECONDS

    def next_clip(self, _: object) -> None:
        """Another of several clips is done. Raises as `look`."""
        self._clips += 1
        self.look()

    def look(self, *, ending: bool = False) -> None:
        """Raises Stopped or Lost, also where there is no step. ending: so near to the end that it is only stopped if it is lost."""
        if self.worker.stopping.is_set() and not ending:
            raise Stopped("the worker was told to stop.")
        self._go_on(lambda: self.worker.queue.renew(self.job))

    def _go_on(self, mine: Callable[[], bool]) -> None:
        try:
            if mine():
                return
        except (Unavailable, DatabaseFull) as error:  # the next step tries again; publishing asks in any case
            log.warning("%s: %s", self.worker.name, error)
            return
        raise Lost("the job was cancelled or given to another worker.")

    def __call__(self, step: Step) -> None:
        """Raises Stopped or Lost."""
        worker, now = self.worker, time.monotonic()
        self.seconds.append(now - self._since)
        if worker.stopping.is_set():
            raise Stopped("the worker was told to stop.")
        done, total = self._clips * step.total + step.number, max(self.job.steps, step.total)
        if now >= self._next_preview and step.number < step.total and self._draw(step):
            self._preview = done
        pace = sum(self.seconds) / len(self.seconds)
        self._go_on(lambda: worker.queue.advance(self.job, done, total, pace, self._preview))
        self._since = time.monotonic()

    def _draw(self, step: Step) -> bool:
        """Whether there is a new preview; none that the safety gate refuses."""
        from lynx_video.media.image import write_picture

        began, picture = time.monotonic(), None
        try:
            picture = self.worker.studio.preview(step)
            if picture is not None:
                write_picture(self.worker.folder.preview(self.job.id), picture)
        except (LynxError, OSError) as error:  # nobody misses a clip for a preview
            log.warning("%s: no preview: %s", self.worker.name, error)
            picture = None
        now = time.monotonic()
        self._next_preview = now + max(PREVIEW_SECONDS, (now - began) / PREVIEW_SHARE)
        return picture is not None


def main() -> int:
    """Read the order from stdin and work; the exit code."""
    order: WorkOrder = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))
    speak()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor says what to do
    database = open_database(order.store)
    worker = Worker(order.name, database, Folder(path=order.store.data), Studio(order.setup), order.lease)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    threading.Thread(target=_follow, args=(worker,), daemon=True).start()
    try:
        worker.run()
    except SetupFault as error:
        worker.crew.report(order.name, ready=False, note=str(error))
        return CANNOT_START
    return 0


def _follow(worker: Worker) -> None:
    """Stop when stdin ends; and if the end does not come, end."""
    while sys.stdin.buffer.read(1):
        pass
    worker.stopping.set()
    if worker.ready:
        time.sleep(GRACE)
    os._exit(1)  # with a model that is only half read, there is nothing to put back


def order_line(order: WorkOrder) -> bytes:
    """An order as the line that `main` reads."""
    return base64.b64encode(pickle.dumps(order)) + b"\n"


if __name__ == "__main__":
    try:
        code = main()
    except Exception:  # noqa: BLE001 (whatever it was, it is in the log)
        log.exception("the worker ends")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # taking torch down in order would take seconds, and _follow still reads
