"""The supervisor with workers that die young: when it tries again, when it gives up, and what it tidies."""

import os
import subprocess
import sys
import time

import pytest
from asked import ask, left
from launched import wait_for
from sqlalchemy import update

from lynx_video.errors import LynxError
from lynx_video.server import database as db
from lynx_video.server import supervisor as module
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.supervisor import Supervisor, card_of
from lynx_video.studio.setup import Setup


@pytest.fixture
def watching(asking, monkeypatch):
    """watching(code, **flags) is a supervisor, started, whose workers run this Python code; and a client of the same service."""
    begun = []

    def make(code, first_pause=0.05, **flags):
        client = asking(**flags)
        run = subprocess.Popen

        def popen(_, **more):
            begun.append(time.monotonic())
            return run([sys.executable, "-c", code], **more)

        monkeypatch.setattr(module.subprocess, "Popen", popen)
        monkeypatch.setattr(module, "FIRST_PAUSE", first_pause)
        service = client.service
        store = StoreFlags(data=service.folder.path)
        made = Supervisor(store=store, flags=service.flags, setup=Setup(), database=service.database)
        made.start()
        supervisors.append(made)
        return made, client, begun

    supervisors = []
    yield make
    for one in supervisors:
        one.stop()


def test_workers_that_never_get_ready_end_it(watching):
    supervisor, _, begun = watching("raise SystemExit(3)", first_pause=0.3)
    wait_for(lambda: supervisor.fault, seconds=20)
    assert supervisor.fault == "3 workers in a row died before they were ready (the last with 3)."
    assert len(begun) == 3
    assert begun[1] - begun[0] >= 0.6
    assert begun[2] - begun[1] >= 1.2, "it waits longer each time"


def test_a_setup_at_fault_ends_it_at_once(watching):
    supervisor, _, begun = watching("raise SystemExit(78)")
    wait_for(lambda: supervisor.fault, seconds=20)
    assert supervisor.fault == "a worker can't start."
    assert len(begun) == 1


def test_what_a_dead_worker_had_is_queued_again(watching, portrait):
    supervisor, client, _ = watching("import sys; sys.stdin.read()")
    made = ask(client, portrait).json()["id"]
    pid = wait_for(supervisor.processes, seconds=20)[0]
    name = supervisor._places[0].name
    client.service.crew.report(name, ready=True)
    assert client.service.queue.claim(name).id == made
    os.kill(pid, 9)
    wait_for(lambda: client.service.queue.get("local", "video", made).status == "queued", seconds=20)
    new = wait_for(lambda: [one for one in supervisor.processes() if one != pid], seconds=20)
    assert len(new) == 1
    assert supervisor.fault == ""
    assert client.service.queue.get("local", "video", made).attempts == 1


def test_workers_that_were_ready_may_die_as_often_as_they_like(watching):
    supervisor, client, begun = watching("import sys; sys.stdin.readline(); sys.stdin.read()")
    for number in range(1, 6):
        (pid,) = wait_for(lambda number=number: len(begun) == number and supervisor.processes(), seconds=60)
        client.service.crew.report(supervisor._places[0].name, ready=True)
        os.kill(pid, 9)
        wait_for(lambda pid=pid: pid not in supervisor.processes(), seconds=60)
    wait_for(lambda: len(begun) == 6, seconds=60)
    assert supervisor.fault == ""


def test_a_worker_that_does_not_stop_is_killed_and_its_job_goes_back(watching, portrait, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.3)
    supervisor, client, _ = watching("import time; time.sleep(600)")
    made = ask(client, portrait).json()["id"]
    pid = wait_for(supervisor.processes, seconds=20)[0]
    client.service.queue.claim(supervisor._places[0].name)
    supervisor.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    job = client.service.queue.get("local", "video", made)
    assert (job.status, job.attempts) == ("queued", 0)


def test_old_clips_go_with_their_files(watching, portrait, worker, monkeypatch):
    monkeypatch.setattr(module, "TIDY_SECONDS", 0.1)
    _, client, _ = watching("import sys; sys.stdin.read()", keep_days=1.0)
    made = ask(client, portrait, num_frames="5", num_inference_steps="2").json()["id"]
    assert worker(client.service).turn()
    done = client.get(f"/v1/videos/{made}").json()
    assert done["expires_at"] == pytest.approx(done["completed_at"] + 86_400, abs=1)
    assert len(left(client)) == 2
    with client.service.database.write() as connection:
        connection.execute(update(db.jobs).values(completed_at=time.time() - 90_000))
    wait_for(lambda: client.get(f"/v1/videos/{made}").status_code == 404, seconds=20)
    wait_for(lambda: left(client) == [], seconds=20)


def test_gpus_are_dealt_out():
    assert [card_of(place, ["2", "GPU-a"]).get("CUDA_VISIBLE_DEVICES") for place in range(4)] == ["2", "GPU-a", "2", "GPU-a"]
    assert card_of(0, ["0"]) == card_of(0, []) == {}


def test_a_service_whose_workers_cannot_start_ends_with_the_reason(tmp_path, monkeypatch):
    from lynx_video.server import serve as serve_module

    run = subprocess.Popen
    monkeypatch.setattr(
        module.subprocess, "Popen", lambda _, **more: run([sys.executable, "-c", "raise SystemExit(78)"], **more)
    )
    said = []
    with pytest.raises(LynxError, match=r"the service ended: a worker can't start\."):
        serve_module.serve(StoreFlags(data=tmp_path / "data"), ServeFlags(port=0), Setup(), say=said.append)
    assert said[0].startswith("nano on http://127.0.0.1:")
