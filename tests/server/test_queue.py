"""The queue on both databases: every job is taken once, ends once, and nobody who lost one can change it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update

from lynx_video.errors import BadRequest
from lynx_video.server import database as db
from lynx_video.server.config import StoreFlags
from lynx_video.server.database import DatabaseFull, Unavailable, open_database
from lynx_video.server.jobs import KeyReused, NewJob, Queue, QueueFull, new_id


@pytest.fixture
def queue(database):
    return Queue(database=database, lease=15.0)


def job(kind="video", owner="ada", **more):
    return NewJob(id=new_id(kind), kind=kind, owner=owner, request={"prompt": "x"}, facts={"private": False}, **more)


def submit(queue, limit=100, **more):
    return queue.submit(job(**more), limit)[0]


def expire(queue):
    """The leases of all jobs run out."""
    with queue.database.write() as connection:
        connection.execute(update(db.jobs).where(db.jobs.c.lease.is_not(None)).values(lease=time.time() - 1))


def test_jobs_are_taken_in_order_and_people_first(queue):
    first, second = submit(queue), submit(queue)
    person = submit(queue, kind="identity")
    assert [queue.position(one) for one in (first, second, person)] == [1, 2, 0]
    assert [queue.claim("w").id for _ in range(3)] == [person.id, first.id, second.id]
    assert queue.claim("w") is None


def test_every_job_is_taken_once_by_eight_threads(queue):
    made = {submit(queue).id for _ in range(40)}
    start = threading.Barrier(8)

    def take(name):
        start.wait()
        found = []
        while (one := claim_patiently(queue, name)) is not None:
            found.append(one.id)
        return found

    with ThreadPoolExecutor(8) as pool:
        taken = [one for found in pool.map(take, "abcdefgh") for one in found]
    assert len(taken) == 40
    assert set(taken) == made


def claim_patiently(queue, name):
    """A claim that waits as long as it takes: the fixture's database gives up after a fifth of a second."""
    while True:
        try:
            return queue.claim(name)
        except Unavailable:
            time.sleep(0.01)


def test_a_job_ends_once(queue):
    submit(queue)
    mine = queue.claim("w")
    placed = []
    assert queue.finish(mine, {"seed": 1}, lambda: placed.append(1))
    assert not queue.finish(mine, {"seed": 2}, lambda: placed.append(2))
    assert not queue.fail(mine, {"code": "x", "message": "y"})
    assert not queue.put_back(mine)
    found = queue.get("ada", "video", mine.id)
    assert (found.status, found.result, placed) == ("completed", {"seed": 1}, [1])
    assert found.token is None
    assert found.work_seconds >= 0


def test_files_that_cannot_be_placed_leave_the_job_as_it_was(queue):
    submit(queue)
    mine = queue.claim("w")

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        queue.finish(mine, {}, full)
    assert queue.get("ada", "video", mine.id).status == "in_progress"
    placed = []
    assert queue.finish(mine, {}, lambda: placed.append(1))
    assert placed == [1]


def test_a_zombie_changes_nothing(queue):
    submit(queue)
    zombie = queue.claim("w1")
    assert queue.reclaim() == []
    expire(queue)
    assert [one.status for one in queue.reclaim()] == ["queued"]
    heir = queue.claim("w2")
    assert heir.id == zombie.id
    placed = []
    assert not queue.advance(zombie, 1, 4, 0.1, None)
    assert not queue.renew(zombie)
    assert not queue.finish(zombie, {}, lambda: placed.append("zombie"))
    assert not queue.fail(zombie, {"code": "x", "message": "y"})
    assert not queue.put_back(zombie)
    assert queue.get("ada", "video", heir.id).worker == "w2"
    assert queue.finish(heir, {}, lambda: placed.append("heir"))
    assert placed == ["heir"]


def test_signs_of_life_keep_a_job(queue):
    submit(queue)
    mine = queue.claim("w")
    expire(queue)
    assert queue.renew(mine)
    assert queue.reclaim() == []
    for step in range(1, 4):
        expire(queue)
        assert queue.advance(mine, step, 4, 0.1, step)
        assert queue.reclaim() == []
    found = queue.get("ada", "video", mine.id)
    assert (found.step, found.steps, found.preview, found.step_seconds) == (3, 4, 3, 0.1)


def test_a_job_that_killed_its_worker_twice_fails(queue):
    first, other = submit(queue), submit(queue)
    assert queue.claim("w1").id == first.id
    assert [(one.id, one.status) for one in queue.reclaim("w1")] == [(first.id, "queued")]
    assert queue.claim("w2").id == first.id, "it keeps its place"
    (gone,) = queue.reclaim("w2")
    assert gone.status == "failed"
    assert gone.error == {
        "code": "worker_died",
        "message": "the worker died 2 times while it worked on this; it is not tried again.",
    }
    assert queue.claim("w3").id == other.id


def test_a_restart_of_everything_is_not_held_against_a_job(queue):
    submit(queue)
    for _ in range(4):
        queue.claim("w")
        expire(queue)
        (back,) = queue.reclaim()
        assert back.status == "queued"
    assert queue.claim("w").attempts == 5
    expire(queue)
    (gone,) = queue.reclaim()
    assert (gone.status, gone.error["code"]) == ("failed", "worker_died")


def test_a_worker_that_is_told_to_stop_costs_no_attempt(queue):
    first = submit(queue)
    submit(queue)
    for _ in range(5):
        mine = queue.claim("w")
        assert (mine.id, mine.attempts) == (first.id, 1)
        queue.advance(mine, 2, 4, 0.1, 2)
        assert queue.put_back(mine)
        found = queue.get("ada", "video", first.id)
        assert (found.status, found.step, found.preview) == ("queued", 0, None)
    queue.claim("w")
    queue.release("w")
    assert queue.claim("w2").attempts == 1


def test_deleting_takes_a_job_from_its_worker(queue):
    submit(queue)
    mine = queue.claim("w")
    assert queue.delete("eve", "video", mine.id) is None
    assert queue.delete("ada", "video", mine.id).id == mine.id
    assert queue.delete("ada", "video", mine.id) is None
    assert not queue.advance(mine, 1, 4, 0.1, None)
    assert not queue.finish(mine, {}, lambda: pytest.fail("it is gone"))


def test_the_queue_has_a_limit_also_when_many_come_at_once(queue):
    start = threading.Barrier(8)

    def come(_):
        start.wait()
        found = 0
        for _ in range(3):
            while True:
                try:
                    queue.submit(job(), 10)
                    found += 1
                except QueueFull:
                    pass
                except Unavailable:
                    continue
                break
        return found

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(come, range(8))) == 10
    assert queue.waiting() == 10


def test_an_idempotency_key_gives_the_job_of_then(queue):
    first, fresh = queue.submit(job(repeat=("k", "a")), 1)
    assert fresh
    assert queue.submit(job(repeat=("k", "a")), 1) == (first, False), "also when the queue is full"
    assert queue.repeated("ada", "k", "a") == first
    with pytest.raises(KeyReused, match="another request"):
        queue.submit(job(repeat=("k", "b")), 10)
    with pytest.raises(KeyReused, match="another request"):
        queue.repeated("ada", "k", "b")
    assert queue.repeated("eve", "k", "a") is None
    eves, fresh = queue.submit(job(owner="eve", repeat=("k", "b")), 10)
    assert fresh
    assert eves.id != first.id
    queue.delete("ada", "video", first.id)
    with pytest.raises(KeyReused, match="was deleted"):
        queue.submit(job(repeat=("k", "a")), 10)


def test_an_idempotency_key_is_good_for_one_of_many_at_once(queue):
    start = threading.Barrier(6)

    def come(_):
        start.wait()
        while True:
            try:
                return queue.submit(job(repeat=("k", "a")), 100)
            except Unavailable:
                continue

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(come, range(6)))
    assert len({one.id for one, _ in found}) == 1
    assert sum(fresh for _, fresh in found) == 1
    assert queue.waiting() == 1


def test_keys_and_old_clips_are_forgotten(queue, database):
    old, waiting = submit(queue, repeat=("k", "a")), submit(queue)
    queue.finish(queue.claim("w"), {})
    assert queue.expire(3600) == []
    with database.write() as connection:
        connection.execute(update(db.repeats).values(created_at=time.time() - 25 * 3600))
        connection.execute(update(db.jobs).values(completed_at=db.jobs.c.completed_at - 7200))
    assert queue.repeated("ada", "k", "b") is None, "too old to count"
    again, fresh = queue.submit(job(repeat=("k", "b")), 10)
    assert fresh
    assert queue.repeated("ada", "k", "b") == again
    assert queue.expire(None) == []
    assert [one.id for one in queue.expire(3600)] == [old.id]
    assert queue.known() == {waiting.id, again.id}


def test_pages(queue):
    ids = [submit(queue).id for _ in range(5)]
    submit(queue, owner="eve")
    submit(queue, kind="identity")

    def page(**more):
        jobs, has_more = queue.page("ada", "video", **more)
        return [one.id for one in jobs], has_more

    assert page(limit=2) == ([ids[4], ids[3]], True)
    assert page(limit=2, after=ids[3]) == ([ids[2], ids[1]], True)
    assert page(limit=2, after=ids[1]) == ([ids[0]], False)
    assert page(limit=5, newest_first=False) == (ids, False)
    assert page(limit=2, newest_first=False, after=ids[0]) == ([ids[1], ids[2]], True)
    assert queue.page("eve", "video", limit=2, after=ids[0]) is None
    assert queue.page("ada", "video", limit=2, after="\0") is None, "PostgreSQL takes no such text"


def test_a_private_job_keeps_nothing_of_what_was_asked(queue, database):
    for end in (lambda mine: queue.finish(mine, {}), lambda mine: queue.fail(mine, {}), lambda _: queue.reclaim("w")):
        new = NewJob(id=new_id("video"), kind="video", owner="ada", request={"prompt": "secret"}, facts={"private": True})
        made, _ = queue.submit(new, 10)
        mine = queue.claim("w")
        assert mine.request == {"prompt": "secret"}
        end(mine)
        if queue.get("ada", "video", made.id).status == "queued":
            queue.claim("w")
            queue.reclaim("w")
        with database.read() as connection:
            row = connection.execute(select(db.jobs).where(db.jobs.c.id == made.id)).one()
        assert row.status in ("completed", "failed")
        assert "secret" not in repr(row)


def test_recent_clip_seconds(queue, database):
    assert queue.clip_seconds() is None
    for _ in range(2):
        submit(queue)
        queue.finish(queue.claim("w"), {})
    with database.write() as connection:
        connection.execute(update(db.jobs).values(work_seconds=4.0))
    assert queue.clip_seconds() == 4.0


def test_a_newer_database_is_refused_and_untouched(store, database):
    with database.write() as connection:
        connection.execute(update(db.meta).where(db.meta.c.name == "schema").values(value="2"))
    with pytest.raises(BadRequest, match=r"newer lynx-video .* version 2"):
        open_database(store)


def test_a_database_is_opened_by_many_at_once(store):
    with ThreadPoolExecutor(4) as pool:
        for one in list(pool.map(lambda _: open_database(store, busy=10), range(4))):
            one.close()


def test_a_locked_database_is_told_so_and_can_still_be_read(tmp_path):
    import sqlite3

    opened = open_database(StoreFlags(data=tmp_path), busy=0.1)
    queue = Queue(database=opened)
    made = submit(queue)
    other = sqlite3.connect(tmp_path / "lynx-video.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        submit(queue)
    assert queue.get("ada", "video", made.id) == made
    other.execute("COMMIT")
    other.close()
    submit(queue)
    opened.close()


def test_writers_wait_for_each_other(tmp_path):
    opened = open_database(StoreFlags(data=tmp_path), busy=30)
    queue = Queue(database=opened)
    start = threading.Barrier(4)

    def come(_):
        start.wait()
        return [submit(queue, limit=1000).id for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        found = [one for some in pool.map(come, range(4)) for one in some]
    assert len(set(found)) == queue.waiting() == 100, "none was told that the database is locked"
    opened.close()


def test_a_full_database_is_told_so(tmp_path):
    opened = open_database(StoreFlags(data=tmp_path))
    queue = Queue(database=opened)
    with opened.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    from sqlalchemy import event

    @event.listens_for(opened.engine, "connect")
    def small(connection, _):
        connection.execute(f"PRAGMA max_page_count={pages}")

    opened.engine.dispose()
    with pytest.raises(DatabaseFull, match="disk is full"):
        [submit(queue) for _ in range(200)]
    opened.close()


@pytest.mark.parametrize("url", ["mysql://a@b/c", "nonsense", "sqlite://", "postgresql"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(BadRequest, match="--database"):
        open_database(StoreFlags(data=tmp_path, database=url))


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "lynx-video.db").write_text("hello " * 1000)
    with pytest.raises(BadRequest, match="none of SQLite's"):
        open_database(StoreFlags(data=tmp_path))


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(Unavailable, match="can't be reached") as caught:
        open_database(StoreFlags(data=tmp_path, database=f"postgresql://u:secret@/x?host={tmp_path}"))
    assert "secret" not in str(caught.value)
