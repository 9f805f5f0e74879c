"""Clips that were asked for, made one after the other by the one studio; whoever asked may look, cancel, or go away meanwhile.

A job is worked on in a thread of its own: a page that is closed does not end it, its clip lies in the folder afterwards.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lynx_video.errors import BadRequest, Cancelled, LynxError, Refused
from lynx_video.work import is_full

if TYPE_CHECKING:
    from lynx_video.pipeline.denoise import Step
    from lynx_video.studio.request import Request
    from lynx_video.studio.studio import Studio
    from lynx_video.types import Picture

MOST_WAITING = 20
"""Jobs in the queue; who comes later is asked to come again."""
KEPT_SECONDS = 3600.0
"""How long a job that has ended is remembered, for a page that comes back."""
PREVIEW_SHARE = 0.05
"""Of the time of the steps, at most, goes into previews."""
State = Literal["waiting", "preparing", "denoising", "finishing", "done", "failed", "refused", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "refused", "cancelled")


@dataclass(kw_only=True, slots=True)
class Job:
    """One clip that was asked for, and how far it is. Written by the thread that works on it, read by pages.

    step, steps: of the denoising. seconds: since its first step. preview: the first frame as the last looked-at step left it.
    said: why it ended without a clip. record, cautions: of a clip that is done.
    """

    request: Request
    target: Path
    portrait: Path
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "waiting"
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    preview: Picture | None = None
    said: str = ""
    missed: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()
    stop: threading.Event = field(default_factory=threading.Event)
    ended_at: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


class Queue:
    """Jobs in the order they came. One thread works on them; all methods may be called from any."""

    def __init__(self, studio: Studio, folder: Path) -> None:
        """folder: where clips go."""
        self._studio, self._folder = studio, folder
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="clips", daemon=True)
        self._thread.start()

    def submit(self, request: Request, portrait: Path) -> Job:
        """Put a request last. portrait: a file that is this job's own, removed when it has ended.

        Raises BadRequest if the queue is full, or closed.
        """
        with self._changed:
            self._forget()
            waiting = sum(job.state == "waiting" for job in self._jobs.values())
            if self._closed or waiting >= MOST_WAITING:
                raise BadRequest(
                    "the studio is closing." if self._closed else f"{waiting} clips wait already; come again later."
                )
            job = Job(request=request, target=Path(), portrait=portrait)
            job.target = self._folder / f"{datetime.now():%Y%m%d-%H%M%S}-{job.key[:8]}.mp4"
            self._jobs[job.key] = job
            self._changed.notify_all()
            return job

    def find(self, key: str) -> Job | None:
        """The job of a key; None if it was never here or is forgotten."""
        return self._jobs.get(key)

    def ahead(self, job: Job) -> int:
        """How many clips come before this one, the one in work included."""
        with self._changed:
            others = list(self._jobs.values())
            return sum(not other.ended for other in others[: others.index(job)]) if job in others else 0

    def cancel(self, key: str) -> None:
        """Stop a job: at once if it waits, at its next step if it is in work. A job that has ended stays as it is."""
        with self._changed:
            job = self._jobs.get(key)
            if job is None:
                return
            job.stop.set()
            if job.state == "waiting":
                self._end(job, "cancelled", "cancelled while it waited; nothing was made.")

    def close(self, seconds: float = 60.0) -> None:
        """Cancel everything and wait for the thread, so long at most."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for key in list(self._jobs):
            self.cancel(key)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._work(job)

    def _next(self) -> Job | None:
        """The first that waits, once there is one; None at the end."""
        with self._changed:
            while not self._closed:
                for job in self._jobs.values():
                    if job.state == "waiting":
                        job.state = "preparing"
                        return job
                self._changed.wait()
            return None

    def _work(self, job: Job) -> None:
        try:
            order = self._studio.check(job.request)
            _go_on(job)
            guest = self._studio.meet(order)
            _go_on(job)
            made = self._studio.film(order, guest, job.target, on_step=self._watcher(job), before_writing=lambda _: _go_on(job))
        except Cancelled as error:
            self._end(job, "cancelled", str(error))
        except Refused as error:
            self._end(job, "refused", str(error))
        except Exception as error:  # noqa: BLE001 (one clip must not end the studio)
            full = f"{self._folder}: the disk is full; make room, then ask again." if is_full(error) else ""
            self._end(job, "failed", full or (str(error) if isinstance(error, LynxError) else unforeseen(error)))
        else:
            job.record, job.missed = made.record, made.missed
            job.cautions = tuple(dict.fromkeys(made.cautions))
            self._end(job, "done", "")

    def _watcher(self, job: Job) -> Callable[[Step], None]:
        """The step callback: notes how far it is, looks at the picture if that costs little, stops if asked to."""
        looked, cost = 0.0, 0.0

        def on_step(step: Step) -> None:
            nonlocal looked, cost
            _go_on(job)
            if looked == 0 or cost <= PREVIEW_SHARE * (step.seconds - looked):
                began = time.monotonic()
                job.preview = self._preview(step)
                cost, looked = time.monotonic() - began, step.seconds
            job.step, job.steps, job.seconds = step.number, step.total, step.seconds
            job.state = "denoising" if step.number < step.total else "finishing"

        return on_step

    def _preview(self, step: Step) -> Picture | None:
        """How the clip looks now; None if the safety gate refuses it, or if it can't be had: no clip is lost for it."""
        try:
            return self._studio.preview(step)
        except Exception:  # noqa: BLE001
            return None

    def _end(self, job: Job, state: State, said: str) -> None:
        with suppress(OSError):
            job.portrait.unlink(missing_ok=True)
        job.said, job.ended_at = said.replace(str(job.portrait), job.request.name), time.monotonic()
        job.state = state  # last: whoever sees it sees the rest

    def _forget(self) -> None:
        old = time.monotonic() - KEPT_SECONDS
        for key in [key for key, job in self._jobs.items() if job.ended and job.ended_at < old]:
            del self._jobs[key]


def unforeseen(error: BaseException) -> str:
    """A sentence for what nobody foresaw; the traceback goes to the terminal, for whoever runs the page."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return "out of memory; take fewer frames or a smaller size."
    traceback.print_exception(error, file=sys.stderr)
    return f"something unforeseen happened ({type(error).__name__}); the terminal that runs this page has more."


def _go_on(job: Job) -> None:
    if job.stop.is_set():
        raise Cancelled("cancelled; nothing was kept.")
