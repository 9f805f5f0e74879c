"""`lynx-video generate`: a clip from a portrait, or an identity file, and a prompt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.flags import OutputFlags, SubjectFlags
from lynx_video.cli.options import given, options
from lynx_video.cli.speed import SpeedFlags, shares, sharing
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadOutput, BadRequest, Missed
from lynx_video.safety import SafetyConfig
from lynx_video.studio.request import Request
from lynx_video.studio.setup import FaceFlags, MarkFlags, ModelFlags, SelectFlags, Setup, SigningFlags

if TYPE_CHECKING:
    from lynx_video.pipeline.best import Candidate
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.studio.studio import Guest, Made, Order, Studio
    from lynx_video.types import Clip


@click.command()
@options(
    SubjectFlags,
    ModelFlags,
    SpeedFlags,
    GenerateConfig,
    RuntimeConfig,
    FaceFlags,
    SelectFlags,
    MarkFlags,
    SigningFlags,
    SafetyConfig,
    OutputFlags,
)
def generate(
    subject: SubjectFlags,
    model: ModelFlags,
    speed: SpeedFlags,
    config: GenerateConfig,
    runtime: RuntimeConfig,
    face: FaceFlags,
    select: SelectFlags,
    marks: MarkFlags,
    signing: SigningFlags,
    safety: SafetyConfig,
    output: OutputFlags,
) -> None:
    """Make a clip of a person doing what the prompt says.

    \b
    lynx-video generate --subject-image me.jpg --prompt "The person smiles." --model lynx-full
    torchrun --nproc-per-node 3 -m lynx_video generate ...      the same on several GPUs
    """
    from lynx_video.studio.publish import consent_noted

    console = Console(quiet=output.quiet, as_json=output.json, mute=os.environ.get("RANK", "0") != "0")
    _check_source(subject, face)
    request = Request(
        prompt=_prompt(subject),
        portrait=subject.subject_image,
        identity=subject.identity,
        face_index=face.face_index,
        face_record=face.face_record,
        preset=speed.preset,
        generation=given(config),
        select=select,
        marks=replace(marks, consent=consent_noted(marks.consent)),
    )
    setup = Setup(
        model=model,
        face=face,
        runtime=given(runtime),
        safety=safety,
        recogniser=select.recogniser,
        signing=signing,
    )
    made = produce(request, setup, output, console)
    clip = made.clip
    facts: dict[str, Any] = {
        "output": str(made.output),
        "tensors": str(output.save_tensors) if output.save_tensors else None,
        "model": model.model,
        "seed": clip.seed,
        "seconds": round(clip.seconds, 3),
        "frames": len(clip.frames),
        "fps": clip.fps,
        "height": clip.frames.shape[1],
        "width": clip.frames.shape[2],
        "similarity": clip.similarity,
        "coverage": clip.coverage,
        "judge": made.judge or None,
        "best_of": clip.settings.get("best_of"),
        "missed": made.missed or None,
        "frames_hash": made.record["frames_hash"],
        "settings": clip.settings,
    }
    console.result(f"{made.output}: {likeness_words(made)}, seed {clip.seed}, {clip.seconds:.1f} s", facts)
    if made.missed:
        raise Missed(f"{made.output} is kept, but {made.missed}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A request that was checked, its person met, and where the clip goes; nothing of the video model is loaded yet."""

    studio: Studio
    order: Order
    guest: Guest
    target: Path


def produce(
    request: Request,
    setup: Setup,
    output: OutputFlags,
    console: Console,
    *,
    before_writing: Callable[[Clip], None] | None = None,
) -> Made:
    """Check everything that can be refused, then load, generate and write. Raises a LynxError, with nothing left behind.

    Of the processes that torchrun starts, all make the clip together and the first writes it. before_writing: what it raises keeps the
    clip from being written.
    """
    return shoot(prepare(request, setup, output, console), output, console, before_writing=before_writing)


def prepare(request: Request, setup: Setup, output: OutputFlags, console: Console) -> Ready:
    """The first half of `produce`: everything that can be refused."""
    from lynx_video.media.video import check_output

    _check_name(output)
    if output.output is not None:
        check_output(output.output, output.overwrite)
    if output.save_tensors is not None:
        check_output(output.save_tensors, output.overwrite, extensions=("safetensors",))

    hush_libraries()
    from lynx_video.runtime.parallel import take_device
    from lynx_video.studio.studio import Studio

    take_device(setup.model.device)
    studio = Studio(setup)
    order = studio.check(request)
    shares(order.blueprint, order.plan)
    count = request.select.best_of
    several = f"-best{count}" if count > 1 else ""
    stem = f"{output.name}-fr{order.plan.num_frames}-s{order.config.seed}{several}.{output.ext}"
    target = output.output or output.output_dir / request.source.stem / stem
    check_output(target, output.overwrite)
    guest = studio.meet(order)
    console.note(f"model: {describe(setup.model, order.blueprint)}")
    for caution in (*order.cautions, *guest.cautions):
        console.warn(caution)
    if order.blueprint.planned:
        console.note(order.blueprint.planned)
    return Ready(studio=studio, order=order, guest=guest, target=target)


def shoot(ready: Ready, output: OutputFlags, console: Console, *, before_writing: Callable[[Clip], None] | None = None) -> Made:
    """The second half of `produce`: the clip."""
    order, guest = ready.order, ready.guest
    count = order.request.select.best_of
    degrees = shares(order.blueprint, order.plan)
    with sharing(order.blueprint, degrees) as ranks, console.steps(count) as on_step:
        made = ready.studio.film(
            order,
            guest,
            ready.target,
            on_step=on_step,
            on_candidate=partial(_say, console),
            before_writing=before_writing,
            tensors=output.save_tensors,
            ranks=ranks,
        )
    for caution in made.cautions[len(order.cautions) + len(guest.cautions) :]:
        console.warn(caution)
    return made


def likeness_words(made: Made) -> str:
    """How alike the clip's faces are to the portrait, for the result line."""
    if made.clip.coverage is None:
        return "similarity not measured"
    if made.clip.similarity is None:
        return "no face found in the frames"
    return f"similarity {made.clip.similarity:.2f} ({made.judge}), a face in {made.clip.coverage:.0%} of the frames"


def _say(console: Console, candidate: Candidate) -> None:
    """A line about one of the clips the best is chosen from."""
    alike = "no face" if candidate.similarity is None else f"similarity {candidate.similarity:.3f}"
    prompt = "" if candidate.prompt is None else f", prompt {candidate.prompt:.2f}"
    console.note(f"seed {candidate.seed}: score {candidate.score:.3f} ({alike}, coverage {candidate.coverage:.2f}{prompt})")


def describe(model: ModelFlags, blueprint: Blueprint) -> str:
    """Which model runs, in one line."""
    adapter = ", ".join(model.adapter_path) or ("none (identity file)" if blueprint.files is None else "its own")
    if model.base_model_path is not None or model.adapter_path:
        return f"{model.base_model_path or blueprint.base_name}, adapter: {adapter} ({blueprint.arm})"
    kind = (
        "drawn people, toy size; --model lynx-full for photographs" if model.model.startswith("nano") else blueprint.base_name
    )
    return f"{model.model} ({kind})"


def _check_source(subject: SubjectFlags, face: FaceFlags) -> None:
    if (subject.subject_image is None) == (subject.identity is None):
        raise BadRequest("say who: --subject-image PORTRAIT or --identity FILE, one of the two.")
    if subject.identity is not None and (face.face_record is not None or face.face_index is not None):
        raise BadRequest("--face-record and --face-index belong to a portrait; an identity file needs neither.")
    if face.face_record is not None and face.face_index is not None:
        raise BadRequest("--face-index chooses among the faces that are found, --face-record names one: give one of the two.")


def _prompt(subject: SubjectFlags) -> str:
    if (subject.prompt is None) == (subject.prompt_file is None):
        raise BadRequest("say what the person does: --prompt TEXT or --prompt-file FILE, one of the two.")
    from lynx_video.pipeline.condition import clean_prompt, read_prompt, read_prompt_file

    if subject.prompt_file is not None:
        return read_prompt_file(subject.prompt_file)
    assert subject.prompt is not None
    prompt = read_prompt(subject.prompt)
    if prompt == subject.prompt and re.fullmatch(r"\S+\.txt", prompt.strip()):
        raise BadRequest(f"the prompt file {prompt} is not there.")
    if not clean_prompt(prompt):
        raise BadRequest("the prompt is empty; say what the person should do.")
    return prompt


def _check_name(output: OutputFlags) -> None:
    if not output.name or "/" in output.name or "\\" in output.name or "\0" in output.name:
        raise BadOutput(f"--name {output.name!r} is no part of a file name; --output names a whole path.")
