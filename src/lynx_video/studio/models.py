"""From the shared options to a surveyed model and to the person in a portrait."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, BadWeights, NoFace
from lynx_video.studio.setup import FaceFlags, ModelFlags

if TYPE_CHECKING:
    from lynx_video.adapters.attach import Influence
    from lynx_video.face.record import FaceRecord
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.pipeline.generate import Plan
    from lynx_video.pipeline.identify import Sitter
    from lynx_video.pipeline.models import FaceModels


def survey_model(
    model: ModelFlags,
    face: FaceFlags,
    config: GenerateConfig | None = None,
    enrolment: Enrolment | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
) -> Blueprint:
    """The model that the options name, checked, no weight read; without the adapter parts that `config` switches off, and with what a
    memory budget decides for `config`.

    enrolment: an identity that brings its memories, so that the adapter is read only if its path is given or it is needed.
    """
    from lynx_video.pipeline.load import survey
    from lynx_video.pipeline.tuning import settle

    config = config or GenerateConfig()
    needed = enrolment is None or bool(model.adapter_path) or config.reference_latent == "sample"

    def look(parts: frozenset[str] | None) -> Blueprint:
        return survey(
            model.model,
            base=model.base_model_path,
            adapter=model.adapter_path or None,
            dtype=model.torch_dtype,
            device=model.device,
            parts=parts,
            with_adapter=needed,
            arm=enrolment.arm if enrolment else None,
            models=model.models,
            runtime=runtime,
        )

    if not needed or (config.ip_scale != 0 and config.ref_scale != 0):
        found = look(None)
    elif config.ip_scale != 0:
        found = look(frozenset({"identity"}))
    elif config.ref_scale != 0:
        try:
            found = look(frozenset({"reference"}))
        except BadWeights:  # lite has no reference part: what is there is loaded and stays off
            found = look(None)
    else:
        found = replace(look(None), files=None, adapter_hash="")
    return settle(replace(found, faces=_override(found.faces, model, face)), config)


def idle_options(blueprint: Blueprint, enrolment: Enrolment | None, config: GenerateConfig, chosen: Plan) -> list[str]:
    """A warning for each kind of option that was given and does nothing with this model and these settings."""
    if blueprint.files is not None:
        adapter = blueprint.files.config
        has = {"ip": bool(adapter.identity_blocks), "ref": bool(adapter.reference_blocks)}
    elif enrolment is not None:
        memory = enrolment.memories["person"]
        has = {"ip": bool(memory.identity), "ref": bool(memory.reference)}
    else:  # both parts are switched off
        has = {"ip": False, "ref": False}
    found = []
    for flag, part, influence in (("ip", "identity", chosen.identity), ("ref", "reference", chosen.reference)):
        if not has[flag] and _touched(influence):
            found.append(f"--{flag}-* options do nothing: this adapter has no {part} part.")
    if config.guidance_scale_i not in (None, "none") and chosen.guidance_scale <= 1:
        found.append(f"--guidance-scale-i does nothing: there is no guidance at --guidance-scale {chosen.guidance_scale:g}.")
    if config.guidance_stop < 1 and chosen.guidance_scale <= 1:
        found.append(f"--guidance-stop does nothing: there is no guidance at --guidance-scale {chosen.guidance_scale:g}.")
    if config.window_overlap is not None and chosen.windows is None:
        found.append("--window-overlap does nothing: the clip is made as one window.")
    if blueprint.runtime.lora_passes == "prompt" and not blueprint.loras:
        found.append("--lora-passes does nothing: there is no LoRA.")
    return found


def _touched(influence: Influence) -> bool:
    """Whether an adapter part was asked for in some other way than fully on; off (scale 0) is what an absent part is."""
    return influence.scale != 0 and (influence.scale, influence.start, influence.stop, influence.blocks) != (1, 0, 1, None)


def face_models(model: ModelFlags, face: FaceFlags) -> FaceModels:
    """The face models that the options name; none is loaded yet."""
    from lynx_video.pipeline.models import MODELS

    return _override(MODELS[model.model].faces(model.models), model, face)


def _override(faces: FaceModels, model: ModelFlags, face: FaceFlags) -> FaceModels:
    if face.face_detector is None and face.arcface is None:
        return faces
    from lynx_video.pipeline.models import photograph_faces

    own = photograph_faces(model.models, detector=face.face_detector, arcface=face.arcface)
    return replace(
        faces,
        detector=own.detector if face.face_detector else faces.detector,
        encoder=own.encoder if face.arcface else faces.encoder,
    )


def scored_by(faces: FaceModels, recogniser: Path) -> FaceModels:
    """The face models, with the recogniser in an ONNX file as the one that scores. Raises BadWeights for a file that is none."""
    from lynx_video.face.recogniser import OnnxRecogniser

    loaded = OnnxRecogniser(recogniser)
    return replace(faces, judges={loaded.name: lambda: loaded})


def read_face_record(face: FaceFlags) -> FaceRecord | None:
    """The face record that the options name, if any. Raises BadRequest if it cannot go with the other options."""
    if face.face_record is None:
        return None
    if face.face_index is not None:
        raise BadRequest("--face-index chooses among the faces that are found, --face-record names one: give one of the two.")
    from lynx_video.face.record import read_record

    return read_record(face.face_record)


def sit(
    faces: FaceModels,
    portrait: Path,
    model: ModelFlags,
    face: FaceFlags,
    *,
    record: FaceRecord | None = None,
    reference_size: int = 256,
    consent: str = "",
    shown: Path | None = None,
) -> Sitter:
    """The person in a portrait. Raises as `identify`, with a word more where nano looks for a face in a photograph.

    shown: the portrait's name in messages, if not its own.
    """
    from lynx_video.pipeline.identify import identify

    try:
        return identify(
            faces,
            portrait,
            reference_size=reference_size,
            face_index=face.face_index,
            record=record,
            consent=consent,
        )
    except NoFace as error:
        raise explained(error, shown or portrait, model, face) from error


def explained(error: NoFace, portrait: Path, model: ModelFlags, face: FaceFlags) -> NoFace:
    """The same error, naming the picture, and what nano's detector is made for if that one looked."""
    drawn = model.model.startswith("nano") and model.base_model_path is None and face.face_detector is None
    hint = " The nano model only knows drawn people; for photographs say --model lynx-full." if drawn else ""
    return NoFace(f"{portrait}: {error}{hint}")
