"""The HTTP app: the routes, and what stands before them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI

from lynx_video import __version__
from lynx_video.server.access import has_keys
from lynx_video.server.body_limit import BodyLimit
from lynx_video.server.config import is_loopback
from lynx_video.server.faults import ApiError, install, plain_body
from lynx_video.server.routes import identities, status, videos
from lynx_video.server.service import Service, in_thread

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ABOUT = """Video of a real person from one photo, in the shape of OpenAI's video API.

Ask for a clip with `POST /v1/videos`, look at it with `GET /v1/videos/{id}` or listen to its events, and fetch it from
`/v1/videos/{id}/content`. Every error is `{"error": {"message", "type", "code", "param"}}`."""
FORM_BYTES = 256 * 1024
"""What a request may have beside its picture."""


def make_app(service: Service) -> FastAPI:
    """The app over a service whose desk is open."""
    app = FastAPI(title="Lynx Video", version=__version__, description=ABOUT, redoc_url=None)
    app.state.service = service
    install(app, lambda code: service.meters.refusals.labels(code).inc())
    for router in (videos.router, identities.router, status.router):
        app.include_router(router)
    # A picture in JSON is a third longer than its bytes.
    most = service.flags.max_upload_mb * 2**20 * 4 // 3 + FORM_BYTES
    app.add_middleware(BodyLimit, most_bytes=most, most_seconds=service.shelf.limits.most_seconds, answer=plain_body)
    app.add_middleware(Door, service=service)
    return app


class Door:
    """ASGI middleware: counts and times every request; and without keys lets in only who speaks to this machine by its own names.

    A web page that somebody here looks at could otherwise ask in their name: by a name of its own that leads here (DNS rebinding), or
    by sending a form to this address.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service
        self._keyed = service.keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, meters, answered = time.monotonic(), self.service.meters, 500

        async def noting(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
            await send(message)

        try:
            refusal = await self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, noting)
            else:
                await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = (
                scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS") else "other"
            )
            meters.requests.labels(method, route, str(answered)).inc()
            meters.request_seconds.labels(method, route).observe(time.monotonic() - began)

    async def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"] == "/health":  # tells nothing, and waits for nothing
            return None
        if not self._keyed:
            try:
                self._keyed = await in_thread(lambda: has_keys(self.service.database))  # there are never fewer
            except Exception:  # noqa: BLE001 (the route finds out and says so; until then, as if there were none)
                self._keyed = False
        if self._keyed:
            return None
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not is_loopback(_name(f"//{host}")):
            return ApiError(
                403, f"without keys only this machine's own names are answered, not {host[:100]!r}.", code="foreign_host"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not is_loopback(_name(origin)):
            return ApiError(403, f"without keys no other site may ask, and {origin[:100]!r} does.", code="foreign_origin")
        return None


def _name(address: str) -> str:
    """The host's name in an address; empty if there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
