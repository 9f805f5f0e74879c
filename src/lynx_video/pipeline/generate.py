"""One generation, from an identity and a prompt to a Clip."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video import __version__
from lynx_video.adapters.attach import Influence
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest, LynxWarning
from lynx_video.face.likeness import Likeness, likeness
from lynx_video.pipeline import condition
from lynx_video.pipeline.calibration import check_step_cache, steps_to_compute
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.denoise import Step, denoise, initial_noise
from lynx_video.pipeline.enrol import Enrolment
from lynx_video.pipeline.guidance import Table, passes, tables
from lynx_video.pipeline.identify import identify
from lynx_video.pipeline.memories import memories_of, on_device, texts_of
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import is_unipc, levels, make_scheduler, set_timesteps, shift_of
from lynx_video.pipeline.windows import Windows, default_overlap, divide
from lynx_video.runtime.offload import parked
from lynx_video.runtime.parallel import sharing_tokens
from lynx_video.types import Clip, Identity

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint, Components
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
    "of the whole clip"
    windows: Windows | None
    "how a clip that is longer than a window is divided"
    tables: tuple[Table, ...]
    "the passes of each step"
    identity: Influence
    reference: Influence

    @property
    def window_shape(self) -> tuple[int, int, int, int, int]:
        """Of the latents that the transformer sees at once."""
        batch, channels, frames, height, width = self.latent_shape
        return batch, channels, self.windows.length if self.windows is not None else frames, height, width

    def tokens(self, patch_size: tuple[int, int, int]) -> int:
        """Video tokens of a pass, over one window where there are several."""
        return math.prod(size // patch for size, patch in zip(self.window_shape[2:], patch_size, strict=True))


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
    spatial, latent_frames = model.spatial_factor, (frames - 1) // factor + 1
    return Plan(
        negative_prompt=value("negative_prompt"),
        num_frames=frames,
        fps=float(value("fps")),
        height=height,
        width=width,
        steps=value("num_inference_steps"),
        guidance_scale=float(value("guidance_scale")),
        guidance_scale_i=guidance_scale_i,
        latent_shape=(1, model.channels, latent_frames, height // spatial, width // spatial),
        windows=_windows(latent_frames, config, defaults.num_frames, factor),
        tables=tables(passes(value("guidance_scale"), guidance_scale_i), value("num_inference_steps"), config.guidance_stop),
        identity=identity,
        reference=reference,
    )


def _windows(total: int, config: GenerateConfig, trained: int, factor: int) -> Windows | None:
    """How a clip of `total` latent frames is divided; None where one window has it all. Raises BadRequest for what has no place."""
    frames = trained if config.window_frames is None else config.window_frames
    _on_grid("window_frames", frames, factor, 1, f"{factor}k + 1")
    length = (frames - 1) // factor + 1
    overlap = default_overlap(length)
    if config.window_overlap is not None:
        _on_grid("window_overlap", config.window_overlap, factor, 0, f"a multiple of {factor}")
        overlap = config.window_overlap // factor
    if total <= length:
        return None
    if not 0 < overlap < length:
        raise BadRequest(
            f"windows of {frames} frames can't overlap by {overlap * factor}: window_overlap is {factor} to {frames - 1}."
            if length > 1
            else f"window_frames must be {factor + 1} or more to make a longer clip of windows that overlap, got {frames}."
        )
    return divide(total, length, overlap)


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
    _warn_of_length(chosen, components)
    check_step_cache(components, config.step_cache)
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
        "scheduler": config.scheduler if config.scheduler != "unipc" or is_unipc(scheduler) else type(scheduler).__name__,
        "flow_shift": shift_of(scheduler),
    }
    timesteps = set_timesteps(scheduler, chosen.steps, components.device)
    noise = initial_noise(chosen.latent_shape, config.seed)
    memories = memories_of(components, identity, enrolment, config, chosen, sampled=sampled)
    texts = texts_of(components, prompt, chosen, config)
    computed = steps_to_compute(components, config.step_cache, levels(timesteps))
    conditions = Conditions(
        identity=chosen.identity,
        reference=chosen.reference,
        mode=components.runtime.passes,
        lora_passes=components.runtime.lora_passes if components.loras is not None else "all",
        ranks=components.ranks,
    )
    told = {
        "steps_computed": len(timesteps) if computed is None else sum(computed),
        "windows": chosen.windows.to_json(components.temporal_factor) if chosen.windows is not None else None,
    }
    cache = components.cache if computed is not None or (components.cache is not None and components.cache.measure) else None
    experts = [
        Expert(adapter=adapter, texts=text, memories=memory, least=least, cache=cache, loras=components.loras)
        for (adapter, least), text, memory in zip(components.adapters, texts, memories, strict=True)
    ]
    with parking(components, config.idle_models):
        with ready_to_denoise(components):
            latents = denoise(
                experts,
                scheduler,
                noise.to(components.device),
                timesteps,
                chosen.tables,
                conditions,
                computed=computed,
                windows=chosen.windows,
                on_step=on_step,
            )
        del experts, conditions, texts, memories
        with on_device(components, "vae", config.idle_models):
            frames = decode(components.vae, latents, tiling=bool(components.runtime.vae_tiling)).numpy()
    seconds = time.monotonic() - began
    score = score_likeness(components, identity, frames)
    return Clip(
        frames=frames,
        fps=chosen.fps,
        initial_latents=noise,
        latents=latents.float().cpu(),
        seed=config.seed,
        seconds=seconds,
        settings=_subject(who, facts) | _settings(components, identity, prompt, config, chosen) | sampling | told,
        similarity=score.similarity if score else None,
        coverage=score.coverage if score else None,
    )


@contextmanager
def parking(components: Components, idle_models: str) -> Iterator[None]:
    """Within it, where idle models leave, the text projections do not lie on the device: the prompts are in memory already."""
    with ExitStack() as stack:
        for adapter, _ in components.adapters:
            if idle_models != "keep":
                stack.enter_context(parked(adapter.transformer))
        yield


@contextmanager
def ready_to_denoise(components: Components) -> Iterator[None]:
    """Within it every process has its slice of the tokens; after it the step cache has forgotten the clip."""
    with ExitStack() as stack:
        for adapter, _ in components.adapters:
            stack.enter_context(sharing_tokens(adapter.transformer, components.ranks))
        if components.cache is not None and not components.cache.measure:
            stack.callback(components.cache.clear)
        yield


def score_likeness(components: Components, identity: Identity, frames: Any) -> Likeness | None:
    """Likeness of a clip to its portrait by the model's judge; None where there is no judge or no aligned crop."""
    if components.faces.judge is None or identity.aligned is None:
        return None
    return likeness(frames, identity.aligned, components.faces.detector(), components.faces.judge())


def _warn_of_length(chosen: Plan, components: Components) -> None:
    """A LynxWarning for a clip that is longer than what the model was trained for, or that is made of windows all the same."""
    trained, frames, windows = components.defaults.num_frames, chosen.num_frames, chosen.windows
    if windows is not None:
        made = windows.to_json(components.temporal_factor)
        why = f"its {frames} frames are more than the {trained} the model was trained for" if frames > trained else "as asked"
        text = f"{made['number']} windows of {made['frames']} frames that overlap by {made['overlap']} or more"
        warnings.warn(f"the clip is made of {text}: {why}.", LynxWarning, stacklevel=3)
    elif frames > trained:
        warnings.warn(
            f"the clip's {frames} frames are made as one, and are more than the {trained} the model was trained for: motion and "
            "likeness may suffer.",
            LynxWarning,
            stacklevel=3,
        )


def _check_blocks(flag: str, influence: Influence, count: int) -> None:
    beyond = [i for i in influence.blocks or () if not 0 <= i < count]
    if beyond:
        raise BadRequest(f"{flag}: block {max(beyond)} does not exist; the base has blocks 0 to {count - 1}.")


def _subject(who: object, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the settings say of the subject: null where it is not known."""
    known = {"portrait": str(who) if isinstance(who, (str, Path)) else None}
    return {**known, "face_index": None, "face_record": None, "identity_file": None, **(facts or {})}


def _settings(components: Components, identity: Identity, prompt: str, config: GenerateConfig, chosen: Plan) -> dict[str, Any]:
    import diffusers
    import torch

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
    if chosen.windows is not None:
        made = chosen.windows.to_json(components.temporal_factor)
        resolved |= {"window_frames": made["frames"], "window_overlap": made["overlap"]}
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
        **components.runtime.shaping(),
        "lora_hash": components.lora_hash,
        "versions": {"lynx-video": __version__, "torch": str(torch.__version__), "diffusers": str(diffusers.__version__)},
    }
