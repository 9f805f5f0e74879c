"""A new adapter: its shape, and where its weights start from.

Keys and values start as copies of the block's own, at zero, or random (all three are in the reference's code); the resampler from an
InstantID checkpoint, without which the paper saw hardly any likeness in the same number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.projection import Projection, ProjectionConfig
from lynx_video.adapters.resampler import Resampler, ResamplerConfig
from lynx_video.adapters.weights import BaseShape
from lynx_video.errors import BadWeights
from lynx_video.training.config import TrainConfig

# InstantID keeps an IP-Adapter resampler under this prefix, parameter for parameter ours
INSTANTID_PREFIX = "image_proj."


def adapter_config(base: BaseShape, config: TrainConfig) -> AdapterConfig:
    """The shape of a new adapter for `base`; at the official sizes, that of the official files."""
    full = config.arm == "full"
    width = base.width if full else config.token_width
    return AdapterConfig(
        width=base.width,
        heads=base.heads,
        resampler=ResamplerConfig(
            depth=config.resampler_depth,
            width=config.resampler_width,
            inner=config.resampler_width,
            queries=config.queries,
            output=width,
        ),
        identity=ProjectionConfig(
            tokens=width, width=base.width, bias=full, registers=config.registers if full else 0, own_key_norm=not full
        ),
        identity_blocks=tuple(range(0, base.blocks, 1 if full else 2)),
        reference_blocks=tuple(range(base.blocks)) if full else (),
    )


@torch.no_grad()
def initialise_(adapter: Adapter, config: TrainConfig) -> None:
    """Set the start of a new adapter that is attached to its base; the same for the same seed."""
    generator = torch.Generator().manual_seed(config.seed)
    for blocks, attention in ((adapter.identity, "attn2"), (adapter.reference, "attn1")):
        for name, projection in blocks.items():
            assert isinstance(projection, Projection)
            _start_projection_(projection, getattr(adapter.transformer.blocks[int(name)], attention), config, generator)
    if adapter.resampler is not None:
        _start_resampler_(adapter.resampler, generator)
        if config.resampler is not None:
            load_instantid_(adapter.resampler, config.resampler)


def _start_projection_(projection: Projection, own: Any, config: TrainConfig, generator: torch.Generator) -> None:
    for layer in (projection.to_k, projection.to_v):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if config.initial == "clone" and projection.to_k.weight.shape == own.to_k.weight.shape and projection.config.bias:
        for layer, source in ((projection.to_k, own.to_k), (projection.to_v, own.to_v)):
            layer.weight.copy_(source.weight)
            layer.bias.copy_(source.bias)
    for tensor in (projection.to_v.weight, projection.to_v.bias):
        if tensor is not None:
            tensor.mul_(0.0 if config.initial == "zero" else config.initial_value)
    if projection.registers is not None:
        nn.init.normal_(projection.registers, std=0.1, generator=generator)


def _start_resampler_(resampler: Resampler, generator: torch.Generator) -> None:
    for name, parameter in resampler.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
        elif name == "latents":
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
    # face vectors have unit length over 512 numbers; this brings their projection to unit variance
    nn.init.normal_(resampler.proj_in.weight, std=1.0, generator=generator)


@torch.no_grad()
def load_instantid_(resampler: Resampler, file: Path) -> list[str]:
    """Start a resampler from an InstantID checkpoint; the names of parameters that keep their own start.

    InstantID's tokens are 2048 wide. A resampler of another output keeps its own `proj_out` and `norm_out`; everything else must fit.
    Raises BadWeights naming file and key.
    """
    stored = {
        name.removeprefix(INSTANTID_PREFIX): tensor
        for name, tensor in _read_checkpoint(file).items()
        if name.startswith(INSTANTID_PREFIX)
    }
    if not stored:
        raise BadWeights(
            f"{file} has no key that starts with {INSTANTID_PREFIX!r}; expected an InstantID ip-adapter checkpoint."
        )
    kept = []
    for name, parameter in resampler.named_parameters():
        if name not in stored:
            raise BadWeights(f"{file}: key {INSTANTID_PREFIX + name!r} is missing.")
        if stored[name].shape == parameter.shape:
            parameter.copy_(stored[name])
        elif name.startswith(("proj_out.", "norm_out.")):
            kept.append(name)
        else:
            raise BadWeights(
                f"{file}: {INSTANTID_PREFIX + name} has shape {list(stored[name].shape)}, this resampler needs "
                f"{list(parameter.shape)}; set --resampler-width, --resampler-depth and --queries to the checkpoint's."
            )
    surplus = sorted(set(stored) - {name for name, _ in resampler.named_parameters()})
    if surplus:
        raise BadWeights(f"{file}: {INSTANTID_PREFIX + surplus[0]} is unexpected; this resampler has no such parameter.")
    return kept


def _read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Flat tensors of a checkpoint; nested dicts become dotted names."""
    if not file.is_file():
        raise BadWeights(f"{file} is not there; expected an InstantID checkpoint, ip-adapter.bin.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadWeights(f"{file} can't be read as a checkpoint ({type(error).__name__}); download it again.") from error
    flat: dict[str, Tensor] = {}

    def walk(value: Any, prefix: str) -> None:
        if isinstance(value, Tensor):
            flat[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{prefix}.{key}" if prefix else str(key))

    walk(stored, "")
    return flat
