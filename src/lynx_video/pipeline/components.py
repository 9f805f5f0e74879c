"""A model before its weights are read, and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import Defaults, RuntimeConfig
from lynx_video.pipeline.models import FaceModels

if TYPE_CHECKING:
    import torch

    from lynx_video.adapters.attach import Adapter
    from lynx_video.adapters.weights import AdapterFiles, BaseShape
    from lynx_video.runtime.cache import StepCache
    from lynx_video.runtime.lora import LoraFile, Loras
    from lynx_video.runtime.memory import Layout
    from lynx_video.runtime.parallel import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """A model as its configurations and file headers describe it: everything checked, no weight read yet."""

    base_name: str
    base_hash: str
    shape: BaseShape
    channels: int
    "of the latents"
    patch_size: tuple[int, int, int]
    spatial_factor: int
    temporal_factor: int
    files: AdapterFiles | None
    adapter_hash: str
    arm: str
    defaults: Defaults
    faces: FaceModels
    device: str
    dtype: torch.dtype
    cautions: tuple[str, ...] = ()
    "what may spoil the result, in sentences"
    calibration: Path | None = None
    "file of what is known of the step cache, there or not"
    boundary: float = 0.0
    "of a base with two experts: the timestep below which the second transformer serves; 0 for a base of one"
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    loras: tuple[LoraFile, ...] = ()
    lora_hash: str = ""
    "what the LoRAs are known by, with their scales; empty without"
    layout: Layout | None = None
    "what a memory budget decided; None: there is none"
    planned: str = ""
    "that in words"

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels: the VAE's factor times the patch."""
        return self.spatial_factor * self.patch_size[-1]

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return self.shape.blocks


@dataclass(kw_only=True, slots=True)
class Components:
    """Everything a generation needs, loaded. `adapter` is attached to `transformer`."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    transformer: Any
    scheduler: Any
    adapter: Adapter
    faces: FaceModels
    defaults: Defaults
    arm: str
    base_name: str
    base_hash: str
    adapter_hash: str
    device: torch.device
    dtype: torch.dtype
    idle_models: str = "keep"
    "how it was loaded: what a generation does that asks for nothing else"
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    low_noise: Adapter | None = None
    "of a base with two experts (Wan 2.2): the adapter on the second transformer, which serves the timesteps below `boundary`"
    boundary: float = 0.0
    "timestep, 0 to 1000"
    layout: Layout | None = None
    "what a memory budget decided"
    loras: Loras | None = None
    lora_hash: str = ""
    cache: StepCache | None = None
    calibration: Path | None = None
    "file of what is known of the step cache, there or not"
    ranks: Ranks | None = None
    "the processes that share a generation; None: this one alone"

    @property
    def adapters(self) -> tuple[tuple[Adapter, float], ...]:
        """Each adapter, on its transformer, with the lowest timestep it serves."""
        first = (self.adapter, self.boundary)
        return (first,) if self.low_noise is None else (first, (self.low_noise, 0.0))

    @property
    def shape(self) -> BaseShape:
        """Width, heads and blocks of the transformer."""
        from lynx_video.adapters.weights import BaseShape

        heads = int(self.transformer.config.num_attention_heads)
        width = heads * int(self.transformer.config.attention_head_dim)
        return BaseShape(width=width, heads=heads, blocks=self.blocks)

    @property
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for."""
        return int(self.vae.config.scale_factor_temporal)

    @property
    def spatial_factor(self) -> int:
        """Pixels, in height and in width, a latent stands for."""
        return int(self.vae.config.scale_factor_spatial)

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels: the VAE's factor times the patch."""
        return self.spatial_factor * int(self.transformer.config.patch_size[-1])

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.transformer.config.in_channels)

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return len(self.transformer.blocks)
