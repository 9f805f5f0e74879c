"""What becomes of a clip, as server-sent events; whoever listens reads the database, so listening and leaving change nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from lynx_video.server import answers
from lynx_video.server.database import Unavailable
from lynx_video.server.faults import ApiError
from lynx_video.server.jobs import Job
from lynx_video.server.service import Service, in_thread

LOOK_SECONDS = 0.25
KEY_SECONDS = 2.0
"""How often it is looked whether who listens may still do so."""
MOST_STREAMS = 50
"""That one owner may listen to at a time."""
SILENCE_SECONDS = 15.0
"""After this a comment is sent, so that nobody on the way takes the line for dead."""


def check_streams(service: Service, owner: str) -> None:
    """Raises ApiError if an owner listens to as much as may be."""
    if service.streams[owner] >= MOST_STREAMS:
        message = f"{MOST_STREAMS} streams of events are open already; close one, or ask for the video itself."
        raise ApiError(429, message, code="too_many_streams", headers={"Retry-After": "5"})


async def events(service: Service, owner: str, job_id: str, may_listen: Callable[[], bool]) -> AsyncIterator[str]:
    """`progress` whenever something changed, then one of `completed`, `failed` and `deleted`.

    Ends early if the service stops or the key was revoked (`may_listen`); while the database is away it waits.
    """
    service.streams[owner] += 1
    try:
        async for event in _events(service, owner, job_id, may_listen):
            yield event
    finally:
        service.streams[owner] -= 1


async def _events(service: Service, owner: str, job_id: str, may_listen: Callable[[], bool]) -> AsyncIterator[str]:
    last: dict[str, Any] | None = None
    spoken = asked = time.monotonic()
    while not service.closing:
        try:
            if time.monotonic() - asked > KEY_SECONDS:
                if not await in_thread(may_listen):
                    return
                asked = time.monotonic()
            job, news = await in_thread(partial(_look, service, owner, job_id))
        except Unavailable:
            yield ": the database is away\n\n"
            await asyncio.sleep(4 * LOOK_SECONDS)
            continue
        if job is None:
            yield _event("deleted", {"id": job_id, "object": "video.deleted", "deleted": True})
            return
        if job.status in ("completed", "failed"):
            yield _event(job.status, answers.video_object(job, keep_days=service.flags.keep_days).model_dump(mode="json"))
            return
        if news != last:
            yield _event("progress", news)
            last, spoken = news, time.monotonic()
        elif time.monotonic() - spoken > SILENCE_SECONDS:
            yield ": still here\n\n"
            spoken = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)


def _look(service: Service, owner: str, job_id: str) -> tuple[Job | None, dict[str, Any]]:
    """The job, and what is told of it on the way."""
    job = service.queue.get(owner, "video", job_id)
    if job is None:
        return None, {}
    position = service.queue.position(job) if job.status == "queued" else None
    waits = service.queue_seconds(position) if position is not None else None
    whole = answers.video_object(job, position=position, queue_seconds=waits)
    lynx = whole.lynx
    return job, {
        "id": job.id,
        "status": job.status,
        "progress": whole.progress,
        "position": lynx.position,
        "step": lynx.step,
        "steps": lynx.steps,
        "eta_seconds": lynx.eta_seconds,
        # the step behind it makes it another address whenever there is another picture
        "preview": f"{lynx.preview}?step={job.preview}" if lynx.preview else None,
    }


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
