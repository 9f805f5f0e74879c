"""The model under test: loaded, or made with random weights on the device; and whom and what the clips show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lynx_video.bench.size import SIZES, Size, text_encoder
from lynx_video.errors import BadRequest
from lynx_video.nano import model as nano
from lynx_video.pipeline.components import Blueprint, Components
from lynx_video.pipeline.models import FaceModels
from lynx_video.types import FACE_WIDTH, Identity

if TYPE_CHECKING:
    from lynx_video.adapters.attach import AdapterConfig

LEAST_BYTES = 60 * 2**30
"""Device memory that a model of 14B shapes needs in bfloat16, with its adapter and the activations of a forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a model comes from. size: of one with random weights; "": loaded, by the other fields, as `load` takes them."""

    size: str = ""
    arm: str = "full"
    model: str = "nano"
    base: str | None = None
    adapter: tuple[str, ...] = ()
    models: str = "models"
    dtype: str | None = None
    device: str | None = None

    def __str__(self) -> str:
        """In a few words."""
        if self.size:
            return f"a {self.size} model with random weights, {self.arm} adapter"
        return self.model if self.base is None else f"{self.base}, adapter {', '.join(self.adapter)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What every clip shows: the same person, prompt and noise."""

    identity: Identity
    prompt: str = "a person smiles at the camera"


def open_source(source: Source, folder: Path) -> tuple[Components, Blueprint]:
    """The model, loaded or made. folder: where the configurations of a made one are put.

    Raises BadRequest for 14B shapes without a CUDA GPU, and as `survey` and `assemble`.
    """
    from lynx_video.pipeline.load import assemble, survey

    if source.size:
        return make(source, folder)
    blueprint = survey(
        source.model,
        base=source.base,
        adapter=source.adapter or None,
        dtype=source.dtype,
        device=source.device,
        models=source.models,
    )
    if blueprint.boundary:
        raise BadRequest(f"{blueprint.base_name} has two experts; the bench takes a base of one transformer.")
    return assemble(blueprint), blueprint


def check_source(source: Source) -> None:
    """Raises BadRequest for a size that nobody knows or that cannot be made here."""
    if not source.size:
        return
    if source.size not in SIZES:
        raise BadRequest(f"unknown size {source.size!r}; the sizes are {', '.join(SIZES)}.")
    device = _device(source)
    if source.size != "14b":
        return
    if device.type != "cuda":
        raise BadRequest("a model of 14B shapes is made on a CUDA GPU, and torch finds none; --size mid runs on the CPU.")
    there = torch.cuda.get_device_properties(device).total_memory
    if there < LEAST_BYTES:
        raise BadRequest(
            f"a model of 14B shapes takes {LEAST_BYTES / 2**30:.0f} GiB of GPU memory, {torch.cuda.get_device_name(device)} has "
            f"{there / 2**30:.0f}; --size mid runs on it."
        )


def make(source: Source, folder: Path, *, size: Size | None = None) -> tuple[Components, Blueprint]:
    """A model with random weights, the same for the same source, made where it stays.

    size: in place of the one that the source names.
    """
    from lynx_video.adapters.attach import Adapter
    from lynx_video.adapters.weights import AdapterFiles, BaseShape
    from lynx_video.pipeline.load import dtype_named

    check_source(source)
    size = size or SIZES[source.size]
    device = _device(source)
    dtype = dtype_named(source.dtype, str(device))
    with _seeded(device), torch.device(device):
        with _default(dtype):
            transformer = size.transformer()
            encoder = text_encoder(size, int(transformer.config.text_dim))
        with _default(torch.float32 if dtype == torch.float16 else dtype):
            vae = size.vae()
        config = _adapter_config(size, source.arm, transformer)
        with _default(dtype):
            adapter: Adapter = Adapter(config)
    for name, parameter in transformer.named_parameters():
        if any(kept in name for kept in transformer._keep_in_fp32_modules):  # what from_pretrained keeps
            parameter.data = parameter.data.float()
    for module in (transformer, encoder, vae, adapter):
        module.eval().requires_grad_(False)
    adapter.attach(transformer)
    scheduler = nano.scheduler()
    for part, holder in (
        ("transformer", transformer),
        ("vae", vae),
        ("text_encoder", encoder.config),
        ("scheduler", scheduler),
    ):
        _write_config(holder, folder / part)
    components = Components(
        tokenizer=nano.tokenizer(),
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
        adapter=adapter,
        faces=_nobody(),
        defaults=size.defaults(source.arm),
        arm=source.arm,
        base_name=str(folder),
        base_hash="",
        adapter_hash="",
        device=device,
        dtype=dtype,
    )
    blueprint = Blueprint(
        base_name=str(folder),
        base_hash="",
        shape=BaseShape(width=config.width, heads=config.heads, blocks=len(transformer.blocks)),
        channels=components.channels,
        patch_size=tuple(transformer.config.patch_size),
        spatial_factor=components.spatial_factor,
        temporal_factor=components.temporal_factor,
        files=AdapterFiles(config=config, arm=source.arm, tensors={}),
        adapter_hash="",
        arm=source.arm,
        defaults=components.defaults,
        faces=components.faces,
        device=str(device),
        dtype=dtype,
    )
    return components, blueprint


def draw_scene(components: Components) -> Scene:
    """A person of random numbers, as a face encoder and a camera would give them."""
    rng = torch.Generator().manual_seed(7)
    side = components.defaults.reference_size
    face = torch.nn.functional.normalize(torch.randn(FACE_WIDTH, generator=rng), dim=0)
    crop = torch.randint(0, 256, (side, side, 3), generator=rng, dtype=torch.uint8).numpy()
    return Scene(identity=Identity(embedding=face, crop=crop))


def without_scoring(components: Components) -> Components:
    """The same components, whose clips nobody scores."""
    return replace(components, faces=replace(components.faces, judges={}))


def _adapter_config(size: Size, arm: str, transformer: Any) -> AdapterConfig:
    heads = int(transformer.config.num_attention_heads)
    return size.adapter(arm, heads * int(transformer.config.attention_head_dim), heads, len(transformer.blocks))


def _device(source: Source) -> torch.device:
    from lynx_video.pipeline.load import device_named

    return torch.device(device_named(source.device))


def _write_config(holder: Any, folder: Path) -> None:
    save = getattr(holder, "save_config", None) or holder.save_pretrained
    save(folder)


def _nobody() -> FaceModels:
    """No face models: the person of a scene is there already, and nobody scores."""

    def absent() -> Any:
        raise BadRequest("a model with random weights knows no faces.")

    return FaceModels(detector=absent, encoder=absent)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Within it modules are made in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Within it random numbers are the same every time; after it they go on as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield
