"""Errors as the API tells them: `{"error": {"message", "type", "code", "param"}}`, as OpenAI's clients read it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lynx_video.errors import BadOutput, BadRequest, LynxError, MissingDependency, Refused
from lynx_video.server.database import DatabaseFull, Unavailable
from lynx_video.server.jobs import KeyReused, QueueFull
from lynx_video.work import DiskFull, is_full

log = logging.getLogger("lynx_video.server")
SOON = 5
"""Seconds after which a client may try again where nothing better is known."""
LONGEST = 2000

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
    507: "disk_full",
}


def speak() -> None:
    """Send the service's own lines to stderr; of the libraries below only their errors."""
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # they read it when they are imported
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    log.setLevel(logging.INFO)


class ApiError(Exception):
    """A refusal with everything a client is told of it. more: further members of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or _CODES.get(status, "server_error" if status >= 500 else "bad_request")
        self.headers, self.more = dict(headers or {}), dict(more or {})

    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = self.message if len(self.message) <= LONGEST else self.message[:LONGEST] + "…"
        # Whatever a client sent may come back in a message; what is no text would end the answer in the middle.
        message = message.encode("utf-8", "replace").decode()
        return {"error": {"message": message, "type": kind, "code": self.code, "param": self.param, **self.more}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def not_found(what: str, identifier: str) -> ApiError:
    """There is no such thing, or it is another's: the same answer."""
    return ApiError(404, f"there is no {what} {identifier[:100]!r}.", code=f"{what}_not_found", param=f"{what}_id")


def code_of(error: BaseException) -> str:
    """What a program may know an error by: `content_policy`, or the class's name in small letters (`no_face`)."""
    if isinstance(error, Refused):
        return "content_policy"
    if is_full(error) or isinstance(error, (DiskFull, DatabaseFull)):
        return "disk_full"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return "out_of_memory"
    if not isinstance(error, LynxError):
        return "internal_error"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()


def failure(code: str, message: str, param: str) -> ApiError:
    """A job that failed, as the answer of the request that waited for it; param is to blame unless the service is."""
    status = {"disk_full": 507, "out_of_memory": 503, "missing_dependency": 503}.get(code)
    if status is None and code in ("internal_error", "worker_died", "bad_output"):
        status = 500
    if status is not None:
        return ApiError(status, message, code=code, headers={"Retry-After": str(SOON)} if status == 503 else None)
    return ApiError(400, message, code=code, param=param)


def told(error: LynxError) -> ApiError:
    """An error of this package as a refusal."""
    message, code = str(error), code_of(error)
    soon = {"Retry-After": str(SOON)}
    if isinstance(error, KeyReused):
        return ApiError(409, message, code="idempotency_key_reused", param="Idempotency-Key")
    if isinstance(error, QueueFull):
        return ApiError(429, message, code="queue_full", headers=soon)
    if isinstance(error, Unavailable):
        return ApiError(503, message, code="database_unavailable", headers=soon)
    if isinstance(error, BadOutput):  # its own words name our files
        full = code == "disk_full"
        message = f"the service's disk {'is full' if full else 'cannot be written just now'}; ask again later."
    if code == "disk_full":
        return ApiError(507, message, code=code)
    status = getattr(error, "status", None)  # uploads know theirs
    if isinstance(status, int):
        return ApiError(status, message, code="disk_full" if status == 507 else code)
    if isinstance(error, Refused):
        return ApiError(400, message, code=code)
    if isinstance(error, BadRequest) and not isinstance(error, BadOutput):
        return ApiError(400, message, code=code, param=_named(message))
    if isinstance(error, MissingDependency):
        return ApiError(503, message, code=code)
    return ApiError(500, message, code=code)


def invalid(errors: Sequence[Any], where: str) -> ApiError:
    """What pydantic found, as one refusal that names the first field. where: what the fields are of."""
    first = errors[0]
    names = [str(part) for part in first["loc"] if part not in ("query", "path", "header", "body")]
    param = names[0][:100] if names else None
    if first["type"] == "extra_forbidden":
        unknown = sorted({str(one["loc"][-1])[:100] for one in errors if one["type"] == "extra_forbidden"})[:20]
        more = "" if len(unknown) == 1 else "s"
        return ApiError(
            400, f"unknown field{more} {', '.join(map(repr, unknown))} in {where}.", code="unknown_field", param=param
        )
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing in {where}.", code="missing_field", param=param)
    got = first.get("input")
    shown = f", got {str(got)[:100]!r}" if isinstance(got, (str, int, float)) else ""
    return ApiError(
        400, f"{param or where}: {first['msg'][:1].lower()}{first['msg'][1:]}{shown}.", code="bad_field", param=param
    )


def install(app: FastAPI, count: Callable[[str], None] = lambda _: None) -> None:
    """Give an app answers for everything that may be raised in it. count: is told the code of each."""

    def answer(error: ApiError) -> JSONResponse:
        count(error.code)
        return error.response()

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(LynxError)
    async def ours(_: Request, error: LynxError) -> JSONResponse:
        refusal = told(error)
        if refusal.status >= 500:
            log.warning("%s: %s", refusal.code, error)
        return answer(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(invalid(error.errors(), "the request"))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path[:200]}; GET /openapi.json lists what there is."
        if error.status_code == 405:
            message = f"{request.method} is not for {request.url.path[:200]}."
        return answer(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(OSError)
    async def system(request: Request, error: OSError) -> JSONResponse:
        if is_full(error):
            return answer(ApiError(507, "the disk is full; nothing was kept. Try again later."))
        return await unforeseen(request, error)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer(ApiError(500, "internal error; the server's log has it.", code="internal_error"))


def plain_body(status: int, message: str) -> bytes:
    """An error's body for what lies before the app."""
    return json.dumps(ApiError(status, message).body()).encode()


def _named(message: str) -> str | None:
    """The field that a message begins with."""
    match = re.match(r"(?:--)?([a-z][a-z_-]*[a-z])(?= must| is a cosine| wants)", message)
    return match[1].replace("-", "_") if match else None
