"""`lynx-video calibrate`: measure for the step cache how a model drifts, with one clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.options import options
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadOutput, BadRequest
from lynx_video.studio.models import sit, survey_model
from lynx_video.studio.setup import FaceFlags, ModelFlags


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateFlags:
    """Whom the clip shows, and where the calibration goes."""

    subject_image: tuple[Path, ...] = ()
    "portrait; given several times, the mean over a clip of each"
    prompt: str = "A person talks to the camera."
    "what the person does in the clip"
    output: Path | None = None
    "file of the calibration; by default where `generate` looks for it, beside the adapter"
    overwrite: bool = False
    "replace a calibration that is there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result line"


@click.command()
@options(
    CalibrateFlags,
    ModelFlags,
    GenerateConfig,
    RuntimeConfig,
    FaceFlags,
    without=(
        "step_cache",
        "guidance_stop",
        "pass_degree",
        "ulysses_degree",
        "ring_degree",
        "passes",
        "face_record",
        "face_index",
    ),
)
def calibrate(
    flags: CalibrateFlags, model: ModelFlags, config: GenerateConfig, runtime: RuntimeConfig, face: FaceFlags
) -> None:
    """Measure a base and adapter for --step-cache: one clip of each portrait is made in full and thrown away.

    \b
    lynx-video calibrate --model lynx-full --subject-image me.jpg

    Give the options that `generate` will be given, above all LoRAs; as many steps as the model is made for measure it best.
    """
    console = Console(quiet=flags.quiet, as_json=flags.json)
    if not flags.subject_image:
        raise BadRequest("say whom the clip shows: --subject-image PORTRAIT.")
    hush_libraries()
    from lynx_video.pipeline.calibration import calibrate as measure
    from lynx_video.pipeline.calibration import made_for, save_calibration
    from lynx_video.pipeline.load import assemble
    from lynx_video.runtime.cache import mean_of

    blueprint = survey_model(model, face, config, runtime=runtime)
    file = flags.output or blueprint.calibration
    if file is None:
        raise BadRequest(
            "this base has no folder here to keep the calibration in: name a file with --output, beside an adapter."
        )
    if file.exists() and not flags.overwrite:
        raise BadOutput(f"{file}: exists already; use --overwrite or another name.")
    size = blueprint.defaults.reference_size
    sitters = [sit(blueprint.faces, portrait, model, face, reference_size=size) for portrait in flags.subject_image]
    for caution in blueprint.cautions:
        console.warn(caution)
    components = assemble(blueprint, idle_models=config.idle_models)
    found = []
    for portrait, sitter in zip(flags.subject_image, sitters, strict=True):
        found.append(measure(components, sitter.identity, flags.prompt, config))
        console.note(f"{portrait}: {' '.join(f'{drift:.3f}' for drift in found[-1].drift)}")
    mean = mean_of(found)
    save_calibration(file, mean, made_for(components))
    total = sum(mean.drift)
    console.result(
        f"{file}: {len(mean.sigmas)} steps, drift {total:.2f} in all",
        {"output": str(file), "clips": mean.clips, "sigmas": mean.sigmas, "drift": mean.drift},
    )
