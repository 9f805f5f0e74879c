"""What a request asks of a model, in tokens, bytes and operations: from configurations and the headers of files, no weight read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.pipeline import released
from lynx_video.pipeline.checkpoint import base_config
from lynx_video.pipeline.generate import Plan, plan
from lynx_video.pipeline.predict import BATCH_TOKENS
from lynx_video.runtime import flops
from lynx_video.runtime.device import Rates
from lynx_video.runtime.flops import Shape, Terms
from lynx_video.runtime.memory import Pace, Sizes, activations

if TYPE_CHECKING:
    from lynx_video.adapters.attach import AdapterConfig
    from lynx_video.pipeline.components import Blueprint

REACHED = 0.8
"""Share of the rates measured apart that products and attention are expected to reach inside a forward."""
SAMPLER = 7
"""Latents alive beside the predictions of the passes: the step's own, and what a multistep sampler keeps; counted on UniPC."""
PERSONS = 2
"""Whose memories a generation makes: the person's and nobody's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """A model as its configurations describe it."""

    shape: Shape
    vae: Mapping[str, Any]
    vae_numbers: int
    text_encoder: Mapping[str, Any]
    adapter: AdapterConfig | None
    terms: Terms
    word: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a request asks of one process."""

    plan: Plan
    windows: int
    "that each step is predicted in"
    tokens: int
    "of a pass over one window on this process"
    texts: int
    computed: int
    "steps in which the blocks are computed"
    forwards: int
    at_once: int
    "passes in one batch"


def describe(blueprint: Blueprint) -> Described:
    by_shape = blueprint.base_name == released.NAME
    about = {part: known if by_shape else base_config(blueprint.base_name, part) for part, known in released.CONFIGS.items()}
    adapter = blueprint.files.config if blueprint.files is not None else None
    shape = flops.shape_of(about["transformer"])
    reference = blueprint.defaults.reference_size // blueprint.spatial_factor
    terms = Terms(text=blueprint.defaults.max_sequence_length)
    if adapter is not None:
        identity = adapter.identity
        terms = replace(
            terms,
            identity=adapter.resampler.queries + identity.registers if adapter.resampler and identity else 0,
            identity_width=identity.tokens if identity else 0,
            identity_blocks=len(adapter.identity_blocks),
            reference=shape.tokens(1, reference, reference) if adapter.reference_blocks else 0,
            reference_blocks=len(adapter.reference_blocks),
        )
    return Described(
        shape=shape,
        vae=about["vae"],
        vae_numbers=released.VAE_NUMBERS if by_shape else _vae_numbers(blueprint.base_name, about["vae"]),
        text_encoder={**released.TEXT_ENCODER, **about["text_encoder"]},
        adapter=adapter,
        terms=terms,
        word=blueprint.dtype.itemsize,
    )


def _vae_numbers(base: str, config: Mapping[str, Any]) -> int:
    """From the headers of the files; of a base on the hub, from the real modules on torch's meta device."""
    from lynx_video.adapters.weights import read_header

    files = sorted((Path(base) / "vae").glob("*.safetensors"))
    if files:
        return sum(math.prod(shape) for file in files for shape in read_header(file).values())
    import torch
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan(**{name: value for name, value in config.items() if not name.startswith("_")})
    return sum(parameter.numel() for parameter in vae.parameters())


def work_of(
    blueprint: Blueprint, config: GenerateConfig, runtime: RuntimeConfig, model: Described, computed: Sequence[bool] | None
) -> Work:
    chosen = plan(blueprint, config)
    if computed is None:
        computed = _computed(blueprint, config, chosen.steps)
    shared, split = runtime.pass_degree or 1, (runtime.ulysses_degree or 1) * (runtime.ring_degree or 1)
    windows = chosen.windows.count if chosen.windows is not None else 1
    tokens = model.shape.tokens(*chosen.window_shape[2:])
    tables = [table for table, compute in zip(chosen.tables, computed, strict=True) if compute]
    small = not blueprint.device.startswith("cpu") and tokens <= BATCH_TOKENS
    most = max(math.ceil(len(table) / shared) for table in chosen.tables)
    return Work(
        plan=chosen,
        windows=windows,
        tokens=math.ceil(tokens / split),
        texts=len({one.text for table in chosen.tables for one in table}),
        computed=len(tables),
        forwards=windows * sum(math.ceil(len(table) / shared) for table in tables),
        at_once=most if runtime.passes == "batched" or (runtime.passes == "auto" and small) else 1,
    )


def _computed(blueprint: Blueprint, config: GenerateConfig, steps: int) -> Sequence[bool]:
    from lynx_video.pipeline.calibration import known_calibration
    from lynx_video.runtime.cache import computed_steps

    known = known_calibration(blueprint) if config.step_cache != "off" else None
    if known is None or config.step_cache == "off":
        return (True,) * steps
    from diffusers import UniPCMultistepScheduler

    from lynx_video.pipeline.schedule import levels, make_scheduler, set_timesteps

    scheduler = make_scheduler(UniPCMultistepScheduler.from_pretrained(blueprint.base_name, subfolder="scheduler"), config)
    return computed_steps(known, levels(set_timesteps(scheduler, steps, "cpu")), float(config.step_cache))


def sizes_of(blueprint: Blueprint, config: GenerateConfig, runtime: RuntimeConfig, model: Described, work: Work) -> Sizes:
    import torch

    from lynx_video.pipeline.decoding import decode_bytes

    shape, terms, word, chosen = model.shape, model.terms, model.word, work.plan
    linears = ((shape.width, shape.width),) * 6 + ((shape.inner, shape.width), (shape.width, shape.inner))
    layer, outside = flops.encoder_numbers(model.text_encoder)
    # what transformers keeps in float32 where the rest is float16: the way out of the feed-forward layers
    kept = 2 * int(model.text_encoder["d_model"]) * int(model.text_encoder["d_ff"]) if blueprint.dtype == torch.float16 else 0
    vae_dtype = torch.float32 if blueprint.dtype == torch.float16 else blueprint.dtype
    pair = 2 * shape.width * word
    persons = PERSONS * pair * (terms.identity_blocks * terms.identity + terms.reference_blocks * terms.reference)
    memories = work.texts * shape.blocks * terms.text * pair + persons
    whole, piece = _adapter_numbers(model.adapter)
    height, width = chosen.height, chosen.width
    frames = chosen.num_frames * height * width * 3
    size = blueprint.defaults.reference_size
    still = activations(shape, terms.reference, word) + 2 * shape.blocks * terms.reference * shape.width * word
    words, heads = terms.text, int(model.text_encoder["num_heads"])
    passes = len(chosen.tables[0])
    tiles = flops.tiles(model.vae, *chosen.latent_shape[3:])
    return Sizes(
        word=word,
        blocks=shape.blocks,
        linears=linears,
        text_linears=((shape.width, shape.width),) * 2,
        block_rest=(shape.block_half + 2 * shape.width) * word + 4 * shape.block_float,
        outside=shape.outside_half * word + 4 * shape.outside_float,
        experts=2 if blueprint.boundary else 1,
        stored=_stored(runtime, shape),
        loras=sum(one.path.stat().st_size for one in blueprint.loras),
        text_encoder=word * (int(model.text_encoder["num_layers"]) * layer + outside)
        + kept * int(model.text_encoder["num_layers"]),
        encoder_layer=word * layer + kept,
        encoder_outside=word * outside,
        vae=model.vae_numbers * vae_dtype.itemsize,
        adapter=whole * word,
        adapter_piece=piece * word,
        memories=memories * (2 if work.at_once > 1 else 1) * (2 if blueprint.boundary else 1),
        encoding=words * (3 * heads * words * 4 + (4 * int(model.text_encoder["d_ff"])) * word),
        remembering=max(still, decode_bytes(size, size, False, model.vae, vae_dtype)) if terms.reference else 0,
        latents=(len(chosen.tables[0]) * math.prod(chosen.window_shape) + SAMPLER * math.prod(chosen.latent_shape)) * 4,
        forward=work.at_once * activations(shape, work.tokens, word),
        kept=(passes * work.windows + 1) * work.tokens * shape.width * word if config.step_cache != "off" else 0,
        decode=decode_bytes(height, width, False, model.vae, vae_dtype),
        decode_tiled=decode_bytes(height, width, True, model.vae, vae_dtype),
        clip=2 * frames,
        tiles=len(tiles) * decode_bytes(256, 256, False, model.vae, vae_dtype) // 2,
    )


def _adapter_numbers(config: AdapterConfig | None) -> tuple[int, int]:
    """All of them, and those of the largest part that can be computed on its own; on torch's meta device."""
    import torch

    from lynx_video.adapters.attach import Adapter

    if config is None:
        return 0, 0
    with torch.device("meta"):
        adapter: Adapter = Adapter(config)
    parts = [adapter.resampler, *adapter.identity.values(), *adapter.reference.values()]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts if part is not None]
    return sum(counts), max(counts, default=0)


def _stored(runtime: RuntimeConfig, shape: Shape) -> float | None:
    """Bytes a weight in a GGUF file: its size over what is in it."""
    if runtime.gguf is None or not runtime.gguf.is_file():
        return None
    return runtime.gguf.stat().st_size / shape.parameters


def arithmetic(model: Described, work: Work) -> dict[str, int]:
    """Operations of the whole clip on this process, by part."""
    before = flops.once(model.shape, model.terms)
    texts = work.texts + bool(model.terms.reference)
    each = flops.forward(model.shape, work.tokens, model.terms)
    return {
        "text encoder": texts * flops.encode(model.text_encoder, model.terms.text),
        "text K/V": work.texts * before["text K/V"],
        "identity and reference K/V": PERSONS * (sum(before.values()) - before["text K/V"]),
        **{name: work.forwards * number for name, number in each.items()},
        "VAE decoder": flops.decode(model.vae, *work.plan.latent_shape[2:]),
    }


def pace_of(runtime: RuntimeConfig, model: Described, work: Work, rates: Rates) -> Pace:
    """Seconds from what was measured: products and attention at REACHED of their rates, the rest of a forward by the bytes it moves."""
    shape, each = model.shape, flops.forward(model.shape, work.tokens, model.terms)
    linear = each["linear layers"] / rates.matmul / REACHED
    attention = (sum(each.values()) - each["linear layers"]) / rates.attention / REACHED
    moved = flops.moved(shape, work.tokens, model.word, compiled=runtime.compile) / rates.traffic
    total = arithmetic(model, work)
    decode = total["VAE decoder"] / rates.convolution
    height, width = work.plan.latent_shape[3:]
    overlap = sum(down * across for down, across in flops.tiles(model.vae, height, width)) / (height * width)
    return Pace(
        forward=linear + attention + moved + flops.OPERATIONS * shape.blocks * rates.start,
        linear=linear,
        forwards=work.forwards,
        texts=(total["text encoder"] + total["text K/V"]) / rates.matmul,
        memories=total["identity and reference K/V"] / rates.matmul,
        decode=decode,
        decode_tiled=decode * overlap,
        link=rates.link,
    )
