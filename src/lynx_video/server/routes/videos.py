"""Clips: asking for one, watching it come, fetching and deleting it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from lynx_video.errors import LynxError
from lynx_video.server import answers
from lynx_video.server.content import Content
from lynx_video.server.events import check_streams, events
from lynx_video.server.faults import ApiError, not_found
from lynx_video.server.folder import is_id
from lynx_video.server.forms import ClipForm, Deleted, VideoForm, VideoList, VideoObject
from lynx_video.server.intake import Intake, take_in
from lynx_video.server.jobs import Job, NewJob, QueueFull, new_id
from lynx_video.server.routes.description import body_of, refusals
from lynx_video.server.service import Given, Owner, Served, Service, in_thread, may_ask, token_of

router = APIRouter(prefix="/v1/videos", tags=["videos"])
PORTRAIT = "input_reference"
EXAMPLE = {
    "prompt": "a person smiles wearing a green shirt in front of a yellow wall",
    PORTRAIT: {"image_url": "data:image/png;base64,iVBORw0KGgo..."},
    "seed": 7,
}
KEY = Header(min_length=1, max_length=255, description="The same key with the same request gives the same job, for 24 hours.")
VIDEO = "video"


@router.post(
    "",
    response_model=VideoObject,
    responses=refusals(400, 404, 408, 409, 413, 415, 507),
    openapi_extra=body_of(VideoForm, PORTRAIT, EXAMPLE),
    summary="Ask for a clip",
)
async def create_video(
    request: Request,
    response: Response,
    owner: Owner,
    service: Served,
    idempotency_key: Annotated[str | None, KEY] = None,
) -> VideoObject:
    """Queue a clip of a person, from a portrait (`input_reference`) or an enrolled `identity`; what can be refused is refused now."""
    await in_thread(partial(check_room, service, owner, idempotency_key))  # before a byte of the picture is taken
    job_id = new_id("video")
    form, intake = await take_in(request, VideoForm, PORTRAIT, service.shelf, job_id)
    try:
        job, fresh = await _queue(service, owner, job_id, form, intake, idempotency_key)
    except Exception:
        # Not if it is cut off (the service ends): it may be queued by now. If it is not, the portrait goes with what belongs to no job.
        intake.discard()
        raise
    if not fresh:
        intake.discard()
        response.headers["Idempotent-Replayed"] = "true"
    try:
        return await in_thread(partial(_shown, service, job))
    except LynxError:  # it is queued; who is told otherwise asks again
        return answers.video_object(job, keep_days=service.flags.keep_days)


async def _queue(
    service: Service, owner: str, job_id: str, form: ClipForm, intake: Intake, key: str | None
) -> tuple[Job, bool]:
    if key is not None and (before := await in_thread(lambda: service.queue.repeated(owner, key, intake.digest))) is not None:
        return before, False
    identity = await in_thread(partial(_identity, service, owner, form.identity)) if form.identity is not None else None
    if service.flags.require_consent and not (form.consent.strip() or (identity and identity.facts["consent"].strip())):
        raise no_consent()
    portrait: Path | None = intake.upload.path if intake.upload else None
    shown = intake.upload.name if intake.upload else (identity.facts["name"] or identity.id) if identity else ""
    checked = await service.desk.ask(lambda: service.desk.check(form, portrait, shown))
    new = NewJob(
        id=job_id,
        kind="video",
        owner=owner,
        request=checked.request,
        facts=checked.facts,
        steps=checked.steps,
        repeat=None if key is None else (key, intake.digest),
    )
    return await in_thread(lambda: submit(service, new))


def no_consent() -> ApiError:
    """A portrait came without, and it is asked for."""
    message = "consent is needed here: who agreed to the use of this face, and how."
    return ApiError(400, message, code="consent_required", param="consent")


def check_room(service: Service, owner: str, key: str | None) -> None:
    """Raises ApiError if the queue is full; not for an idempotency key that came before, which has its job already."""
    if key is not None and service.queue.knows(owner, key):
        return
    waiting = service.queue.waiting()
    if waiting >= service.flags.queue_limit:
        raise _full(service, waiting)


def submit(service: Service, new: NewJob) -> tuple[Job, bool]:
    """As Queue.submit; a full queue says when to come back."""
    try:
        return service.queue.submit(new, service.flags.queue_limit)
    except QueueFull as error:
        raise _full(service, service.flags.queue_limit) from error


def _full(service: Service, waiting: int) -> ApiError:
    after = service.retry_after()
    return ApiError(
        429, f"{waiting} jobs wait already; try again in {after} s.", code="queue_full", headers={"Retry-After": str(after)}
    )


def _identity(service: Service, owner: str, identifier: str) -> Job:
    """An identity of this owner that can be used."""
    found = service.queue.get(owner, "identity", identifier) if is_id(identifier) else None
    if found is None:
        error = not_found("identity", identifier)
        error.param = "identity"
        raise error
    if found.status != "completed":
        message = f"the identity {identifier} is {found.status}; it can be used when it is completed."
        raise ApiError(409, message, code="identity_not_ready", param="identity")
    return found


@router.get("", response_model=VideoList, responses=refusals(400), summary="List clips")
def list_videos(
    owner: Owner,
    service: Served,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="Id of the last one of the page before.")] = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Your clips, in whatever state, newest first."""
    found = service.queue.page(owner, "video", limit=limit, after=after, newest_first=order == "desc")
    if found is None:
        raise ApiError(400, f"there is no video {str(after)!r} to go on from.", param="after")
    jobs, more = found
    return answers.page([answers.video_object(job, keep_days=service.flags.keep_days) for job in jobs], more)


@router.get("/{video_id}", response_model=VideoObject, responses=refusals(404), summary="One clip")
def get_video(video_id: str, owner: Owner, service: Served) -> VideoObject:
    """How far a clip is, and what came of it."""
    return _shown(service, _find(service, owner, video_id))


@router.get(
    "/{video_id}/content",
    response_class=FileResponse,
    responses={
        **refusals(400, 404, 409, 416),
        200: {
            "content": {"video/mp4": {}, "image/jpeg": {}},
            "description": "The file, or the part of it that `Range` asks for.",
        },
        206: {"content": {"video/mp4": {}, "image/jpeg": {}}, "description": "A part of the file."},
    },
    summary="The clip itself",
)
def get_content(video_id: str, owner: Owner, service: Served, variant: Literal["video", "thumbnail"] = "video") -> Content:
    """The finished clip as an MP4, or its middle frame; parts of it by `Range`."""
    job = _find(service, owner, video_id)
    if job.status != "completed":
        message = f"the video {video_id} is {job.status}; its content can be had when it is completed."
        raise ApiError(409, message, code="video_not_ready")
    file, kind = service.folder.video(job.id), "video/mp4"
    if variant == "thumbnail":
        file, kind = service.folder.thumbnail(job.id), "image/jpeg"
    return Content(file, kind, not_found("video", video_id))


router.add_api_route("/{video_id}/content", get_content, methods=["HEAD"], include_in_schema=False)


@router.get(
    "/{video_id}/preview",
    response_class=FileResponse,
    responses={**refusals(404), 200: {"content": {"image/jpeg": {}}, "description": "A picture."}},
    summary="How far it is, as a picture",
)
def get_preview(video_id: str, owner: Owner, service: Served) -> Content:
    """The first frame as it is now, while the clip is being made."""
    job = _find(service, owner, video_id)
    none = ApiError(404, f"there is no preview of {video_id} now; there is one while it is in progress.", code="no_preview")
    if job.preview is None:
        raise none
    return Content(service.folder.preview(job.id), "image/jpeg", none)


@router.get(
    "/{video_id}/events",
    response_class=StreamingResponse,
    responses={
        **refusals(404),
        200: {
            "content": {"text/event-stream": {}},
            "description": "`progress` events, then `completed`, `failed` or `deleted`.",
        },
    },
    summary="Watch it come",
)
def get_events(video_id: str, owner: Owner, service: Served, given: Given) -> StreamingResponse:
    """Server-sent events: place in the queue, steps, time left, previews; the last one has the final state."""
    job = _find(service, owner, video_id)
    check_streams(service, owner)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = events(service, owner, job.id, partial(may_ask, service, token_of(given)))
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


@router.delete("/{video_id}", response_model=Deleted, responses=refusals(404), summary="Cancel or delete")
def delete_video(video_id: str, owner: Owner, service: Served) -> Deleted:
    """In any state: one that waits is dropped, one in progress stops at its next step, a finished one goes with its files."""
    job = service.queue.delete(owner, "video", video_id) if is_id(video_id) else None
    if job is None:
        raise not_found(VIDEO, video_id)
    service.folder.forget(job.id)
    return answers.deleted(job)


def _find(service: Service, owner: str, identifier: str) -> Job:
    job = service.queue.get(owner, "video", identifier) if is_id(identifier) else None
    if job is None:
        raise not_found(VIDEO, identifier)
    return job


def _shown(service: Service, job: Job) -> VideoObject:
    """A clip with its place in the queue."""
    position = service.queue.position(job) if job.status == "queued" else None
    waits = service.queue_seconds(position) if position is not None else None
    return answers.video_object(job, keep_days=service.flags.keep_days, position=position, queue_seconds=waits)
