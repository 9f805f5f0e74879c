"""`lynx-video batch`: many clips from a list of requests, or from a grid; killed and given again, it goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click

from lynx_video.cli.console import Console, hush_libraries, resumable
from lynx_video.cli.flags import WorkFlags, absolute
from lynx_video.cli.options import given, named, options
from lynx_video.cli.speed import SpeedFlags
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, LynxError
from lynx_video.safety import SafetyConfig
from lynx_video.studio.setup import FaceFlags, MarkFlags, ModelFlags, SelectFlags, Setup, SigningFlags


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFlags:
    """Which clips, and where they go."""

    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "folder of the clips and of the table of results"
    portraits: tuple[str, ...] = ()
    "instead of a requests file: portrait, or a pattern such as 'faces/*.png'; may be given several times"
    identities: tuple[str, ...] = ()
    "the same for identity files of `lynx-video enroll`"
    prompts: Path | None = None
    "text file of prompts, a line each"
    prompt: tuple[str, ...] = ()
    "a prompt; may be given several times"
    seeds: str | None = None
    "seeds such as 1-10 or 1,2,7: each portrait does each prompt with each seed"
    ext: Literal["mp4", "webp"] = "mp4"
    "kind of file"
    retry_failed: bool = False
    "try again what failed or was refused before"


@click.command()
@click.argument("requests", required=False, type=click.Path(path_type=Path))
@options(
    BatchFlags,
    ModelFlags,
    SpeedFlags,
    GenerateConfig,
    RuntimeConfig,
    FaceFlags,
    SelectFlags,
    MarkFlags,
    SigningFlags,
    SafetyConfig,
    WorkFlags,
    # seeds and faces are of each request, and workers do not share a clip
    without=("seed", "face_index", "face_record", "pass_degree", "ulysses_degree", "ring_degree"),
)
def batch(
    requests: Path | None,
    flags: BatchFlags,
    model: ModelFlags,
    speed: SpeedFlags,
    config: GenerateConfig,
    runtime: RuntimeConfig,
    face: FaceFlags,
    select: SelectFlags,
    marks: MarkFlags,
    signing: SigningFlags,
    safety: SafetyConfig,
    work: WorkFlags,
) -> None:
    """Make the clips that REQUESTS (.jsonl or .csv) ask for, or those of a grid, each once.

    \b
    lynx-video batch requests.jsonl --output out
    lynx-video batch --portraits 'faces/*.png' --prompts prompts.txt --seeds 1-10 --output out

    The options for a clip count for every request that does not say otherwise. Killed and given again, the command goes on.
    """
    console = Console(quiet=work.quiet, as_json=work.json)
    if flags.output is None:
        raise BadRequest("name the folder of the clips: --output FOLDER.")
    if re.fullmatch(r"cuda:\d+", model.device or ""):
        raise BadRequest(
            f"--device {model.device}: each worker takes a GPU of its own here; say --device cuda, and --workers how many."
        )
    grid = _grid(requests, flags)
    hush_libraries()
    from lynx_video.batch.check import grid_requests, read_requests
    from lynx_video.batch.run import check_folder, run_batch, survey_of
    from lynx_video.pool import open_pool
    from lynx_video.studio.studio import Studio

    check_folder(flags.output.absolute())
    setup = _setup(model, runtime, face, select, signing, safety)
    studio = Studio(setup)
    defaults = _defaults(flags, speed, config, select, marks)
    if requests is not None:
        wanted, cautions = read_requests(requests, defaults, studio)
    else:
        wanted, cautions = grid_requests(grid, defaults, studio)
    for caution in cautions:
        console.warn(caution)
    console.note(f"{len(wanted)} requests")
    blueprint = survey_of(wanted, studio)
    with resumable(silent=console.silent) as progress, open_pool(work.workers, work.ray_address, handful=1) as pool:
        summary = run_batch(flags.output, wanted, setup, blueprint, pool, retry_failed=flags.retry_failed, progress=progress)
    counts = summary.counts
    said = [f"{counts[status]} {status}" for status in ("done", "missed", "failed", "refused") if counts[status]]
    console.result(
        f"{flags.output}: {', '.join(said)}; {summary.made_now} made now; {summary.results}",
        {"output": str(flags.output), "results": str(summary.results), **counts, "made_now": summary.made_now},
    )
    if counts["done"] < counts["requests"]:
        short = [f"{counts[status]} {status}" for status in ("failed", "refused", "missed") if counts[status]]
        raise LynxError(f"of {counts['requests']} requests {', '.join(short)}; why is in {summary.results}.")


def _grid(requests: Path | None, flags: BatchFlags) -> dict[str, Any]:
    """The grid as one line of requests; empty if there is a file of them."""
    from lynx_video.batch.check import read_prompts

    parts = {"portraits": flags.portraits, "identities": flags.identities, "prompts": flags.prompts, "prompt": flags.prompt}
    named_parts = [f"--{name}" for name, value in {**parts, "seeds": flags.seeds}.items() if value]
    if requests is not None:
        if named_parts:
            raise BadRequest(f"{named_parts[0]} is for a grid without a requests file; {requests} says it line by line.")
        return {}
    if not (flags.portraits or flags.identities):
        raise BadRequest("name a requests file, or a grid: --portraits 'faces/*.png' --prompts prompts.txt --seeds 1-10.")
    if flags.portraits and flags.identities:
        raise BadRequest("--portraits and --identities are two batches; or write both in a requests file.")
    if bool(flags.prompts) == bool(flags.prompt):
        raise BadRequest("say what they do: --prompts FILE, with a prompt a line, or --prompt TEXT, one of the two.")
    who = {"portrait": list(flags.portraits)} if flags.portraits else {"identity": list(flags.identities)}
    prompts = read_prompts(flags.prompts) if flags.prompts is not None else list(flags.prompt)
    return {**who, "prompt": prompts, **({"seed": flags.seeds} if flags.seeds else {})}


def _defaults(
    flags: BatchFlags, speed: SpeedFlags, config: GenerateConfig, select: SelectFlags, marks: MarkFlags
) -> dict[str, Any]:
    """What the command line says for every request that does not say otherwise."""
    from lynx_video.studio.publish import consent_noted

    chosen = {**given(speed), **given(config), **given(marks), **given(select)}
    chosen.pop("recogniser", None)
    if "consent" in chosen:
        chosen["consent"] = consent_noted(marks.consent)
    if named("ext"):
        chosen["ext"] = flags.ext
    return chosen


def _setup(
    model: ModelFlags,
    runtime: RuntimeConfig,
    face: FaceFlags,
    select: SelectFlags,
    signing: SigningFlags,
    safety: SafetyConfig,
) -> Setup:
    """The model, with absolute paths, for workers that were started elsewhere."""
    held = given(runtime)
    if held.get("gguf") is not None:
        held["gguf"] = held["gguf"].absolute()
    if "lora_path" in held:
        held["lora_path"] = tuple(str(Path(one).absolute()) for one in held["lora_path"])
    return Setup(
        model=replace(
            model,
            models=model.models.absolute(),
            base_model_path=model.base_model_path and absolute(model.base_model_path),
            adapter_path=tuple(map(absolute, model.adapter_path)),
        ),
        face=replace(
            face,
            face_detector=face.face_detector and face.face_detector.absolute(),
            arcface=face.arcface and face.arcface.absolute(),
        ),
        runtime=held,
        safety=replace(
            safety,
            safety_checker=absolute(safety.safety_checker),
            prompt_checker=absolute(safety.prompt_checker),
        ),
        recogniser=select.recogniser and select.recogniser.absolute(),
        signing=replace(
            signing,
            signing_key=signing.signing_key and signing.signing_key.absolute(),
            signing_certificate=signing.signing_certificate and signing.signing_certificate.absolute(),
        ),
    )
