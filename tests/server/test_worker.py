"""Jobs done by a worker in this process, with nano: made once, stopped within a step, failed with a reason, nothing left behind."""

import errno
import sqlite3
import threading
import time
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from asked import PROMPT, ask, left, refused
from PIL import Image
from sqlalchemy import update

from lynx_video.errors import BadOutput, NoFace, Refused
from lynx_video.server import database as db
from lynx_video.server import worker as worker_module

QUICK = {"num_frames": "5", "num_inference_steps": "4"}


@pytest.fixture
def client(asking):
    return asking()


@pytest.fixture
def watched(studio, monkeypatch):
    """watched(before, after) makes each step of a clip call these with its number, around the worker's own callback.

    Its list has the number of every step that was computed.
    """
    film = studio.film
    computed = []

    def make(before=lambda _: None, after=lambda _: None):
        def filmed(*arguments, on_step, **more):
            def callback(step):
                computed.append(step.number)
                before(step.number)
                on_step(step)
                after(step.number)

            return film(*arguments, on_step=callback, **more)

        monkeypatch.setattr(studio, "film", filmed)
        return computed

    return make


def shown(client, made):
    return client.get(f"/v1/videos/{made['id']}").json()


def test_a_clip_is_made_served_and_deleted(client, portrait, worker, tmp_path):
    made = ask(client, portrait, seed="7", **QUICK).json()
    other = ask(client, portrait, seed="8", **QUICK).json()
    crew = worker(client.service)
    assert crew.turn()
    done = shown(client, made)
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["created_at"] <= done["started_at"] <= done["completed_at"]
    lynx = done["lynx"]
    assert (lynx["seed"], lynx["step"], lynx["steps"], lynx["preview"]) == (7, 4, 4, None)
    assert lynx["similarity"] is None or -1 <= lynx["similarity"] <= 1
    assert lynx["settings"]["portrait"] == "me.png"
    assert "prompt" not in lynx["settings"]
    assert shown(client, other)["lynx"]["eta_seconds"] > 0, "it is known now what a clip takes"
    assert left(client) == [f"uploads/{other['id']}.png", f"videos/{made['id']}.jpg", f"videos/{made['id']}.mp4"]

    whole = client.get(f"/v1/videos/{made['id']}/content")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "clip.mp4").write_bytes(whole.content)
    from lynx_video.media.video import read_video

    frames, fps = read_video(tmp_path / "clip.mp4")
    assert (frames.shape, fps) == ((5, 64, 64, 3), 8.0)
    head = client.head(f"/v1/videos/{made['id']}/content")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(whole.content)), b"")
    part = client.get(f"/v1/videos/{made['id']}/content", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    refused(client.get(f"/v1/videos/{made['id']}/content", headers={"Range": "bytes=99999999-"}), 416, "bad_range", "Range")
    refused(client.get(f"/v1/videos/{made['id']}/content", headers={"Range": "x"}), 400, "bad_range", "Range")
    still = client.get(f"/v1/videos/{made['id']}/content?variant=thumbnail")
    assert Image.open(BytesIO(still.content)).size == (64, 64)
    refused(client.get(f"/v1/videos/{made['id']}/content?variant=spritesheet"), 400, "bad_field", "variant")

    text = client.get("/metrics").text
    for line in (
        'lynx_video_jobs_ended_total{how="completed"} 1.0',
        "lynx_video_clip_seconds_count 1.0",
        "lynx_video_step_seconds_count 4.0",
        'lynx_video_step_seconds_bucket{le="+Inf"} 4.0',
    ):
        assert line in text, line
    client.delete(f"/v1/videos/{made['id']}")
    client.delete(f"/v1/videos/{other['id']}")
    assert left(client) == []
    assert not crew.turn()


def test_a_cancelled_clip_stops_at_the_next_step(client, portrait, worker, watched):
    made = ask(client, portrait, num_frames="5").json()

    def cancel(number):
        if number == 3 and not gone:
            gone.append(client.delete(f"/v1/videos/{made['id']}"))
            assert left(client) == []

    gone = []
    computed = watched(after=cancel)  # right after a step was reported: the worst moment
    crew = worker(client.service)
    assert crew.turn()
    assert gone[0].status_code == 200
    assert computed == [1, 2, 3, 4], "of 20 steps, one after the DELETE"
    assert left(client) == []
    assert not crew.turn()
    refused(client.get(f"/v1/videos/{made['id']}"), 404, "video_not_found", "video_id")
    following = ask(client, portrait, **QUICK).json()
    assert crew.turn(), "the worker takes the next one"
    assert shown(client, following)["status"] == "completed"


def test_a_worker_that_is_told_to_stop_puts_its_clip_back(client, portrait, worker, watched):
    made = ask(client, portrait, **QUICK).json()
    crew = worker(client.service)
    computed = watched(before=lambda number: crew.stopping.set() if number == 2 else None)
    assert crew.turn()
    assert computed == [1, 2]
    again = shown(client, made)
    assert (again["status"], again["progress"], again["lynx"]["position"]) == ("queued", 0, 0)
    assert client.service.queue.get("local", "video", made["id"]).attempts == 0
    watched()
    assert worker(client.service, "w2").turn()
    assert shown(client, made)["status"] == "completed"


def test_a_zombie_stops_at_its_next_step(client, portrait, worker, watched):
    made = ask(client, portrait, **QUICK).json()
    heirs = []

    def lose(number):
        if number == 2 and not heirs:
            expire(client)
            heirs.append(client.service.queue.claim("heir"))

    computed = watched(before=lose)
    assert worker(client.service).turn()
    assert computed == [1, 2]
    assert left(client) == [f"uploads/{made['id']}.png"], "the heir needs it"
    assert client.service.queue.get("local", "video", made["id"]).worker == "heir"


def test_a_zombie_publishes_nothing(client, portrait, worker, studio, monkeypatch):
    made = ask(client, portrait, seed="5", **QUICK).json()
    film = studio.film
    crew, heir = worker(client.service, "zombie"), worker(client.service, "heir")
    clips = []

    def late(*arguments, **more):
        made_of = film(*arguments, **more)
        clips.append(made_of.output)
        if len(clips) == 1:  # the zombie has its clip; now it sleeps past its lease, and another makes and publishes it
            expire(client)
            assert heir.turn()
            assert shown(client, made)["status"] == "completed"
        return made_of

    monkeypatch.setattr(studio, "film", late)
    assert crew.turn()
    assert len(set(clips)) == 2, "each writes to a place of its own"
    job = client.service.queue.get("local", "video", made["id"])
    assert (job.status, job.worker, job.attempts) == ("completed", "heir", 2)
    assert left(client) == [f"videos/{made['id']}.jpg", f"videos/{made['id']}.mp4"]
    assert 'lynx_video_jobs_ended_total{how="completed"} 1.0' in client.get("/metrics").text


def expire(client):
    """The worker's lease runs out."""
    with client.service.database.write() as connection:
        connection.execute(update(db.jobs).where(db.jobs.c.status == "in_progress").values(lease=time.time() - 1))
    client.service.queue.reclaim()


@pytest.mark.parametrize(
    ("error", "code", "message", "goes_on"),
    [
        (Refused("the video was refused by the safety checker."), "content_policy", "was refused", True),
        (NoFace("PATH: no face."), "no_face", "me.png: no face", True),
        (BadOutput("PATH: cannot be written."), "disk_full", "disk is full", True),
        (OSError(errno.ENOSPC, "No space left on device", "PATH"), "disk_full", "disk is full", True),
        (MemoryError(), "out_of_memory", "out of memory", False),
        (RuntimeError("the inner secret PATH"), "internal_error", "internal error (RuntimeError)", False),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_clips_that_fail(client, portrait, worker, studio, monkeypatch, error, code, message, goes_on):
    made = ask(client, portrait, **QUICK).json()
    job = client.service.queue.get("local", "video", made["id"])
    path = str(client.service.folder.upload(job.request["portrait"]))
    error.args = tuple(one.replace("PATH", path) if isinstance(one, str) else one for one in error.args)
    if isinstance(error, BadOutput):
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(studio, "film", fail)
    if goes_on:
        assert worker(client.service).turn()
    else:
        with pytest.raises(type(error)):
            worker(client.service).turn()
    failed = shown(client, made)
    assert (failed["status"], failed["error"]["code"]) == ("failed", code)
    assert message in failed["error"]["message"]
    assert "secret" not in failed["error"]["message"]
    assert path not in failed["error"]["message"]
    assert failed["completed_at"] is not None
    assert left(client) == []
    refused(client.get(f"/v1/videos/{made['id']}/content"), 409, "video_not_ready")
    text = client.get("/metrics").text
    assert f'lynx_video_job_failures_total{{code="{code}"}} 1.0' in text
    client.delete(f"/v1/videos/{made['id']}")


def test_a_worker_that_ends_over_a_clip_was_ready(client, portrait, worker, studio, monkeypatch):
    """What the supervisor tells one that died of a clip from one that never could have made any."""

    def fail(*_, **__):
        raise MemoryError

    ask(client, portrait, **QUICK)
    monkeypatch.setattr(studio, "film", fail)
    monkeypatch.setattr(studio, "open", lambda: None)
    crew = client.service.crew
    with pytest.raises(MemoryError):
        worker(client.service).run()
    assert crew.is_ready("w1")
    told = worker(client.service, "w2")
    told.stopping.set()
    told.run()
    assert not crew.is_ready("w2"), "in good order it leaves"


def test_a_clip_outlives_a_locked_database(client, portrait, worker, watched):
    made = ask(client, portrait, **QUICK).json()
    other = sqlite3.connect(client.service.folder.path / "lynx-video.db", isolation_level=None, check_same_thread=False)
    releases = []

    def lock(number):
        if number == 3:
            other.execute("BEGIN IMMEDIATE")
        if number == 4:  # still locked when the clip is done
            releases.append(threading.Timer(1.0, other.execute, ["COMMIT"]))
            releases[0].start()

    computed = watched(before=lock)
    assert worker(client.service).turn()
    releases[0].join()
    other.close()
    assert computed == [1, 2, 3, 4]
    assert shown(client, made)["status"] == "completed"


def test_the_best_of_several_counts_all_steps(client, portrait, worker, watched):
    made = ask(client, portrait, best_of="2", **QUICK).json()
    seen = []
    watched(after=lambda _: seen.append(shown(client, made)))
    assert worker(client.service).turn()
    assert [one["lynx"]["step"] for one in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one["progress"] for one in seen] == [12, 25, 37, 50, 62, 75, 87, 99]
    assert all(one["lynx"]["steps"] == 8 and one["lynx"]["eta_seconds"] >= 0 for one in seen)
    assert shown(client, made)["lynx"]["settings"]["best_of"]


def test_previews_while_it_comes(client, portrait, worker, watched, monkeypatch):
    monkeypatch.setattr(worker_module, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "PREVIEW_SHARE", 1e9)
    made = ask(client, portrait, **QUICK).json()
    seen = []

    def look(number):
        if number < 4:
            link = shown(client, made)["lynx"]["preview"]
            assert link == f"/v1/videos/{made['id']}/preview"
            answer = client.get(link)
            assert answer.headers["content-type"] == "image/jpeg"
            seen.append(np.asarray(Image.open(BytesIO(answer.content))))

    watched(after=look)
    assert worker(client.service).turn()
    assert len(seen) == 3
    assert all(one.ndim == 3 for one in seen)
    assert any((one != seen[0]).any() for one in seen[1:])
    assert left(client) == [f"videos/{made['id']}.jpg", f"videos/{made['id']}.mp4"]
    refused(client.get(f"/v1/videos/{made['id']}/preview"), 404, "no_preview")


def test_previews_take_little_of_the_time(client, portrait, worker, studio, monkeypatch):
    drawn = []

    def slow(step):
        drawn.append(step.number)
        time.sleep(0.05)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(worker_module, "PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(worker_module, "PREVIEW_SHARE", 0.001)
    monkeypatch.setattr(studio, "preview", slow)
    ask(client, portrait, **QUICK)
    assert worker(client.service).turn()
    assert drawn == [1], "the next would be due after fifty seconds"


def events_of(text):
    """[(name, data)] of a stream of server-sent events."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in blocks]


def test_events_tell_everything_to_the_end(client, portrait, worker, watched, at_first_event, monkeypatch):
    import json

    from lynx_video.server import events

    made = ask(client, portrait, **QUICK).json()
    look, looks = events._look, []

    def looking(*arguments):
        found = look(*arguments)
        looks.append(found[1].get("step"))
        return found

    monkeypatch.setattr(events, "_look", looking)
    watched(after=lambda number: wait_until(lambda: number in looks) if number < 4 else None)
    at_first_event(worker(client.service).turn)
    answer = client.get(f"/v1/videos/{made['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [(name, json.loads(data)) for name, data in events_of(answer.text)]
    assert [name for name, _ in found] == ["progress"] * (len(found) - 1) + ["completed"]
    first, last = found[0][1], found[-1][1]
    assert (first["status"], first["position"], first["step"]) == ("queued", 0, 0)
    steps = [data["step"] for _, data in found[1:-1]]
    assert steps == sorted(steps)
    assert {1, 2, 3} <= set(steps)
    assert last == shown(client, made)
    again = events_of(client.get(f"/v1/videos/{made['id']}/events").text)
    assert [name for name, _ in again] == ["completed"]


def test_events_of_a_clip_that_is_deleted(client, portrait, at_first_event):
    made = ask(client, portrait).json()
    at_first_event(lambda: client.service.queue.delete("local", "video", made["id"]))
    names = [name for name, _ in events_of(client.get(f"/v1/videos/{made['id']}/events").text)]
    assert names == ["progress", "deleted"]


def enroll(client, worker, picture, **fields):
    """POST /v1/identities with a worker that does the job meanwhile."""
    crew = worker(client.service, "enroller")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            if not crew.turn():
                time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return client.post("/v1/identities", data=fields, files={"portrait": ("me.png", picture, "image/png")})
    finally:
        stop.set()
        thread.join()


def test_a_person_is_enrolled_used_and_forgotten(asking, portrait, worker):
    client = asking(require_consent=True)
    answer = enroll(client, worker, portrait, name="Ada", consent="Ada, by mail")
    assert answer.status_code == 201, answer.text
    person = answer.json()
    assert (person["status"], person["name"], person["consent"], person["face"]) == ("completed", "Ada", "Ada, by mail", 0)
    assert len(person["faces"]) == 1
    assert client.get(f"/v1/identities/{person['id']}").json() == person
    assert [one["id"] for one in client.get("/v1/identities").json()["data"]] == [person["id"]]
    assert left(client) == [f"identities/{person['id']}.safetensors"], "the portrait is gone"

    made, waits = (ask(client, None, identity=person["id"], num_frames=5, num_inference_steps=4).json() for _ in range(2))
    crew = worker(client.service)
    assert crew.turn()
    done = shown(client, made)
    assert done["status"] == "completed"
    assert done["lynx"]["identity"] == person["id"]
    assert done["lynx"]["settings"]["consent"] == "Ada, by mail"
    assert client.delete(f"/v1/identities/{person['id']}").json()["object"] == "identity.deleted"
    refused(client.get(f"/v1/identities/{person['id']}"), 404, "identity_not_found", "identity_id")
    refused(ask(client, None, identity=person["id"]), 404, "identity_not_found", "identity")
    assert not any(one.startswith("identities") for one in left(client))
    assert crew.turn()
    error = shown(client, waits)["error"]
    assert error["code"] == "bad_request"
    assert "was deleted" in error["message"]


def test_an_enrolment_that_fails_leaves_nothing(client, portrait, worker, studio, monkeypatch):
    def refuse(*_, **__):
        raise Refused("the portrait was refused by the safety checker: 0.99.")

    monkeypatch.setattr(studio, "enrol", refuse)
    refused(enroll(client, worker, portrait), 400, "content_policy", "portrait")
    assert left(client) == []
    assert client.service.queue.known() == set()


def test_an_enrolment_that_takes_longer_can_be_asked_for(client, portrait, worker, monkeypatch):
    from lynx_video.server.routes import identities

    monkeypatch.setattr(identities, "PATIENCE", 0.2)
    answer = client.post("/v1/identities", files={"portrait": ("me.png", portrait)})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    person = answer.json()["id"]
    refused(ask(client, None, identity=person), 409, "identity_not_ready", "identity")
    assert worker(client.service).turn()
    assert client.get(f"/v1/identities/{person}").json()["status"] == "completed"


def test_a_private_clip_is_forgotten_but_for_the_clip(client, portrait, worker):
    small = BytesIO()
    Image.open(BytesIO(portrait)).resize((96, 96)).save(small, "PNG")  # something to warn of, with the portrait's name
    made = ask(client, small.getvalue(), "secret.png", private="true", consent="the secret consent", **QUICK).json()
    assert worker(client.service).turn()
    done = client.get(f"/v1/videos/{made['id']}")
    assert done.json()["status"] == "completed"
    assert any("the portrait: " in one and "small" in one for one in done.json()["lynx"]["warnings"])
    assert "secret" not in done.text
    assert PROMPT not in done.text
    with client.service.database.read() as connection:
        from sqlalchemy import select

        row = connection.execute(select(db.jobs)).one()
    assert PROMPT not in repr(row)
    assert "secret" not in repr(row)


def test_a_worker_gives_signs_of_life_and_takes_back_what_the_dead_had(client, portrait, worker):
    crew = worker(client.service, lease=0.4)
    refused(client.get("/ready"), 503, "not_ready")
    thread = threading.Thread(target=crew.run)
    thread.start()
    try:
        wait_until(lambda: client.get("/ready").status_code == 200)
        made = ask(client, portrait, **QUICK).json()
        wait_until(lambda: shown(client, made)["status"] == "completed")
        with client.service.database.write() as connection:  # one whose worker died long ago
            values = {"status": "in_progress", "lease": time.time() - 1, "token": "x", "worker": "dead", "attempts": 1}
            connection.execute(update(db.jobs).values(**values, completed_at=None))
        wait_until(lambda: client.service.queue.get("local", "video", made["id"]).worker != "dead")
    finally:
        crew.stopping.set()
        thread.join()
    refused(client.get("/ready"), 503, "not_ready")


def wait_until(done, seconds=20.0):
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def test_a_model_that_cannot_be_loaded_is_said(client, worker, monkeypatch):
    from lynx_video.errors import BadWeights
    from lynx_video.studio.studio import Studio

    def broken(_):
        raise BadWeights("base/model.safetensors is cut.")

    monkeypatch.setattr(Studio, "open", broken)
    crew = worker(client.service)
    monkeypatch.setattr(crew, "studio", Studio(crew.studio.setup))
    with pytest.raises(worker_module.SetupFault, match="is cut"):
        crew.run()


def test_files_of_no_job_are_swept(client, portrait):
    import os

    made = ask(client, portrait).json()["id"]
    folder = client.service.folder
    stray = [folder.path / "uploads" / f"video_{'0' * 32}.png", folder.path / "videos" / f".video_{'1' * 32}.t.mp4"]
    for file in (*stray, young := folder.path / "uploads" / f"video_{'2' * 32}.png"):
        file.write_bytes(b"x")
    for file in (*stray, folder.upload(f"{made}.png")):
        os.utime(file, (time.time() - 7200,) * 2)
    assert sorted(folder.sweep(client.service.queue.known(), client.service.queue.unfinished())) == sorted(stray)
    assert young.exists()
    assert left(client) == sorted([f"uploads/{made}.png", f"uploads/{young.name}"])


def test_orders_travel_to_workers(tmp_path):
    import base64
    import pickle

    from lynx_video.server.config import StoreFlags
    from lynx_video.studio.setup import Setup

    order = worker_module.WorkOrder(name="w", store=StoreFlags(data=tmp_path), setup=Setup(), lease=3.0)
    line = worker_module.order_line(order)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert pickle.loads(base64.b64decode(line)) == order
    assert replace(order, lease=4.0) != order
