"""`lynx-video dataset`: build a training set from clips and pictures, and show one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lynx_video.cli.console import Console, bars, hush_libraries, resumable
from lynx_video.cli.draw import draw
from lynx_video.cli.flags import WorkFlags, absolute
from lynx_video.cli.options import options
from lynx_video.errors import BadRequest
from lynx_video.studio.setup import FaceFlags, ModelFlags, ModelName
from lynx_video.training.dataset.config import DatasetConfig

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderFlags:
    """Whose encoders and face models the set is made with."""

    model: ModelName = "nano"
    "the model that will be trained; its text encoder, VAE and face models make the set"
    base_model_path: str | None = None
    "base model instead of the model's own: a folder in the diffusers layout, or a hub id"
    face_detector: Path | None = None
    "face detector instead of the model's own: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead of the model's own: ArcFace IR-SE50 weights"
    models: Path = Path("models")
    "folder of the downloaded models"
    torch_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    "number format of the encoders; by default bf16 on CUDA, fp32 elsewhere"
    device: str | None = None
    "cuda or cpu for the encoders; by default CUDA where there is one"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildFlags:
    """How it is built."""

    overwrite: bool = False
    "begin anew where a training set is, finished or not"
    keep_work: bool = False
    "leave the work folder in OUT"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowFlags:
    """What is shown, and with which VAE a sheet is drawn."""

    sheet: Path | None = None
    "draw examples of the set into this .png or .jpg, decoded from what is stored"
    check: bool = False
    "read every example, not only the sizes of the shards"
    model: ModelName | None = None
    "whose VAE draws the sheet; by default the one the set was made with"
    base_model_path: str | None = None
    "its base, if not the model's own"
    models: Path = Path("models")
    "folder of the downloaded models"
    overwrite: bool = False
    "replace a sheet that is there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the tables"


@click.group()
def dataset() -> None:
    """Make a training set from clips and pictures, or look at one."""


@dataset.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@options(EncoderFlags, DatasetConfig, BuildFlags, WorkFlags)
def build(source: Path, out: Path, encoders: EncoderFlags, config: DatasetConfig, flags: BuildFlags, work: WorkFlags) -> None:
    """Make a training set in the folder OUT from SOURCE: a folder, or a .jsonl manifest.

    In a folder a caption is a .txt of the same name beside the clip or picture. A line of a manifest is
    {"file": "a.mp4", "caption": "a person nods", "person": "ann", "start": 1, "stop": 6}; file is relative to the manifest, and
    all but file may be left out. Killed and given again, the command goes on where it was.
    """
    console = Console(quiet=work.quiet, as_json=work.json)
    hush_libraries()
    from lynx_video.pipeline.models import MODELS
    from lynx_video.training.dataset import build as training_set

    if config.same_person is None and encoders.base_model_path is None and encoders.arcface is None:
        config = replace(config, same_person=MODELS[encoders.model].same_person)
    with resumable(silent=console.silent) as progress:
        card = training_set.build(
            source,
            out,
            config,
            name=Path(encoders.base_model_path).name if encoders.base_model_path else encoders.model,
            survey=partial(survey_encoders, _absolute(encoders)),
            workers=work.workers,
            address=work.ray_address,
            overwrite=flags.overwrite,
            keep_work=flags.keep_work,
            progress=progress,
        )
    counts = card["counts"]
    if counts["dropped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in card["dropped_by_reason"].items())
        console.warn(
            f"{counts['dropped']} of {counts['seen']} items were dropped: {reasons}; by name in {out / 'dropped.jsonl'}."
        )
    console.result(
        f"{out}: {card['examples']} examples of {counts['people']} people from {counts['targets']} of {counts['seen']} items; "
        f"look at {out / 'sheet.png'}",
        {"output": str(out), **card},
    )


@dataset.command()
@click.argument("out", type=click.Path(path_type=Path))
@options(ShowFlags)
def show(out: Path, flags: ShowFlags) -> None:
    """Print what is in the training set OUT and what was dropped, check its shards, and draw examples of it."""
    from lynx_video.media.video import check_output
    from lynx_video.training.dataset.card import to_markdown
    from lynx_video.training.shards import Shards

    console = Console(quiet=flags.quiet, as_json=flags.json)
    if flags.sheet is not None:
        check_output(flags.sheet, flags.overwrite, extensions=("png", "jpg", "jpeg"))
    shards = Shards(out)
    if flags.check:
        with bars(silent=console.silent) as progress:
            for number, entry in enumerate(shards.entries, 1):
                shards.read(entry)
                progress("checking", number, len(shards))
    if flags.sheet is not None:
        _draw(shards, flags.sheet, flags)
    names = {entry.shard for entry in shards.entries}
    line = f"{out}: {len(shards)} examples in {len(names)} shards, {'every one read' if flags.check else 'none cut short'}"
    text = line if flags.quiet else f"{to_markdown(shards.card)}\n{line}"
    sheet = str(flags.sheet) if flags.sheet else None
    console.result(text, {**shards.card, "output": str(out), "shards": len(names), "checked": flags.check, "sheet": sheet})


def survey_encoders(flags: EncoderFlags) -> Blueprint:
    """The model whose encoders and face models are named, checked, no weight read; its adapter is not needed."""
    from lynx_video.pipeline.load import survey
    from lynx_video.studio.models import face_models

    faces = None
    if flags.face_detector is not None or flags.arcface is not None:
        # With a base of one's own, what is not named comes from the models for photographs, as `survey` has it.
        whose: ModelName = flags.model if flags.base_model_path is None else "lynx-full"
        faces = face_models(
            ModelFlags(model=whose, models=flags.models),
            FaceFlags(face_detector=flags.face_detector, arcface=flags.arcface),
        )
    return survey(
        flags.model,
        base=flags.base_model_path,
        dtype=flags.torch_dtype,
        device=flags.device,
        with_adapter=False,
        faces=faces,
        models=flags.models,
    )


def _absolute(flags: EncoderFlags) -> EncoderFlags:
    """The same with absolute paths, for workers that were started elsewhere."""
    base = flags.base_model_path
    return replace(
        flags,
        models=flags.models.absolute(),
        base_model_path=base and absolute(base),
        face_detector=flags.face_detector and flags.face_detector.absolute(),
        arcface=flags.arcface and flags.arcface.absolute(),
    )


def _draw(shards: Any, file: Path, flags: ShowFlags) -> None:
    """Draw a sheet with the VAE of the model the set was made with. Raises BadRequest if the one that is named is another."""
    hush_libraries()
    from lynx_video.media.image import write_picture
    from lynx_video.pipeline.models import MODELS
    from lynx_video.training.dataset.encode import load_vae
    from lynx_video.training.dataset.sheet import draw_sheet, spread

    made = shards.card["model"]
    name = flags.model or made["name"]
    if name not in MODELS:
        raise BadRequest(f"the set was made with {name}, which is no model by name: say --base-model-path to draw a sheet.")
    blueprint = survey_encoders(EncoderFlags(model=name, base_model_path=flags.base_model_path, models=flags.models))
    if blueprint.base_hash != made["base_hash"]:
        raise BadRequest(
            f"{blueprint.base_name} is not the base the set was made with ({made['name']}, hash {made['base_hash'][:12]}); "
            "name that one with --base-model-path."
        )
    write_picture(file, draw_sheet(map(shards.read, spread(shards.entries)), load_vae(blueprint)))


dataset.add_command(draw)
