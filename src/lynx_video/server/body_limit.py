"""Requests whose bodies are longer than is taken, refused as soon as that shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lynx_video.server.uploads import TooLarge, megabytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class BodyLimit:
    """ASGI middleware: a request whose body is longer than `most_bytes` is answered with 413 as soon as that shows.

    Forms are written to the disk while they are parsed, before a handler sees a file: without this a stranger fills the disk.
    `answer(message)` gives the JSON body of the refusal as bytes.
    """

    def __init__(self, app: App, most_bytes: int, answer: Callable[[str], bytes]) -> None:
        self.app, self.most_bytes, self.answer = app, most_bytes, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self.most_bytes:
            await self._refuse(send)
            return
        arrived, over, begun = 0, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal arrived, over
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.most_bytes:
                over = True
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
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        body = self.answer(
            f"the request is larger than the {megabytes(self.most_bytes)} that are taken; send a smaller picture."
        )
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # the rest of the body is not read
        ]
        await send({"type": "http.response.start", "status": TooLarge.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
