"""Requests whose bodies are longer than is taken, or take longer to come, refused as soon as that shows."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from anyio import move_on_after

from lynx_video.server.uploads import TooLarge, TooSlow, megabytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyLimit:
    """ASGI middleware: a request whose body is longer than `most_bytes` is answered with 413 as soon as that shows.

    One of which not all is there after `most_seconds` is answered with 408. Forms are written to the disk while they are parsed,
    before a handler sees a file: without this a stranger fills the disk. `answer(status, message)` gives the JSON body of the
    refusal as bytes.
    """

    def __init__(self, app: App, most_bytes: int, most_seconds: float, answer: Callable[[int, str], bytes]) -> None:
        self.app, self.most_bytes, self.most_seconds, self.answer = app, most_bytes, most_seconds, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self.most_bytes:
            await self._refuse(send, TooLarge.status)
            return
        arrived, over, begun, whole = 0, 0, False, False
        until = time.monotonic() + self.most_seconds

        async def counted() -> MutableMapping[str, Any]:
            nonlocal arrived, over, whole
            if whole:  # whoever waits now waits for the client to leave
                return await receive()
            message: MutableMapping[str, Any] | None = None
            with move_on_after(max(0.0, until - time.monotonic())):
                message = await receive()
            if message is None:
                over = TooSlow.status
                return {"type": "http.disconnect"}
            whole = not message.get("more_body", False)
            arrived += len(message.get("body", b""))
            if arrived > self.most_bytes:
                over = TooLarge.status
                # To the app it looks as if the client had left: it stops reading and drops what it has.
                return {"type": "http.disconnect"}
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if over and not begun:
                return  # whatever the app makes of the early end, the answer is ours
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not over:
                raise
        if over and not begun:
            await self._refuse(send, over)

    async def _refuse(self, send: Send, status: int) -> None:
        what = (
            f"the request is larger than the {megabytes(self.most_bytes)} that are taken"
            if status == TooLarge.status
            else f"the request was not all there after {self.most_seconds:g} s; send it again, or"
        )
        body = self.answer(status, f"{what}{';' if status == TooLarge.status else ''} send a smaller picture.")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # the rest of the body is not read
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
