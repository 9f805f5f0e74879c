"""Building a training set: look at every item, find out who is who, encode, write. Killed and called again, it goes on.

In the folder OUT:

    dataset.json, index.jsonl, conditions.safetensors, shards/   the set (`training.shards`)
    card.md, dropped.jsonl, sheet.png                            for people: what is in it, what is not and why, how it looks
    work/                                                        what is done so far; removed at the end

The same source and settings give the same bytes, however many workers there are and however often they were interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadData, BadOutput, BadRequest
from lynx_video.pool import Pool, Progress, open_pool
from lynx_video.training.dataset.card import make_card, to_markdown
from lynx_video.training.dataset.config import Bucket, DatasetConfig, parse_bucket
from lynx_video.training.dataset.source import Drop, Source, fingerprint_item, read_source
from lynx_video.training.dataset.stages import CONDITIONS, EncodeWork, ScanWork
from lynx_video.training.shards import CARD, INDEX, SHARDS, Conditions, write_shards
from lynx_video.training.shards import CONDITIONS as CONDITIONS_FILE
from lynx_video.work import SETTINGS, WORK, DiskFull, Shelf, claim_work, disk_full, is_full

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.training.dataset.encode import Job
    from lynx_video.training.dataset.pairing import Role

CARD_TEXT, DROPPED, SHEET = "card.md", "dropped.jsonl", "sheet.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A build whose request was checked. made_with: the card's part that is known beforehand; survey: describes the model anew."""

    source: Source
    out: Path
    config: DatasetConfig
    model: Blueprint
    survey: Callable[[], Blueprint]
    buckets: tuple[Bucket, ...]
    same_person: float
    augment: tuple[str, ...]
    made_with: dict[str, Any]
    scans: Shelf
    encoded: Shelf


def build(
    source: Path,
    out: Path,
    config: DatasetConfig | None = None,
    *,
    name: str,
    survey: Callable[[], Blueprint],
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
    keep_work: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Make a training set; its card.

    source: a folder or a manifest, see `source`. out: its folder. name: what the card calls the model. survey: describes that model;
    it is pickled and called in every worker. workers, address: as in `open_pool`. keep_work: leave what the set was made from.
    progress: called with a stage's name, the number of jobs done and of all.

    Raises BadRequest (BadData, BadOutput, BadWeights) for a request that cannot be carried out, a full disk, or a source of which
    nothing is left; MissingDependency for what is not installed.
    """
    try:
        plan = _plan(source, out, config or DatasetConfig(), name, survey, overwrite=overwrite)
        with open_pool(workers, address) as pool:
            roles, drops = _scan(plan, pool, progress)
            jobs, failed = _encode(plan, roles, pool, progress)
        card = _write(plan, roles, jobs, [*drops, *failed], progress)
    except (OSError, BadOutput) as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        raise disk_full(out) from error
    if not keep_work:
        shutil.rmtree(out / WORK, ignore_errors=True)
    return card


def _plan(
    source: Path, out: Path, config: DatasetConfig, name: str, survey: Callable[[], Blueprint], *, overwrite: bool
) -> Plan:
    from lynx_video.face.embed import encoder_hash
    from lynx_video.training.augment import DEFAULT_STEPS, steps
    from lynx_video.training.dataset.people import SAME_PERSON

    check_folder(out, overwrite=overwrite)
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise BadOutput(f"{out} lies in {source}, and would be read as a part of it; choose a folder elsewhere.")
    words = {"default": DEFAULT_STEPS, "none": ()}
    augment = words.get(config.augment, tuple(one.strip() for one in config.augment.split(",")))
    steps(augment)
    found = read_source(source.absolute())  # absolute, as all paths that go to workers: they may have been started elsewhere
    model = survey()
    buckets = _buckets(config, model)
    same_person = SAME_PERSON if config.same_person is None else config.same_person
    model_facts = {
        "name": name,
        "base_hash": model.base_hash,
        "face_detector": model.faces.detector().name,
        "face_encoder": encoder_hash(model.faces.encoder()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "fps": model.defaults.fps,
        "reference_size": model.defaults.reference_size,
        "prompt_tokens": model.defaults.max_sequence_length,
    }
    settings = {
        **asdict(config),
        "bucket": [str(bucket) for bucket in buckets],
        "augment": list(augment),
        "same_person": same_person,
    }
    made_with = {"model": model_facts, "settings": settings}
    if overwrite:
        clear_folder(out)
    work = out.absolute() / WORK
    claim_work(
        work, {"source": str(source.resolve()), **{f"model {key}": value for key, value in model_facts.items()}, **settings}
    )
    run = uuid.uuid4().hex
    return Plan(
        source=found,
        out=out,
        config=config,
        model=model,
        survey=survey,
        buckets=buckets,
        same_person=same_person,
        augment=augment,
        made_with=made_with,
        scans=Shelf(folder=work / "scan", run=run),
        encoded=Shelf(folder=work / "encoded", run=run),
    )


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Raises BadOutput for a file, and a folder that cannot be written, holds a finished set (unless it may go) or something else."""
    if out.exists() and not out.is_dir():
        raise BadOutput(f"{out} is a file; name a folder.")
    nearest = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOutput(f"{out}: no permission to write in {nearest}.")
    if (out / CARD).is_file():
        if not overwrite:
            raise BadOutput(f"{out} holds a finished training set; take another folder, or --overwrite.")
    elif out.is_dir() and any(out.iterdir()) and not (out / WORK / SETTINGS).is_file():
        raise BadOutput(f"{out} is not empty, and what is in it is no training set; take another folder.")


def clear_folder(out: Path) -> None:
    """Remove a training set and what was left of its making, and nothing else. The card goes first: without it there is no set."""
    for name in (CARD, INDEX, CONDITIONS_FILE, CARD_TEXT, DROPPED, SHEET):
        (out / name).unlink(missing_ok=True)
    for name in (SHARDS, WORK):
        shutil.rmtree(out / name, ignore_errors=True)


def _buckets(config: DatasetConfig, model: Blueprint) -> tuple[Bucket, ...]:
    """Those that were asked for, or the model's own size for clips and for stills. Raises BadRequest for what the model cannot do."""
    defaults = model.defaults
    asked = [parse_bucket(text) for text in config.bucket]
    buckets = asked or [Bucket(frames, defaults.height, defaults.width) for frames in (defaults.num_frames, 1)]
    for frames, height, width in buckets:
        if (frames - 1) % model.temporal_factor:
            raise BadRequest(
                f"bucket {frames}x{height}x{width}: frames must be 1 more than a multiple of {model.temporal_factor}."
            )
        if height % model.grid or width % model.grid:
            raise BadRequest(f"bucket {frames}x{height}x{width}: height and width must be multiples of {model.grid}.")
    return tuple(sorted(set(buckets)))


def _scan(plan: Plan, pool: Pool, progress: Progress) -> tuple[list[Role], list[Drop]]:
    """Look at what was not looked at yet; the items that stay, and all that were dropped up to here."""
    from lynx_video.training.dataset.finding import Finding
    from lynx_video.training.dataset.pairing import Candidate, assign_roles

    source, scans = plan.source, plan.scans
    stamps = {item.key: fingerprint_item(item, source.root) for item in source.items}
    waiting = [item for item in source.items if scans.value(item.key, stamps[item.key]) is None]
    work = ScanWork(
        survey=plan.survey,
        shelf=scans,
        root=source.root,
        config=plan.config,
        buckets=plan.buckets,
        same_person=plan.same_person,
    )
    pool.run("looking", work, waiting, progress)
    drops, candidates = list(source.drops), []
    for item in source.items:
        value = scans.value(item.key, stamps[item.key])
        if value is None:
            raise BadData(f"{item.name} changed while it was looked at; give the same command again.")
        if "drop" in value:
            drops.append(Drop(**value["drop"]))
            continue
        arrays = scans.tensors(item.key, "mean", "thumbnails")
        candidates.append(
            Candidate(
                finding=Finding.from_json(value["finding"]),
                vector=arrays["mean"].numpy(),
                thumbnails=arrays["thumbnails"].numpy(),
            )
        )
    config = plan.config
    roles, unpaired = assign_roles(
        candidates, same_person=plan.same_person, near=config.near, references=config.references, seed=config.seed
    )
    return roles, drops + unpaired


def _encode(plan: Plan, roles: Sequence[Role], pool: Pool, progress: Progress) -> tuple[list[Job], list[Drop]]:
    """Encode what was not encoded yet; the jobs of the examples that are there, in the order of their keys, and what was dropped."""
    jobs = sorted(_jobs(roles), key=lambda job: job.key)
    waiting: list[Job | str] = [job for job in jobs if plan.encoded.value(job.key, job.stamp) is None]
    if jobs and plan.encoded.value(CONDITIONS, "") is None:
        waiting.append(CONDITIONS)
    work = EncodeWork(
        survey=plan.survey,
        scans=plan.scans,
        shelf=plan.encoded,
        root=plan.source.root,
        augment=plan.augment,
        seed=plan.config.seed,
    )
    pool.run("encoding", work, waiting, progress, use_gpus=plan.model.device != "cpu")
    done: list[Job] = []
    drops: dict[str, Drop] = {}
    for job in jobs:
        value = plan.encoded.value(job.key, job.stamp)
        assert value is not None
        if "drop" in value:
            drops[job.item.key] = Drop(**value["drop"])
        else:
            done.append(job)
    # An item is learned from as a whole or not at all.
    return [job for job in done if job.item.key not in drops], list(drops.values())


def _jobs(roles: Sequence[Role]) -> list[Job]:
    from lynx_video.training.dataset.encode import Job

    findings = {role.finding.item.key: role.finding for role in roles}
    jobs = []
    for role in roles:
        for kind, view in (("clip", role.finding.clip), ("still", role.finding.still)):
            if view is None or not role.references:
                continue
            others = [findings[key] for key in role.references]
            jobs.append(
                Job(
                    kind="clip" if kind == "clip" else "still",
                    item=role.finding.item,
                    view=view,
                    person=role.person,
                    references=role.references,
                    sources=tuple(other.item.file for other in others),
                    contents=(role.finding.content, *(other.content for other in others)),
                )
            )
    return jobs


def _write(plan: Plan, roles: Sequence[Role], jobs: Sequence[Job], drops: Sequence[Drop], progress: Progress) -> dict[str, Any]:
    """Write the set; its card, which comes last. Raises BadData if there is nothing to write."""
    from lynx_video.media.image import write_picture
    from lynx_video.training.dataset.encode import load_vae, read_example
    from lynx_video.training.dataset.sheet import draw_sheet, spread

    out, drops = plan.out, sorted(drops, key=lambda drop: (drop.item, drop.reason))
    with draft(out / DROPPED) as partial:
        partial.write_text("".join(json.dumps(asdict(drop)) + "\n" for drop in drops), encoding="utf-8")
    if not jobs:
        reasons = Counter(drop.reason for drop in drops).most_common(4)
        raise BadData(
            f"nothing is left to learn from: {', '.join(f'{count} {reason}' for reason, count in reasons)}; "
            f"each by name in {out / DROPPED}."
        )
    dropped = {drop.item for drop in drops}
    staying = [role for role in roles if role.finding.item.name not in dropped]
    card = make_card(plan.made_with, len(plan.source.items) + len(plan.source.drops), staying, jobs, drops)
    with draft(out / CARD_TEXT) as partial:
        partial.write_text(to_markdown(card), encoding="utf-8")
    shown = (read_example(plan.encoded, job.key, job.stamp) for job in spread(jobs))
    write_picture(out / SHEET, draw_sheet(shown, load_vae(plan.model)))
    conditions = Conditions(**plan.encoded.tensors(CONDITIONS))

    def examples() -> Any:
        for number, job in enumerate(jobs):
            progress("writing", number, len(jobs))
            yield read_example(plan.encoded, job.key, job.stamp)
        progress("writing", len(jobs), len(jobs))

    count = write_shards(out, examples(), conditions, card, shard_bytes=plan.config.shard_megabytes * 2**20)
    return {"examples": count, **card}
