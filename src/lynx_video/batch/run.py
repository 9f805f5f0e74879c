"""A batch in its folder: what is missing is made, what is there stays. Killed and called again, it goes on.

In the folder:

    results.jsonl, results.csv   what became of each request
    clips/ID.mp4                 the clips
    work/people, identities      who was projected, and the identity files
    work/made                    what became of each request, as its worker noted it
    work/run                     which run works here
"""

from __future__ import annotations

import hashlib
import os
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.batch.check import settings_key
from lynx_video.batch.jobs import RUN, BatchWork, Person, Take, now, recovered, take_key
from lynx_video.batch.results import CLIPS, RESULTS, TABLE, Table, read_rows
from lynx_video.batch.wanted import Wanted, keyed
from lynx_video.draft import draft, is_draft
from lynx_video.errors import BadOutput
from lynx_video.media.video import EXTENSIONS
from lynx_video.pool import Pool, Progress
from lynx_video.presets import SPEED
from lynx_video.studio.setup import Setup
from lynx_video.work import SETTINGS, WORK, Shelf, alone_in, claim_work, disk_full, is_full, keep

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.studio.studio import Studio

PEOPLE = "people"
MADE = ("done", "missed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """How a batch ended. counts: of requests, and of each status; made_now: clips of this run."""

    results: Path
    counts: dict[str, int]
    made_now: int


def run_batch(
    folder: Path,
    wanted: Sequence[Wanted],
    setup: Setup,
    blueprint: Blueprint,
    pool: Pool,
    *,
    retry_failed: bool = False,
    progress: Progress = lambda *_: None,
) -> Summary:
    """Make the clips that `folder` lacks. What failed before is tried again only if `retry_failed`, or if its request was changed.

    blueprint: the model as the setup names it. Raises BadOutput for a folder that holds something else, was begun with another model,
    in which another run works, or whose clip of the same id was made for another request; LynxError for what would fail for all.
    """
    folder = folder.absolute()
    check_folder(folder)
    work = folder / WORK
    with alone_in(work):
        otherwise = "name what it was begun with"
        claim_work(work, settings(blueprint, setup), otherwise=otherwise)
        key = _key(work)
        wanted = [keyed(one, key) for one in wanted]
        if any(one.request.portrait is not None for one in wanted):
            claim_work(work / PEOPLE, people_settings(blueprint), otherwise=otherwise)
        shelf = Shelf(folder=work / "made", run=uuid.uuid4().hex)
        _check_ids(folder / CLIPS, wanted, shelf)
        _take_over(work, shelf.run)
        ids = {one.id for one in wanted}
        earlier = [row for row in read_rows(folder) if row["id"] not in ids]
        table = Table(folder=folder, wanted=wanted, shelf=shelf, earlier=earlier)
        queued = now()
        waiting = _waiting(folder, wanted, shelf, queued, retry_failed=retry_failed)
        table.update(now=True)

        persons, takes = _jobs(folder, waiting, blueprint, queued)
        people = replace(shelf, folder=work / PEOPLE)
        missing = _missing(persons, people, retry_failed=retry_failed)

        def tell(_: str, done: int, total: int) -> None:
            first = len(missing)  # jobs are handed out in order, so the persons come first
            if first and done <= first:
                progress("enrolling", done, first)
            if done >= first:
                progress("generating", done - first, total - first)
            table.update()

        try:
            jobs = [*missing, *takes]
            pool.run("batch", BatchWork(setup=setup, made=shelf, people=people), jobs, tell, use_gpus=blueprint.device != "cpu")
        finally:
            table.update(now=True)
    made_now = sum(table.rows.get(one.id, {}).get("status") in MADE for one in waiting)
    return Summary(results=folder / RESULTS, counts=table.counts(), made_now=made_now)


def _key(work: Path) -> bytes:
    """What the stamps of private requests are made with; drawn once for a folder. Without it none of their clips is recognised."""
    file = work / "key"
    if not file.is_file():
        with draft(file) as partial:
            partial.touch(mode=0o600)
            partial.write_bytes(secrets.token_bytes(32))
    return file.read_bytes()


def _take_over(work: Path, run: str) -> None:
    """From here on workers of earlier runs, killed ones, write nothing any more."""
    with draft(work / RUN) as partial:
        try:
            partial.write_text(run, encoding="utf-8")
        except OSError as error:
            raise disk_full(work) if is_full(error) else BadOutput(f"{work / RUN}: cannot be written ({error}).") from error


def _check_ids(clips: Path, wanted: Sequence[Wanted], shelf: Shelf) -> None:
    """Raises BadOutput for an id whose clip was made for another request."""
    for one in wanted:
        note = shelf.note(take_key(one))
        if note is not None and note[0] != one.stamp and any((clips / f"{one.id}.{ext}").is_file() for ext in EXTENSIONS):
            raise BadOutput(
                f"{one.where}: the id {one.id!r} has a clip in this folder that was made for another request, and nothing is "
                "overwritten: give it another id, or take another folder."
            )


def _waiting(folder: Path, wanted: Sequence[Wanted], shelf: Shelf, queued: str, *, retry_failed: bool) -> list[Wanted]:
    """The requests that are to be made; what killed writers left is removed, what killed noters left is noted."""
    for file in (folder / CLIPS).glob(".*"):
        if is_draft(file):
            file.unlink(missing_ok=True)
    waiting = []
    for one in wanted:
        key, clip = take_key(one), folder / CLIPS / one.file
        value = shelf.value(key, one.stamp)
        there = clip.is_file()
        if value is None and there:
            keep(shelf, key, one.stamp, ({"queued": queued, **recovered(one, clip)}, {}))
        elif value is None or (value["status"] in MADE and not there) or (value["status"] not in MADE and retry_failed):
            shelf.drop(key)
            waiting.append(one)
    return waiting


def _jobs(folder: Path, waiting: Sequence[Wanted], blueprint: Blueprint, queued: str) -> tuple[list[Person], list[Take]]:
    """Whom the requests need, each once, and their clips, ordered so that the model is held one way, then another."""
    persons: dict[str, Person] = {}
    takes = []
    for one in waiting:
        person = None
        if by_identity_file(one, blueprint):
            person = _person(folder / WORK, one, blueprint)
            person = persons.setdefault(person.key, person)
        takes.append(Take(wanted=one, target=folder / CLIPS / one.file, queued=queued, person=person))
    return list(persons.values()), sorted(takes, key=lambda take: repr(settings_key(take.wanted)))


def _missing(persons: Sequence[Person], shelf: Shelf, *, retry_failed: bool) -> list[Person]:
    """The persons without an identity file, but for those of whom none can be made."""
    missing = []
    for person in persons:
        value = shelf.value(person.key, person.key)
        failed = value is not None and "status" in value
        if value is None or (failed and (retry_failed or not value["lasting"])) or (not failed and not person.file.is_file()):
            shelf.drop(person.key)
            missing.append(person)
    return missing


def by_identity_file(wanted: Wanted, blueprint: Blueprint) -> bool:
    """Whether a clip is made by an identity file of its portrait.

    Not on a base of two experts, nor with a sampled reference latent, nor by a preset that holds the model in another way than the
    one that projects.
    """
    request = wanted.request
    sampled = request.generation.get("reference_latent") == "sample"
    return request.portrait is not None and not blueprint.boundary and not sampled and not SPEED[request.preset]().runtime


def _person(work: Path, wanted: Wanted, blueprint: Blueprint) -> Person:
    request = wanted.request
    assert request.portrait is not None
    about = [wanted.source_hash, request.face_index or 0, blueprint.base_hash, blueprint.adapter_hash]
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:24]
    file = work / "identities" / f"{key}.safetensors"
    return Person(key=key, portrait=request.portrait, face_index=request.face_index, file=file, source_hash=wanted.source_hash)


def settings(blueprint: Blueprint, setup: Setup) -> dict[str, Any]:
    """What all clips of a folder are made with; the rest is in each request."""
    return {
        "model": setup.model.model,
        "base": Path(blueprint.base_name).name,
        "base_hash": blueprint.base_hash,
        "torch_dtype": str(blueprint.dtype).removeprefix("torch."),
        "safety": {name: str(value) for name, value in asdict(setup.safety).items()},
        "recogniser": blueprint.faces.judge_name,
        "lora_hash": blueprint.lora_hash,
        "runtime": {name: str(value) for name, value in sorted(setup.runtime.items())},
    }


def people_settings(blueprint: Blueprint) -> dict[str, Any]:
    """What all portraits of a folder are projected with."""
    from lynx_video.evaluation.scorer import known_by

    detector = blueprint.faces.detector()
    return {
        "adapter_hash": blueprint.adapter_hash,
        "arm": blueprint.arm,
        "face_detector": known_by(detector) or detector.name,
        "face_encoder": known_by(blueprint.faces.encoder()),
    }


def survey_of(wanted: Sequence[Wanted], studio: Studio) -> Blueprint:
    """The model of a batch; without an adapter if every request brings an identity file."""
    if any(one.request.portrait is not None for one in wanted):
        return studio.blueprint()
    return studio.check(wanted[0].request).blueprint


def check_folder(folder: Path) -> None:
    """Raises BadOutput for a file, a folder that cannot be written, and one that holds something else than a batch."""
    if folder.exists() and not folder.is_dir():
        raise BadOutput(f"{folder} is a file; name a folder.")
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOutput(f"{folder}: no permission to write in {nearest}.")
    if folder.is_dir() and not (folder / WORK / SETTINGS).is_file():
        foreign = sorted(one.name for one in folder.iterdir() if one.name not in {RESULTS, TABLE, CLIPS, WORK})
        if foreign:
            raise BadOutput(f"{folder} holds {foreign[0]}, which no batch puts there; take another folder.")
