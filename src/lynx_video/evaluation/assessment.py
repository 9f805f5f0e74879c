"""From a folder of clips to numbers and a page: read the folder, score what is not scored yet, ask the judge, sum up, write.

In the folder of results:

    scores.jsonl, scores.csv   a line a clip
    summary.json, radar.png    means with intervals, and what ran
    report.html                all of it on one page
    work/                      scores of single clips and answers of the judge, so that nothing is done twice
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video import __version__
from lynx_video.draft import draft
from lynx_video.errors import BadData, BadOutput, BadRequest, MissingDependency
from lynx_video.evaluation.config import ScoreConfig
from lynx_video.evaluation.entry import GONE, REFERENCE, Record
from lynx_video.evaluation.layouts import Problem, read_folder
from lynx_video.evaluation.scorer import Probe, open_recognisers, score_clips
from lynx_video.evaluation.summary import SCORES, Summary, summarise, write_summary
from lynx_video.pool import Pool, Progress
from lynx_video.work import SETTINGS, WORK

if TYPE_CHECKING:
    from lynx_video.evaluation.metrics.judge import JudgeConfig
    from lynx_video.evaluation.metrics.score import Score
    from lynx_video.pipeline.models import FaceModels

REPORT = "report.html"
PACKAGES = ("torch", "diffusers", "numpy", "opencv-python-headless", "scikit-image", "scipy", "onnxruntime", "av", "openai")
OURS = ("model", "arm", "base_hash", "adapter_hash")
"""By these the settings of a run of ours are known."""
_DECIMALS = 6  # of a score in a file; it was measured on 8-bit frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be scored, and by whom.

    folder, layout, manifest, references: as `layouts.read_folder`. faces: opens the face models; pickled, called in every worker.
    extra: further recognisers, `PATH` or `NAME=PATH`. probe: what can be told exactly of a clip and its prompt. judge: asked about
    every clip, if there is one. system: what the report calls what made the clips. made_with: what a run of ours notes of that; empty
    for clips of others. conditioned_on: recognisers that conditioned what made the clips; for a run of ours the encoder, unasked.
    """

    folder: Path
    output: Path
    faces: Callable[[], FaceModels]
    layout: str = "auto"
    manifest: Path | None = None
    references: Path | None = None
    extra: tuple[str, ...] = ()
    probe: Probe | None = None
    config: ScoreConfig = field(default_factory=ScoreConfig)
    judge: JudgeConfig | None = None
    system: str = ""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    conditioned_on: tuple[str, ...] = ()
    command: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The numbers, what was wrong with the folder, and what may spoil the numbers."""

    summary: Summary
    records: list[Record]
    problems: list[Problem]
    cautions: list[str]


def assess(request: Request, pool: Pool, progress: Progress = lambda *_: None) -> Result:
    """Score a folder and write the results.

    Raises BadData for a folder that holds nothing to score, BadRequest without a recogniser, BadOutput for results that cannot be
    written, LynxError for a judge that cannot be reached. What is wrong with a clip is counted in the results.
    """
    from lynx_video.evaluation.report import write_report

    _check_installed()
    _check_output(request.output)
    folder, output = request.folder.absolute(), request.output.absolute()
    entries, problems = read_folder(
        folder,
        layout=request.layout,
        manifest=request.manifest and request.manifest.absolute(),
        references=request.references and request.references.absolute(),
    )
    made = _reasons(folder) if request.made_with else {}
    unusable = {key: why for key, why in made.items() if why.startswith(REFERENCE)}
    left_out = [entry for entry in entries if entry.key in unusable]
    names = {place(str(entry.clip), folder) for entry in left_out}
    problems = [one for one in problems if one.item not in names or one.reason not in ("missing clip", "missing reference")]
    problems += [
        Problem(item=one.key, reason="unusable reference", detail=f"{unusable[one.key]}; left out") for one in left_out
    ]
    entries = [entry for entry in entries if entry.key not in unusable]
    if not entries:
        raise BadData(f"{folder}: no reference photo can be used ({problems[-1].detail}), so there is nothing to score.")
    records, judged_by = score_clips(
        entries,
        output / WORK / "scores",
        faces=request.faces,
        pool=pool,
        extra=request.extra,
        probe=request.probe,
        config=request.config,
        progress=progress,
    )
    cautions = judged_by.pop("cautions")
    judged_by.pop("scored_now")  # a report does not tell how often it was interrupted
    records = [
        replace(one, failure=f"could not be made: {made[one.key]}") if one.failure == GONE and one.key in made else one
        for one in records
    ]
    tally: dict[str, Any] | None = None
    if request.judge is not None and request.judge.judge_url is not None:
        records, tally, spent = _judge(request.judge, records, output / WORK / "judge", progress)
        cautions += spent
    records = sorted((_relative(record, folder) for record in records), key=lambda record: record.key)
    about = {
        "system": request.system,
        "command": request.command,
        "clips": os.path.relpath(folder, output),
        "made_with": dict(request.made_with),
        "scored_by": judged_by,
        "judge": tally,
        "problems": [f"{one.item}: {one.reason} ({one.detail})" for one in problems],
        "versions": versions(),
    }
    detector = judged_by["detector"]
    if request.made_with.get("face_detector", detector["sha256"]) not in (detector["sha256"], detector["name"]):
        cautions.append(f"the clips were made with another face detector than the one that scores ({detector['name']}).")
    known = _conditioned_on(request, judged_by["recognisers"])
    if unheard := sorted(set(request.conditioned_on) - set(judged_by["recognisers"])):
        cautions.append(f"{unheard[0]!r} is none of the recognisers that score: {', '.join(judged_by['recognisers'])}.")
    if known >= set(judged_by["recognisers"]):
        cautions.append(
            "every recogniser conditioned what made the clips, so all similarities flatter: add another with --recogniser."
        )
    about["conditioned_on"] = sorted(known) or ("nothing" if request.made_with else "not known")
    summary = summarise(records, about, sorted(known & set(judged_by["recognisers"])), list(judged_by["recognisers"]))
    with draft(output / SCORES) as partial:
        partial.write_text("".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    write_summary(summary, records, output)
    write_report(summary, records, output / REPORT, clips=folder)
    if problems:
        kinds = ", ".join(f"{count} {reason}" for reason, count in Counter(one.reason for one in problems).most_common())
        cautions.append(f"the folder has {len(problems)} problems ({kinds}); each is named in the report.")
    return Result(summary=summary, records=records, problems=problems, cautions=cautions)


def _conditioned_on(request: Request, hashes: Mapping[str, str]) -> set[str]:
    """The recognisers that conditioned what made the clips: those that were named, and the encoder of a run that used it."""
    made = request.made_with
    used = bool(made) and bool(made.get("adapter_hash")) and made.get("ip_scale") != 0
    encoder = made.get("face_encoder") if used else ""
    return {*request.conditioned_on, *(name for name, known in hashes.items() if encoder and known == encoder)}


def _judge(
    config: JudgeConfig, records: Sequence[Record], cache: Path, progress: Progress
) -> tuple[list[Record], dict[str, Any], list[str]]:
    """The records with the judge's scores; who judged, with sums that no interruption changes; and what this run took, in words.

    Clips that do not decode are not sent.
    """
    from lynx_video.evaluation.metrics.judge import Clip, Judge, judge_all
    from lynx_video.media.video import read_video

    waiting = [record for record in records if not record.failure or record.frames]
    found = {}
    with Judge(config, cache) as judge:
        clips = [Clip(hash=one.sha256, prompt=one.prompt, read=partial(read_video, one.clip)) for one in waiting]
        if not all(map(judge.has, clips)):
            judge.check()
        progress("judging", 0, len(waiting))
        for number, (record, verdict) in enumerate(zip(waiting, judge_all(judge, clips), strict=True), 1):
            found[record.key] = verdict.scores
            progress("judging", number, len(waiting))
        facts = judge.to_json()
    totals = {f"tokens_{way}": facts.pop(f"tokens_{way}") + facts.pop(f"cached_tokens_{way}") for way in ("in", "out")}
    cost, total = facts.pop("cost"), facts.pop("cost_with_cached")
    priced = "" if cost is None else f", cost {cost:g}"
    spent = [f"judge: {facts.pop('requests')} questions asked, {facts.pop('cached')} votes kept from before{priced}."]
    if facts["left_out"]:
        spent.append(f"judge: the endpoint does not know {', '.join(facts['left_out'])}.")
    del facts["left_out"]
    if facts["failures"]:
        spent.append(f"judge: votes that are none: {', '.join(f'{n} {why}' for why, n in facts['failures'].items())}.")
    return [_with(record, found.get(record.key, {})) for record in records], {**facts, **totals, "cost": total}, spent


def _with(record: Record, scores: Mapping[str, Score]) -> Record:
    return replace(
        record,
        scores={**record.scores, **{name: one.value for name, one in scores.items()}},
        counts={**record.counts, **{name: one.n for name, one in scores.items()}},
        missing={**record.missing, **{name: one.reason for name, one in scores.items() if one.value is None}},
    )


def check(request: Request, *, ask_judge: bool = True) -> None:
    """Whatever can be refused before the clips are made: the output, what is not installed, recognisers, the CLIP model, the judge.

    ask_judge: False where its votes may all be kept from before. Raises as `assess`.
    """
    _check_installed()
    _check_output(request.output)
    open_recognisers(request.faces(), request.extra)
    if request.config.clip_model is not None:
        from lynx_video.evaluation.metrics.text import ClipScorer

        ClipScorer(request.config.clip_model).load()
    if ask_judge and request.judge is not None and request.judge.judge_url is not None:
        from lynx_video.evaluation.metrics.judge import Judge

        with Judge(request.judge, request.output / WORK / "judge") as judge:
            judge.check()


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise BadOutput(f"{output} is a file; name a folder for the results.")


def _check_installed() -> None:
    """Raises MissingDependency before any work for what is needed at its end."""
    from importlib.util import find_spec

    for module, name in (("scipy", "scipy"), ("skimage", "scikit-image"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise MissingDependency(f"an evaluation needs {name}, which is not installed: pip install 'lynx-video[evaluate]'")


def table(summary: Summary) -> str:
    """The axes as lines of text, each with its interval and n; coverage, and what failed."""
    rows = [(axis.label, str(axis.estimate) if axis.estimate else "not measured") for axis in summary.axes]
    if "coverage" in summary.metrics:
        rows.insert(sum(axis.name == "face" for axis in summary.axes), ("coverage", str(summary.metrics["coverage"])))
    wide = max(len(name) for name, _ in rows)
    lines = [f"{name:{wide}}  {text}" for name, text in rows]
    lines += [f"failed: {count} x {reason}" for reason, count in summary.failures.items()]
    return "\n".join(lines)


def made_with(folder: Path) -> dict[str, Any]:
    """What a run of ours noted of how the clips of a folder were made; empty for a folder of others."""
    try:
        facts = json.loads((folder / WORK / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(facts, dict) and all(isinstance(facts.get(name), str) for name in OURS)
    return facts if ours else {}


def _reasons(folder: Path) -> dict[str, str]:
    """Why clips of a run are missing, by key."""
    from lynx_video.evaluation.run import FAILURES

    file = folder / FAILURES
    if not file.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {str(line["key"]): str(line["failure"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"{file}: not the list of failures that a run writes ({error!r}); remove it.") from error


def _relative(record: Record, folder: Path) -> Record:
    """Paths relative to the folder where they lie in it, numbers as a file keeps them."""
    scores = {name: None if value is None else round(value, _DECIMALS) for name, value in record.scores.items()}
    return replace(record, clip=place(record.clip, folder), reference=place(record.reference, folder), scores=scores)


def place(text: str, folder: Path) -> str:
    """A path from the folder where it lies in it, else as it is."""
    path = Path(text)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else text


def versions() -> dict[str, str]:
    """Of this package, of Python and of what the numbers come from."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    return {"lynx-video": __version__, "python": platform.python_version(), **{name: of(name) for name in PACKAGES}}
