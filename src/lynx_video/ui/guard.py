"""Who may reach the page: this machine alone, unless there is a password; and what Gradio would fetch for a visitor is refused."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest

if TYPE_CHECKING:
    from starlette.middleware import Middleware

SHORTEST_PASSWORD = 12
WRONG_PASSWORD_SECONDS = 1.0
UPLOADS = ("/gradio_api/upload", "/upload")
LARGEST_BODY = 2**20
"""Bytes of a request that is no upload; ten thousand words are a tenth of it."""
_OUTWARD = re.compile(r"/(file=[a-z][a-z0-9+.-]*:|proxy=)", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_password(host: str, password: str | None) -> tuple[str, str] | None:
    """User and password from USER:FILE; None where none is given and none is needed.

    Raises BadRequest where others could reach the page without one, and for a file that holds none.
    """
    if password is None:
        if is_loopback(host):
            return None
        raise BadRequest(
            f"--host {host} lets other machines in: give them a --password USER:FILE (the file holds it), or leave --host away."
        )
    user, colon, name = password.partition(":")
    if not (user.strip() and colon and name):
        raise BadRequest(f"--password is USER:FILE, the file holding the password; got {password!r}.")
    try:
        secret = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise BadRequest(f"--password: {name} can't be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(secret) < SHORTEST_PASSWORD:
        raise BadRequest(f"--password: {name} holds {len(secret)} characters, at least {SHORTEST_PASSWORD} are needed.")
    return user.strip(), secret


def login(user: str, secret: str) -> Callable[[str, str], Awaitable[bool]]:
    """Whether a name and a password are those; a wrong one takes its time."""

    import asyncio

    async def right(name: str, password: str) -> bool:
        known = hmac.compare_digest(name.encode(), user.encode()) & hmac.compare_digest(password.encode(), secret.encode())
        if not known:
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        return bool(known)

    return right


class Inward:
    """ASGI: no address outside is fetched for a visitor, who would get at what this machine can reach; and no endless request is read.

    Gradio fetches an address that is asked of it, or that stands where an uploaded file should.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on what asks for something that is here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _OUTWARD.search(scope["path"]):
            await _refuse(send, 403, "no address is fetched here")
            return
        if scope["method"] != "POST" or scope["path"] in UPLOADS:  # uploads have a limit of their own
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                await _refuse(send, 413, "that is too much")
                return
        if _names_an_address(body):
            await _refuse(send, 403, "send a file; no address is fetched here")
            return
        read = False

        async def again() -> Any:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


async def _refuse(send: Any, status: int, text: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


def _names_an_address(body: bytes) -> bool:
    """Whether a JSON body has an address for the path of a file."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False


def middleware(host: str) -> list[Middleware]:
    """What stands before the page. On the loopback it answers to the names of this machine alone: another site's name that
    was made to point here would carry that site's scripts."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    found = [Middleware(Inward)]
    if is_loopback(host) and ":" not in host:
        found.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host]))
    return found
