"""`lynx-video evaluate`: make the clips of a benchmark, score any folder of clips, compare systems."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lynx_video.cli.console import Console, hush_libraries, resumable
from lynx_video.cli.flags import WorkFlags, absolute
from lynx_video.cli.options import options, over
from lynx_video.cli.speed import SpeedFlags, tuned
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, LynxError
from lynx_video.evaluation.config import ScoreConfig
from lynx_video.evaluation.grid import GridConfig
from lynx_video.evaluation.metrics.judge import JudgeConfig
from lynx_video.presets import EVALUATION
from lynx_video.studio.setup import FaceFlags, ModelFlags, ModelName

if TYPE_CHECKING:
    from lynx_video.evaluation.assessment import Request, Result
    from lynx_video.evaluation.compare import Comparison
    from lynx_video.evaluation.entry import Entry
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.models import FaceModels
    from lynx_video.safety import SafetyChecker


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFlags:
    """Who scores."""

    recogniser: tuple[str, ...] = ()
    "further face recogniser, FILE.onnx or NAME=FILE.onnx (ArcFace of insightface, CurricularFace); may be given several times"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFlags:
    """Which clips."""

    grid: Literal["paper", "quick"] = "paper"
    "the grid: paper (40 subjects x 20 prompts = 800 clips) or quick (8 x 5 = 40); the options below change it"
    clips_only: bool = False
    "make the clips and do not score them"
    ext: Literal["mp4", "webp"] = "mp4"
    "kind of file"
    system: str = ""
    "what the report calls this system; the model's name and what differs from its defaults, if not given"
    safety_checker: str = "auto"
    "picture classifier for portraits and frames: auto (real models need it), off, or its folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFlags:
    """Which clips, and how they lie there."""

    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "folder of the results; FOLDER/scores by default"
    layout: Literal["auto", "lynx", "opens2v", "consisid"] = "auto"
    "how the folder is laid out: ours, OpenS2V-Eval's or ConsisID's"
    manifest: Path | None = None
    "file that says which clip shows whom doing what, if it is not in the folder"
    references: Path | None = None
    "folder of the reference photos, if they are not in it"
    model: ModelName | None = None
    "whose face models score: lynx-full (photographs) or nano (drawn people); by default the folder's own model, else lynx-full"
    models: Path = Path("models")
    "folder of the downloaded models"
    face_detector: Path | None = None
    "face detector instead of the model's own: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead of the model's own: ArcFace IR-SE50 weights"
    conditioned_on: tuple[str, ...] = ()
    "recogniser that conditioned what made the clips, by name; it is marked, and comes last. May be given several times"
    system: str = ""
    "what the report calls what made the clips; the folder's name by default"


@click.group()
def evaluate() -> None:
    """Know how much it is them: score clips of this or any other system, on one page with intervals."""


@evaluate.command()
@click.argument("out", type=click.Path(path_type=Path))
@options(
    RunFlags,
    GridConfig,
    ModelFlags,
    SpeedFlags,
    GenerateConfig,
    RuntimeConfig,
    FaceFlags,
    ScoreFlags,
    ScoreConfig,
    JudgeConfig,
    WorkFlags,
    # each clip has a seed of its own, of a photo the largest face counts, and workers neither plan nor share a clip
    without=("seed", "face_index", "face_record", "vram_budget", "pass_degree", "ulysses_degree", "ring_degree"),
)
def run(
    out: Path,
    flags: RunFlags,
    grid: GridConfig,
    model: ModelFlags,
    speed: SpeedFlags,
    config: GenerateConfig,
    runtime: RuntimeConfig,
    face: FaceFlags,
    score_flags: ScoreFlags,
    score_config: ScoreConfig,
    judge: JudgeConfig,
    work: WorkFlags,
) -> None:
    """Make the clips of a grid of subjects, prompts and seeds in the folder OUT, those that are missing, and score them.

    \b
    lynx-video evaluate run OUT                        nano, 40 drawn people x 20 prompts
    lynx-video evaluate run OUT --model lynx-full --subjects PHOTOS --judge-url URL --judge-model NAME

    Killed and given again, the command goes on where it was.
    """
    console = Console(quiet=work.quiet, as_json=work.json)
    grid = over(EVALUATION[flags.grid](), grid)
    config, runtime = tuned(speed, model, config, runtime)
    drawn = model.model.startswith("nano") and model.base_model_path is None
    if grid.subjects is None and not drawn:
        raise BadRequest("say whose clips: --subjects FOLDER, with a photo for each; only nano can draw its subjects.")
    hush_libraries()
    from lynx_video.evaluation.assessment import Request, assess, check, made_with
    from lynx_video.evaluation.run import make_clips
    from lynx_video.pipeline.models import MODELS
    from lynx_video.pool import open_pool
    from lynx_video.studio.models import survey_model

    if re.fullmatch(r"cuda:\d+", model.device or ""):
        raise BadRequest(
            f"--device {model.device}: each worker takes a GPU of its own here; say --device cuda, and --workers how many."
        )
    model = replace(
        model,
        models=model.models.absolute(),
        base_model_path=model.base_model_path and absolute(model.base_model_path),
        adapter_path=tuple(map(absolute, model.adapter_path)),
    )
    face = replace(
        face,
        face_detector=face.face_detector and face.face_detector.absolute(),
        arcface=face.arcface and face.arcface.absolute(),
    )
    runtime = replace(
        runtime,
        gguf=runtime.gguf and runtime.gguf.absolute(),
        lora_path=tuple(str(Path(one).absolute()) for one in runtime.lora_path),
    )
    survey = partial(survey_model, model, face, config, runtime=runtime)
    blueprint = survey()
    request = Request(
        folder=out,
        output=out / "scores",
        faces=partial(_faces_of, survey),
        layout="lynx",
        extra=_named_files(score_flags),
        probe=MODELS[model.model].probe if model.base_model_path is None else None,
        config=_plain(score_config),
        judge=judge,
        command=_command(),
    )
    entries, cautions = _entries(out.absolute(), grid, flags.ext, drawn=drawn)
    if not flags.clips_only:
        check(request, ask_judge=not all(entry.clip.is_file() for entry in entries))
    loads, spoken = _checker(flags, model, blueprint)
    for caution in (*blueprint.cautions, *cautions, *spoken):
        console.warn(caution)
    with resumable(silent=console.silent) as progress, open_pool(work.workers, work.ray_address) as pool:
        facts = make_clips(
            out,
            entries,
            config,
            name=model.model,
            survey=survey,
            pool=pool,
            checker=loads,
            safety=flags.safety_checker,
            progress=progress,
        )
        if facts["failures"]:
            console.warn(
                f"{facts['failures']} of {facts['clips']} clips could not be made; why is in {out / 'failures.jsonl'}."
            )
        if facts["failures"] == facts["clips"]:
            raise LynxError(f"none of the {facts['clips']} clips could be made; why is in {out / 'failures.jsonl'}.")
        if flags.clips_only:
            line = f"{out}: {facts['clips'] - facts['failures']} clips, {facts['made_now']} made now"
            console.result(line, {**facts, "output": str(out)})
            return
        noted = made_with(out)
        request = replace(request, made_with=noted, system=flags.system or _system(noted))
        result = assess(request, pool, progress)
    _tell(request, result, console)


def _faces_of(survey: Callable[[], Blueprint]) -> FaceModels:
    """The face models that the clips are made with."""
    return survey().faces


@evaluate.command()
@click.argument("folder", type=click.Path(path_type=Path))
@options(FolderFlags, ScoreFlags, ScoreConfig, JudgeConfig, WorkFlags)
def score(
    folder: Path,
    flags: FolderFlags,
    score_flags: ScoreFlags,
    score_config: ScoreConfig,
    judge: JudgeConfig,
    work: WorkFlags,
) -> None:
    """Score the clips in FOLDER, whoever made them.

    The folder says itself what it holds (manifest.jsonl), or is laid out as OpenS2V-Eval or ConsisID have it. What is scored already
    is not scored again.
    """
    console = Console(quiet=work.quiet, as_json=work.json)
    hush_libraries()
    from lynx_video.evaluation.assessment import Request, assess, made_with
    from lynx_video.pipeline.models import MODELS
    from lynx_video.pool import open_pool
    from lynx_video.studio.models import face_models

    facts = made_with(folder)
    name: Any = flags.model or (facts.get("model") if facts.get("model") in MODELS else "lynx-full")
    detector, encoder = (path and path.absolute() for path in (flags.face_detector, flags.arcface))
    request = Request(
        folder=folder,
        output=flags.output or folder / "scores",
        faces=partial(
            face_models,
            ModelFlags(model=name, models=flags.models.absolute()),
            FaceFlags(face_detector=detector, arcface=encoder),
        ),
        layout=flags.layout,
        manifest=flags.manifest,
        references=flags.references,
        extra=_named_files(score_flags),
        probe=MODELS[name].probe,
        config=_plain(score_config),
        judge=judge,
        system=flags.system or (_system(facts) if facts else folder.resolve().name),
        made_with=facts,
        conditioned_on=flags.conditioned_on,
        command=_command(),
    )
    with resumable(silent=console.silent) as progress, open_pool(work.workers, work.ray_address) as pool:
        result = assess(request, pool, progress)
    _tell(request, result, console)


@evaluate.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True, help="folder of the page"
)
@click.option("--quiet", is_flag=True, help="say nothing but the result and warnings")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on stdout instead of the tables")
def compare(folders: tuple[Path, ...], output: Path, quiet: bool, as_json: bool) -> None:
    """Compare scored systems clip by clip, the first of FOLDERS with each other one: differences, ranks, a page.

    FOLDERS are those of `evaluate run` or `evaluate score`, or of their results.
    """
    console = Console(quiet=quiet, as_json=as_json)
    from lynx_video.evaluation import compare as comparing
    from lynx_video.evaluation.compare_page import write_compare_page

    if output.exists() and not output.is_dir():
        raise BadRequest(f"{output} is a file; name a folder for the comparison.")
    found = comparing.compare([_results(folder) for folder in folders])
    comparing.write_comparison(found, output)
    write_compare_page(found, output / "comparison.html")
    console.result(f"{_comparison(found)}\n{output / 'comparison.html'}", {"output": str(output), **found.to_json()})


def _comparison(found: Comparison) -> str:
    """For each axis every system's mean and place, and how the later ones differ from the first."""
    lines = [
        f"{len(found.keys)} clips are in all; not paired: " + ", ".join(f"{one.name} {len(one.only)}" for one in found.systems)
    ]
    for axis in found.axes:
        if not axis.measure:
            continue
        lines.append(axis.label)
        for system in found.systems:
            place = found.ranks.get(axis.measure, {}).get(system.name)
            lines.append(f"  {system.name}: {found.of_axis(axis, system)}" + (f"; place {place}" if place else ""))
            if system.name in found.differences:
                lines.append(
                    f"    difference from {found.systems[0].name}: {found.differences[system.name][axis.measure].mean}"
                )
    return "\n".join(lines)


def _results(folder: Path) -> Path:
    """The folder of the results: the one that was named, or `scores` in it."""
    inner = folder / "scores"
    return inner if (inner / "scores.jsonl").is_file() and not (folder / "scores.jsonl").is_file() else folder


def _entries(out: Path, grid: GridConfig, extension: str, *, drawn: bool) -> tuple[list[Entry], list[str]]:
    """The clips of the grid, and where it is smaller than was asked for."""
    import numpy as np

    from lynx_video.evaluation.grid import DRAWN, draw_subjects, entries, read_subjects
    from lynx_video.evaluation.prompts import NANO_PROMPTS, PROMPTS, read_prompts
    from lynx_video.evaluation.run import check_folder

    check_folder(out)
    prompts = read_prompts(grid.prompts) if grid.prompts is not None else NANO_PROMPTS if drawn else PROMPTS
    cautions = []
    if grid.tasks is not None:
        if grid.tasks > len(prompts):
            cautions.append(f"there are {len(prompts)} prompts, the grid asks for {grid.tasks}.")
        prompts = tuple(prompts[i] for i in np.linspace(0, len(prompts) - 1, min(grid.tasks, len(prompts))).round().astype(int))
    if grid.subjects is None:
        subjects = draw_subjects(out, grid.people or DRAWN)
    else:
        subjects = read_subjects(grid.subjects.absolute())
        if grid.people is not None and grid.people > len(subjects):
            cautions.append(f"{grid.subjects} has {len(subjects)} subjects, the grid asks for {grid.people}.")
        subjects = subjects[: grid.people]
    return entries(out, subjects, prompts, grid.seeds, extension), cautions


def _checker(flags: RunFlags, model: ModelFlags, blueprint: Blueprint) -> tuple[Callable[[], SafetyChecker] | None, list[str]]:
    """What loads the safety checker in a worker, None where none is to look; and a warning if a foreign base runs without."""
    from lynx_video.safety import SafetyConfig
    from lynx_video.studio.gate import gate_of

    name = absolute(flags.safety_checker)
    gate, cautions = gate_of(SafetyConfig(safety_checker=name), model, blueprint)
    return (partial(_load_checker, name, model, blueprint.shape.width) if gate.pictures else None), cautions


def _load_checker(name: str, model: ModelFlags, width: int) -> SafetyChecker:
    from lynx_video.safety import resolve_safety
    from lynx_video.studio.gate import REAL_WIDTH

    checker = resolve_safety(name, width >= REAL_WIDTH, model.models)
    assert checker is not None
    return checker


def _tell(request: Request, result: Result, console: Console) -> None:
    """The axes, what may spoil them, and where the page is."""
    from lynx_video.evaluation.assessment import REPORT, table

    for caution in result.cautions:
        console.warn(caution)
    facts = {"output": str(request.output), "problems": [asdict(one) for one in result.problems], **result.summary.to_json()}
    console.result(f"{table(result.summary)}\n{request.output / REPORT}", facts)


def _command() -> str:
    return shlex.join(["lynx-video", *sys.argv[1:]])


def _plain(config: ScoreConfig) -> ScoreConfig:
    """The same with absolute paths, for workers that were started elsewhere."""
    return replace(config, clip_model=config.clip_model and absolute(config.clip_model))


def _named_files(flags: ScoreFlags) -> tuple[str, ...]:
    """FILE or NAME=FILE with absolute paths."""
    return tuple(map(_named_file, flags.recogniser))


def _named_file(text: str) -> str:
    if Path(text).exists():
        return absolute(text)
    name, equals, file = text.partition("=")
    return f"{name}={absolute(file)}" if equals else text


def _system(facts: dict[str, Any]) -> str:
    """The model's name, and what differs from its defaults."""
    plain = asdict(GenerateConfig()) | RuntimeConfig().shaping()
    differs = {key: value for key, value in facts.items() if key in plain and key != "seed" and value != plain[key]}
    said = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in differs.items())
    return f"{facts.get('model', '')} ({said})" if said else str(facts.get("model", ""))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
