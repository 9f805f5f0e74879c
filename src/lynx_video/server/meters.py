"""What Prometheus reads at /metrics: counts of this process's requests, and of the jobs of all processes from the database.

Seconds of steps and clips are measured where clips are made, in workers; they are added up in the database together with the row that
says that the clip is done, so that a restart forgets none and counts none twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from lynx_video.server.database import Database, tallies, workers
from lynx_video.server.jobs import Queue

STEP_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
CLIP_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
ENDED, FAILURES, SUM, MORE = "ended", "failures", "sum", "+Inf"
Tally = Mapping[tuple[str, str], float]
"""What is to be added: (metric, label) -> number."""


def spread(metric: str, values: Iterable[float], bounds: Iterable[float]) -> dict[tuple[str, str], float]:
    """Measured values as a tally: how many fall up to which bound, and their sum."""
    found: dict[tuple[str, str], float] = {}
    limits = list(bounds)
    for value in values:
        label = next((f"{bound:g}" for bound in limits if value <= bound), MORE)
        for key, number in (((metric, label), 1.0), ((metric, SUM), value)):
            found[key] = found.get(key, 0.0) + number
    return found


def add_up(database: Database, connection: Connection, tally: Tally) -> None:
    """Add numbers to those in the database."""
    for (metric, label), number in sorted(tally.items()):  # sorted, or two workers could wait for each other
        values = {"metric": metric, "label": label, "value": number}
        connection.execute(database.upsert(tallies, values, value=tallies.c.value + number))


class Meters:
    """The meters of one app."""

    def __init__(self, database: Database, queue: Queue) -> None:
        """Counts start at zero."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "lynx_video_requests", "Requests by route and status", ["method", "route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "lynx_video_request_seconds",
            "Time to the end of an answer",
            ["method", "route"],
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        self.refusals = Counter("lynx_video_refusals", "Requests refused, by code", ["code"], registry=self._registry)
        self._registry.register(_Jobs(database, queue))

    def page(self) -> bytes:
        """Everything, as Prometheus reads it. Raises Unavailable."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """What the database knows."""

    def __init__(self, database: Database, queue: Queue) -> None:
        self._database, self._queue = database, queue

    def describe(self) -> Iterable[Metric]:
        """Nothing: asking would read the database before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        with self._database.read() as connection:
            rows = connection.execute(select(tallies.c.metric, tallies.c.label, tallies.c.value)).all()
            alive = workers.c.seen > time.time() - self._queue.lease
            crew = connection.execute(select(workers.c.ready, func.count()).where(alive).group_by(workers.c.ready)).all()
        known = {(metric, label): value for metric, label, value in rows}
        counts = self._queue.counts()
        jobs = GaugeMetricFamily("lynx_video_jobs", "Jobs by kind and status", labels=["kind", "status"])
        for kind in ("video", "identity"):
            for status in ("queued", "in_progress", "completed", "failed"):
                jobs.add_metric([kind, status], counts.get((kind, status), 0))
        yield jobs
        depth = sum(number for (_, status), number in counts.items() if status == "queued")
        yield GaugeMetricFamily("lynx_video_queue_depth", "Jobs that wait", value=depth)
        people = GaugeMetricFamily("lynx_video_workers", "Workers that gave a sign of life", labels=["state"])
        ready = {bool(one): number for one, number in crew}
        people.add_metric(["ready"], ready.get(True, 0))
        people.add_metric(["starting"], ready.get(False, 0))
        yield people
        ended = CounterMetricFamily("lynx_video_jobs_ended", "Jobs that ended, by how", labels=["how"])
        failures = CounterMetricFamily("lynx_video_job_failures", "Jobs that failed, by code", labels=["code"])
        for (metric, label), value in sorted(known.items()):
            if metric == ENDED:
                ended.add_metric([label], value)
            if metric == FAILURES:
                failures.add_metric([label], value)
        yield ended
        yield failures
        for metric, bounds, text in (
            ("step_seconds", STEP_SECONDS, "Time of a denoising step"),
            ("clip_seconds", CLIP_SECONDS, "Time of a clip, from the worker's start to the published file"),
        ):
            labels = [*(f"{bound:g}" for bound in bounds), MORE]
            sums = accumulate(known.get((metric, label), 0.0) for label in labels)
            family = HistogramMetricFamily(f"lynx_video_{metric}", text)
            family.add_metric([], list(zip(labels, sums, strict=True)), known.get((metric, SUM), 0.0))
            yield family
