"""The released models by their shapes, for plans that are made before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lynx_video.config import FULL, LITE, RuntimeConfig
from lynx_video.pipeline.components import Blueprint
from lynx_video.pipeline.models import MODELS

if TYPE_CHECKING:
    import torch

    from lynx_video.adapters.attach import AdapterConfig

NAME = "Wan2.1-T2V-14B"
TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "num_layers": 40,
        "ffn_dim": 13824,
        "text_dim": 4096,
        "freq_dim": 256,
        "patch_size": (1, 2, 2),
        "in_channels": 16,
        "out_channels": 16,
        "cross_attn_norm": True,
    }
)
VAE: Mapping[str, Any] = MappingProxyType(
    {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "temperal_downsample": (False, True, True),
        "out_channels": 3,
        "scale_factor_spatial": 8,
        "scale_factor_temporal": 4,
    }
)
VAE_NUMBERS = 126_892_531
TEXT_ENCODER: Mapping[str, Any] = MappingProxyType(
    {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 256_384,
        "relative_attention_num_buckets": 32,
    }
)
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"transformer": TRANSFORMER, "vae": VAE, "text_encoder": TEXT_ENCODER}
)


def missing_parts(model: str, base: str | None, adapter: tuple[str, ...], models: Path) -> tuple[str, ...]:
    """What of a released model's own files is not there: "base", "adapter", both or none.

    An adapter named by path is not looked for, and with a base of its own a model is not the released one.
    """
    own = MODELS[model]
    if model.startswith("nano") or base is not None:
        return ()
    there = {
        "base": (models / Path(own.base).name).is_dir(),
        "adapter": bool(adapter) or (models / Path(own.adapter).name).is_dir(),
    }
    return tuple(part for part, found in there.items() if not found)


def released(
    model: str,
    missing: tuple[str, ...],
    *,
    models: Path = Path("models"),
    adapter: tuple[str, ...] = (),
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    parts: frozenset[str] | None = None,
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
) -> Blueprint:
    """A blueprint of lynx-full or lynx-lite in which known shapes stand for what is `missing`. Other arguments as in `survey`.

    Where the base is missing its name is NAME, which is no folder: such a blueprint can be planned with, not loaded.
    """
    from lynx_video.adapters.weights import AdapterFiles, BaseShape, inspect
    from lynx_video.pipeline.load import device_named, dtype_named, survey
    from lynx_video.pipeline.tuning import check_runtime

    arm = "lite" if model == "lynx-lite" else "full"
    config = adapter_config(arm, parts)
    files = AdapterFiles(config=config, arm=arm, tensors={}) if config is not None else None
    if "base" not in missing:
        found = survey(model, dtype=dtype, device=device, with_adapter=False, arm=arm, models=models, runtime=runtime)
        return replace(found, files=files)
    shape = BaseShape(width=5120, heads=40, blocks=40)
    if "adapter" not in missing:
        paths = [Path(one) for one in adapter] or [models / Path(MODELS[model].adapter).name]
        files = inspect(paths, shape, parts) if parts != frozenset() else None
        arm = files.arm if files is not None else arm
    where, number = device_named(device), dtype_named(dtype, device)
    loras, cautions = check_runtime(runtime, shape, where, number)
    return Blueprint(
        base_name=NAME,
        base_hash="",
        shape=shape,
        channels=16,
        patch_size=(1, 2, 2),
        spatial_factor=8,
        temporal_factor=4,
        files=files,
        adapter_hash="",
        arm=arm,
        defaults=FULL if arm == "full" else LITE,
        faces=MODELS[model].faces(models),
        device=where,
        dtype=number,
        cautions=cautions,
        runtime=runtime,
        loras=loras,
    )


def adapter_config(arm: str, parts: frozenset[str] | None = None) -> AdapterConfig | None:
    """The released adapter of an arm; parts as in `survey`; None where none is left."""
    from lynx_video.adapters.attach import AdapterConfig
    from lynx_video.adapters.projection import ProjectionConfig
    from lynx_video.adapters.resampler import ResamplerConfig

    full = arm == "full"
    tokens = 5120 if full else 2048
    has = parts if parts is not None else frozenset({"identity", "reference"})
    identity = "identity" in has
    reference = "reference" in has and full
    if not identity and not reference:
        return None
    projection = ProjectionConfig(tokens=tokens, width=5120, bias=full, registers=16 if full else 0, own_key_norm=not full)
    return AdapterConfig(
        width=5120,
        heads=40,
        resampler=ResamplerConfig(output=tokens) if identity else None,
        identity=projection if identity else None,
        identity_blocks=tuple(range(0, 40, 1 if full else 2)) if identity else (),
        reference_blocks=tuple(range(40)) if reference else (),
    )
