"""What a generation remembers before its first step: the keys and values of the person, of nobody, and of both prompts."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.memory import Memory, TextMemory, text_memory
from lynx_video.errors import BadRequest, LynxError
from lynx_video.pipeline import condition
from lynx_video.pipeline.enrol import Enrolment, reprojected, usable_memories
from lynx_video.runtime.offload import placed, visiting

if TYPE_CHECKING:
    from lynx_video.config import GenerateConfig
    from lynx_video.pipeline.components import Components
    from lynx_video.pipeline.generate import Plan
    from lynx_video.types import Identity

Memories = dict[str, Memory]


def remember(
    components: Components,
    identity: Identity,
    *,
    reference_seed: int | None,
    parts: frozenset[str] = frozenset({"identity", "reference"}),
    idle_models: str = "keep",
) -> list[Memories]:
    """The memories of the person and of nobody (zeros, and an all-zero image), one pair for each adapter of `components.adapters`.

    They are in the model's dtype on its device. reference_seed: seed of the reference latents' sample, the same for both; None takes
    the mean.
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
        with on_device(components, "text_encoder", idle_models):
            text = _embed(components, condition.REFERENCE_PROMPT)
        with on_device(components, "vae", idle_models):
            latents = {
                "person": condition.reference_latents(components.vae, identity.crop, size, reference_seed),
                "nobody": condition.reference_latents(components.vae, None, size, reference_seed),
            }
    faces = {"person": identity.embedding, "nobody": torch.zeros_like(identity.embedding)}
    found = []
    with _loras(components, on=False):
        for one, _ in components.adapters:
            with _adapter_on_device(components, one, idle_models):
                memories = {
                    who: one.remember(faces[who] if with_identity else None, latents[who], text).to(
                        components.device, components.dtype
                    )
                    for who in ("person", "nobody")
                }
            found.append(memories)
    return found


def memories_of(
    components: Components,
    identity: Identity,
    enrolment: Enrolment | None,
    config: GenerateConfig,
    chosen: Plan,
    *,
    sampled: bool,
) -> list[Memories]:
    """As `remember`, but those of an identity file where they fit what is loaded, and only the parts that are used."""
    if enrolment is not None:
        memories = usable_memories(components, enrolment)
        if memories is None:
            if enrolment.base_hash != components.base_hash:  # another base may have an adapter with another face encoder
                identity = reprojected(components, identity)
        elif not sampled:
            return [{who: memory.to(components.device, components.dtype) for who, memory in memories.items()}]
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


def texts_of(components: Components, prompt: str, chosen: Plan, config: GenerateConfig) -> list[Mapping[str, TextMemory]]:
    """The texts that the passes need, "prompt" and perhaps "negative", one mapping for each adapter of `components.adapters`."""
    wanted = {one.text for table in chosen.tables for one in table}
    with on_device(components, "text_encoder", config.idle_models, last=config.idle_models == "free"):
        embeddings = {
            name: _embed(components, text)
            for name, text in (("prompt", prompt), ("negative", chosen.negative_prompt))
            if name in wanted
        }
    found: list[Mapping[str, TextMemory]] = []
    for adapter, _ in components.adapters:
        texts: dict[str, TextMemory] = {}
        for name, tensor in embeddings.items():
            # a LoRA of the text projections counts where it is on in the passes that see this text
            on = components.runtime.lora_passes == "all" or name == "prompt"
            with _loras(components, on=on), placed(adapter.transformer, components.device):
                texts[name] = text_memory(adapter.transformer, tensor.to(components.device, components.dtype))
        found.append(texts)
    return found


def _embed(components: Components, text: str) -> Tensor:
    if components.text_encoder is None:
        raise LynxError(
            "the text encoder was freed after an earlier generation; load the model again, or use idle_models='offload'."
        )
    encoder, length = components.text_encoder, components.defaults.max_sequence_length
    device = components.device if _by_layer(components, "text_encoder") else None
    return condition.encode_prompt(components.tokenizer, encoder, text, length, device).to(components.device, components.dtype)


def _by_layer(components: Components, part: str) -> bool:
    """Whether a memory budget has the layers of a part come to the device one by one."""
    return components.layout is not None and getattr(components.layout, part) == "block"


def _loras(components: Components, *, on: bool) -> AbstractContextManager[object]:
    return components.loras.enabled(on) if components.loras is not None else nullcontext()


@contextmanager
def _adapter_on_device(components: Components, adapter: Adapter, idle: str) -> Iterator[None]:
    """Within it this adapter is on the device; where `idle` is not "keep", it leaves again."""
    first = next(adapter.parameters(), None)
    if first is not None and _by_layer(components, "adapter"):
        parts = [*adapter.identity.values(), *adapter.reference.values()]
        with visiting([*parts, *([adapter.resampler] if adapter.resampler is not None else [])], components.device):
            yield
        return
    if first is not None and first.device.type == "cpu" != components.device.type:
        adapter.to(components.device)
    try:
        yield
    finally:
        if first is not None and idle != "keep":
            adapter.to("cpu")


@contextmanager
def on_device(components: Components, name: str, idle: str, *, last: bool = False) -> Iterator[None]:
    """Within it the text encoder or VAE is on the device; after it, where `idle` wants it: gone if this was its last use."""
    module = getattr(components, name)
    first = next(module.parameters(), None) if module is not None else None
    if first is None:
        yield
        return
    if name == "text_encoder" and _by_layer(components, name):
        encoder = module.encoder
        with visiting([encoder.embed_tokens, *encoder.block, encoder.final_layer_norm], components.device):
            yield
        if last:
            setattr(components, name, None)
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
