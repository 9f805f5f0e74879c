"""What one who asks may take of the service's time: bodies, streams of events, windows, and the clock under the rates."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import httpx
import pytest
from asked import PROMPT, ask, data_url, left, refused

from lynx_video.errors import BadRequest
from lynx_video.server.access import add_key, list_keys, revoke_key, wait_seconds
from lynx_video.server.body_limit import BodyLimit
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.jobs import Queue
from lynx_video.studio.setup import Setup


@pytest.fixture
def client(asking: Any) -> Any:
    return asking()


@pytest.mark.parametrize("sign", ["[],", "1,", '{"a":1},'])
def test_bodies_of_many_small_things_are_not_read(client: Any, monkeypatch: Any, sign: str) -> None:
    from lynx_video.server import intake

    body = '{"prompt": "x", "ip_blocks": [' + sign * 40_000 + "0]}"
    with monkeypatch.context() as watched:
        watched.setattr(intake.json, "loads", lambda *_, **__: pytest.fail("it was read"))
        answer = client.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    refused(answer, 400, "bad_json")


def test_the_longest_texts_are_read_whatever_they_are_of(client: Any, portrait: bytes) -> None:
    body = {"prompt": "[" * 8000, "negative_prompt": "," * 8000, "consent": "," * 2000, "input_reference": data_url(portrait)}
    assert client.post("/v1/videos", json=body).status_code == 200


@pytest.mark.parametrize(
    "name", ["model", "size", "identity", "preset", "seconds", "negative_prompt", "ip_blocks", "guidance_scale_i"]
)
def test_every_text_has_a_longest(client: Any, name: str) -> None:
    error = refused(client.post("/v1/videos", json={"prompt": PROMPT, name: "x" * 100_000}), 400, "bad_field", name)
    assert len(error["message"]) < 1000


def test_unknown_fields_are_told_in_short(client: Any) -> None:
    answer = client.post("/v1/videos", json={"prompt": "x", **{f"{number}" * 20_000: 1 for number in range(10, 60)}})
    assert answer.json()["error"]["code"] == "unknown_field"
    assert len(answer.content) < 5000


def test_bodies_are_taken_apart_in_threads(client: Any, portrait: bytes, monkeypatch: Any) -> None:
    from lynx_video.server import intake, uploads

    loads, decode, threads = json.loads, base64.b64decode, {}

    def loading(*arguments: Any, **more: Any) -> Any:
        threads["json"] = threading.get_ident()
        return loads(*arguments, **more)

    def decoding(*arguments: Any, **more: Any) -> Any:
        threads["base64"] = threading.get_ident()
        return decode(*arguments, **more)

    async def loop() -> int:
        return threading.get_ident()

    monkeypatch.setattr(intake.json, "loads", loading)
    monkeypatch.setattr(uploads.base64, "b64decode", decoding)
    assert client.post("/v1/videos", json={"prompt": PROMPT, "input_reference": data_url(portrait)}).status_code == 200
    assert set(threads) == {"json", "base64"}
    assert client.portal.call(loop) not in threads.values()


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    said: list[Any] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            if not message.get("more_body"):
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return

    async def send(message: Any) -> None:
        said.append(message)

    async def slow(parts: int) -> None:
        left_over = parts

        async def receive() -> Any:
            nonlocal left_over
            left_over -= 1
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": left_over > 0}

        limited = BodyLimit(app, 10_000, 1.5, lambda status, message: json.dumps([status, message]).encode())
        await asyncio.wait_for(limited({"type": "http", "headers": []}, receive, send), 10)

    asyncio.run(slow(2))
    assert said.pop(0)["status"] == 200
    said.clear()
    asyncio.run(slow(9000))
    assert said[0]["status"] == 408
    assert json.loads(said[1]["body"])[0] == 408
    assert "not all there after 1.5 s" in json.loads(said[1]["body"])[1]


def test_after_the_body_there_is_no_hurry() -> None:
    heard: list[str] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        heard.extend([(await receive())["type"], (await receive())["type"]])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run() -> None:
        messages = [{"type": "http.request", "body": b"x"}, {"type": "late"}]

        async def receive() -> Any:
            if len(messages) == 1:
                await asyncio.sleep(0.3)
            return messages.pop(0)

        async def send(_: Any) -> None:
            heard.append("answered")

        await BodyLimit(app, 1000, 0.1, lambda *_: b"")({"type": "http", "headers": []}, receive, send)

    asyncio.run(run())
    assert heard == ["http.request", "late", "answered"]


def test_an_owner_listens_to_so_many_streams(client: Any, portrait: bytes, monkeypatch: Any) -> None:
    from lynx_video.server import events

    monkeypatch.setattr(events, "MOST_STREAMS", 2)
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.02)
    service = client.service
    made = ask(client, portrait).json()["id"]

    def listen() -> None:
        texts.append(client.get(f"/v1/videos/{made}/events").text)

    texts: list[str] = []
    threads = [threading.Thread(target=listen) for _ in range(2)]
    for one in threads:
        one.start()
    until = time.monotonic() + 20
    while service.streams["local"] < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    answer = client.get(f"/v1/videos/{made}/events")
    refused(answer, 429, "too_many_streams")
    assert int(answer.headers["Retry-After"]) > 0
    client.delete(f"/v1/videos/{made}")
    for one in threads:
        one.join(20)
    assert ["event: deleted" in text for text in texts] == [True, True]
    assert service.streams["local"] == 0


def test_a_stream_ends_when_its_key_is_revoked(client: Any, portrait: bytes, at_first_event: Any, monkeypatch: Any) -> None:
    from lynx_video.server import events

    monkeypatch.setattr(events, "KEY_SECONDS", 0.02)
    database = client.service.database
    client.headers["Authorization"] = f"Bearer {add_key(database, 'ada')[1]}"
    made = ask(client, portrait).json()["id"]
    identifier = list_keys(database)[0].id
    at_first_event(lambda: revoke_key(database, identifier))
    text = client.get(f"/v1/videos/{made}/events").text
    assert text.count("event:") == 1
    assert client.service.queue.waiting() == 1


def test_what_clips_took_is_not_looked_up_for_everybody(serving: Any, monkeypatch: Any) -> None:
    from lynx_video.server import service as module

    service, asked = serving(), []

    def took(_: Queue) -> float:
        asked.append(1)
        return 4.0

    monkeypatch.setattr(Queue, "clip_seconds", took)
    assert [service.queue_seconds(position) for position in range(3)] == [4.0, 8.0, 12.0]
    assert len(asked) == 1
    monkeypatch.setattr(module, "CLIP_SECONDS_HOLD", 0.0)
    service._clip_seconds = None
    service.queue_seconds(0)
    service.queue_seconds(0)
    assert len(asked) == 3


def test_windows_count_as_often_as_they_are_looked_at(asking: Any, portrait: bytes) -> None:
    client = asking(largest=20)
    fair = {"num_frames": "33", "window_frames": "17", "window_overlap": "4"}
    assert ask(client, portrait, **fair).status_code == 200
    refused(ask(client, portrait, **{**fair, "window_overlap": "16", "num_frames": "101"}), 400, "too_much")
    assert ask(client, portrait, **{**fair, "num_frames": "101"}).status_code == 200, "the same clip in few windows"
    assert ask(client, portrait, num_inference_steps="800", guidance_scale="1", guidance_scale_i="none").status_code == 200, (
        "one pass"
    )
    refused(ask(client, portrait, num_inference_steps="800"), 400, "too_much")
    error = refused(ask(client, portrait, size="160x160", num_inference_steps="1"), 400, "too_much")
    assert "at once" in error["message"]
    assert len(left(client)) == 3


def test_a_clock_that_was_set_back_locks_nobody_out(database: Any, monkeypatch: Any) -> None:
    from lynx_video.server import access

    real = time.time
    assert wait_seconds(database, "k", 2) == 0
    monkeypatch.setattr(access.time, "time", lambda: real() - 86_400)
    assert wait_seconds(database, "k", 2) == 0, "of two, one is left"
    wait = wait_seconds(database, "k", 2)
    assert 0 < wait <= 30
    monkeypatch.setattr(access.time, "time", lambda: real() - 86_400 + wait)
    assert wait_seconds(database, "k", 2) == 0


def test_a_service_that_needs_keys_needs_them_wherever_it_listens(tmp_path: Any) -> None:
    from starlette.testclient import TestClient

    from lynx_video.server.app import make_app
    from lynx_video.server.database import open_database
    from lynx_video.server.serve import opened
    from lynx_video.server.service import make_service

    store = StoreFlags(data=tmp_path / "data")
    with pytest.raises(BadRequest, match="keys are needed"), opened(store, ServeFlags(), Setup(), keyed=True):
        pass
    database = open_database(store)
    service = make_service(store, ServeFlags(), Setup(), database, keyed=True)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as client:
        refused(client.get("/v1/videos"), 401, "invalid_api_key")
    database.close()


def test_postgres_may_not_keep_us_waiting(postgres: Any, tmp_path: Any) -> None:
    from lynx_video.server.database import open_database

    database = open_database(StoreFlags(data=tmp_path, database=postgres()))
    with database.read() as connection:
        names = ("lock_timeout", "idle_in_transaction_session_timeout")
        found = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
    database.close()
    assert found == ["5s", "1min"]


def test_it_says_that_it_lives_while_all_threads_wait(serving: Any) -> None:
    import anyio.to_thread

    from lynx_video.server.app import make_app

    async def ask_health() -> int:
        release = threading.Event()
        held = [asyncio.create_task(anyio.to_thread.run_sync(release.wait)) for _ in range(50)]
        await asyncio.sleep(0.05)
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
                return (await asyncio.wait_for(client.get("/health"), 5)).status_code
        finally:
            release.set()
            await asyncio.gather(*held)

    app = make_app(serving())
    assert asyncio.run(ask_health()) == 200
