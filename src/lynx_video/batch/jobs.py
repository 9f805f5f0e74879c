"""What the workers of a batch do: project a person once, make a clip. Jobs are values; what came of them is on a shelf.

A clip that is on the disk is never made again: if its worker died before it noted so, the clip is known by the mark in its record.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.batch.wanted import Wanted
from lynx_video.errors import BadOutput, BadRequest, BadWeights, LynxError, MissingDependency, Refused
from lynx_video.studio.setup import Setup
from lynx_video.work import Made, Shelf, attempt, keep

if TYPE_CHECKING:
    from lynx_video.studio.request import Request
    from lynx_video.studio.studio import Studio
    from lynx_video.types import Clip

RUN = "run"
"""File of the work folder that names the run which works there."""
MARK = "batch_request"
"""What a clip's record calls the request that it was made for."""
DIED = "its worker died each time it was tried"


class Overtaken(LynxError):
    """Another run has begun in this folder: this worker was left behind by one that was killed."""


class _Spoiled(Exception):
    """A fault of the model, not of a request: the next clip would fare no better. Its cause says what it is."""


class _Known(Exception):
    """The clip is there."""


class _Unprojected(Exception):
    """The person could not be projected; `made` says why."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody to project. file: the identity file it becomes."""

    key: str
    portrait: Path
    face_index: int | None
    file: Path
    source_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Take:
    """A clip to make. person: who, by identity file; None: from the request's own source. queued: ISO 8601."""

    wanted: Wanted
    target: Path
    queued: str
    person: Person | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchWork:
    """Jobs are persons, then takes: a worker that comes to a take before its person is there projects the person itself.

    made: what the table says of each request: status, reason, times and what was measured. people: {"warnings": [...]} for each
    person, or why there is no identity file.
    """

    setup: Setup
    made: Shelf
    people: Shelf

    def open(self) -> Callable[[Person | Take], None]:
        """The model; read with the first job."""
        from lynx_video.studio.studio import Studio

        studio = Studio(self.setup)

        def do(job: Person | Take) -> None:
            if isinstance(job, Person):
                attempt(self.people, job.key, job.key, _guarded(lambda: project(studio, job)), _lost, str(job.portrait))
                return

            def lost(error: Exception | None) -> Made:
                value, tensors = error.made if isinstance(error, _Unprojected) else _lost(error)
                return {"queued": job.queued, "finished": now(), **value, "reason": _said(job.wanted, value["reason"])}, tensors

            key, stamp = take_key(job.wanted), job.wanted.stamp
            attempt(self.made, key, stamp, _guarded(lambda: self._shoot(studio, job)), lost, job.wanted.id)

        return do

    def _shoot(self, studio: Studio, take: Take, *, again: bool = True) -> Made:
        """A clip, or the one that is there."""
        self._stop_if_overtaken()
        times = {"queued": take.queued, "started": now()}
        if take.target.exists():
            return {**times, **recovered(take.wanted, take.target)}, {}
        _check_source(take.wanted.request.source, take.wanted.source_hash)
        found = self._warnings(studio, take.person) if take.person is not None else []
        cautions = [f"{take.wanted.request.name}: {text}" for text in found]

        def before_writing(_: Clip) -> None:
            self._stop_if_overtaken()
            if take.target.exists():
                raise _Known

        try:
            order = studio.check(request_of(take))
            guest = studio.meet(order)
            made = studio.film(
                order,
                guest,
                take.target,
                on_step=self._stop_if_overtaken,
                before_writing=before_writing,
                facts=facts_of(take),
            )
        except _Known:
            return {**times, **recovered(take.wanted, take.target)}, {}
        except BadWeights as error:
            if again and take.person is not None and self._forget_damaged(take.person):
                return self._shoot(studio, take, again=False)
            _check_identity(take.wanted.request)
            raise _Spoiled from error
        return {**times, **told(made.record, made.missed), "warnings": [*cautions, *made.cautions], "finished": now()}, {}

    def _warnings(self, studio: Studio, person: Person) -> list[str]:
        """What costs likeness in a portrait; its identity file is there then. Raises _Unprojected if it cannot be."""
        value = self.people.value(person.key, person.key)
        if value is not None and "status" in value:
            raise _Unprojected((value, {}))
        if value is None or not person.file.is_file():
            made = project(studio, person)
            keep(self.people, person.key, person.key, made)
            value = made[0]
        return list(value["warnings"])

    def _forget_damaged(self, person: Person) -> bool:
        """Whether the identity file of a person was damaged; it is gone then, and will be made again."""
        from lynx_video.pipeline.enrol import load_enrolment

        try:
            load_enrolment(person.file)
        except BadWeights:
            person.file.unlink(missing_ok=True)
            self.people.drop(person.key)
            return True
        return False

    def _stop_if_overtaken(self, _: object = None) -> None:
        if current_run(self.made.folder.parent) != self.made.run:
            raise Overtaken("another run has begun in this folder.")


def project(studio: Studio, person: Person) -> Made:
    """Write the identity file of a person."""
    from lynx_video.pipeline.enrol import save_enrolment

    _check_source(person.portrait, person.source_hash)
    try:
        enrolment = studio.enrol(person.portrait, person.face_index)
        faces = studio.faces(person.portrait)
    except BadWeights as error:
        raise _Spoiled from error
    save_enrolment(person.file, enrolment)
    return {"warnings": faces[person.face_index or 0][1]}, {}


def _said(wanted: Wanted, reason: str) -> str:
    """A reason, without the names of a private request's files."""
    if not wanted.request.marks.private:
        return reason
    source = wanted.request.source
    return reason.replace(str(source), wanted.request.name).replace(source.name, wanted.request.name)


def take_key(wanted: Wanted) -> str:
    """The name of a request's result on the shelf; ids that differ in case alone do not occur."""
    return wanted.id.casefold()


def request_of(take: Take) -> Request:
    """What the studio is asked for: the request, by the identity file of its person where there is one."""
    request = take.wanted.request
    if take.person is None:
        return request
    return replace(request, portrait=None, identity=take.person.file, face_index=None)


def facts_of(take: Take) -> dict[str, Any]:
    """What the clip's record says beside what every record says: whose clip it is, where an identity file stands for a portrait."""
    request = take.wanted.request
    facts: dict[str, Any] = {MARK: take.wanted.stamp}
    if take.person is not None:
        facts |= {"portrait": Path(request.name).name, "identity_file": None, "face_index": request.face_index or 0}
    return facts


def told(record: Mapping[str, Any], missed: str) -> dict[str, Any]:
    """What a clip's record tells for the table."""
    return {
        "status": "missed" if missed else "done",
        "reason": missed,
        **{name: record.get(name) for name in ("seed", "seconds", "similarity", "coverage", "judge", "frames_hash")},
    }


def recovered(wanted: Wanted, clip: Path) -> dict[str, Any]:
    """What a clip that is there tells for the table; its warnings are not known any more.

    Raises BadOutput for a file that was not made for this request.
    """
    from lynx_video.media.video import read_metadata

    try:
        record = read_metadata(clip)
    except BadRequest as error:
        raise BadOutput(f"{error} It is in the way of a clip to be made; move it away.") from error
    if record.get(MARK) != wanted.stamp:
        raise BadOutput(
            f"{clip} was not made for the request {wanted.id!r} ({wanted.where}); move it away, or give another id."
        )
    written = datetime.fromtimestamp(clip.stat().st_mtime, timezone.utc)
    return {**told(record, str(record.get("missed") or "")), "warnings": None, "finished": _iso(written)}


def now() -> str:
    """The time as ISO 8601, UTC."""
    return _iso(datetime.now(timezone.utc))


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def current_run(folder: Path) -> str:
    """The run that works in a work folder; empty if none is noted."""
    try:
        return (folder / RUN).read_text(encoding="utf-8")
    except OSError:
        return ""


def _check_source(file: Path, known: str) -> None:
    """Raises BadRequest if the file is not the one that the batch was checked with."""
    from lynx_video.media.image import file_hash

    try:
        if file_hash(file) == known:
            return
    except OSError as error:
        raise BadRequest(f"{file}: cannot be read any more ({error.strerror or error}).") from error
    raise BadRequest(f"{file} was changed while the batch ran; start it again.")


def _check_identity(request: Request) -> None:
    """Raises BadWeights if it is the request's own identity file that cannot be read."""
    from lynx_video.pipeline.enrol import load_enrolment

    if request.identity is not None:
        load_enrolment(request.identity)


def _guarded(make: Callable[[], Made]) -> Callable[[], Made]:
    """The same, but too little memory is this job's failure and not the end of the run: others may be smaller.

    A device error ends the process, which cannot use its device any more; Ray starts another, and the job has one more try there.
    """

    def guarded() -> Made:
        try:
            return make()
        except Exception as error:
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
                _let_go()
                raise LynxError("out of memory; ask for a smaller clip, a --vram-budget or fewer --workers") from error
            if type(error).__name__ == "AcceleratorError":  # torch's
                os._exit(1)
            raise

    return guarded


def _let_go() -> None:
    """Give memory back that a failed clip held."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lost(error: Exception | None) -> Made:
    """What is noted of a job that failed; None: its worker died each time. Raises what would fail for every job."""
    if isinstance(error, _Spoiled) and error.__cause__ is not None:
        raise error.__cause__
    if isinstance(error, (MissingDependency, BadOutput, Overtaken)):
        raise error
    if error is None:
        return {"status": "failed", "reason": DIED, "lasting": False}, {}
    text = " ".join(str(error).split()).rstrip(".")[:500]
    reason = text if isinstance(error, LynxError) else f"{type(error).__name__}: {text}"
    lasting = isinstance(error, (Refused, BadRequest))  # it would be the same again
    return {"status": "refused" if isinstance(error, Refused) else "failed", "reason": reason, "lasting": lasting}, {}
