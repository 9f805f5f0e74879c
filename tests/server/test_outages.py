"""The database, the disk or a worker fails at the worst moment: a finished clip is not lost, and nothing is done twice."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from typing import Any

import pytest
from asked import PROMPT, ask, left, refused
from launched import wait_for
from sqlalchemy import event, exc, update
from test_worker import enroll, shown

from lynx_video.errors import BadOutput, BadPicture
from lynx_video.server import database as db
from lynx_video.server.config import StoreFlags
from lynx_video.server.crew import Crew, Doubt
from lynx_video.server.database import Unavailable, open_database
from lynx_video.server.jobs import ATTEMPTS, NewJob, Queue, new_id

QUICK = {"num_frames": "5", "num_inference_steps": "2"}


@pytest.fixture
def client(asking: Any) -> Any:
    return asking()


@pytest.fixture
def failing_commit(client: Any) -> Any:
    """failing_commit() lets the next COMMIT fail that comes after files were put in their place; its list has those."""
    seen: list[list[str]] = []

    def arm() -> list[list[str]]:
        @event.listens_for(client.service.database.engine, "commit")
        def full(connection: Any) -> None:
            if connection.get_execution_options().get("lynx") != "lasting":  # a look, or a sign of life
                return
            placed = [one for one in left(client) if one.startswith(("videos/video", "identities/ident"))]
            if placed and not seen:
                seen.append(placed)
                raise exc.OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))

        return seen

    return arm


def test_a_clip_outlives_a_commit_that_fails_once(client: Any, portrait: bytes, worker: Any, failing_commit: Any) -> None:
    made = ask(client, portrait, **QUICK).json()
    seen = failing_commit()
    assert worker(client.service).turn()
    files = [f"videos/{made['id']}.jpg", f"videos/{made['id']}.mp4"]
    assert seen == [files], "they were in their place already"
    assert shown(client, made)["status"] == "completed"
    assert left(client) == files


def test_an_enrolment_outlives_a_commit_that_fails_once(client: Any, portrait: bytes, worker: Any, failing_commit: Any) -> None:
    seen = failing_commit()
    answer = enroll(client, worker, portrait)
    assert (answer.status_code, len(seen)) == (201, 1)
    assert left(client) == [f"identities/{answer.json()['id']}.safetensors"]


def test_files_are_placed_again_but_not_made_up(client: Any) -> None:
    folder = client.service.folder
    final = folder.video(f"video_{'0' * 32}")
    draft = folder.draft(final, "t")
    with pytest.raises(FileNotFoundError):
        folder.place({draft: final})
    for content in (b"first", b"second"):  # of another attempt
        draft.write_bytes(content)
        folder.place({draft: final})
        folder.place({draft: final})
        assert (final.read_bytes(), draft.exists()) == (content, False)


def test_a_clip_deleted_before_its_first_step_is_not_begun(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any
) -> None:
    made = ask(client, portrait, **QUICK).json()
    meet = studio.meet

    def met(order: Any) -> Any:
        guest = meet(order)
        assert client.delete(f"/v1/videos/{made['id']}").status_code == 200
        return guest

    monkeypatch.setattr(studio, "meet", met)
    monkeypatch.setattr(studio, "film", lambda *_, **__: pytest.fail("nobody wants it"))
    assert worker(client.service).turn()
    assert left(client) == []


def test_a_clip_deleted_after_its_last_step_is_not_written(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any
) -> None:
    from lynx_video.studio import studio as module

    made = ask(client, portrait, **QUICK).json()
    film = studio.film

    def filmed(*arguments: Any, on_step: Any, **more: Any) -> Any:
        def step(one: Any) -> None:
            on_step(one)
            if one.number == one.total:
                assert client.delete(f"/v1/videos/{made['id']}").status_code == 200

        return film(*arguments, on_step=step, **more)

    monkeypatch.setattr(studio, "film", filmed)
    monkeypatch.setattr(module, "publish", lambda *_: pytest.fail("nobody wants it"))
    assert worker(client.service).turn()
    assert left(client) == []


def test_a_worker_told_to_stop_begins_none_of_several_clips_anew(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any
) -> None:
    made = ask(client, portrait, best_of="2", **QUICK).json()
    crew, film, steps = worker(client.service), studio.film, []

    def filmed(*arguments: Any, on_step: Any, **more: Any) -> Any:
        def step(one: Any) -> None:
            steps.append(one.number)
            on_step(one)
            if one.number == one.total:
                crew.stopping.set()

        return film(*arguments, on_step=step, **more)

    monkeypatch.setattr(studio, "film", filmed)
    assert crew.turn()
    assert steps == [1, 2], "the second was not begun"
    assert shown(client, made)["status"] == "queued"


def test_a_disk_that_cannot_be_written_is_said_without_names_of_files(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any
) -> None:
    made = ask(client, portrait, **QUICK).json()

    def fail(_: Any, __: Any, target: Any, **___: Any) -> None:
        raise BadOutput(f"{target}: cannot be written (Input/output error).")

    monkeypatch.setattr(studio, "film", fail)
    assert worker(client.service).turn()
    error = shown(client, made)["error"]
    assert error == {"code": "bad_output", "message": "the service's disk can't be written just now; ask again later."}


def test_a_private_clips_failure_is_not_told_to_the_log(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any, caplog: Any
) -> None:
    made = ask(client, portrait, "secret.png", private="true", **QUICK).json()

    def fail(order: Any, *_: Any, **__: Any) -> None:
        raise BadPicture(f"{order.request.name}: of {order.request.prompt} it cannot be.")

    monkeypatch.setattr(studio, "film", fail)
    with caplog.at_level(logging.INFO):
        assert worker(client.service).turn()
    assert made["id"] in caplog.text
    assert PROMPT not in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in shown(client, made)["error"]["message"]


def test_a_preview_that_the_gate_refuses_is_not_shown(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any
) -> None:
    from lynx_video.server import worker as module

    monkeypatch.setattr(module, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(module, "PREVIEW_SHARE", 1e9)
    made = ask(client, portrait, num_frames="5", num_inference_steps="4").json()
    asked, seen = [], []
    film = studio.film

    def refuse(step: Any) -> None:
        asked.append(step.number)

    def filmed(*arguments: Any, on_step: Any, **more: Any) -> Any:
        def step(one: Any) -> None:
            on_step(one)
            seen.append(shown(client, made)["lynx"]["preview"])
            refused(client.get(f"/v1/videos/{made['id']}/preview"), 404, "no_preview")

        return film(*arguments, on_step=step, **more)

    monkeypatch.setattr(studio, "preview", refuse)
    monkeypatch.setattr(studio, "film", filmed)
    assert worker(client.service).turn()
    assert asked == [1, 2, 3]
    assert seen == [None] * 4
    assert shown(client, made)["status"] == "completed"


class Clock:
    """The time of a module, which passes when `seconds` is raised."""

    seconds = 0.0

    def monotonic(self) -> float:
        return 1000 + self.seconds

    def time(self) -> float:
        return 1_700_000_000 + self.seconds


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    """The clock of crews."""
    from lynx_video.server import crew

    one = Clock()
    monkeypatch.setattr(crew, "time", one)
    return one


def test_after_an_outage_every_worker_has_a_whole_lease_to_say_that_it_lives(
    client: Any, portrait: bytes, worker: Any, clock: Clock
) -> None:
    made = ask(client, portrait, **QUICK).json()
    queue, crew = client.service.queue, worker(client.service, "watcher", lease=15.0)
    other = queue.claim("other")
    with client.service.database.write() as connection:  # the outage was longer than its lease
        connection.execute(update(db.jobs).values(lease=time.time() - 1))
    crew.beat()
    assert shown(client, made)["status"] == "in_progress", "this one only just began to look"
    clock.seconds += 16
    lock = sqlite3.connect(client.service.folder.path / "lynx-video.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        crew.beat()
    lock.execute("COMMIT")
    lock.close()
    crew.beat()
    assert shown(client, made)["status"] == "in_progress", "others could not say it either"
    clock.seconds += 16
    assert queue.get("local", "video", made["id"]).token == other.token
    crew.beat()
    assert shown(client, made)["status"] == "queued", "it had its time"


def test_doubt_lasts_a_lease(clock: Clock) -> None:
    doubt = Doubt(15.0)
    clock.seconds = 14.9
    assert not doubt.is_over
    clock.seconds = 15.1
    assert doubt.is_over
    doubt.renew()
    assert not doubt.is_over


def test_a_death_that_nobody_saw_does_not_count_with_one_that_was_seen(database: Any) -> None:
    queue = Queue(database=database)
    job, _ = queue.submit(NewJob(id=new_id("video"), kind="video", owner="ada", request={}, facts={"private": False}), 10)
    queue.claim("w")
    with database.write() as connection:
        connection.execute(update(db.jobs).values(lease=time.time() - 1))
    assert [one.status for one in queue.reclaim()] == ["queued"]
    for number in range(1, ATTEMPTS + 1):
        queue.claim("w")
        (back,) = queue.reclaim("w")
        assert back.deaths == number
        assert back.status == ("queued" if number < ATTEMPTS else "failed")
    found = queue.get("ada", "video", job.id)
    assert found is not None
    assert found.error is not None
    assert f"died {ATTEMPTS} times" in found.error["message"]


def test_portraits_of_jobs_that_are_done_are_swept(client: Any, portrait: bytes, worker: Any, monkeypatch: Any) -> None:
    from lynx_video.server.folder import Folder

    made, waits = (ask(client, portrait, seed=seed, **QUICK).json()["id"] for seed in "12")
    with monkeypatch.context() as dying:
        dying.setattr(Folder, "forget_source", lambda *_: None)  # the worker dies right after the commit
        assert worker(client.service).turn()
    folder = client.service.folder
    stray = [folder.uploads / f"{made}.png", folder.preview(made), folder.draft(folder.video(made), "t")]
    for file in stray[1:]:
        file.write_bytes(b"x")
    for name in left(client):
        os.utime(folder.path / name, (time.time() - 7200,) * 2)
    removed = folder.sweep(client.service.queue.known(), client.service.queue.unfinished())
    assert sorted(removed) == sorted(stray)
    assert left(client) == sorted([f"uploads/{waits}.png", f"videos/{made}.jpg", f"videos/{made}.mp4"])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(BadOutput("x: cannot be written."), 500, "bad_output"), (OSError(28, "No space left on device"), 507, "disk_full")],
    ids=["unwritable", "full"],
)
def test_an_enrolment_that_fails_by_the_services_fault_can_be_asked_for_again(
    client: Any, portrait: bytes, worker: Any, studio: Any, monkeypatch: Any, error: Exception, status: int, code: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    client.headers["Idempotency-Key"] = "k"
    with monkeypatch.context() as broken:
        broken.setattr(studio, "enrol", fail)
        refused(enroll(client, worker, portrait), status, code)
    assert enroll(client, worker, portrait).status_code == 201, "with the same key"


def test_a_clip_that_is_queued_is_not_answered_with_an_error(client: Any, portrait: bytes, monkeypatch: Any) -> None:
    def away(*_: Any) -> None:
        raise Unavailable("the database is locked.")

    monkeypatch.setattr(Queue, "position", away)
    answer = ask(client, portrait)
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert client.service.queue.waiting() == 1


def test_events_outlive_an_outage(client: Any, portrait: bytes, monkeypatch: Any) -> None:
    from lynx_video.server import events

    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    made = ask(client, portrait).json()["id"]
    get, calls = Queue.get, []

    def flaky(self: Queue, *arguments: Any) -> Any:
        calls.append(1)
        if 3 <= len(calls) <= 5:
            raise Unavailable("the database is locked.")
        if len(calls) == 8:
            self.delete("local", "video", made)
        return get(self, *arguments)

    monkeypatch.setattr(Queue, "get", flaky)
    text = client.get(f"/v1/videos/{made}/events").text
    assert text.count(": the database is away\n\n") == 3
    assert text.rstrip().splitlines()[-2] == "event: deleted"


def test_the_database_is_private_also_in_an_open_folder(tmp_path: Any) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0o022)
    try:
        for old in (False, True):
            database = open_database(StoreFlags(data=tmp_path))
            with database.write() as connection:
                connection.execute(database.upsert(db.meta, {"name": "x", "value": str(old)}))
            files = list(tmp_path.glob("lynx-video.db*"))
            assert len(files) == 3
            assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}, files
            database.close()
            (tmp_path / "lynx-video.db").chmod(0o644)  # as an older service left it
    finally:
        os.umask(before)


def test_a_private_prompt_is_not_left_in_the_database_and_its_log(client: Any, portrait: bytes, worker: Any) -> None:
    ask(client, portrait, private="true", **QUICK)
    folder = client.service.folder.path

    def found() -> list[str]:
        return sorted(one.name for one in folder.glob("lynx-video.db*") if PROMPT.encode() in one.read_bytes())

    assert found() == ["lynx-video.db-wal"]
    client.service.database.forget_log()
    assert found() == ["lynx-video.db"], "it is waited for still"
    assert worker(client.service).turn()
    client.service.database.forget_log()
    assert found() == []
    with client.service.database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1


def test_errors_of_the_database_show_no_values(database: Any) -> None:
    values = {"name": "x", "value": "the secret"}
    with database.write() as connection:
        connection.execute(db.meta.insert().values(values))
    with database.write() as connection, pytest.raises(exc.IntegrityError) as caught:
        connection.execute(db.meta.insert().values(values))
    assert "the secret" not in str(caught.value)


def test_a_supervisor_that_cannot_tidy_does_not_try_all_the_time(serving: Any, monkeypatch: Any) -> None:
    from lynx_video.server import supervisor as module
    from lynx_video.studio.setup import Setup

    service, tried = serving(workers=0), []

    def away(self: Crew) -> None:
        tried.append(self)
        raise Unavailable("the database is locked.")

    monkeypatch.setattr(Crew, "forget", away)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    store = StoreFlags(data=service.folder.path)
    made = module.Supervisor(store=store, flags=service.flags, setup=Setup(), database=service.database)
    made.start()
    wait_for(lambda: tried, seconds=60)
    time.sleep(0.5)  # fifty looks
    made.stop()
    assert len(tried) == 1
