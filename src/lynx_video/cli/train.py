"""`lynx-video train`: an adapter from a training set; `lynx-video train-report`: the page of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.options import options, over
from lynx_video.errors import BadOutput, BadRequest
from lynx_video.presets import TRAINING
from lynx_video.studio.setup import ModelName
from lynx_video.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFlags:
    """What is trained, and what is said about it."""

    preset: Literal["lynx-image", "lynx-video", "nano-image", "nano-video"] = "nano-image"
    "where the settings below start from; what is given besides replaces it"
    start: Path | None = None
    "adapter of an earlier stage to go on from; a new one by default"
    validation: Path | None = None
    'JSONL file of {"portrait": PATH, "prompt": TEXT}: clips of them are made and scored at each validation'
    model: ModelName = "nano"
    "whose base is trained for; lynx-full and lynx-lite have the same"
    base_model_path: str | None = None
    "base model instead of the model's own: a folder in the diffusers layout, or a hub id"
    models: Path = Path("models")
    "folder of the downloaded models"
    device: str | None = None
    "cuda or cpu; by default CUDA where there is one"
    tensorboard: bool = False
    "also write events for TensorBoard"
    dry_run: bool = False
    "say what would be trained, what it takes and whether it fits, and stop"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = field(default=False)
    "one JSON object on stdout instead of the result line"


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@options(RunFlags, TrainConfig)
def train(data: Path, run: Path, flags: RunFlags, given: TrainConfig) -> None:
    """Train an adapter on DATA, a set of `lynx-video dataset build`, in the folder RUN.

    The same command goes on where a stopped run was, from its newest checkpoint. RUN/adapter is what `generate --adapter-path` takes.
    Several GPUs or machines: torchrun --nproc-per-node 8 -m lynx_video train ...
    """
    # of the processes that torchrun starts, the first speaks
    speaks = os.environ.get("RANK", "0") == "0"
    console = Console(quiet=flags.quiet or not speaks, as_json=flags.json)
    config = over(TRAINING[flags.preset](), given)
    if run.exists() and not run.is_dir():
        raise BadOutput(f"{run} is a file; name a folder for the run.")

    hush_libraries()
    from lynx_video.pipeline.load import survey
    from lynx_video.pipeline.models import MODELS
    from lynx_video.training.launch import launch, prepare
    from lynx_video.training.validate import read_subjects

    name: str = flags.model
    if config.arm == "lite":
        name = {"nano": "nano-lite", "lynx-full": "lynx-lite"}.get(name, name)
    blueprint = survey(
        name, base=flags.base_model_path, device=flags.device, with_adapter=False, arm=config.arm, models=flags.models
    )
    subjects = read_subjects(flags.validation) if flags.validation else []
    job = prepare(blueprint, data, config, start=flags.start, subjects=subjects)
    if flags.dry_run:
        from lynx_video.training.forecast import forecast

        text, facts = forecast(job, int(os.environ.get("WORLD_SIZE", "1")))
        if speaks:
            console.result(text, facts)
        return
    adapter = launch(job, run, follow=MODELS[name].follow, tensorboard=flags.tensorboard, quiet=console.silent)
    if speaks:
        console.result(
            f"{adapter}: {config.arm} adapter after {config.steps} steps", {"adapter": str(adapter), "run": str(run)}
        )


@click.command("train-report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="file of the page; RUN/report.html by default")
def train_report(run: Path, output: Path | None) -> None:
    """Write a page about a run: curves, settings, validation clips."""
    from lynx_video.training.report import write_report

    if not run.is_dir():
        raise BadRequest(f"{run} is not there; name the folder of a run of `lynx-video train`.")
    page = output or run / "report.html"
    write_report(run, page)
    click.echo(str(page))
