"""The service under load, ended and killed in between: is a job lost, is one made twice, and how long do answers take.

    python benchmarks/service_load.py [--jobs 200] [--clients 20] [--workers 1] [--output benchmarks/results/DATE_service_cpu.md]

`lynx-video serve` (nano) runs as its users run it. Each client has a few jobs under way: it sends a portrait with an idempotency key
of its own until it is answered, looks at its jobs in turn, and fetches what is done. Meanwhile the service is ended by SIGTERM once,
killed with all its processes by SIGKILL, killed once more without its worker (which must find out by itself), and started again each
time.

Afterwards every job must be there, once, completed, in the database, in the list and among the files; every clip must be signed and
untouched, with the hash that its client got, the seed that it asked for, and the frames that every other clip of that seed has.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from lynx_video import __version__
from lynx_video.draft import draft

Stop = Literal["SIGTERM", "SIGKILL all", "SIGKILL server"]
PROMPT = "a person smiles wearing a green shirt in front of a yellow wall"
SEEDS = 10
UNDER_WAY = 4
"""Jobs that a client has under way at a time."""
LOOK_SECONDS = 0.5
PATIENCE = 300.0
"""Seconds without any job being done after which the run is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is done to a service. stops: each at an equal share of the jobs."""

    jobs: int = 200
    clients: int = 20
    workers: int = 1
    stops: tuple[Stop, ...] = ("SIGTERM", "SIGKILL all", "SIGKILL server")
    frames: int = 5
    steps: int = 3
    queue_limit: int = 60
    lease: float = 5.0


@dataclass(kw_only=True, slots=True)
class Notes:
    """What the clients saw. submits, looks: seconds of every answer that was one. keys: the id that each key was answered with."""

    submits: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    keys: dict[str, set[str]] = field(default_factory=lambda: collections.defaultdict(set))
    clips: dict[str, str] = field(default_factory=dict)
    "sha256 of what was fetched, by id"
    seeds: dict[str, int] = field(default_factory=dict)
    replayed: int = 0
    full: int = 0
    unanswered: int = 0
    faults: list[str] = field(default_factory=list)
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server:
    """`lynx-video serve` as a process, started again as often as it is stopped."""

    def __init__(self, load: Load, folder: Path) -> None:
        """Not started yet."""
        self.load, self.data, self.log = load, folder / "data", folder / "serve.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> float:
        """Start it; seconds until it answers."""
        load = self.load
        command = [
            sys.executable, "-m", "lynx_video", "serve", "--data", str(self.data), "--port", str(self.port),
            "--workers", str(load.workers), "--queue-limit", str(load.queue_limit), "--lease", str(load.lease),
        ]  # fmt: skip
        began = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.address}/health", timeout=5).status_code == 200:
                    return time.perf_counter() - began
            if self.process.poll() is not None:
                raise RuntimeError(f"the service does not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: Stop) -> float:
        """Stop it; seconds until it was gone."""
        assert self.process is not None
        began = time.perf_counter()
        if how == "SIGKILL all":
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGKILL if how == "SIGKILL server" else signal.SIGTERM)
        code = self.process.wait(120)
        if how == "SIGTERM" and code != 0:
            raise RuntimeError(f"SIGTERM ended the service with {code}:\n{self.log.read_text()[-2000:]}")
        return time.perf_counter() - began

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run(load: Load, folder: Path) -> dict[str, Any]:
    """The figures of a run, and its `faults`, which should be none."""
    portrait = _portrait()
    notes, server = Notes(), Server(load, folder)
    downs: list[dict[str, Any]] = []
    began, busy = time.perf_counter(), [os.getloadavg()[0]]
    try:
        first_start = server.start()
        numbers = iter(range(load.jobs))
        clients = [
            threading.Thread(target=_client, args=(load, server, notes, numbers, portrait), daemon=True)
            for _ in range(load.clients)
        ]
        for one in clients:
            one.start()
        marks = [load.jobs * (number + 1) // (len(load.stops) + 1) for number in range(len(load.stops))]
        for mark, how in zip(marks, load.stops, strict=True):
            if not _wait(notes, mark):
                break
            gone, back = server.stop(how), server.start()
            busy.append(os.getloadavg()[0])
            downs.append({"how": how, "at_job": mark, "seconds_to_end": round(gone, 2), "seconds_to_answer": round(back, 2)})
        _wait(notes, load.jobs)
        for one in clients:
            one.join(5)
        seconds = time.perf_counter() - began
        listed = _listed(server)
        server.stop("SIGTERM")
        figures = _figures(load, notes, server, listed)
    finally:
        server.end()
    return {
        **figures,
        "seconds": round(seconds, 1),
        "seconds_to_first_answer": round(first_start, 2),
        "load_average": [round(one, 1) for one in busy],
        "stops": downs,
        "load": asdict(load),
        "faults": notes.faults,
    }


def _client(load: Load, server: Server, notes: Notes, numbers: Iterator[int], portrait: bytes) -> None:
    """Send jobs and see them through, a few at a time."""
    try:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            mine: collections.deque[str] = collections.deque()
            more = True
            while more or mine:
                while more and len(mine) < UNDER_WAY:
                    with notes.lock:
                        number = next(numbers, None)
                    more = number is not None
                    if number is not None:
                        mine.append(_send(client, load, notes, number, portrait))
                if mine:
                    job = mine.popleft()
                    if not _look(client, notes, job):
                        mine.append(job)
                    time.sleep(LOOK_SECONDS)
    except Exception as error:  # noqa: BLE001 (a client that falls silent would look like a slow service)
        notes.faults.append(f"a client failed: {error!r}")


def _send(client: httpx.Client, load: Load, notes: Notes, number: int, portrait: bytes) -> str:
    """Ask for a clip, with the same key until there is an answer; its id."""
    key, seed = f"job-{number}", number % SEEDS
    fields = {"prompt": PROMPT, "seed": seed, "num_frames": load.frames, "num_inference_steps": load.steps}
    while True:
        answer = _ask(client, notes, notes.submits, "POST", "/v1/videos", data={k: str(v) for k, v in fields.items()},
                      files={"input_reference": ("me.png", portrait)}, headers={"Idempotency-Key": key})  # fmt: skip
        if answer is None:
            time.sleep(0.25)
        elif answer.status_code == 429:
            notes.full += 1
            time.sleep(min(2.0, float(answer.headers["Retry-After"])))
        elif answer.status_code != 200:
            notes.faults.append(f"{key}: {answer.status_code} {answer.text[:300]}")
            raise RuntimeError("refused")
        else:
            job = str(answer.json()["id"])
            notes.replayed += answer.headers.get("Idempotent-Replayed") == "true"
            notes.keys[key].add(job)
            notes.seeds[job] = seed
            return job


def _look(client: httpx.Client, notes: Notes, job: str) -> bool:
    """Whether a job has come to its end; if so its clip is fetched."""
    answer = _ask(client, notes, notes.looks, "GET", f"/v1/videos/{job}")
    if answer is None:
        return False
    if answer.status_code != 200:
        notes.faults.append(f"{job}: {answer.status_code} {answer.text[:300]}")
        return True
    video = answer.json()
    if video["status"] == "failed":
        notes.faults.append(f"{job} failed: {video['error']}")
    elif video["status"] == "completed":
        clip = _ask(client, notes, [], "GET", f"/v1/videos/{job}/content")
        if clip is None:
            return False
        if clip.status_code != 200:
            notes.faults.append(f"{job}: its clip: {clip.status_code} {clip.text[:300]}")
        notes.clips[job] = hashlib.sha256(clip.content).hexdigest()
    else:
        return False
    with notes.lock:
        notes.done += 1
    return True


def _ask(client: httpx.Client, notes: Notes, seconds: list[float], *what: Any, **with_: Any) -> httpx.Response | None:
    """An answer; None if there is none, or only that the service is on its way down or up."""
    began = time.perf_counter()
    try:
        answer = client.request(*what, **with_)
    except httpx.TransportError:
        notes.unanswered += 1
        return None
    if answer.status_code == 503:
        notes.unanswered += 1
        return None
    if answer.status_code != 429:
        seconds.append(time.perf_counter() - began)
    return answer


def _wait(notes: Notes, count: int) -> bool:
    """Until so many jobs are done; False if nothing happens any more."""
    last, since = notes.done, time.monotonic()
    while notes.done < count:
        if notes.done != last:
            last, since = notes.done, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            notes.faults.append(f"nothing happened for {PATIENCE:g} s; {notes.done} jobs were done")
            return False
        time.sleep(0.05)
    return True


def _listed(server: Server) -> dict[str, str]:
    """Status by id, as the list of clips tells it page by page."""
    found: dict[str, str] = {}
    after: dict[str, str] = {}
    while True:
        page = httpx.get(f"{server.address}/v1/videos", params={"limit": "100", **after}, timeout=30).json()
        found |= {one["id"]: one["status"] for one in page["data"]}
        if not page["has_more"]:
            return found
        after = {"after": page["data"][-1]["id"]}


def _figures(load: Load, notes: Notes, server: Server, listed: dict[str, str]) -> dict[str, Any]:
    """The figures, after everything was compared with everything; what does not fit is a fault."""
    with contextlib.closing(sqlite3.connect(server.data / "lynx-video.db")) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute(
            "SELECT id, status, attempts, created_at, started_at, work_seconds, result FROM lynx_jobs"
        ).fetchall()
        tally = database.execute("SELECT value FROM lynx_tallies WHERE metric = 'ended' AND label = 'completed'").fetchone()
    ids = {job for found in notes.keys.values() for job in found}
    _expect(notes, len(notes.keys) == load.jobs, f"{len(notes.keys)} of {load.jobs} keys were answered")
    _expect(notes, all(len(found) == 1 for found in notes.keys.values()), "a key was answered with two jobs")
    _expect(notes, len(ids) == len(notes.keys), "two keys were answered with one job")
    _expect(notes, {row["id"] for row in rows} == ids, f"{len(rows)} jobs in the database, {len(ids)} were asked for")
    _expect(notes, listed == dict.fromkeys(ids, "completed"), f"in the list: {collections.Counter(listed.values())}")
    _expect(notes, all(row["status"] == "completed" for row in rows), "a job in the database is not completed")
    _expect(notes, tally is not None and tally[0] == len(ids), f"{tally and tally[0]} clips were counted as completed")
    said = collections.Counter(re.findall(r"(video_[0-9a-f]{32}) is done", server.log.read_text()))
    _expect(notes, all(count == 1 for count in said.values()), "the log has a job that was done twice")
    cut_off = _swept(load, server)
    files = {name: {file.name for file in (server.data / name).iterdir()} for name in ("uploads", "videos", "previews")}
    _expect(
        notes,
        files["videos"] == {f"{job}{end}" for job in ids for end in (".mp4", ".jpg")},
        "the files are not those of the jobs",
    )
    _expect(notes, not files["uploads"] and not files["previews"], f"left behind: {files['uploads'] | files['previews']}")
    _check_clips(notes, server, ids)
    waits = [row["started_at"] - row["created_at"] for row in rows if row["started_at"]]
    return {
        "submit_ms": _spread(notes.submits, 1000),
        "status_ms": _spread(notes.looks, 1000),
        "queue_wait_seconds": _spread(waits, 1),
        "clip_seconds": _spread([row["work_seconds"] for row in rows if row["work_seconds"]], 1),
        "completed": sum(status == "completed" for status in listed.values()),
        "began_more_than_once": sum(row["attempts"] > 1 for row in rows),
        "portraits_of_requests_that_were_cut_off": cut_off,
        "answered_from_the_key": notes.replayed,
        "told_that_the_queue_is_full": notes.full,
        "requests_without_an_answer": notes.unanswered,
    }


def _swept(load: Load, server: Server) -> int:
    """How many files the sweep removes that a service does each minute, as if it were two hours later."""
    from lynx_video.server.config import StoreFlags
    from lynx_video.server.database import open_database
    from lynx_video.server.folder import Folder
    from lynx_video.server.jobs import Queue

    hours_ago = time.time() - 7200
    for file in server.data.rglob("*.*"):
        os.utime(file, (hours_ago, hours_ago))
    database = open_database(StoreFlags(data=server.data))
    try:
        jobs = Queue(database=database, lease=load.lease)
        return len(Folder(path=server.data).sweep(jobs.known(), jobs.unfinished()))
    finally:
        database.close()


def _check_clips(notes: Notes, server: Server, ids: set[str]) -> None:
    """Every clip against its own record, what its client got, and the other clips of its seed."""
    from lynx_video.media.provenance import read_provenance

    frames: dict[int, set[str]] = collections.defaultdict(set)
    for job in sorted(ids):
        file = server.data / "videos" / f"{job}.mp4"
        if not file.exists():
            continue  # told above
        found = read_provenance(file)
        _expect(notes, found.state == "untouched", f"{job}: {found.sentence}")
        _expect(
            notes,
            hashlib.sha256(file.read_bytes()).hexdigest() == notes.clips.get(job),
            f"{job}: its client got something else",
        )
        _expect(notes, found.record["seed"] == notes.seeds[job], f"{job}: seed {found.record['seed']}, not {notes.seeds[job]}")
        frames[notes.seeds[job]].add(found.record["frames_hash"])
    _expect(notes, all(len(one) == 1 for one in frames.values()), "clips of the same seed differ")
    _expect(notes, len(set.union(set(), *frames.values())) == len(frames), "clips of different seeds are equal")


def _expect(notes: Notes, holds: bool, fault: str) -> None:
    if not holds:
        notes.faults.append(fault)


def _spread(values: list[float], scale: float) -> dict[str, float]:
    """Median and tail."""
    if len(values) < 2:
        return {"n": len(values)}
    cuts = statistics.quantiles([value * scale for value in values], n=100, method="inclusive")
    return {
        "n": len(values),
        **{f"p{cut}": round(cuts[cut - 1], 2) for cut in (50, 95, 99)},
        "max": round(max(values) * scale, 2),
    }


def _portrait() -> bytes:
    from PIL import Image

    from lynx_video.nano.people import portrait

    file = io.BytesIO()
    Image.fromarray(portrait(1)).save(file, "PNG")
    return file.getvalue()


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    load = found["load"]
    lines = [
        f"# The service under load: {load['jobs']} jobs from {load['clients']} clients, {len(found['stops'])} restarts in between",
        "",
        "`python benchmarks/service_load.py` (what it does and checks is said at its top). "
        f"lynx-video {__version__}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores for everything: "
        f"server, {load['workers']} worker(s) with nano, and clients. "
        f"Clips of {load['frames']} frames and {load['steps']} steps; at most "
        f"{load['queue_limit']} jobs may wait. Load average of the machine before the start and at each restart: "
        f"{', '.join(f'{one:g}' for one in found['load_average'])}; what is above 3 is of other programs.",
        "",
        f"Completed: **{found['completed']} of {load['jobs']}** in {found['seconds']:g} s. Lost, doubled or damaged: "
        + ("**none**." if not found["faults"] else "; ".join(found["faults"])),
        "",
        "| | n | p50 | p95 | p99 | max |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, title in (
        ("submit_ms", "submit, ms"),
        ("status_ms", "status, ms"),
        ("queue_wait_seconds", "wait in the queue, s"),
        ("clip_seconds", "work on a clip, s"),
    ):
        one = found[name]
        lines.append(f"| {title} | " + " | ".join(f"{one.get(key, '')}" for key in ("n", "p50", "p95", "p99", "max")) + " |")
    lines += [
        "",
        "| stopped by | after job | s to its end | s from start to the first answer |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {one['how']} | {one['at_job']} | {one['seconds_to_end']} | {one['seconds_to_answer']} |" for one in found["stops"]
    ]
    lines += [
        "",
        f"Clips begun more than once (their worker was killed): {found['began_more_than_once']}. Requests without an answer while the "
        f"service was away: {found['requests_without_an_answer']}; submits whose first answer was lost and that got their job by the "
        f"key: {found['answered_from_the_key']}; told that the queue was full: {found['told_that_the_queue_is_full']}. Portraits of "
        "requests that SIGKILL cut off before they were queued, removed by the sweep: "
        f"{found['portraits_of_requests_that_were_cut_off']}.",
        "",
        "The wait in the queue of a clip that was begun again counts to its last beginning. Latencies are of requests that were "
        "answered, measured by the clients.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run it, print the figures, write them if asked; 1 if there are faults."""
    import tempfile

    parser = argparse.ArgumentParser(description="The service under load, with restarts.")
    own = Load()
    for name in ("jobs", "clients", "workers", "steps"):
        parser.add_argument(f"--{name}", type=int, default=getattr(own, name))
    parser.add_argument("--output", type=Path, help="Markdown file; a JSON file is put beside it")
    request = parser.parse_args()
    load = Load(jobs=request.jobs, clients=request.clients, workers=request.workers, steps=request.steps)
    with tempfile.TemporaryDirectory() as folder:
        found = run(load, Path(folder))
        if found["faults"]:
            sys.stderr.write((Path(folder) / "serve.log").read_text()[-5000:])
    print(table(found))
    if request.output is not None:
        for path, text in (
            (request.output, table(found)),
            (request.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n"),
        ):
            with draft(path) as temporary:
                temporary.write_text(text)
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
