"""A request's body, JSON or multipart, as fields and at most one portrait that lies in the uploads folder under our name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from lynx_video.errors import LynxError
from lynx_video.server.faults import ApiError, invalid, told
from lynx_video.server.fetch import FetchPolicy, fetch_upload
from lynx_video.server.forms import Form
from lynx_video.server.uploads import Upload, UploadLimits, blocks_of, read_data_url, read_upload

AnyForm = TypeVar("AnyForm", bound=Form)
MOST_FIELDS = 100
MOST_SIGNS = 30_000
"""Brackets and commas of a JSON body, which make objects; more than the longest texts that are taken can have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """What was sent. digest: equal for equal requests, however they were encoded."""

    fields: Mapping[str, Any]
    upload: Upload | None
    digest: str

    def discard(self) -> None:
        """Remove the upload: the request came to nothing."""
        if self.upload is not None:
            self.upload.path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """Where portraits are put, and what is taken of them. limiter: how many are decoded at a time."""

    folder: Path
    limits: UploadLimits
    fetching: FetchPolicy
    limiter: CapacityLimiter


async def take_in(request: Request, form: type[AnyForm], field: str, shelf: Shelf, stem: str) -> tuple[AnyForm, Intake]:
    """Read a request's body and check its fields against a form.

    field: which one is the portrait. stem: our name for its file. Nothing is left on the disk if this raises.

    Raises ApiError for what is not JSON or multipart, for unknown fields and wrong types; and what `read_upload` raises.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await request.body()
        fields = await run_sync(partial(_json, body), limiter=shelf.limiter)
        checked = _checked(form, {key: value for key, value in fields.items() if key != field})
        with blaming(field):
            upload = await _from_value(fields.get(field), field, shelf, stem)
    elif kind == "multipart/form-data":
        most = (shelf.limits.most_bytes + 2) // 3 * 4 + 4096  # a data: URL may be a field
        async with request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=most) as parts:
            fields = _parts(parts.multi_items(), field)
            sent = fields.pop(field, None)
            checked = _checked(form, fields)
            with blaming(field):
                if isinstance(sent, UploadFile):
                    upload = await read_upload(
                        blocks_of(sent), shelf.folder, shelf.limits, name=sent.filename or "", stem=stem, limiter=shelf.limiter
                    )
                else:
                    upload = await _from_value(sent, field, shelf, stem)
    else:
        raise ApiError(415, f"the body must be application/json or multipart/form-data, got {kind or 'no content type'!r}.")
    said = checked.model_dump(mode="json", exclude_none=True)
    text = json.dumps([type(checked).__name__, said, upload.sha256 if upload else None], sort_keys=True)
    return checked, Intake(fields=said, upload=upload, digest=hashlib.sha256(text.encode()).hexdigest())


@contextmanager
def blaming(field: str) -> Iterator[None]:
    """What is wrong within is wrong with this field."""
    try:
        yield
    except LynxError as error:
        refusal = told(error)
        refusal.param = field
        raise refusal from error


def _json(body: bytes) -> dict[str, Any]:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    signs = sum(map(body.count, (b"[", b"{", b",")))
    if signs > MOST_SIGNS:
        raise ApiError(400, f"the body has {signs} brackets and commas, at most {MOST_SIGNS} are read.", code="bad_json")
    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({str(error)[:200] or 'nested too deeply'}).", code="bad_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, got {type(value).__name__}.", code="bad_json")
    return value


def _parts(items: list[tuple[str, UploadFile | str]], field: str) -> dict[str, Any]:
    """The parts of a form by name; an empty text is as good as none."""
    found: dict[str, Any] = {}
    for name, value in items:
        if name in found:
            raise ApiError(400, f"{name[:100]!r} is given twice.", param=name[:100])
        if isinstance(value, UploadFile) and name != field:
            message = f"{name[:100]!r} is no field for a file; the portrait is {field!r}."
            raise ApiError(400, message, code="unknown_field", param=name[:100])
        if value != "" or name == "prompt":
            found[name] = value
    nested = {key: found.pop(f"{field}[{key}]") for key in ("image_url", "file_id") if f"{field}[{key}]" in found}
    if nested:
        if field in found:
            raise ApiError(400, f"{field!r} is given twice.", param=field)
        found[field] = nested
    return found


def _checked(form: type[AnyForm], fields: Mapping[str, Any]) -> AnyForm:
    try:
        checked = form.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False), "the request") from error
    for name, value in checked:
        if isinstance(value, str) and not _is_text(value):
            raise ApiError(400, f"{name} has characters that no text has (null, or half of a pair).", param=name)
    return checked


def _is_text(value: str) -> bool:
    """Whether a database and a file can hold it."""
    return "\0" not in value and not any("\ud800" <= one <= "\udfff" for one in value)


async def _from_value(value: Any, field: str, shelf: Shelf, stem: str) -> Upload | None:
    """A portrait from a `data:` URL, or an address where those are fetched; alone or as image_url."""
    if value is None:
        return None
    if isinstance(value, dict) and "file_id" in value:
        message = "no files are kept here; send the picture itself, or enroll it at /v1/identities and name the identity."
        raise ApiError(400, message, param=field)
    if isinstance(value, dict) and set(value) == {"image_url"}:
        value = value["image_url"]
    if not isinstance(value, str):
        raise ApiError(400, f'{field} must be a picture: a file, a data: URL or {{"image_url": "data:..."}}.', param=field)
    if value[:5].lower() == "data:":
        return await read_data_url(value, shelf.folder, shelf.limits, stem=stem, limiter=shelf.limiter)
    return await fetch_upload(value, shelf.folder, shelf.fetching, shelf.limits, stem=stem, limiter=shelf.limiter)
