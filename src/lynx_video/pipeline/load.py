"""Loading: a base and an adapter, checked against each other before a weight is read, as `Components`.

This is the only place that knows which models exist; everything above it works on `Components`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import FULL, LITE, Defaults, GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, BadWeights, LynxWarning
from lynx_video.pipeline.calibration import calibration_file
from lynx_video.pipeline.checkpoint import (
    base_config,
    base_fingerprint,
    base_shape,
    check_base_files,
    fingerprint,
    load_base,
    load_second,
)
from lynx_video.pipeline.components import Blueprint, Components
from lynx_video.pipeline.experts import CAUTION, boundary_of
from lynx_video.pipeline.models import MODELS, NANO, FaceModels, Model, nano_file, photograph_faces
from lynx_video.pipeline.tuning import check_runtime, holds_whole, settle, tune_

if TYPE_CHECKING:
    import torch

    from lynx_video.runtime.parallel import Ranks

DTYPES = ("bf16", "fp16", "fp32")
IDLE_MODELS = ("keep", "offload", "free")


def load(
    model: str = "nano",
    *,
    base: str | Path | None = None,
    adapter: str | Path | Sequence[str | Path] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    parts: frozenset[str] | None = None,
    with_adapter: bool = True,
    faces: FaceModels | None = None,
    models: str | Path = "models",
    idle_models: str = "keep",
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
) -> Components:
    """Load a model.

    model: nano, nano-lite, lynx-full or lynx-lite; base and adapter override its paths. base: a folder in the diffusers layout or a hub
    id. adapter: a folder, a file or several. dtype: bf16, fp16, fp32 or a torch dtype; None: bf16 on CUDA, fp32 elsewhere.
    parts: {"identity"}, {"reference"} or both; None: all the adapter has. with_adapter: False loads no adapter weights, for
    identities that bring their memories. idle_models: as in GenerateConfig; unless "keep", only the transformer is put on the device
    now, and the rest when it is needed. runtime: how it is held and run; a memory budget is planned for the arm's own size of clip
    and sets idle_models, too. Raises BadWeights for files that are missing, cut, mixed or made for another base, before
    the base's weights are read; BadRequest for unknown names.
    """
    blueprint = survey(
        model,
        base=base,
        adapter=adapter,
        dtype=dtype,
        device=device,
        parts=parts,
        with_adapter=with_adapter,
        faces=faces,
        models=models,
        runtime=runtime,
    )
    blueprint = settle(blueprint, GenerateConfig())
    for caution in blueprint.cautions:
        warnings.warn(caution, LynxWarning, stacklevel=2)
    return assemble(blueprint, idle_models=idle_models)


def survey(
    model: str = "nano",
    *,
    base: str | Path | None = None,
    adapter: str | Path | Sequence[str | Path] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    parts: frozenset[str] | None = None,
    with_adapter: bool = True,
    arm: str | None = None,
    faces: FaceModels | None = None,
    models: str | Path = "models",
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
) -> Blueprint:
    """What `load` would load, checked. Arguments and errors as there.

    arm: full or lite, whose defaults count where no adapter is loaded.
    """
    from lynx_video.adapters.weights import inspect

    spec = _model(model)
    if base is not None and adapter is None and with_adapter and model.startswith("nano"):
        raise BadRequest("give an adapter with the base: nano's own adapter fits no other base.")
    chosen_device, chosen_dtype = device_named(device), dtype_named(dtype, device)
    if arm is not None and not with_adapter:
        spec = next((one for one in MODELS.values() if one.base == spec.base and _arm_of([Path(one.adapter)]) == arm), spec)
    base_name = str(base) if base is not None else _under(spec.base, models)
    if adapter is not None:
        paths = _paths(adapter)
    else:
        # another base has nothing to do with the settings that lie beside the model's own adapter
        paths = [Path(_under(spec.adapter, models))] if with_adapter or base is None else []
    if base_name == str(NANO / "base"):
        nano_file("base/transformer/config.json")
    if base is None and not Path(base_name).is_dir():
        raise BadWeights(f"{base_name} is not there; `lynx-video download base` fetches it, --models names another folder.")
    if runtime.gguf is not None and not Path(base_name).is_dir():
        raise BadRequest(
            f"--gguf needs the rest of its base in a folder, {base_name} is none: `lynx-video download base` fetches it."
        )
    shape = base_shape(base_name)
    transformer, vae = base_config(base_name, "transformer"), base_config(base_name, "vae")
    files = inspect(paths, shape, parts) if with_adapter else None
    chosen_arm = files.arm if files is not None else arm or _arm_of(paths)
    check_base_files(base_name, transformer=runtime.gguf is None)
    base_hash = base_fingerprint(base_name)
    boundary = boundary_of(base_name)
    loras, cautions = check_runtime(
        runtime,
        shape,
        chosen_device,
        chosen_dtype,
        channels=int(transformer.get("in_channels", 16)),
        experts=2 if boundary else 1,
    )
    if files is not None:
        cautions = (*_made_for_another(paths, base_name, base_hash), *cautions)
    if runtime.gguf is not None:  # another base, whatever its shape; one that is quantized here is still the same
        base_hash = f"{base_hash} with {fingerprint([runtime.gguf])}"
    if boundary:
        cautions = (CAUTION, *cautions)
    return Blueprint(
        base_name=base_name,
        base_hash=base_hash,
        shape=shape,
        channels=int(transformer.get("in_channels", 16)),
        patch_size=_patch_size(transformer),
        spatial_factor=int(vae.get("scale_factor_spatial", 8)),
        temporal_factor=int(vae.get("scale_factor_temporal", 4)),
        files=files,
        adapter_hash=fingerprint(files.files) if files is not None else "",
        arm=chosen_arm,
        defaults=_defaults(paths, chosen_arm),
        faces=faces or (photograph_faces if base is not None and model.startswith("nano") else spec.faces)(Path(models)),
        device=chosen_device,
        dtype=chosen_dtype,
        cautions=cautions,
        calibration=calibration_file(paths[0] if paths else None, base_name),
        boundary=boundary,
        runtime=runtime,
        loras=loras,
        lora_hash=" ".join(f"{fingerprint([one.path])}:{one.scale:g}" for one in loras),
    )


def assemble(blueprint: Blueprint, *, idle_models: str = "keep", ranks: Ranks | None = None) -> Components:
    """Read the weights of a surveyed model. Raises BadWeights for a base that cannot be loaded.

    idle_models: as in `load`, unless a memory budget decided.
    ranks: the processes that share the work, each with the whole model; None: this one alone.
    """
    import torch

    from lynx_video.adapters.attach import Adapter, AdapterConfig
    from lynx_video.adapters.weights import load_adapter

    if idle_models not in IDLE_MODELS:
        raise BadRequest(f"idle_models must be one of {', '.join(IDLE_MODELS)}, got {idle_models!r}.")
    if blueprint.layout is not None:
        idle_models = blueprint.layout.idle_models
    device = ranks.among.device if ranks is not None else torch.device(blueprint.device)
    held = str(device) if holds_whole(blueprint.runtime) else "cpu"
    base = load_base(
        blueprint.base_name,
        blueprint.dtype,
        str(device),
        idle_models=idle_models,
        transformer_device=held,
        gguf=blueprint.runtime.gguf,
    )
    second = load_second(blueprint.base_name, blueprint.dtype, held) if blueprint.boundary else None
    if blueprint.files is not None:
        adapter = load_adapter(blueprint.files, dtype=blueprint.dtype, device=device if idle_models == "keep" else "cpu")
    else:
        adapter = Adapter(AdapterConfig(width=blueprint.shape.width, heads=blueprint.shape.heads))
    twin = adapter.twin() if second is not None else None
    adapter.attach(base["transformer"])
    if twin is not None:
        twin.attach(second)
    components = Components(
        **base,
        adapter=adapter,
        faces=blueprint.faces,
        defaults=blueprint.defaults,
        arm=blueprint.arm,
        base_name=blueprint.base_name,
        base_hash=blueprint.base_hash,
        adapter_hash=blueprint.adapter_hash,
        device=device,
        dtype=blueprint.dtype,
        idle_models=idle_models,
        runtime=blueprint.runtime,
        layout=blueprint.layout,
        lora_hash=blueprint.lora_hash,
        low_noise=twin,
        boundary=blueprint.boundary,
        calibration=blueprint.calibration,
        ranks=ranks,
    )
    tune_(components, blueprint)
    return components


def _patch_size(config: dict[str, Any]) -> tuple[int, int, int]:
    in_time, down, across = config.get("patch_size") or (1, 2, 2)
    return int(in_time), int(down), int(across)


def _model(name: str) -> Model:
    if name not in MODELS:
        raise BadRequest(f"unknown model {name!r}; the models are {', '.join(MODELS)}.")
    return MODELS[name]


def _under(path: str, models: str | Path) -> str:
    """A default path, moved to another models folder if one is given."""
    return str(Path(models) / Path(path).name) if path.startswith("models/") else path


def _paths(adapter: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(adapter)] if isinstance(adapter, (str, Path)) else [Path(one) for one in adapter]


def device_named(device: str | torch.device | None) -> str:
    """The device that a name stands for, CUDA where there is one by default. Raises BadRequest for one that is not there."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BadRequest(f"unknown device {device!r}; examples are cuda, cuda:1 and cpu.") from error
    try:
        usable = torch.empty(0, device=chosen).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own way to say that it is not there
        usable = False
    if not usable:
        raise BadRequest(f"device {str(device)!r} is not available to this torch; --device cpu works everywhere.")
    return str(chosen)


def dtype_named(dtype: str | torch.dtype | None, device: str | torch.device | None) -> torch.dtype:
    """The dtype that a name stands for; by default bfloat16 on CUDA, float32 elsewhere. Raises BadRequest for another."""
    import torch

    table = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if dtype is None:
        return torch.bfloat16 if device_named(device).startswith("cuda") else torch.float32
    if isinstance(dtype, str):
        if dtype not in table:
            raise BadRequest(f"unknown torch dtype {dtype!r}; choose {', '.join(DTYPES)}.")
        return table[dtype]
    if dtype not in table.values():
        raise BadRequest(f"dtype {dtype} is not supported; choose torch.bfloat16, torch.float16 or torch.float32.")
    return dtype


def _defaults(paths: Sequence[Path], arm: str) -> Defaults:
    """The arm's defaults, overridden by a `lynx.json` beside the adapter."""
    defaults = FULL if arm == "full" else LITE
    for file, values in _notes(paths):
        try:
            return replace(defaults, **{one.name: values[one.name] for one in fields(Defaults) if one.name in values})
        except TypeError as error:
            raise BadWeights(f"{file} can't be read as the adapter's defaults ({error}).") from error
    return defaults


def _made_for_another(paths: Sequence[Path], base_name: str, base_hash: str) -> tuple[str, ...]:
    """A sentence on each adapter whose `lynx.json` says that it was trained on another base of the same shape."""
    return tuple(
        f"{file.parent} was trained on another base ({values.get('base', 'unknown')}) than {base_name}; likeness may be lost."
        for file, values in _notes(paths)
        if values.get("base_hash", base_hash) != base_hash
    )


def _notes(paths: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each `lynx.json` beside an adapter, with what it says. Raises BadWeights for one that is no JSON object."""
    for path in paths:
        file = (path if path.is_dir() else path.parent) / "lynx.json"
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadWeights(f"{file} can't be read as the adapter's defaults ({error}).") from error
        if not isinstance(values, dict):
            raise BadWeights(f"{file} can't be read as the adapter's defaults (no JSON object).")
        yield file, values


def _arm_of(paths: Sequence[Path]) -> str:
    return "lite" if any("lite" in path.name for path in paths) else "full"
