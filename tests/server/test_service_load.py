"""The load run in small: few clients, the service killed in between; nothing is lost, nothing is made twice."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "service_load.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("bench_service_load", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_nothing_is_lost_or_doubled(bench: Any, tmp_path: Path) -> None:
    stops = ("SIGTERM", "SIGKILL all", "SIGKILL server")
    load = bench.Load(jobs=16, clients=4, stops=stops, queue_limit=8)
    found = bench.run(load, tmp_path)
    assert found["faults"] == []
    assert found["completed"] == 16
    assert found["submit_ms"]["n"] == 16
    assert tuple(stop["how"] for stop in found["stops"]) == stops
    assert found["requests_without_an_answer"] > 0
    assert "Lost, doubled or damaged: **none**" in bench.table(found)


@pytest.mark.slow
def test_what_is_wrong_is_seen(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves: a row that is gone, a clip that was changed, a clip that was made twice."""
    figures = bench._figures

    def spoiled(load: Any, notes: Any, server: Any, listed: dict[str, str]) -> Any:
        first, second, third = sorted(listed)[:3]
        with sqlite3.connect(server.data / "lynx-video.db") as database:
            database.execute("DELETE FROM lynx_jobs WHERE id = ?", (first,))
            database.execute("UPDATE lynx_tallies SET value = value + 1 WHERE metric = 'ended'")
        clip = server.data / "videos" / f"{second}.mp4"
        clip.write_bytes(clip.read_bytes()[:-1] + b"\0")
        with server.log.open("a") as log:
            log.write(f"INFO: worker: {third} is done\n" * 2)
        (server.data / "uploads" / f"{third}.png").touch()
        monkeypatch.setattr(bench, "_swept", lambda *_: 0)
        return figures(load, notes, server, {**listed, third: "queued"})

    monkeypatch.setattr(bench, "_figures", spoiled)
    found = bench.run(bench.Load(jobs=4, clients=2, stops=()), tmp_path)
    for says in (
        "3 jobs in the database, 4 were asked for",
        "in the list: Counter({'completed': 3, 'queued': 1})",
        "5.0 clips were counted as completed",
        "the log has a job that was done twice",
        "left behind: {'video_",
        "altered",
        "its client got something else",
    ):
        assert any(says in one for one in found["faults"]), (says, found["faults"])
