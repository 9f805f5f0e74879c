"""The nodes. Each calls the functions of lynx_video that its command line calls; what they raise is what ComfyUI shows.

Between them travel values of ours: LYNX_MODEL, LYNX_GATE, LYNX_IDENTITY, LYNX_CLIP. Pictures are ComfyUI's IMAGE.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import check_interrupted, make_room, next_file, watcher
from .inputs import choice, config_of, image_of, number, pictures_of, text, to_json, whole
from .values import Film, Guard, Loaded, told

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.types import Identity

CATEGORY = "Lynx Video"
DEFAULT = "0: the model's default"
PROMPT = "the person smiles wearing a red shirt in front of a blue wall"
LARGEST_SEED = 2**53 - 1  # the page's numbers are exact up to here


class LoadModel:
    """A Lynx model: base and adapters, checked against each other before a weight is read."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("LYNX_MODEL",), ("model",)
    DESCRIPTION = "nano runs at once and draws cartoons; the others need `lynx-video download full face safety base`."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "model": choice(("nano", "nano-lite", "lynx-full", "lynx-lite"), tooltip="which model"),
                "models_folder": text(
                    "models", tooltip="folder of the downloaded models; absolute, or seen from where ComfyUI runs"
                ),
                "dtype": choice(("auto", "bf16", "fp16", "fp32"), tooltip="number format; auto: bf16 on CUDA, fp32 elsewhere"),
                "device": text("auto", tooltip="auto, cuda, cuda:1, cpu, ..."),
                "vram_budget": number(
                    0, 0, 1000, 0.5, tooltip="GB to stay within: chooses offload and quantization; 0: no budget"
                ),
                "idle_models": choice(("keep", "offload"), tooltip="text encoder and VAE while not in use"),
            },
            "optional": {
                "base": text(tooltip="base model instead of the model's own: a folder in the diffusers layout, or a hub id"),
                "adapter": text(tooltip="adapter instead of the model's own: a folder or a file"),
            },
        }

    def load(
        self,
        model: str,
        models_folder: str,
        dtype: str,
        device: str,
        vram_budget: float,
        idle_models: str,
        base: str = "",
        adapter: str = "",
    ) -> tuple[Loaded]:
        """The model, loaded."""
        from lynx_video.config import GenerateConfig, RuntimeConfig
        from lynx_video.pipeline.load import assemble
        from lynx_video.studio.models import survey_model
        from lynx_video.studio.setup import FaceFlags, ModelFlags

        flags = ModelFlags(
            model=model,  # type: ignore[arg-type]
            base_model_path=base.strip() or None,
            adapter_path=(adapter.strip(),) if adapter.strip() else (),
            models=Path(models_folder).expanduser(),
            torch_dtype=None if dtype == "auto" else dtype,  # type: ignore[arg-type]
            device=None if device.strip() in ("", "auto") else device.strip(),
        )
        with told():
            blueprint = survey_model(
                flags,
                FaceFlags(),
                GenerateConfig(idle_models=idle_models),
                runtime=RuntimeConfig(vram_budget=vram_budget or None),  # type: ignore[arg-type]
            )
            for caution in blueprint.cautions:
                logging.warning(caution)
            make_room(blueprint.device)
            components = assemble(blueprint, idle_models=idle_models)
        return (Loaded(components=components, blueprint=blueprint, flags=flags),)


class SafetyGate:
    """What looks at prompt, portrait and frames. Every other node that needs one asks for it."""

    CATEGORY, FUNCTION = CATEGORY, "gate"
    RETURN_TYPES, RETURN_NAMES = ("LYNX_GATE",), ("gate",)
    DESCRIPTION = (
        "auto: real models need a picture classifier (`lynx-video download safety`), nano does not. See docs/safety.md."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        from lynx_video.safety import SafetyConfig

        plain = SafetyConfig()
        return {
            "required": {
                "model": ("LYNX_MODEL",),
                "safety_checker": text(plain.safety_checker, tooltip="pictures: auto, off, a classifier's folder or hub id"),
                "safety_threshold": number(
                    plain.safety_threshold, 0.01, 1, 0.01, tooltip="probability from which a picture is refused"
                ),
                "safety_every": whole(
                    plain.safety_every, 1, 1000, tooltip="look at every so many frames, and the last; 1: all"
                ),
                "prompt_checker": text(
                    plain.prompt_checker, tooltip="prompts: auto (word rules), a text classifier beside them, or off"
                ),
                "prompt_threshold": number(
                    plain.prompt_threshold, 0.01, 1, 0.01, tooltip="probability from which a prompt is refused"
                ),
            }
        }

    def gate(self, model: Loaded, **settings: Any) -> tuple[Guard]:
        """The gate, its classifiers loaded."""
        from lynx_video.safety import SafetyConfig
        from lynx_video.studio.gate import gate_of

        gate, cautions = gate_of(SafetyConfig(**settings), model.flags, model.blueprint)
        for caution in cautions:
            logging.warning(caution)
        return (Guard(gate=gate, model=model),)


class FindFaces:
    """The faces of a picture, numbered, to choose one by."""

    CATEGORY, FUNCTION = CATEGORY, "find"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "INT", "STRING"), ("image", "count", "faces")
    DESCRIPTION = "Draws a box and a number on each face; what about a face costs likeness is said in `faces` (JSON)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {"required": {"model": ("LYNX_MODEL",), "image": ("IMAGE",)}}

    def find(self, model: Loaded, image: Tensor) -> tuple[Tensor, int, str]:
        """The picture with its faces drawn on it, how many, and what is known of each."""
        from lynx_video.errors import BadPicture, NoFace
        from lynx_video.face.detect import draw_faces, find_faces
        from lynx_video.face.quality import face_warnings

        pictures = pictures_of(image)
        if len(pictures) != 1:
            raise BadPicture(f"image: {len(pictures)} pictures; expected one, as the node `ImageFromBatch` takes it out.")
        faces = find_faces(pictures[0], model.components.faces.detector())
        if not faces:
            raise NoFace("No face was found in the picture; use one that shows a face from the front, upright and well lit.")
        known = [
            {
                "index": index,
                "box": [round(edge, 1) for edge in face.box],
                "score": round(face.score, 3),
                "warnings": face_warnings(pictures[0], face),
            }
            for index, face in enumerate(faces)
        ]
        return image_of(draw_faces(pictures[0], faces)[None]), len(faces), to_json(known)


class MakeIdentity:
    """The person in a portrait, or in several of the same person."""

    CATEGORY, FUNCTION = CATEGORY, "identify"
    RETURN_TYPES, RETURN_NAMES = ("LYNX_IDENTITY", "IMAGE", "STRING"), ("identity", "crop", "warnings")
    DESCRIPTION = "A batch of portraits of one person becomes one identity (the mean face vector, the first one's crop)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "model": ("LYNX_MODEL",),
                "gate": ("LYNX_GATE",),
                "image": ("IMAGE",),
                "face_index": whole(0, 0, 99, tooltip="which face, as Find Faces numbers them; 0: the largest"),
                "consent": text(tooltip="who agreed to the use of this face, and how; goes into the clip's record"),
            }
        }

    def identify(
        self, model: Loaded, gate: Guard, image: Tensor, face_index: int, consent: str
    ) -> tuple[Identity, Tensor, str]:
        """The identity, its reference crop, and what about the face costs likeness."""
        from lynx_video.pipeline.identify import identify, merge

        pictures, guard = pictures_of(image), gate.before(model)
        for picture in pictures:
            guard.portrait(picture)
        size = model.components.defaults.reference_size
        sitters = [
            identify(model.components.faces, picture, reference_size=size, face_index=face_index, consent=consent.strip())
            for picture in pictures
        ]
        identity = merge([sitter.identity for sitter in sitters]) if len(sitters) > 1 else sitters[0].identity
        return identity, image_of(identity.crop[None]), "\n".join(each for sitter in sitters for each in sitter.warnings)


class Sample:
    """A clip of a person doing what the prompt says."""

    CATEGORY, FUNCTION = CATEGORY, "sample"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "FLOAT", "STRING", "LYNX_CLIP"), ("images", "fps", "settings", "clip")
    DESCRIPTION = (
        "`images` carry neither watermark nor signature: Save Clip puts them on `clip`. `settings` (JSON) is all that is needed to "
        "make the clip again."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        share = "share of the steps after which the {} adapter {}"
        return {
            "required": {
                "model": ("LYNX_MODEL",),
                "gate": ("LYNX_GATE",),
                "identity": ("LYNX_IDENTITY",),
                "prompt": text(PROMPT, multiline=True, tooltip="what the person does"),
                "seed": whole(42, 0, LARGEST_SEED, tooltip="the same seed gives the same clip", control_after_generate=True),
                "num_inference_steps": whole(0, 0, 1000, tooltip=f"denoising steps; {DEFAULT}"),
                "num_frames": whole(0, 0, 100_000, tooltip=f"length, 4k + 1; {DEFAULT}. More than that: overlapping windows"),
                "width": whole(0, 0, 16_384, tooltip=f"pixels, a multiple of 16; {DEFAULT}"),
                "height": whole(0, 0, 16_384, tooltip=f"pixels, a multiple of 16; {DEFAULT}"),
                "guidance_scale": number(0, 0, 100, 0.1, tooltip=f"how strongly the prompt pulls; 1: no guidance; {DEFAULT}"),
                "ip_scale": number(1, -10, 10, 0.05, tooltip="weight of the identity adapter: 1 as trained, 0 off"),
                "ref_scale": number(1, -10, 10, 0.05, tooltip="weight of the reference adapter: 1 as trained, 0 off"),
            },
            "optional": {
                "ip_start": number(0, 0, 1, 0.01, tooltip=share.format("identity", "comes on")),
                "ip_stop": number(1, 0, 1, 0.01, tooltip=share.format("identity", "goes off")),
                "ip_blocks": text(tooltip="blocks in which the identity adapter is on, as 0-9,20; empty: all"),
                "ref_start": number(0, 0, 1, 0.01, tooltip=share.format("reference", "comes on")),
                "ref_stop": number(1, 0, 1, 0.01, tooltip=share.format("reference", "goes off")),
                "ref_blocks": text(tooltip="blocks in which the reference adapter is on, as 0-9,20; empty: all"),
                "guidance_scale_i": text(
                    tooltip="how strongly the identity pulls: a number, none (two passes), empty: the model's default"
                ),
                "guidance_stop": number(1, 0, 1, 0.01, tooltip="share of the steps after which guidance ends"),
                "negative_prompt": text(multiline=True, tooltip="what the clip should not be; empty: the model's default"),
                "scheduler": choice(("unipc", "euler", "dpm"), tooltip="sampler; unipc is the reference's"),
                "flow_shift": number(0, 0, 100, 0.1, tooltip="shift of the noise schedule; 0: the base's own"),
                "previews": ("BOOLEAN", {"default": True, "tooltip": "show the first frame as each step guesses it"}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        """Refuses, when the workflow is queued, a prompt that no gate lets through."""
        from lynx_video.errors import Refused
        from lynx_video.safety import check_prompt
        from lynx_video.safety.gate import UNDENIABLE

        try:
            check_prompt(prompt or "", rules=UNDENIABLE)
        except Refused as error:
            return str(error)
        return True

    def sample(
        self, model: Loaded, gate: Guard, identity: Identity, prompt: str, previews: bool = True, **widgets: Any
    ) -> tuple[Tensor, float, str, Film]:
        """The frames, frames per second, the settings as JSON, and the clip for Save Clip."""
        from lynx_video.pipeline.generate import generate, plan
        from lynx_video.studio.models import idle_options

        guard = gate.before(model)
        guard.prompt(prompt)
        values = {name: spec[1]["default"] for name, spec in _widgets(self).items()} | widgets
        config = config_of(values)
        chosen = plan(model.components, config)
        for caution in idle_options(model.blueprint, None, config, chosen):
            logging.warning(caution)
        check_interrupted()
        with told():
            watch = watcher(model.components, guard, previews=previews)
            clip = generate(model.components, identity, prompt, config, on_step=watch)
        guard.frames(clip.frames)
        judge = model.components.faces.judge_name if clip.coverage is not None else ""
        film = Film(
            clip=clip,
            facts={"model": model.flags.model, "judge": judge, "safety": guard.record(), "made_in": "ComfyUI"},
            consent=identity.consent,
        )
        return image_of(clip.frames), float(clip.fps), to_json(_record(film)), film


class SaveClip:
    """The clip as an mp4 file with watermark, record and signature, in ComfyUI's output folder."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "save", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("file",)
    DESCRIPTION = "`lynx-video verify FILE` tells what made the clip and whether it was altered."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "clip": ("LYNX_CLIP",),
                "filename_prefix": text("lynx_video/clip", tooltip="folder below ComfyUI's output, and first part of the name"),
                "private": ("BOOLEAN", {"default": False, "tooltip": "leave prompt and consent out of the file's record"}),
            },
            "optional": {
                "no_watermark": text(tooltip="a reason to put no invisible watermark into the frames; it is recorded"),
                "signing_key": text(tooltip="private key (PEM) that signs the clip; empty: a self-made development key"),
                "signing_certificate": text(tooltip="certificate chain (PEM) of that key, its own first"),
            },
        }

    def save(
        self,
        clip: Film,
        filename_prefix: str,
        private: bool,
        no_watermark: str = "",
        signing_key: str = "",
        signing_certificate: str = "",
    ) -> dict[str, Any]:
        """The file's path; the page shows the clip."""
        from lynx_video.media.certificate import load_signer
        from lynx_video.studio.publish import publish

        marks = _marks(clip, private=private, no_watermark=no_watermark.strip())
        signer = load_signer(_path(signing_key), _path(signing_certificate))
        height, width = clip.clip.frames.shape[1:3]
        target = next_file(filename_prefix, "mp4", width, height)
        with told():
            publish(target.path, clip.clip, _record(clip, marks), marks, signer)
        return {"ui": {"images": [target.shown], "animated": (True,)}, "result": (str(target.path),)}


def _record(film: Film, marks: Any = None) -> dict[str, Any]:
    from lynx_video.studio.publish import record_of

    return record_of(film.clip, film.facts, marks or _marks(film))


def _marks(film: Film, *, private: bool = False, no_watermark: str = "") -> Any:
    from lynx_video.studio.setup import MarkFlags

    return MarkFlags(private=private, consent=film.consent, no_watermark=no_watermark)


def _widgets(node: Any) -> dict[str, Any]:
    """The inputs of a node that have a default."""
    kinds = node.INPUT_TYPES()
    inputs = {**kinds["required"], **kinds.get("optional", {})}
    return {name: spec for name, spec in inputs.items() if len(spec) > 1 and "default" in spec[1]}


def _path(words: str) -> Path | None:
    return Path(words.strip()).expanduser() if words.strip() else None


NODE_CLASS_MAPPINGS = {
    "LynxVideoLoadModel": LoadModel,
    "LynxVideoSafetyGate": SafetyGate,
    "LynxVideoFindFaces": FindFaces,
    "LynxVideoMakeIdentity": MakeIdentity,
    "LynxVideoSample": Sample,
    "LynxVideoSaveClip": SaveClip,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LynxVideoLoadModel": "Load Lynx Video Model",
    "LynxVideoSafetyGate": "Lynx Video Safety Gate",
    "LynxVideoFindFaces": "Find Faces (Lynx Video)",
    "LynxVideoMakeIdentity": "Make Identity (Lynx Video)",
    "LynxVideoSample": "Sample Clip (Lynx Video)",
    "LynxVideoSaveClip": "Save Clip (Lynx Video)",
}
