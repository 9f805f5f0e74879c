"""A request that is cut off while its job is being queued: the job that came of it has its portrait."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
from asked import PROMPT

from lynx_video.server.app import make_app
from lynx_video.server.jobs import Queue


@pytest.mark.parametrize(("path", "field"), [("/v1/videos", "input_reference"), ("/v1/identities", "portrait")])
def test_a_job_keeps_its_portrait(serving: Any, worker: Any, portrait: bytes, monkeypatch: Any, path: str, field: str) -> None:
    service = serving()
    submit, gone = Queue.submit, threading.Event()

    def slow(self: Queue, *args: Any) -> Any:
        queued = submit(self, *args)
        assert gone.wait(20)
        return queued

    monkeypatch.setattr(Queue, "submit", slow)
    fields = {"prompt": PROMPT, "num_frames": "5", "num_inference_steps": "2"} if path == "/v1/videos" else {"name": "Ada"}

    async def cut_off() -> None:
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
            asking = asyncio.create_task(client.post(path, data=fields, files={field: ("me.png", portrait)}))
            end = time.monotonic() + 20
            while not service.queue.waiting():
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            asking.cancel()  # as uvicorn does with what is not done some seconds after SIGTERM
            gone.set()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(cut_off())
    assert len(list(service.folder.uploads.iterdir())) == 1
    assert worker(service).turn()
    assert [status for _, status in service.queue.counts()] == ["completed"]
    assert not list(service.folder.uploads.iterdir())
