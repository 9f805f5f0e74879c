"""Jobs as the API shows them."""

from __future__ import annotations

from typing import Any, Literal

from lynx_video.server.forms import Deleted, FailureObject, IdentityObject, LynxObject, VideoObject
from lynx_video.server.jobs import Job


def video_object(
    job: Job, *, keep_days: float | None = None, position: int | None = None, queue_seconds: float | None = None
) -> VideoObject:
    """A clip. position: how many wait before it. queue_seconds: an estimate of when it will be done, if it waits."""
    facts, result = job.facts, job.result or {}
    eta = queue_seconds if job.status == "queued" else remaining(job)
    return VideoObject(
        id=job.id,
        model=facts["model"],
        status=job.status,
        progress=progress(job),
        seconds=facts["seconds"],
        size=facts["size"],
        created_at=int(job.created_at),
        started_at=_whole(job.started_at) if job.status != "queued" else None,
        completed_at=_whole(job.completed_at),
        expires_at=_whole(job.completed_at + keep_days * 86_400) if job.completed_at and keep_days else None,
        error=FailureObject(**job.error) if job.error else None,
        prompt=None if facts["private"] else job.request.get("prompt"),
        lynx=LynxObject(
            **{name: facts[name] for name in ("num_frames", "fps", "preset", "best_of", "identity", "portrait")},
            seed=result.get("seed", facts["seed"]),
            position=position if job.status == "queued" else None,
            step=job.step,
            steps=job.steps,
            eta_seconds=None if eta is None else round(eta, 1),
            preview=f"/v1/videos/{job.id}/preview" if job.preview is not None else None,
            work_seconds=None if job.work_seconds is None else round(job.work_seconds, 3),
            similarity=result.get("similarity"),
            coverage=result.get("coverage"),
            judge=result.get("judge"),
            missed=result.get("missed"),
            warnings=result.get("warnings", facts["warnings"]),
            settings=result.get("settings"),
        ),
    )


def identity_object(job: Job) -> IdentityObject:
    """A person."""
    facts = job.facts
    return IdentityObject(
        id=job.id,
        name=facts["name"],
        model=facts["model"],
        status=job.status,
        created_at=int(job.created_at),
        completed_at=_whole(job.completed_at),
        error=FailureObject(**job.error) if job.error else None,
        consent=facts["consent"],
        portrait=facts["portrait"],
        face=facts["face"],
        faces=facts["faces"],
        warnings=facts["warnings"],
    )


def deleted(job: Job) -> Deleted:
    """What is gone."""
    kind: Literal["video.deleted", "identity.deleted"] = "video.deleted" if job.kind == "video" else "identity.deleted"
    return Deleted(id=job.id, object=kind)


def page(jobs: list[Any], has_more: bool) -> dict[str, Any]:
    """Objects as a list."""
    first, last = (jobs[0].id, jobs[-1].id) if jobs else (None, None)
    return {"data": jobs, "first_id": first, "last_id": last, "has_more": has_more}


def progress(job: Job) -> int:
    """Percent; 100 only when the clip is there."""
    if job.status == "completed":
        return 100
    return min(99, 100 * job.step // job.steps) if job.steps else 0


def remaining(job: Job) -> float | None:
    """Seconds until a clip in the making is done, by its own steps."""
    if job.status != "in_progress" or job.step_seconds is None or not job.steps:
        return None
    return (job.steps - job.step) * job.step_seconds


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
