"""Making the clips of a grid: those that are missing, on all cores or a cluster. Killed and called again, it goes on.

In the folder OUT:

    manifest.jsonl                     which clip shows whom doing what, as `layouts` reads it
    subjects/NAME/reference.png, ...   drawn people, where they are drawn
    clips/NAME/PROMPT-sSEED.mp4        the clips, each with its settings
    failures.jsonl                     clips that could not be made, and why
    work/                              what the clips are made with, and what is done
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig
from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadPicture, BadRequest, BadWeights, MissingDependency, NoFace, Refused
from lynx_video.evaluation.entry import REFERENCE, Entry
from lynx_video.evaluation.grid import CLIPS
from lynx_video.evaluation.layouts import MANIFEST
from lynx_video.evaluation.scorer import known_by, one_line
from lynx_video.pool import Pool, Progress
from lynx_video.work import SETTINGS, WORK, Made, Shelf, alone_in, attempt, claim_work

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.safety import SafetyChecker
    from lynx_video.types import Identity

FAILURES = "failures.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateWork:
    """Jobs are entries of the grid. survey: describes the model; checker: loads the safety checker, if one is to look."""

    survey: Callable[[], Blueprint]
    config: GenerateConfig
    shelf: Shelf
    checker: Callable[[], SafetyChecker] | None = None

    def open(self) -> Callable[[Entry], None]:
        """Load the model."""
        from lynx_video.media.video import write_video
        from lynx_video.pipeline.generate import generate
        from lynx_video.pipeline.identify import identify
        from lynx_video.pipeline.load import assemble
        from lynx_video.safety import check_frames

        # The workers go from clip to clip, so nothing is freed in between.
        config = replace(self.config, idle_models="offload" if self.config.idle_models == "free" else self.config.idle_models)
        components = assemble(self.survey(), idle_models=config.idle_models)
        checker = self.checker() if self.checker is not None else None
        sitters: dict[Path, Identity] = {}

        def make(entry: Entry) -> Made:
            if entry.reference not in sitters:
                try:
                    sitter = identify(components.faces, entry.reference, reference_size=components.defaults.reference_size)
                    if checker is not None:
                        _check_portrait(checker, entry.reference)
                except (NoFace, BadPicture, Refused) as error:
                    raise _Unusable(f"{REFERENCE}: {one_line(error, entry.reference)}") from error
                sitters[entry.reference] = sitter.identity
            clip = generate(
                components,
                sitters[entry.reference],
                entry.prompt,
                replace(config, seed=seed_of(entry)),
                facts={"portrait": entry.reference.name, "benchmark_key": entry.key},
            )
            if checker is not None:
                check_frames(checker, clip.frames)
            write_video(entry.clip, clip.frames, clip.fps, clip.settings)
            return {"seconds": round(clip.seconds, 3)}, {}

        def lost(error: Exception | None) -> Made:
            if isinstance(error, (BadWeights, MissingDependency)):  # the next clip would fare no better
                raise error
            if error is None:
                return {"failure": "its worker died each time it was tried", "final": False}, {}
            kind = "refused by the safety check: " if isinstance(error, Refused) else ""
            # what will come again is not tried again
            return {"failure": kind + one_line(error), "final": isinstance(error, (_Unusable, Refused))}, {}

        def do(entry: Entry) -> None:
            attempt(self.shelf, job_key(entry), stamp(entry), lambda: make(entry), lost, entry.key)

        return do


class _Unusable(Exception):
    """A reference photo of which nothing can be made: the fault of the benchmark, not of the model."""


def _check_portrait(checker: SafetyChecker, portrait: Path) -> None:
    from lynx_video.media.image import read_picture
    from lynx_video.safety import check_portrait

    check_portrait(checker, read_picture(portrait))


def job_key(entry: Entry) -> str:
    """The entry's key as a file name."""
    return hashlib.sha256(entry.key.encode()).hexdigest()[:24]


def seed_of(entry: Entry) -> int:
    """The entry's seed, which every entry of a grid has."""
    assert entry.seed is not None
    return entry.seed


def stamp(entry: Entry) -> str:
    """What a clip is made from, besides the model and its settings."""
    from lynx_video.media.image import file_hash

    return json.dumps([entry.prompt, entry.seed, file_hash(entry.reference) if entry.reference.is_file() else ""])


def make_clips(
    folder: Path,
    entries: Sequence[Entry],
    config: GenerateConfig,
    *,
    name: str,
    survey: Callable[[], Blueprint],
    pool: Pool,
    checker: Callable[[], SafetyChecker] | None = None,
    safety: str = "auto",
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Make the clips of the grid that `folder` lacks; facts of what it was made with, and what failed.

    name: what the report calls the model; safety: what is noted of the safety check. survey: describes the model; pickled, called in
    every worker. A clip that is there, made from the same prompt, photo and noise, is not made again; what failed is tried again,
    unless it will fail for ever (no face in the photo, a refusal). Raises BadOutput for a folder that was made with another model or
    settings, in which another run works, or whose clips belong to another prompt or photo; BadRequest as `plan`.
    """
    from lynx_video.pipeline.calibration import check_step_cache
    from lynx_video.pipeline.generate import plan

    blueprint = survey()
    plan(blueprint, config)
    check_step_cache(blueprint, config.step_cache)
    folder = folder.absolute()
    check_folder(folder)
    made_with = settings(blueprint, config, name, safety)
    with alone_in(folder / WORK):
        claim_work(folder / WORK, made_with, otherwise="remove this one")
        return {**made_with, **_make(folder, entries, config, survey, blueprint, pool, checker, progress)}


def _make(
    folder: Path,
    entries: Sequence[Entry],
    config: GenerateConfig,
    survey: Callable[[], Blueprint],
    blueprint: Blueprint,
    pool: Pool,
    checker: Callable[[], SafetyChecker] | None,
    progress: Progress,
) -> dict[str, int]:
    """The counts of clips, of those made now, and of failures."""
    _clear_drafts(folder / CLIPS)
    write_manifest(folder, entries)
    shelf = Shelf(folder=folder / WORK / "made", run=uuid.uuid4().hex)
    stamps = {entry.key: stamp(entry) for entry in entries}
    waiting = []
    for entry in entries:
        done = shelf.value(job_key(entry), stamps[entry.key])
        if done is None and entry.clip.is_file():
            _check_clip(entry)  # made, but its worker died before it noted so
            shelf.save(job_key(entry), stamps[entry.key], {})
        elif done is None or not (done.get("final") if "failure" in done else entry.clip.is_file()):
            shelf.drop(job_key(entry))
            waiting.append(entry)
    work = GenerateWork(survey=survey, config=config, shelf=shelf, checker=checker)
    pool.run("generating", work, waiting, progress, use_gpus=blueprint.device != "cpu")
    failures = {}
    for entry in entries:
        value = shelf.value(job_key(entry), stamps[entry.key]) or {}
        if "failure" in value:
            failures[entry.key] = value["failure"]
    with draft(folder / FAILURES) as partial:
        lines = [json.dumps({"key": key, "failure": text}) + "\n" for key, text in sorted(failures.items())]
        partial.write_text("".join(lines), encoding="utf-8")
    made_now = sum(entry.key not in failures for entry in waiting)
    return {"clips": len(entries), "made_now": made_now, "failures": len(failures)}


def settings(blueprint: Blueprint, config: GenerateConfig, name: str, safety: str = "auto") -> dict[str, Any]:
    """What all clips of a folder are made with: the model and its face models, and the settings but for the seed and for memory."""
    passing = ("seed", "idle_models")
    said = {key: sorted(v) if isinstance(v, frozenset) else v for key, v in asdict(config).items() if key not in passing}
    detector = blueprint.faces.detector()
    return {
        "model": name,
        "base": Path(blueprint.base_name).name,
        "arm": blueprint.arm,
        "base_hash": blueprint.base_hash,
        "adapter_hash": blueprint.adapter_hash,
        "torch_dtype": str(blueprint.dtype).removeprefix("torch."),
        "face_detector": known_by(detector) or detector.name,
        "face_encoder": known_by(blueprint.faces.encoder()),
        "safety_checker": safety,
        **said,
        **blueprint.runtime.shaping(),
        "lora_hash": blueprint.lora_hash,
    }


def check_folder(folder: Path) -> None:
    """Raises BadOutput for a file, a folder that cannot be written, and one that holds something else than a benchmark run."""
    if folder.exists() and not folder.is_dir():
        raise BadOutput(f"{folder} is a file; name a folder.")
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadOutput(f"{folder}: no permission to write in {nearest}.")
    known = {MANIFEST, FAILURES, "subjects", CLIPS, WORK, "scores"}
    if folder.is_dir() and not (folder / WORK / SETTINGS).is_file():
        foreign = sorted(one.name for one in folder.iterdir() if one.name not in known)
        if foreign:
            raise BadOutput(f"{folder} holds {foreign[0]}, which no benchmark run puts there; take another folder.")


def write_manifest(folder: Path, entries: Sequence[Entry]) -> None:
    """Write `manifest.jsonl`; paths below the folder become relative to it, others absolute."""

    def place(path: Path) -> str:
        return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path.absolute())

    lines = [
        {
            "clip": place(entry.clip),
            "subject": entry.subject,
            "reference": place(entry.reference),
            "others": [place(other) for other in entry.others],
            "prompt": entry.prompt,
            "prompt_id": entry.prompt_id,
            "seed": entry.seed,
        }
        for entry in entries
    ]
    with draft(folder / MANIFEST) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _check_clip(entry: Entry) -> None:
    """Raises BadOutput if the clip that is there was made from something else."""
    from lynx_video.media.image import file_hash
    from lynx_video.media.video import read_metadata

    try:
        said = read_metadata(entry.clip)
    except BadRequest as error:
        raise BadOutput(f"{error} It is in the way of a clip to be made; remove it.") from error
    expected = {"prompt": entry.prompt, "seed": entry.seed, "portrait_hash": file_hash(entry.reference)}
    for name, value in expected.items():
        if said.get(name) != value:
            raise BadOutput(
                f"{entry.clip} was made with another {name} ({said.get(name)!r}); remove it, or take another folder."
            )


def _clear_drafts(folder: Path) -> None:
    """Remove what writers left that were killed."""
    for file in folder.glob("*/.*"):
        if file.is_file():
            file.unlink(missing_ok=True)
