"""`lynx-video enroll`: an identity file from one or more portraits of a person."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.options import options
from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.safety import SafetyConfig
from lynx_video.studio.gate import check_source, gate_of
from lynx_video.studio.models import sit, survey_model
from lynx_video.studio.publish import consent_noted
from lynx_video.studio.setup import FaceFlags, ModelFlags

SAME_PERSON = 0.3  # cosine of ArcFace vectors below which two photos are more likely of two people


@dataclass(frozen=True, kw_only=True, slots=True)
class EnrollFlags:
    """Where the identity goes, and what finds and encodes the faces."""

    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "identity file, .safetensors"
    consent: str = ""
    "who agreed to the use of this face, and how: a text, or a file, whose name and hash are noted"
    face_record: tuple[Path, ...] = ()
    "points and embedding in place of face models, one for each portrait in order"
    face_index: int | None = None
    "which face of each portrait; the largest (0) by default"
    face_detector: Path | None = None
    "face detector instead of the model's own: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead of the model's own: ArcFace IR-SE50 weights"
    overwrite: bool = False
    "replace a file that is there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the result line"


@click.command()
@click.argument("portraits", nargs=-1, required=True, type=click.Path(path_type=Path))
@options(
    EnrollFlags,
    ModelFlags,
    RuntimeConfig,
    SafetyConfig,
    # an identity is of the base without LoRAs, and no clip is made
    without=(
        "compile",
        "passes",
        "vae_tiling",
        "lora_path",
        "lora_passes",
        "pass_degree",
        "ulysses_degree",
        "ring_degree",
        "safety_every",
        "prompt_checker",
        "prompt_threshold",
    ),
)
def enroll(
    portraits: tuple[Path, ...], flags: EnrollFlags, model: ModelFlags, runtime: RuntimeConfig, safety: SafetyConfig
) -> None:
    """Write an identity file from PORTRAITS of one person, for `generate --identity`.

    It holds the face's vector (the mean of several photos), the crops of the first photo, and the keys and values for the named
    base and adapter: with it, no face model and no adapter weights are needed any more.
    """
    from lynx_video.face.record import read_record
    from lynx_video.media.image import read_picture
    from lynx_video.media.video import check_output

    console = Console(quiet=flags.quiet, as_json=flags.json)
    if flags.output is None:
        raise BadRequest("name the identity file: -o FILE.safetensors")
    check_output(flags.output, flags.overwrite, extensions=("safetensors",))
    if flags.face_record and len(flags.face_record) != len(portraits):
        raise BadRequest(f"{len(flags.face_record)} face records for {len(portraits)} portraits; give one for each, in order.")
    if flags.face_record and flags.face_index is not None:
        raise BadRequest("--face-index chooses among the faces that are found, --face-record names one: give one of the two.")
    for portrait in portraits:
        read_picture(portrait)
    records = [read_record(file) for file in flags.face_record]
    consent = consent_noted(flags.consent)

    hush_libraries()
    from lynx_video.pipeline.enrol import enrol, save_enrolment
    from lynx_video.pipeline.identify import merge
    from lynx_video.pipeline.load import assemble

    face = FaceFlags(face_index=flags.face_index, face_detector=flags.face_detector, arcface=flags.arcface)
    blueprint = survey_model(model, face, runtime=runtime)
    gate, cautions = gate_of(safety, model, blueprint)
    for caution in (*cautions, *blueprint.cautions):
        console.warn(caution)
    for portrait in portraits:
        check_source(gate, portrait, None)
    size = blueprint.defaults.reference_size
    sitters = [
        sit(blueprint.faces, portrait, model, face, record=record, reference_size=size, consent=consent)
        for portrait, record in zip_longest(portraits, records)
    ]
    first = sitters[0].identity
    likeness = [float(sitter.identity.embedding @ first.embedding) for sitter in sitters]
    for portrait, sitter, alike in zip(portraits, sitters, likeness, strict=True):
        for warning in sitter.warnings:
            console.warn(f"{portrait}: {warning}")
        if alike < SAME_PERSON:
            console.warn(f"{portrait}: resembles {portraits[0]} by {alike:.2f} only; is it the same person?")
    identity = merge([sitter.identity for sitter in sitters]) if len(sitters) > 1 else first
    enrolment = enrol(assemble(blueprint), replace(identity, consent=consent))
    save_enrolment(flags.output, enrolment)

    size_bytes = flags.output.stat().st_size
    count = f"{len(portraits)} portraits, the least alike {min(likeness):.2f}" if len(portraits) > 1 else "1 portrait"
    console.result(
        f"{flags.output}: {count}, for {enrolment.base_name} ({enrolment.arm}), {size_bytes / 1e6:.1f} MB",
        {
            "output": str(flags.output),
            "portraits": [str(portrait) for portrait in portraits],
            "similarity_to_first": likeness,
            "base": enrolment.base_name,
            "base_hash": enrolment.base_hash,
            "adapter_hash": enrolment.adapter_hash,
            "arm": enrolment.arm,
            "bytes": size_bytes,
        },
    )
