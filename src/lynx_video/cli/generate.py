"""`lynx-video generate`: a clip from a portrait, or an identity file, and a prompt."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.flags import FaceFlags, ModelFlags, OutputFlags, SelectFlags, SubjectFlags
from lynx_video.cli.models import idle_options, read_face_record, scored_by, sit, survey_model
from lynx_video.cli.options import options
from lynx_video.cli.speed import SpeedFlags, shares, sharing, tuned
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadOutput, BadRequest, LynxWarning, Missed

if TYPE_CHECKING:
    from lynx_video.pipeline.best import Candidate
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.safety import SafetyChecker
    from lynx_video.types import Clip, Identity

REAL_WIDTH = 1536
"""Hidden width from which a base draws real people (Wan2.1-T2V-1.3B has 1536) and `auto` insists on the safety checker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A clip and where it is. judge: who measured the similarity. missed: what it lacks of what was asked. Empty: nobody, nothing."""

    clip: Clip
    output: Path
    judge: str
    missed: str = ""


@click.command()
@options(SubjectFlags, ModelFlags, SpeedFlags, GenerateConfig, RuntimeConfig, FaceFlags, SelectFlags, OutputFlags)
def generate(
    subject: SubjectFlags,
    model: ModelFlags,
    speed: SpeedFlags,
    config: GenerateConfig,
    runtime: RuntimeConfig,
    face: FaceFlags,
    select: SelectFlags,
    output: OutputFlags,
) -> None:
    """Make a clip of a person doing what the prompt says.

    \b
    lynx-video generate --subject-image me.jpg --prompt "The person smiles." --model lynx-full
    torchrun --nproc-per-node 3 -m lynx_video generate ...      the same on several GPUs
    """
    console = Console(quiet=output.quiet, as_json=output.json, mute=os.environ.get("RANK", "0") != "0")
    config, runtime = tuned(speed, model, config, runtime)
    made = produce(subject, model, config, face, output, console, select=select, runtime=runtime)
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
        "settings": clip.settings,
    }
    console.result(f"{made.output}: {likeness_words(made)}, seed {clip.seed}, {clip.seconds:.1f} s", facts)
    if made.missed:
        raise Missed(f"{made.output} is kept, but {made.missed}.")


def produce(
    subject: SubjectFlags,
    model: ModelFlags,
    config: GenerateConfig,
    face: FaceFlags,
    output: OutputFlags,
    console: Console,
    *,
    select: SelectFlags = SelectFlags(),  # noqa: B008 (a frozen value)
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
    shown: Path | None = None,
    before_writing: Callable[[Clip], None] | None = None,
) -> Made:
    """Check everything that can be refused, then load, generate and write. Raises a LynxError, with nothing left behind.

    Of the processes that torchrun starts, all make the clip together and the first writes it.

    select: how many clips the best is chosen from, and what it must reach; one that does not is written with what it `missed`.
    shown: the portrait's name in messages and in the clip's settings, if not its own. before_writing: what it raises keeps the
    clip from being written.
    """
    from lynx_video.media.video import check_output

    source = _source(subject, face)
    _check_select(select, config)
    _check_name(output)
    if output.output is not None:
        check_output(output.output, output.overwrite)
    if output.save_tensors is not None:
        check_output(output.save_tensors, output.overwrite, extensions=("safetensors",))
    if subject.subject_image is not None:
        from lynx_video.media.image import read_picture

        read_picture(subject.subject_image)
    record = read_face_record(face)
    prompt = _prompt(subject)

    hush_libraries()
    from lynx_video.pipeline.best import generate_best
    from lynx_video.pipeline.calibration import check_step_cache
    from lynx_video.pipeline.enrol import load_enrolment, usable_memories
    from lynx_video.pipeline.generate import generate as make
    from lynx_video.pipeline.generate import plan
    from lynx_video.pipeline.load import assemble
    from lynx_video.runtime.parallel import take_device
    from lynx_video.safety import check_frames

    take_device(model.device)
    enrolment = load_enrolment(subject.identity) if subject.identity is not None else None
    blueprint = survey_model(model, face, config, enrolment, runtime)
    if select.recogniser is not None:
        blueprint = replace(blueprint, faces=scored_by(blueprint.faces, select.recogniser))
    chosen = plan(blueprint, config)
    check_step_cache(blueprint, config.step_cache)
    degrees = shares(blueprint, chosen)
    several = f"-best{select.best_of}" if select.best_of > 1 else ""
    stem = f"{output.name}-fr{chosen.num_frames}-s{config.seed}{several}.{output.ext}"
    target = output.output or output.output_dir / source.stem / stem
    check_output(target, output.overwrite)
    if enrolment is not None:
        usable_memories(blueprint, enrolment)
    checker, cautions = safety_of(output.safety_checker, model, blueprint)
    cautions += [*blueprint.cautions, *idle_options(blueprint, enrolment, config, chosen)]
    if checker is not None:
        _check_portrait(checker, subject.subject_image, enrolment)
    who: Identity | Enrolment
    if enrolment is None:
        size = blueprint.defaults.reference_size
        who, _, found = sit(blueprint.faces, source, model, face, record=record, reference_size=size, shown=shown)
        cautions += [f"{shown or source}: {warning}" for warning in found]
    else:
        who = enrolment
    if select != SelectFlags():
        _check_scorable(blueprint, who)

    console.note(f"model: {describe(model, blueprint)}")
    for caution in cautions:
        console.warn(caution)
    if blueprint.planned:
        console.note(blueprint.planned)
    with sharing(blueprint, degrees) as ranks:
        components = assemble(blueprint, idle_models=config.idle_models, ranks=ranks)
        with console.steps(select.best_of) as on_step, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=LynxWarning)
            facts = _face_facts(subject, face, shown or source)
            if select.best_of > 1:
                follow, say = _follow(model), partial(_say, console)
                clip, _ = generate_best(
                    components,
                    who,
                    prompt,
                    config,
                    select.best_of,
                    follow=follow,
                    on_step=on_step,
                    on_candidate=say,
                    facts=facts,
                )
            else:
                clip = make(components, who, prompt, config, on_step=on_step, facts=facts)
    for warning in told:
        console.warn(str(warning.message))
    if checker is not None:
        check_frames(checker, clip.frames)
    if before_writing is not None:
        before_writing(clip)
    judge = blueprint.faces.judge_name if clip.coverage is not None else ""
    missed = _missed(clip, select.min_similarity)
    said = {"model": model.model, "judge": judge} | ({"missed": missed} if missed else {})
    if ranks is None or ranks.first:
        _write(clip, target, output.save_tensors, said)
    return Made(clip=clip, output=target, judge=judge, missed=missed)


def likeness_words(made: Made) -> str:
    """How alike the clip's faces are to the portrait, for the result line."""
    if made.clip.coverage is None:
        return "similarity not measured"
    if made.clip.similarity is None:
        return "no face found in the frames"
    return f"similarity {made.clip.similarity:.2f} ({made.judge}), a face in {made.clip.coverage:.0%} of the frames"


def _check_select(select: SelectFlags, config: GenerateConfig) -> None:
    if not 1 <= select.best_of <= 1000:
        raise BadRequest(f"--best-of must be a whole number from 1 to 1000, got {select.best_of}.")
    if select.min_similarity is not None and not -1 <= select.min_similarity <= 1:
        raise BadRequest(f"--min-similarity is a cosine, from -1 to 1, got {select.min_similarity}.")
    replace(config, seed=config.seed + select.best_of - 1)  # refuses a last seed that is none


def _check_scorable(blueprint: Blueprint, who: Identity | Enrolment) -> None:
    """Raises BadRequest, before any work, where nobody could say how alike the clip is; loads the recogniser."""
    from lynx_video.types import Identity

    identity = who if isinstance(who, Identity) else who.identity
    if blueprint.faces.judge is None:
        raise BadRequest(
            "--best-of and --min-similarity need a face recogniser to score with, and none is at hand: "
            "`lynx-video download face` gets one, --recogniser FILE names one."
        )
    if identity.aligned is None:
        raise BadRequest("this identity file has no aligned crop to compare clips with; enroll the portrait again.")
    blueprint.faces.judge()


def _follow(model: ModelFlags) -> Callable[[Any, str], float | None] | None:
    """How far a clip does what its prompt says, for a model of which that can be told exactly."""
    from lynx_video.pipeline.models import MODELS

    own = MODELS[model.model]
    return own.follow if own.probe is not None and model.base_model_path is None else None


def _say(console: Console, candidate: Candidate) -> None:
    """A line about one of the clips the best is chosen from."""
    alike = "no face" if candidate.similarity is None else f"similarity {candidate.similarity:.3f}"
    prompt = "" if candidate.prompt is None else f", prompt {candidate.prompt:.2f}"
    console.note(f"seed {candidate.seed}: score {candidate.score:.3f} ({alike}, coverage {candidate.coverage:.2f}{prompt})")


def _missed(clip: Clip, least: float | None) -> str:
    """What a clip lacks of the similarity that was asked for; empty if nothing."""
    if least is None or (clip.similarity is not None and clip.similarity >= least):
        return ""
    if clip.similarity is None:
        return f"no face was found in it, and a similarity of {least:g} was asked for"
    return f"its similarity is {clip.similarity:.3f}, below the {least:g} that was asked for"


def describe(model: ModelFlags, blueprint: Blueprint) -> str:
    """Which model runs, in one line."""
    adapter = ", ".join(model.adapter_path) or ("none (identity file)" if blueprint.files is None else "its own")
    if model.base_model_path is not None or model.adapter_path:
        return f"{model.base_model_path or blueprint.base_name}, adapter: {adapter} ({blueprint.arm})"
    kind = (
        "drawn people, toy size; --model lynx-full for photographs" if model.model.startswith("nano") else blueprint.base_name
    )
    return f"{model.model} ({kind})"


def _source(subject: SubjectFlags, face: FaceFlags) -> Path:
    """The file that says who."""
    if (subject.subject_image is None) == (subject.identity is None):
        raise BadRequest("say who: --subject-image PORTRAIT or --identity FILE, one of the two.")
    if subject.identity is not None and (face.face_record is not None or face.face_index is not None):
        raise BadRequest("--face-record and --face-index belong to a portrait; an identity file needs neither.")
    source = subject.subject_image or subject.identity
    assert source is not None
    return source


def _face_facts(subject: SubjectFlags, face: FaceFlags, source: Path) -> dict[str, Any]:
    """Whose face the clip shows, as its settings keep it: file names without their folders, and how the face was chosen."""
    portrait = subject.identity is None
    found = portrait and face.face_record is None
    return {
        "portrait": source.name if portrait else None,
        "identity_file": None if portrait else source.name,
        "face_index": (face.face_index or 0) if found else None,
        "face_record": face.face_record is not None,
    }


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


def safety_of(name: str, model: ModelFlags, blueprint: Blueprint) -> tuple[SafetyChecker | None, list[str]]:
    """The safety checker, None where none is asked for and none is needed; and a warning if a foreign base runs without."""
    from lynx_video.pipeline.models import MODELS
    from lynx_video.safety import resolve_safety

    real = blueprint.shape.width >= REAL_WIDTH
    own = model.base_model_path is None and not MODELS[model.model].needs_safety_checker
    checker = resolve_safety(name, real and not own, model.models)
    if checker is not None or own:
        return checker, []
    return None, [f"no safety checker looks at portrait and frames ({'switched off' if real else 'a toy base'})."]


def _check_portrait(checker: SafetyChecker, portrait: Path | None, enrolment: Enrolment | None) -> None:
    from lynx_video.media.image import read_picture
    from lynx_video.safety import check_portrait

    if portrait is not None:
        check_portrait(checker, read_picture(portrait))
    elif enrolment is not None:
        crop = enrolment.identity.crop if enrolment.identity.crop is not None else enrolment.identity.aligned
        if crop is not None:
            check_portrait(checker, crop)


def _write(clip: Clip, target: Path, tensors: Path | None, facts: dict[str, Any]) -> None:
    """The clip, and its tensors if a file is named; both or neither."""
    from contextlib import nullcontext

    from lynx_video.draft import draft
    from lynx_video.media.video import write_video

    measured = {"similarity": clip.similarity, "coverage": clip.coverage, "seconds": round(clip.seconds, 3)}
    with draft(tensors) if tensors is not None else nullcontext() as partial:
        if partial is not None:
            _save_tensors(partial, clip)
        write_video(target, clip.frames, clip.fps, {**clip.settings, **facts, **measured})


def _save_tensors(file: Path, clip: Clip) -> None:
    import torch
    from safetensors.torch import save

    tensors = {
        "initial_latents": clip.initial_latents.contiguous(),
        "latents": clip.latents.contiguous(),
        "frames": torch.tensor(clip.frames).contiguous(),
    }
    try:
        file.write_bytes(save(tensors))  # save_file would leave a file that only its owner can read
    except OSError as error:
        raise BadOutput(f"{file}: cannot be written ({error.strerror or error}).") from error
