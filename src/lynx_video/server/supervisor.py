"""Keeps workers running: starts them, starts others for those that die, gives back what these had, and keeps the house."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from lynx_video.errors import LynxError
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.crew import Crew
from lynx_video.server.database import Database
from lynx_video.server.folder import Folder
from lynx_video.server.jobs import Queue
from lynx_video.server.worker import CANNOT_START, WorkOrder, order_line
from lynx_video.studio.setup import Setup

log = logging.getLogger("lynx_video.server")
LOOK_SECONDS = 0.1
TIDY_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a dead worker's successor starts; doubled with each that never was ready."""
MOST_STILLBORN = 3
"""Workers in a row that die before they are ready; then something is wrong with all of them."""
GRACE = 75.0
"""Seconds that workers have to end their step; what stops the service should wait a little longer (deploy/ has 90)."""


@dataclass(kw_only=True, slots=True)
class _Place:
    """A worker's place: who has it, what is set for it, how many died in it before they were ready, and when the next may start."""

    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    stillborn: int = 0
    after: float = 0.0


@dataclass(kw_only=True, slots=True)
class Supervisor:
    """The workers of this process. fault: why it gave up, in a sentence; empty while it did not."""

    store: StoreFlags
    flags: ServeFlags
    setup: Setup
    database: Database
    fault: str = ""
    _places: list[_Place] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the workers, and a thread that watches them."""
        count = self.flags.workers
        cards = _cards() if count > 1 and self.setup.model.device is None else []
        self._places = [_Place(environment=card_of(place, cards)) for place in range(count)]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell the workers to stop at their next step and wait for them; what they worked on is in the queue again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for place in self._places:
            if place.process is not None:
                _hang_up(place.process)
        until = time.monotonic() + GRACE
        for place in self._places:
            if place.process is None:
                continue
            try:
                place.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                place.process.kill()
                place.process.wait()
                with suppress(LynxError):  # else its lease runs out
                    self._queue().release(place.name)

    def processes(self) -> list[int]:
        """Process ids of the workers that run."""
        return [place.process.pid for place in self._places if place.process is not None and place.process.poll() is None]

    def _watch(self) -> None:
        tidied = 0.0
        while not self._stop.is_set() and not self.fault:
            try:
                for place in self._places:
                    self._look(place)
                if time.monotonic() - tidied > TIDY_SECONDS:
                    tidied = time.monotonic()
                    self._tidy()
            except LynxError as error:  # the database is away for a moment
                log.warning("%s", error)
            except Exception:
                log.exception("the supervisor failed; it goes on")
            self._stop.wait(LOOK_SECONDS)

    def _look(self, place: _Place) -> None:
        """Start a place's worker if it has none; if it died, see to what it had."""
        if place.process is None:
            if time.monotonic() >= place.after:
                self._begin(place)
            return
        code = place.process.poll()
        if code is None:
            return
        _hang_up(place.process)
        crew = Crew(database=self.database, lease=self.flags.lease)
        if code == CANNOT_START:
            self.fault = crew.note(place.name) or "a worker can't start."
            return
        was_ready = crew.is_ready(place.name)
        folder = Folder(path=self.store.data)
        for job in self._queue().reclaim(place.name):
            log.warning("a worker died (%s) while it worked on %s: %s", code, job.id, job.status)
            if job.status == "failed":
                folder.forget(job.id)
        crew.leave(place.name)
        place.stillborn = 0 if was_ready else place.stillborn + 1
        if place.stillborn >= MOST_STILLBORN:
            self.fault = f"{place.stillborn} workers in a row died before they were ready (the last with {code})."
        place.process = None
        place.after = time.monotonic() + min(LONGEST_PAUSE, FIRST_PAUSE * 2**place.stillborn)

    def _begin(self, place: _Place) -> None:
        place.name = f"worker_{uuid.uuid4().hex[:12]}"
        order = WorkOrder(name=place.name, store=self.store, setup=self.setup, lease=self.flags.lease)
        command = [sys.executable, "-m", "lynx_video.server.worker"]
        environment = {**os.environ, **place.environment}
        place.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        assert place.process.stdin is not None
        with suppress(OSError):  # it died at once; the next look finds that
            place.process.stdin.write(order_line(order))
            place.process.stdin.flush()

    def _tidy(self) -> None:
        """Forget what is too old, and files of jobs that are no more."""
        queue, folder = self._queue(), Folder(path=self.store.data)
        keep = self.flags.keep_days
        for job in queue.expire(None if keep is None else keep * 86_400):
            folder.forget(job.id)
        Crew(database=self.database, lease=self.flags.lease).forget()
        for file in folder.sweep(queue.known(), queue.unfinished()):
            log.info("removed %s: no job needs it", file.name)
        self.database.forget_log()

    def _queue(self) -> Queue:
        return Queue(database=self.database, lease=self.flags.lease)


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    """Close a worker's stdin: it stops, if it still runs."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()


def card_of(place: int, cards: Sequence[str]) -> dict[str, str]:
    """What a worker's environment says so that the GPUs are dealt out one by one; nothing where there are not several."""
    return {"CUDA_VISIBLE_DEVICES": cards[place % len(cards)]} if len(cards) > 1 else {}


def _cards() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [one.strip() for one in named.split(",")] if named else [str(one) for one in range(torch.cuda.device_count())]
