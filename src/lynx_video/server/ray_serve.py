"""The same service as an application of Ray Serve, on a cluster: fronts that answer, workers that come and go with the queue.

    Front     the HTTP app, as many replicas as wanted: all state is in the database and the data folder
    Films     a worker, one model a replica, with a GPU of its own; Serve starts more of them while more calls wait
    Dispatch  one replica that calls a worker for each job that waits, which is the load that Serve sees

A job stays in the database while it is worked on. A replica that is lost takes nothing along: its lease runs out, the job is queued
again and another worker is called. All nodes need the same data folder, and PostgreSQL as soon as there is more than one of them.

    serve run deploy/ray-serve.yaml
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest, LynxError
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.crew import Doubt
from lynx_video.server.worker import IDLE_SECONDS, Worker
from lynx_video.studio.setup import FaceFlags, ModelFlags, Setup, SigningFlags

if TYPE_CHECKING:
    from fastapi import FastAPI

Flags = TypeVar("Flags")
log = logging.getLogger("lynx_video.server")
NAME = "lynx-video"
LOOK_SECONDS = 0.5
LIGHT = {"num_cpus": 0.1}
"""What a replica without a model takes of a node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterFlags:
    """How many replicas there are, and what each takes of a node."""

    fronts: int = 1
    "replicas that answer requests"
    min_workers: int = 1
    "workers that are there even if nothing waits; 0 loads the model only when somebody asks"
    max_workers: int = 1
    "workers at most"
    gpus: float | None = None
    "GPUs of a worker; by default 1, and 0 for the nano models"
    cpus: float = 1.0
    "CPU cores of a worker"
    idle_seconds: float = 600.0
    "time without enough to do after which a worker goes"
    patience: float = 600.0
    "seconds that a worker which is to go gets to finish its clip; what it does not finish another makes anew"

    def __post_init__(self) -> None:
        if not (self.fronts >= 1 and 0 <= self.min_workers <= self.max_workers and self.max_workers >= 1):
            raise BadRequest(
                "cluster: expected fronts from 1 and 0 <= min_workers <= max_workers, max_workers from 1; "
                f"got {self.fronts}, {self.min_workers} and {self.max_workers}."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Everything that the replicas need to know."""

    store: StoreFlags
    serve: ServeFlags
    setup: Setup
    cluster: ClusterFlags = field(default_factory=ClusterFlags)
    keyless: bool = False
    "answer without keys, and then only who speaks to this machine by its own names"


def build(args: Mapping[str, Any]) -> Any:
    """The application; what `import_path: lynx_video.server.ray_serve:build` calls with the `args` of the config file.

    args: mappings named store, serve, model, runtime, face, safety, signing and cluster, with the fields of StoreFlags, ServeFlags,
    ModelFlags and so on, that is the options of `lynx-video serve` with underscores; recogniser, a path; and keyless, true to answer
    this machine without keys. Raises BadRequest for what is not known or wrong.
    """
    from ray import serve

    terms = terms_of(args)
    cluster, nano = terms.cluster, terms.setup.model.model.startswith("nano")
    gpus = cluster.gpus if cluster.gpus is not None else float(not nano)
    films = serve.deployment(
        name="Films",
        max_ongoing_requests=1,  # a studio makes one clip at a time
        ray_actor_options={"num_gpus": gpus, "num_cpus": cluster.cpus},
        autoscaling_config={
            "min_replicas": cluster.min_workers,
            "max_replicas": cluster.max_workers,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 3.0,
            "downscale_delay_s": cluster.idle_seconds,
        },
        graceful_shutdown_timeout_s=cluster.patience,
        health_check_period_s=5.0,
    )(Films)
    dispatch = serve.deployment(name="Dispatch", num_replicas=1, ray_actor_options=LIGHT, health_check_period_s=5.0)(Dispatch)
    front = serve.deployment(name="Front", num_replicas=cluster.fronts, ray_actor_options=LIGHT, max_ongoing_requests=1000)(
        serve.ingress(_front(terms))(Front)
    )
    return front.bind(dispatch.bind(terms, films.bind(terms)))


def terms_of(args: Mapping[str, Any]) -> Terms:
    """The arguments of a config file as values. Raises BadRequest, naming the key."""
    from lynx_video.safety import SafetyConfig

    known = ("store", "serve", "model", "runtime", "face", "safety", "signing", "cluster")
    if unknown := sorted(set(args) - {*known, "recogniser", "keyless"}):
        raise BadRequest(f"args: {unknown[0]!r} is not known; the keys are {', '.join(known)}, recogniser and keyless.")
    keyless = args.get("keyless", False)
    if not isinstance(keyless, bool):
        raise BadRequest(f"args.keyless: expected true or false, got {keyless!r}.")
    recogniser = args.get("recogniser")
    parts = {name: args.get(name) or {} for name in known}
    for name in ("host", "port", "workers"):
        if name in parts["serve"]:
            raise BadRequest(
                f"args.serve.{name}: Serve's http_options say host and port, args.cluster how many workers there are."
            )
    runtime = _flags("runtime", RuntimeConfig, parts["runtime"])
    return Terms(
        store=_flags("store", StoreFlags, parts["store"]),
        serve=_flags("serve", ServeFlags, {**parts["serve"], "workers": 0}),
        keyless=keyless,
        setup=Setup(
            model=_flags("model", ModelFlags, parts["model"]),
            face=_flags("face", FaceFlags, parts["face"]),
            runtime={name: getattr(runtime, name) for name in parts["runtime"]},
            safety=_flags("safety", SafetyConfig, parts["safety"]),
            recogniser=None if recogniser is None else Path(recogniser),
            signing=_flags("signing", SigningFlags, parts["signing"]),
        ),
        cluster=_flags("cluster", ClusterFlags, parts["cluster"]),
    )


def _flags(part: str, kind: type[Flags], values: Any) -> Flags:
    """Fields of a dataclass from the values of a config file, which may all be texts. Raises BadRequest."""
    from pydantic import TypeAdapter, ValidationError

    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or (unknown := set(values) - set(names)):
        wrong = f"{sorted(unknown)[0]!r} is not known" if isinstance(values, Mapping) else f"got {values!r}"
        raise BadRequest(f"args.{part}: {wrong}; expected {', '.join(names)}.")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["args", part, *(str(one) for one in first["loc"][:1])])
        raise BadRequest(
            f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {str(first['input'])[:100]!r}."
        ) from error


class Front:
    """Answers requests; the app itself is given by `serve.ingress`."""

    def __init__(self, dispatch: Any) -> None:
        """dispatch: only bound so that it is deployed; the database is between the two."""


def _front(terms: Terms) -> Callable[[], FastAPI]:
    """What makes the app in a replica."""

    def make() -> FastAPI:
        from lynx_video.server.app import make_app
        from lynx_video.server.serve import opened

        _log()
        stack = ExitStack()
        # Serve listens, and who may reach it cannot be seen from here.
        service = stack.enter_context(opened(terms.store, terms.serve, terms.setup, keyed=not terms.keyless))
        app = make_app(service)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            with stack:
                yield
                service.closing = True

        app.router.lifespan_context = lifespan
        return app

    return make


class _OnCall(Worker):
    """A worker that takes a job when it is called, and only then."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: queue.SimpleQueue[Future[bool]] = queue.SimpleQueue()
        self.on_duty = threading.Event()

    def turn(self) -> bool:
        """Wait for a call, and answer whether there was a job."""
        self.on_duty.set()
        try:
            call = self.calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            return True  # no rest on top of this one
        try:
            done = super().turn()
        except BaseException as error:
            call.set_exception(LynxError(f"{self.name}: {error}"))
            raise
        call.set_result(done)
        return True


class Films:
    """A worker as a replica. A call makes the next job there is."""

    def __init__(self, terms: Terms) -> None:
        """Loads the model; raises LynxError if that cannot be done."""
        from lynx_video.server.database import open_database
        from lynx_video.server.folder import Folder
        from lynx_video.studio.studio import Studio

        _log()
        name, folder = f"worker_{uuid.uuid4().hex[:12]}", Folder(path=terms.store.data)
        self._database = open_database(terms.store)
        self._worker = _OnCall(name, self._database, folder, Studio(terms.setup), terms.serve.lease)
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._worker.on_duty.wait(IDLE_SECONDS):
            self.check_health()

    def _run(self) -> None:
        try:
            self._worker.run()
            self._fault = LynxError(f"{self._worker.name} was told to stop.")
        except BaseException as error:  # noqa: BLE001 (the replica's health tells it)
            self._fault = error

    async def film(self) -> bool:
        """Make the next job; False if there is none."""
        self.check_health()
        call: Future[bool] = Future()
        self._worker.calls.put(call)
        return await asyncio.wrap_future(call)

    def check_health(self) -> None:
        """What Serve asks for: a worker that is in doubt of itself is replaced."""
        if self._fault is not None:
            raise LynxError(f"this worker ended: {self._fault}") from self._fault

    def __del__(self) -> None:
        """Stop at the next step; what is in progress goes back to the queue."""
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stopping.set()
            self._thread.join()
            self._database.close()


class Dispatch:
    """Sees to it that for each job that waits a worker is called, and keeps the house."""

    def __init__(self, terms: Terms, films: Any) -> None:
        """films: handle of the workers."""
        from lynx_video.server.database import open_database
        from lynx_video.server.supervisor import Supervisor

        _log()
        self._films = films
        self._database = open_database(terms.store)
        # Without a worker of its own; it forgets what is too old.
        self._house = Supervisor(store=terms.store, flags=terms.serve, setup=terms.setup, database=self._database)
        self._house.start()
        self._terms = terms
        self._doubt = Doubt(terms.serve.lease)
        self._calls: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop().create_task(self._look_forever())

    async def _look_forever(self) -> None:
        while True:
            try:
                waiting, working = await asyncio.to_thread(self._count)
            except LynxError as error:  # the database is away for a moment
                log.warning("%s", error)
                self._doubt.renew()
                waiting = working = 0
            # A call that works has taken its job out of those that wait. After a restart the workers still have calls of before: those
            # are not known here, and too many calls do no harm.
            spare = max(0, len(self._calls) - working)
            for _ in range(waiting - spare):
                call = asyncio.create_task(self._call())
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            await asyncio.sleep(LOOK_SECONDS)

    def _count(self) -> tuple[int, int]:
        """Jobs that wait and jobs in progress, after what lost workers had was queued again."""
        from lynx_video.server.folder import Folder
        from lynx_video.server.jobs import Queue

        jobs, folder = Queue(database=self._database, lease=self._terms.serve.lease), Folder(path=self._terms.store.data)
        for job in jobs.reclaim() if self._doubt.is_over else []:
            log.warning("the worker of %s gives no sign of life; it is %s", job.id, job.status)
            if job.status == "failed":
                folder.forget(job.id)
        counts = jobs.counts()
        return (
            sum(number for (_, status), number in counts.items() if status == "queued"),
            sum(number for (_, status), number in counts.items() if status == "in_progress"),
        )

    async def _call(self) -> None:
        try:
            await self._films.film.remote()
        except Exception as error:  # noqa: BLE001 (whatever became of the worker, the job is in the database)
            log.warning("a worker is lost: %s", str(error).partition("\n")[0])

    def __del__(self) -> None:
        """Let the database go."""
        house = getattr(self, "_house", None)
        if house is not None:
            self._loop.cancel()
            house.stop()
            self._database.close()


def _log() -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
