"""One generation, from an identity and a prompt to a Clip."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video import __version__
from lynx_video.adapters.attach import Influence
from lynx_video.adapters.memory import Memory, TextMemory, text_memory
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest, LynxError
from lynx_video.face.likeness import Likeness, likeness
from lynx_video.pipeline import condition
from lynx_video.pipeline.denoise import Step, denoise, initial_noise, set_timesteps
from lynx_video.pipeline.enrol import Enrolment, reprojected, usable_memories
from lynx_video.pipeline.guidance import Pass, passes
from lynx_video.pipeline.identify import identify
from lynx_video.types import Clip, Identity

if TYPE_CHECKING:
    from lynx_video.pipeline.load import Blueprint, Components
    from lynx_video.types import Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A config with every default filled in and checked against the loaded model."""

    negative_prompt: str
    num_frames: int
    fps: float
    height: int
    width: int
    steps: int
    guidance_scale: float
    guidance_scale_i: float | None
    latent_shape: tuple[int, int, int, int, int]
    table: tuple[Pass, ...]
    identity: Influence
    reference: Influence


def plan(model: Components | Blueprint, config: GenerateConfig) -> Plan:
    """Fill in the arm's defaults.

    Raises BadRequest for sizes off the grid, naming the nearest good ones, and for blocks that do not exist.
    """
    defaults, factor, grid = model.defaults, model.temporal_factor, model.grid

    def value(name: str) -> Any:
        asked = getattr(config, name)
        return getattr(defaults, name) if asked is None else asked

    frames, height, width = value("num_frames"), value("height"), value("width")
    _on_grid("num_frames", frames, factor, 1, f"{factor}k + 1")
    _on_grid("height", height, grid, 0, f"a multiple of {grid}")
    _on_grid("width", width, grid, 0, f"a multiple of {grid}")
    guidance_scale_i = value("guidance_scale_i")
    guidance_scale_i = None if guidance_scale_i == "none" else guidance_scale_i
    identity = Influence(scale=config.ip_scale, start=config.ip_start, stop=config.ip_stop, blocks=config.ip_blocks)
    reference = Influence(scale=config.ref_scale, start=config.ref_start, stop=config.ref_stop, blocks=config.ref_blocks)
    _check_blocks("--ip-blocks", identity, model.blocks)
    _check_blocks("--ref-blocks", reference, model.blocks)
    spatial = model.spatial_factor
    return Plan(
        negative_prompt=value("negative_prompt"),
        num_frames=frames,
        fps=float(value("fps")),
        height=height,
        width=width,
        steps=value("num_inference_steps"),
        guidance_scale=float(value("guidance_scale")),
        guidance_scale_i=guidance_scale_i,
        latent_shape=(1, model.channels, (frames - 1) // factor + 1, height // spatial, width // spatial),
        table=passes(value("guidance_scale"), guidance_scale_i),
        identity=identity,
        reference=reference,
    )


def _on_grid(name: str, value: int, step: int, offset: int, rule: str) -> None:
    if (value - offset) % step or value < max(step, 1) * (1 - offset):
        below = max((value - offset) // step * step + offset, step * (1 - offset) + offset)
        nearest = f"{below} or {below + step}" if below < value else f"{below}"
        raise BadRequest(f"{name} must be {rule}, got {value}; the nearest good values are {nearest}.")


def generate(
    components: Components,
    who: str | Path | Picture | Identity | Enrolment,
    prompt: str,
    config: GenerateConfig | None = None,
    *,
    on_step: Callable[[Step], None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Clip:
    """Make a clip of a person doing what the prompt says.

    who: a portrait (path or uint8 [H, W, 3] RGB), an Identity, or an Enrolment from an identity file. on_step is called after every
    step and may raise Cancelled to stop. facts: what else the clip's settings should say of the subject (plain JSON values), such as
    portrait (the path, known already if `who` is one), face_index, face_record and identity_file. Raises BadRequest (or a subclass)
    for what cannot be done.
    """
    began = time.monotonic()
    config = config or GenerateConfig()
    if config.idle_models == "keep":
        config = replace(config, idle_models=components.idle_models)  # type: ignore[arg-type]
    chosen = plan(components, config)
    if not condition.clean_prompt(prompt):
        raise BadRequest("the prompt is empty; say what the person should do.")
    enrolment = who if isinstance(who, Enrolment) else None
    if isinstance(who, Enrolment):
        identity = who.identity
    elif isinstance(who, Identity):
        identity = who
    else:
        identity = identify(components.faces, who, reference_size=components.defaults.reference_size).identity
    scheduler = make_scheduler(components.scheduler, config)
    sampled = config.reference_latent == "sample" or (config.reference_latent is None and enrolment is None)
    sampling = {
        "reference_latent": "sample" if sampled else "mean",
        "scheduler": config.scheduler if config.scheduler != "unipc" or _is_unipc(scheduler) else type(scheduler).__name__,
        "flow_shift": _shift(scheduler),
    }
    memories = _memories(components, identity, enrolment, config, chosen, sampled=sampled)
    texts = _texts(components, prompt, chosen, config)
    timesteps = set_timesteps(scheduler, chosen.steps, components.device)
    noise = initial_noise(chosen.latent_shape, config.seed)
    latents = denoise(
        components.adapter,
        scheduler,
        noise.to(components.device),
        timesteps,
        chosen.table,
        texts,
        memories,
        identity=chosen.identity,
        reference=chosen.reference,
        on_step=on_step,
    )
    del texts, memories
    with _on_device(components, "vae", config.idle_models):
        frames = condition.decode(components.vae, latents).numpy()
    seconds = time.monotonic() - began
    score = score_likeness(components, identity, frames)
    return Clip(
        frames=frames,
        fps=chosen.fps,
        initial_latents=noise,
        latents=latents.float().cpu(),
        seed=config.seed,
        seconds=seconds,
        settings=_subject(who, facts) | _settings(components, identity, prompt, config, chosen) | sampling,
        similarity=score.similarity if score else None,
        coverage=score.coverage if score else None,
    )


def score_likeness(components: Components, identity: Identity, frames: Any) -> Likeness | None:
    """Likeness of a clip to its portrait by the model's judge; None where there is no judge or no aligned crop."""
    if components.faces.judge is None or identity.aligned is None:
        return None
    return likeness(frames, identity.aligned, components.faces.detector(), components.faces.judge())


def remember(
    components: Components,
    identity: Identity,
    *,
    reference_seed: int | None,
    parts: frozenset[str] = frozenset({"identity", "reference"}),
    idle_models: str = "keep",
) -> dict[str, Memory]:
    """The memories of the person and of nobody (zeros, and an all-zero image), in the model's dtype on its device.

    reference_seed: seed of the reference latents' sample, the same for both; None takes the mean.
    """
    adapter, size = components.adapter, components.defaults.reference_size
    with_reference = "reference" in parts and bool(adapter.config.reference_blocks)
    with_identity = "identity" in parts and adapter.resampler is not None
    text: Tensor | None = None
    latents: dict[str, Tensor | None] = {"person": None, "nobody": None}
    if with_reference:
        if identity.crop is None:
            raise BadRequest("the reference adapter needs the reference crop, which this identity has not; say --ref-scale 0.")
        if identity.crop.shape != (size, size, 3):
            raise BadRequest(
                f"the identity's reference crop is {identity.crop.shape[1]} px, this adapter needs {size}; enroll the portrait again."
            )
        with _on_device(components, "text_encoder", idle_models):
            text = _embed(components, condition.REFERENCE_PROMPT)
        with _on_device(components, "vae", idle_models):
            latents = {
                "person": condition.reference_latents(components.vae, identity.crop, size, reference_seed),
                "nobody": condition.reference_latents(components.vae, None, size, reference_seed),
            }
    faces = {"person": identity.embedding, "nobody": torch.zeros_like(identity.embedding)}
    found = {}
    with _on_device(components, "adapter", idle_models):
        for who in ("person", "nobody"):
            memory = adapter.remember(faces[who] if with_identity else None, latents[who], text)
            found[who] = memory.to(components.device, components.dtype)
    return found


def _memories(
    components: Components,
    identity: Identity,
    enrolment: Enrolment | None,
    config: GenerateConfig,
    chosen: Plan,
    *,
    sampled: bool,
) -> dict[str, Memory]:
    if enrolment is not None:
        memories = usable_memories(components, enrolment)
        if memories is None:
            if enrolment.base_hash != components.base_hash:  # another base may have an adapter with another face encoder
                identity = reprojected(components, identity)
        elif not sampled:
            return {who: memory.to(components.device, components.dtype) for who, memory in memories.items()}
        elif not components.adapter_hash:
            raise BadRequest("a sampled reference latent needs the adapter's weights: name them with --adapter-path.")
    parts = {name for name, used in (("identity", chosen.identity), ("reference", chosen.reference)) if used.scale != 0}
    return remember(
        components,
        identity,
        reference_seed=config.seed + 1 if sampled else None,
        parts=frozenset(parts),
        idle_models=config.idle_models,
    )


def _texts(components: Components, prompt: str, chosen: Plan, config: GenerateConfig) -> dict[str, TextMemory]:
    wanted = {one.text for one in chosen.table}
    with _on_device(components, "text_encoder", config.idle_models, last=config.idle_models == "free"):
        embeddings = {
            name: _embed(components, text)
            for name, text in (("prompt", prompt), ("negative", chosen.negative_prompt))
            if name in wanted
        }
    return {
        name: text_memory(components.transformer, tensor.to(components.device, components.dtype))
        for name, tensor in embeddings.items()
    }


def _embed(components: Components, text: str) -> Tensor:
    if components.text_encoder is None:
        raise LynxError(
            "the text encoder was freed after an earlier generation; load the model again, or use idle_models='offload'."
        )
    return condition.encode_prompt(
        components.tokenizer, components.text_encoder, text, components.defaults.max_sequence_length
    ).to(components.device, components.dtype)


@contextmanager
def _on_device(components: Components, name: str, idle: str, *, last: bool = False) -> Iterator[None]:
    """Within it the component is on the device; after it, where `idle` wants it: gone if this was its last use."""
    module = getattr(components, name)
    first = next(module.parameters(), None) if module is not None else None
    if first is None:
        yield
        return
    if first.device.type == "cpu" != components.device.type:  # loaded, or left by an earlier generation, in host memory
        module.to(components.device)
    try:
        yield
    except BaseException:
        last = False
        raise
    finally:
        if last:
            setattr(components, name, None)
            del module, first
            gc.collect()
        elif idle != "keep":
            module.to("cpu")


def _check_blocks(flag: str, influence: Influence, count: int) -> None:
    beyond = [i for i in influence.blocks or () if not 0 <= i < count]
    if beyond:
        raise BadRequest(f"{flag}: block {max(beyond)} does not exist; the base has blocks 0 to {count - 1}.")


def make_scheduler(scheduler: Any, config: GenerateConfig) -> Any:
    """A fresh scheduler of the asked kind from the base's own configuration; a loaded one of another kind stays what it is.

    Raises BadRequest for a flow shift that a scheduler of another kind has no place for.
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    shift = config.flow_shift if config.flow_shift is not None else _shift(scheduler) or 1.0
    if config.scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    if config.scheduler == "dpm":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
        )
    if _is_unipc(scheduler):
        return UniPCMultistepScheduler.from_config(scheduler.config, flow_shift=shift)
    if config.flow_shift is None:
        return type(scheduler).from_config(scheduler.config)
    name = next((name for name in _SHIFTS if name in scheduler.config), None)
    if name is None:
        raise BadRequest(f"flow_shift: the scheduler {type(scheduler).__name__} has no shift; set it in the scheduler itself.")
    return type(scheduler).from_config(scheduler.config, **{name: shift})


_SHIFTS = ("flow_shift", "shift")  # as UniPC and DPM call it, and as Euler does


def _shift(scheduler: Any) -> float | None:
    """The shift of a scheduler's noise schedule, if it has one."""
    return next((float(value) for name in _SHIFTS if (value := scheduler.config.get(name)) is not None), None)


def _is_unipc(scheduler: Any) -> bool:
    from diffusers import UniPCMultistepScheduler

    return isinstance(scheduler, UniPCMultistepScheduler)


def _subject(who: object, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the settings say of the subject: null where it is not known."""
    known = {"portrait": str(who) if isinstance(who, (str, Path)) else None}
    return {**known, "face_index": None, "face_record": None, "identity_file": None, **(facts or {})}


def _settings(components: Components, identity: Identity, prompt: str, config: GenerateConfig, chosen: Plan) -> dict[str, Any]:
    import diffusers

    said = {name: sorted(v) if isinstance(v, frozenset) else v for name, v in asdict(config).items()}
    resolved = {
        "negative_prompt": chosen.negative_prompt,
        "num_frames": chosen.num_frames,
        "fps": chosen.fps,
        "height": chosen.height,
        "width": chosen.width,
        "num_inference_steps": chosen.steps,
        "guidance_scale": chosen.guidance_scale,
        "guidance_scale_i": chosen.guidance_scale_i,
    }
    return {
        "prompt": prompt,
        **said,
        **resolved,
        "arm": components.arm,
        "base": components.base_name,
        "base_hash": components.base_hash,
        "adapter_hash": components.adapter_hash,
        "portrait_hash": identity.portrait_hash,
        "torch_dtype": str(components.dtype).removeprefix("torch."),
        "versions": {"lynx-video": __version__, "torch": str(torch.__version__), "diffusers": str(diffusers.__version__)},
    }
