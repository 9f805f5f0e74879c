"""Many workers for a list of jobs, by Ray Data: the cores and GPUs of this machine, or those of a cluster.

On a cluster the folders that are read and written must be on a disk that every machine has at the same path: jobs and answers are
small, results go to files. A worker opens its models once. What goes wrong with one job is the job's to keep; what would go
wrong with all of them (a full disk, weights that are missing, no memory) comes back as an error and ends the run.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from lynx_video.errors import LynxError, MissingDependency

Progress = Callable[[str, int, int], None]
HANDFUL = 8
_MOST_HANDFULS = 10_000  # Ray keeps account of each


class Work(Protocol):
    """What a stage does, as a value that travels to the workers."""

    def open(self) -> Callable[[Any], None]:
        """Load what is needed, once a worker; the function that does one job."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Ray, running. cpus, gpus: what it has. handful: jobs handed out at a time, at most; progress is told of so many at once."""

    cpus: int
    gpus: int
    handful: int = HANDFUL

    def run(self, name: str, work: Work, jobs: Sequence[Any], progress: Progress, *, use_gpus: bool = False) -> None:
        """Do all jobs, in any order; `progress(name, done, total)` as they get done. Raises what would fail for every job."""
        import ray
        from ray.exceptions import RayError

        progress(name, 0, len(jobs))
        if not jobs:
            return
        gpus = 1 if use_gpus and self.gpus else 0
        workers = min(self.gpus if gpus else self.cpus, len(jobs))
        batch = portion(len(jobs), workers, self.handful)
        rows = ray.data.from_items(
            [{"job": pickle.dumps(job)} for job in jobs], override_num_blocks=math.ceil(len(jobs) / batch)
        )
        answers = rows.map_batches(
            _Worker,
            fn_constructor_args=(work,),
            batch_size=batch,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=gpus,
        )
        done = 0
        try:
            for answer in answers.iter_batches(batch_size=None, prefetch_batches=0):
                for problem in answer["problem"]:
                    if problem:
                        raise pickle.loads(problem)
                done += len(answer["problem"])
                progress(name, done, len(jobs))
        except RayError as error:
            raise LynxError(
                f"{name}: the workers failed ({_first_line(error)}); the same command goes on from here."
            ) from error


def portion(jobs: int, workers: int, handful: int = HANDFUL) -> int:
    """How many jobs are handed out at a time: a handful at most, fewer where there are few, more where there are very many."""
    return max(1, min(handful, jobs // (4 * workers)), math.ceil(jobs / _MOST_HANDFULS))


@contextmanager
def open_pool(workers: int | None = None, address: str | None = None, *, handful: int = HANDFUL) -> Iterator[Pool]:
    """Ray, started with so many CPUs on this machine (None: all), or found at an address; one that this process has is used.

    handful: as of `Pool`; 1 where a job takes long. Raises MissingDependency where Ray is not installed, LynxError where it can't be
    reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # and warn of each of its own actors on our stderr
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # or tell on our stdout that a worker died
    os.environ.setdefault("RAY_worker_niceness", "0")  # or run our work behind all else on the machine
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingDependency(
            "sharing work out needs Ray, which is not installed: pip install 'lynx-video[train]' (also in [batch] and [evaluate])"
        ) from None

    is_ours = not ray.is_initialized()
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        if is_ours:
            # "local": not a cluster that somebody started on this machine for something else
            here = {"address": "local", "num_cpus": workers, "include_dashboard": False}
            where = {"address": address} if address else here
            with _hushed():
                ray.init(**where, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"reached at {address}" if address else "started"
        hint = "; a cluster that asks for a token takes it from RAY_AUTH_TOKEN" if address else ""
        raise LynxError(f"Ray can't be {what} ({_first_line(error)}){hint}.") from error
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        resources: dict[str, float] = ray.cluster_resources()
        cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        yield Pool(cpus=cpus, gpus=gpus, handful=handful)
    finally:
        context.enable_progress_bars = bars
        if is_ours:
            ray.shutdown()


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on stderr, not even from below Python: Ray's core writes there that it was told to be quiet."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Worker:
    """An actor of Ray Data: a batch of pickled jobs in, for each of them a pickled error or nothing out."""

    def __init__(self, work: Work) -> None:
        import cv2
        import torch

        # One thread each: the cores are shared out among workers, and sums in another order end in other bits.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._work = work
        self._do: Callable[[Any], None] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"problem": [self._one(pickle.loads(job)) for job in batch["job"]]}

    def _one(self, job: Any) -> bytes:
        try:
            if self._do is None:
                self._do = self._work.open()
            self._do(job)
        except LynxError as error:
            return pickle.dumps(error)
        except Exception as error:  # noqa: BLE001 (any other would come back as a page of Ray's own)
            return pickle.dumps(LynxError(f"a worker failed: {type(error).__name__}: {_first_line(error)}"))
        return b""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
