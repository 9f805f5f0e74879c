"""Pieces of the OpenAPI description that several routes share."""

from __future__ import annotations

from typing import Any

from lynx_video.server.forms import ErrorBody, Form

REASONS = {
    400: "The request cannot be carried out as it is; `param` names the field.",
    401: "No key, or one that is not known.",
    403: "Not from where it may come.",
    404: "There is no such thing, or it is another's.",
    408: "The upload did not arrive in time.",
    409: "Not in the state that this needs, or an idempotency key that came with another request.",
    413: "More bytes or pixels than are taken.",
    415: "Not JSON, not a form, or not a picture.",
    416: "The range lies outside of the file.",
    429: "The queue is full, or the key asks too often; Retry-After says when to come back.",
    500: "An error of the service; its log has it.",
    503: "The database or a worker is not to be had just now; Retry-After says when to come back.",
    507: "The disk is full.",
}


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, beside those that every route has."""
    return {code: {"model": ErrorBody, "description": REASONS[code]} for code in sorted({401, 403, 429, 500, 503, *codes})}


def body_of(form: type[Form], picture: str, example: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that reads it by itself: a form as JSON, or as multipart with a file."""
    schema = form.model_json_schema()
    properties = dict(schema["properties"])
    as_file = {"type": "string", "format": "binary", "description": "The portrait: JPEG, PNG, WebP or HEIC."}
    parts = {**schema, "properties": {**properties, picture: as_file}}
    parts.pop("example", None)
    content = {
        "application/json": {"schema": schema, "example": example},
        "multipart/form-data": {"schema": parts},
    }
    return {"requestBody": {"required": True, "content": content}}
