"""A clip made again from its own record: the request it came from, what must be the same, and what explains a difference."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.studio.request import Request, generation_of
from lynx_video.studio.setup import MarkFlags, Setup

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components
    from lynx_video.studio.studio import Guest, Order

SCHEDULERS = ("unipc", "euler", "dpm")
RECORDED: dict[str, type] = {
    "prompt": str,
    "negative_prompt": str,
    "face_index": int,
    "frames_hash": str,
    "portrait_hash": str,
    "machine": dict,
    "versions": dict,
    "loras": list,
}
"""What a record has to hold, or null, to be read at all; settings are looked at one by one."""
WORDS: dict[type, str] = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


def machine_facts(device: str) -> dict[str, Any]:
    """What of a machine may show in the last bits of a clip, as plain JSON values."""
    import torch

    from lynx_video.runtime.device import device_of

    return {"device": device_of(device).name, "threads": torch.get_num_threads(), "system": platform.machine()}


def bits_facts(components: Components) -> dict[str, Any]:
    """What of the way a model was run may show in the last bits."""
    runtime = components.runtime
    ranks = components.ranks
    degrees = (
        "" if ranks is None else f"pass {ranks.degrees.passes}, ulysses {ranks.degrees.ulysses}, ring {ranks.degrees.ring}"
    )
    return {"passes": runtime.passes, "compile": runtime.compile, "offload": runtime.offload, "degrees": degrees or None}


def request_of(
    record: Mapping[str, Any],
    *,
    portrait: Path | None = None,
    identity: Path | None = None,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    face_record: Path | None = None,
) -> Request:
    """The request that a record describes; the record holds no portrait, and a private one no prompt: they are given anew.

    Raises BadRequest for a record that is none of ours or lacks something, and for a prompt that is not the recorded one.
    """
    if not {"base_hash", "seed", "frames_hash", "num_frames"} <= set(record):
        raise BadRequest("the clip carries no record that it could be made again from; `lynx-video verify` tells what it is.")
    for name, kind in RECORDED.items():
        if not isinstance(record.get(name), (kind, NoneType)) or (isinstance(record.get(name), bool) and kind is int):
            raise BadRequest(f"the clip's record cannot be used: {name} is {record[name]!r}, expected {WORDS[kind]}.")
    recorded = record.get("prompt")
    if recorded is None and prompt is None:
        raise BadRequest("the record is private and holds no prompt: give it with --prompt.")
    if recorded is not None and prompt is not None and prompt != recorded:
        raise BadRequest(f"the clip was made with another prompt: {recorded!r}; leave --prompt away.")
    if record.get("negative_prompt_withheld") and negative_prompt is None:
        raise BadRequest("the record is private, and its negative prompt was not the default: give it with --negative-prompt.")
    if record.get("face_record") and face_record is None:
        raise BadRequest("the clip was made with a face record: give it with --face-record.")
    names = {one.name for one in fields(GenerateConfig)}
    values = {name: value for name, value in record.items() if name in names}
    if negative_prompt is not None:
        if values.get("negative_prompt") not in (None, negative_prompt):
            raise BadRequest(
                "the clip was made with another negative prompt, which its record holds; leave --negative-prompt away."
            )
        values["negative_prompt"] = negative_prompt
    if values.get("guidance_scale_i") is None:
        values["guidance_scale_i"] = "none"
    if values.get("scheduler") not in SCHEDULERS:  # the base's own, of another kind
        values.pop("scheduler", None)
        values.pop("flow_shift", None)
    return Request(
        prompt=recorded if recorded is not None else prompt or "",
        portrait=portrait,
        identity=identity,
        face_index=record.get("face_index") if portrait is not None and face_record is None else None,
        face_record=face_record,
        preset=str(record.get("preset") or "exact"),
        generation=generation_of(values),
        marks=MarkFlags(
            private=bool(record.get("private")),
            consent=str(record.get("consent") or ""),
            no_watermark=str(record.get("no_watermark_reason") or ""),
        ),
    )


def setup_of(record: Mapping[str, Any], given: Setup) -> Setup:
    """The model that a record names, held as it was; what `given` names of the runtime (paths of LoRAs, a GGUF file) is added.

    Raises BadRequest for LoRAs or a GGUF file that the record only knows by name.
    """
    from lynx_video.pipeline.models import MODELS

    shaping = ("quantize", "vae_tiling", "attention_backend", "lora_passes", "passes", "compile", "offload")
    runtime = {name: record[name] for name in shaping if name in record}
    from_preset = record.get("preset") == "draft"
    for name, recorded in (("lora_path", record.get("loras")), ("gguf", record.get("gguf"))):
        if recorded and name not in given.runtime and not (name == "lora_path" and from_preset):
            raise BadRequest(f"the clip was made with {recorded}: say where it is with --{name.replace('_', '-')}.")
    model = given.model
    if model.base_model_path is None:
        named = record.get("model", model.model)
        if not isinstance(named, str) or named not in MODELS:
            raise BadRequest(f"the record names the model {named!r}; the models are {', '.join(MODELS)}.")
        model = replace(model, model=named)  # type: ignore[arg-type]
    if model.torch_dtype is None:
        short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(str(record.get("torch_dtype")))
        model = replace(model, torch_dtype=short)  # type: ignore[arg-type]
    return replace(given, model=model, runtime={**runtime, **given.runtime})


def check_same(record: Mapping[str, Any], order: Order, guest: Guest) -> None:
    """Raises BadRequest, naming it, where base, adapter, LoRAs or portrait are not those of the record."""
    from lynx_video.media.image import pixels_hash, read_picture

    recorded, portrait = record.get("portrait_hash"), guest.identity.portrait_hash
    if order.request.portrait is not None and recorded == pixels_hash(read_picture(order.request.portrait)):
        portrait = recorded  # of a picture that came as pixels, as from ComfyUI, there was no file to take the hash of
    here = {
        "base_hash": order.blueprint.base_hash,
        "adapter_hash": order.blueprint.adapter_hash or (order.enrolment.adapter_hash if order.enrolment is not None else ""),
        "lora_hash": order.blueprint.lora_hash,
        "portrait_hash": portrait,
        "face_encoder": guest.identity.encoder,
    }
    ways = {
        "base_hash": "name the base with --base-model-path",
        "adapter_hash": "name the adapter with --adapter-path",
        "lora_hash": "name the LoRAs with --lora-path",
        "portrait_hash": "give the same file, or for several portraits the identity file that was made of them",
        "face_encoder": "name the face encoder with --arcface",
    }
    for name, way in ways.items():
        if record.get(name, here[name]) != here[name]:
            what = name.removesuffix("_hash").replace("_", " ")
            raise BadRequest(
                f"the clip was made with another {what} ({name} {record[name] or 'none'}, here {here[name] or 'none'}): {way}."
            )


def same_pictures(clip: Path, other: Path) -> bool:
    """Whether two files show the same frames, every pixel of them. Raises BadRequest for one that cannot be read."""
    import numpy as np

    from lynx_video.media.video import read_video

    return np.array_equal(read_video(clip)[0], read_video(other)[0])


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What may explain other frames: versions and machine, in sentences."""
    found = []
    if before := record.get("degrees"):
        found.append(f"it was made by several processes ({before}).")
    for group in ("versions", "machine"):
        before, now = record.get(group) or {}, other.get(group) or {}
        found += [
            f"{name} was {before.get(name)}, here it is {now.get(name)}."
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
    return found
