"""A file as an answer, in parts if it is asked for so; what cannot be had is told in the API's form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse

from lynx_video.server.faults import ApiError

Message = MutableMapping[str, Any]


class Content(FileResponse):
    """A file that is only its owner's. missing: what is raised where it is not there (any more)."""

    def __init__(self, file: Path, kind: str, missing: ApiError) -> None:
        """Raises `missing`."""
        try:
            stat = file.stat()
        except OSError:
            raise missing from None
        headers = {"Cache-Control": "private, no-cache"}
        super().__init__(
            file, media_type=kind, filename=file.name, content_disposition_type="inline", headers=headers, stat_result=stat
        )
        self._missing = missing

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Send it, or the part that is asked for."""
        begun = False
        refusal: ApiError | None = None

        async def watched(message: Message) -> None:
            nonlocal begun, refusal
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                ranges = [value.decode() for name, value in message["headers"] if name == b"content-range"]
                text = "the range that is asked for lies outside of the file." if ranges else "the Range header is none."
                headers = {"Content-Range": ranges[0]} if ranges else {}
                refusal = ApiError(message["status"], text, code="bad_range", param="Range", headers=headers)
            if refusal is None:
                begun = True
                await send(message)

        try:
            await super().__call__(scope, receive, watched)
        except OSError:
            if begun:
                raise
            refusal = self._missing  # deleted a moment ago
        if refusal is not None:
            await refusal.response()(scope, receive, send)
