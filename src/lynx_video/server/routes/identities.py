"""People: enrolled once from a portrait, then used by id; and the faces that a picture has."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from lynx_video.server import answers
from lynx_video.server.database import Unavailable
from lynx_video.server.faults import ApiError, failure, not_found
from lynx_video.server.folder import is_id
from lynx_video.server.forms import Deleted, FaceList, FacesForm, IdentityForm, IdentityList, IdentityObject
from lynx_video.server.intake import Intake, blaming, take_in
from lynx_video.server.jobs import Job, NewJob, new_id
from lynx_video.server.routes.description import body_of, refusals
from lynx_video.server.routes.videos import KEY, check_room, no_consent, submit
from lynx_video.server.service import Owner, Served, Service, in_thread

router = APIRouter(prefix="/v1", tags=["identities"])
PORTRAIT, IDENTITY = "portrait", "identity"
PATIENCE = 30.0
"""Seconds that a request waits for its enrolment; a worker between two clips does it at once."""
EXAMPLE = {PORTRAIT: "data:image/png;base64,iVBORw0KGgo...", "name": "Ada", "consent": "Ada, by letter of 3 May"}


@router.post(
    "/identities",
    response_model=IdentityObject,
    status_code=201,
    responses={
        **refusals(400, 404, 408, 409, 413, 415, 507),
        202: {"model": IdentityObject, "description": "No worker was free yet; it is queued: GET it until it is completed."},
    },
    openapi_extra=body_of(IdentityForm, PORTRAIT, EXAMPLE),
    summary="Enroll a person",
)
async def create_identity(
    request: Request, response: Response, owner: Owner, service: Served, idempotency_key: Annotated[str | None, KEY] = None
) -> IdentityObject:
    """Find the face in a portrait and keep what the model needs of it; the portrait itself is removed.

    Several faces and no `face_index` are refused with the boxes of all. The answer comes when the person is enrolled.
    """
    await in_thread(partial(check_room, service, owner, idempotency_key))
    job_id = new_id("identity")
    form, intake = await take_in(request, IdentityForm, PORTRAIT, service.shelf, job_id)
    try:
        job, fresh = await _queue(service, owner, job_id, form, intake, idempotency_key)
    except Exception:
        # Not if it is cut off (the service ends): it may be queued by now. If it is not, the portrait goes with what belongs to no job.
        intake.discard()
        raise
    if not fresh:
        intake.discard()
        response.headers["Idempotent-Replayed"] = "true"
    job = await _settled(service, job)
    if job.status == "failed":
        error = job.error or {}
        # Nothing came of it: the same request may come again, with the same idempotency key.
        await in_thread(lambda: service.queue.delete(owner, "identity", job.id, forget_key=True))
        raise failure(error.get("code", ""), error.get("message", ""), PORTRAIT)
    if job.status != "completed":
        response.status_code = 202
    return answers.identity_object(job)


async def _queue(
    service: Service, owner: str, job_id: str, form: IdentityForm, intake: Intake, key: str | None
) -> tuple[Job, bool]:
    if key is not None and (before := await in_thread(lambda: service.queue.repeated(owner, key, intake.digest))) is not None:
        return before, False
    if intake.upload is None:
        raise ApiError(400, "send the person's portrait.", code="missing_field", param=PORTRAIT)
    if service.flags.require_consent and not form.consent.strip():
        raise no_consent()
    upload = intake.upload
    with blaming(PORTRAIT):
        found, index = await service.desk.ask(lambda: service.desk.choose(upload.path, upload.name, form.face_index, PORTRAIT))
    new = NewJob(
        id=job_id,
        kind="identity",
        owner=owner,
        request={"portrait": upload.path.name, "face_index": index, "consent": form.consent, "shown": upload.name},
        facts={
            "model": service.desk.model,
            "name": form.name,
            "consent": form.consent,
            "portrait": upload.name,
            "face": index,
            "faces": found,
            "warnings": found[index]["warnings"],
        },
        repeat=None if key is None else (key, intake.digest),
    )
    return await in_thread(lambda: submit(service, new))


async def _settled(service: Service, job: Job) -> Job:
    """The job when it is done, or as it is when the patience is over or the service stops."""
    until = time.monotonic() + PATIENCE
    while job.status in ("queued", "in_progress") and time.monotonic() < until and not service.closing:
        await asyncio.sleep(0.1)
        try:
            current = await in_thread(partial(service.queue.get, job.owner, "identity", job.id))
        except Unavailable:  # it is queued all the same
            continue
        if current is None:
            raise not_found(IDENTITY, job.id)
        job = current
    return job


@router.get("/identities", response_model=IdentityList, responses=refusals(400), summary="List people")
def list_identities(
    owner: Owner,
    service: Served,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="Id of the last one of the page before.")] = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Your identities, newest first."""
    found = service.queue.page(owner, "identity", limit=limit, after=after, newest_first=order == "desc")
    if found is None:
        raise ApiError(400, f"there is no identity {str(after)!r} to go on from.", param="after")
    jobs, more = found
    return answers.page([answers.identity_object(job) for job in jobs], more)


@router.get("/identities/{identity_id}", response_model=IdentityObject, responses=refusals(404), summary="One person")
def get_identity(identity_id: str, owner: Owner, service: Served) -> IdentityObject:
    """What is known of an identity."""
    job = service.queue.get(owner, "identity", identity_id) if is_id(identity_id) else None
    if job is None:
        raise not_found(IDENTITY, identity_id)
    return answers.identity_object(job)


@router.delete("/identities/{identity_id}", response_model=Deleted, responses=refusals(404), summary="Forget a person")
def delete_identity(identity_id: str, owner: Owner, service: Served) -> Deleted:
    """Remove an identity and its file. Clips of it that still wait will fail; those that are made stay."""
    job = service.queue.delete(owner, "identity", identity_id) if is_id(identity_id) else None
    if job is None:
        raise not_found(IDENTITY, identity_id)
    service.folder.forget(job.id)
    return answers.deleted(job)


@router.post(
    "/faces",
    response_model=FaceList,
    responses=refusals(400, 404, 408, 413, 415, 507),
    openapi_extra=body_of(FacesForm, PORTRAIT, {PORTRAIT: EXAMPLE[PORTRAIT]}),
    summary="Find faces",
)
async def find_faces(request: Request, owner: Owner, service: Served) -> dict[str, Any]:  # noqa: ARG001 (asked for the key)
    """The faces of a picture with their boxes, largest first, and what about each costs likeness. The picture is not kept."""
    _, intake = await take_in(request, FacesForm, PORTRAIT, service.shelf, new_id("identity"))
    try:
        if intake.upload is None:
            raise ApiError(400, "send a picture.", code="missing_field", param=PORTRAIT)
        path = intake.upload.path
        with blaming(PORTRAIT):
            return {"data": await service.desk.ask(lambda: service.desk.faces(path))}
    finally:
        intake.discard()
