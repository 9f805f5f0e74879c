"""What all routes share: the queue, the files, the desk, who asks, and for how long the answers hold."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from lynx_video.server.access import NOBODY, find_key, has_keys, wait_seconds
from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.server.crew import Crew
from lynx_video.server.database import Database
from lynx_video.server.desk import Desk
from lynx_video.server.faults import SOON, ApiError
from lynx_video.server.fetch import FetchPolicy
from lynx_video.server.folder import Folder
from lynx_video.server.intake import Shelf
from lynx_video.server.jobs import Queue
from lynx_video.server.meters import Meters
from lynx_video.server.uploads import UploadLimits
from lynx_video.studio.setup import Setup

Answer = TypeVar("Answer")
DECODED_AT_A_TIME = 4
CLIP_SECONDS_HOLD = 5.0
"""Seconds for which it is not looked up again what clips took."""


@dataclass(kw_only=True, slots=True)
class Service:
    """A service over a database that is open. keyed: nothing is to be had without a key, also where there are none yet.

    closing: it is told to stop, whoever waits should not go on waiting. streams: how many each owner listens to.
    """

    flags: ServeFlags
    database: Database
    queue: Queue
    crew: Crew
    folder: Folder
    desk: Desk
    meters: Meters
    shelf: Shelf
    keyed: bool = False
    closing: bool = False
    streams: Counter[str] = field(default_factory=Counter)
    _clip_seconds: tuple[float, float] | None = None

    def clip_seconds(self) -> float | None:
        """What a clip took lately; None if none was made yet."""
        held = self._clip_seconds
        if held is not None and time.monotonic() < held[0]:
            return held[1]
        found = self.queue.clip_seconds()
        self._clip_seconds = None if found is None else (time.monotonic() + CLIP_SECONDS_HOLD, found)
        return found

    def queue_seconds(self, position: int) -> float | None:
        """When a job that so many wait before will be done, by what clips took lately; None if none was made yet."""
        clip = self.clip_seconds()
        return None if clip is None else (position / max(1, self.crew.ready()) + 1) * clip

    def retry_after(self) -> int:
        """Seconds until a place in a full queue is free, by what clips took lately."""
        clip = self.clip_seconds()
        return SOON if clip is None else max(1, math.ceil(clip / max(1, self.crew.ready())))


def make_service(store: StoreFlags, flags: ServeFlags, setup: Setup, database: Database, keyed: bool = False) -> Service:
    """All parts of a service. Raises BadRequest for flags that cannot be used."""
    folder = Folder(path=store.data)
    folder.make()
    queue = Queue(database=database, lease=flags.lease)
    shelf = Shelf(
        folder=folder.uploads,
        limits=UploadLimits(most_bytes=flags.max_upload_mb * 2**20),
        fetching=FetchPolicy(hosts=flags.allow_url_fetch),
        limiter=CapacityLimiter(DECODED_AT_A_TIME),
    )
    return Service(
        flags=flags,
        database=database,
        queue=queue,
        crew=Crew(database=database, lease=flags.lease),
        folder=folder,
        desk=Desk(setup, folder, flags.largest),
        meters=Meters(database, queue),
        shelf=shelf,
        keyed=keyed,
    )


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Run something that waits for the database or the disk."""
    return await run_sync(work)


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


_BEARER = HTTPBearer(auto_error=False, description="A key of `lynx-video keys add`; none is needed where there are no keys.")


Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


def token_of(given: HTTPAuthorizationCredentials | None) -> str:
    """The token that came with a request; empty if none."""
    return given.credentials.strip() if given else ""


def may_ask(service: Service, token: str) -> bool:
    """Whether a token is a good one, or none is needed."""
    return (token != "" and find_key(service.database, token) is not None) or not needs_key(service)


def needs_key(service: Service) -> bool:
    """Whether nothing is to be had without a key."""
    return service.keyed or has_keys(service.database)


def owner_of(request: Request, given: Given) -> str:
    """Who asks. Raises ApiError without a good key where there are keys, or for one that asks too often."""
    service = service_of(request)
    token = token_of(given)
    key = find_key(service.database, token) if token else None
    if key is None and needs_key(service):
        what = "this key is not known, or was revoked" if token else "a key is needed: Authorization: Bearer KEY"
        raise ApiError(401, f"{what}.", headers={"WWW-Authenticate": "Bearer"})
    if service.flags.rate_limit is not None:
        wait = wait_seconds(service.database, key.id if key else NOBODY, service.flags.rate_limit)
        if wait:
            message = f"more than {service.flags.rate_limit} requests a minute; try again in {wait} s."
            raise ApiError(429, message, headers={"Retry-After": str(wait)})
    return key.owner if key else NOBODY


Owner = Annotated[str, Depends(owner_of)]
Served = Annotated[Service, Depends(service_of)]
