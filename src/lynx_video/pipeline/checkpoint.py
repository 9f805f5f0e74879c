"""A base model on disk or on the hub, in the diffusers layout: what its configurations say, whether its files are whole, its
weights, and a hash to know it by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadWeights, LynxError, MissingDependency

if TYPE_CHECKING:
    import torch

    from lynx_video.adapters.weights import BaseShape


def base_shape(base: str, part: str = "transformer") -> BaseShape:
    """Width, heads and blocks of a base, from its transformer's config alone. Raises BadWeights if it is no text-to-video Wan."""
    from lynx_video.adapters.weights import BaseShape

    config = base_config(base, part)
    if config.get("_class_name") != "WanTransformer3DModel":
        raise BadWeights(f"{base}: {part}/config.json is of {config.get('_class_name')}, expected WanTransformer3DModel.")
    if config.get("image_dim") or config.get("added_kv_proj_dim"):
        raise BadWeights(f"{base} is an image-to-video model; Lynx needs a text-to-video base such as Wan2.1-T2V-14B.")
    try:
        heads, width = int(config["num_attention_heads"]), int(config["attention_head_dim"])
        return BaseShape(width=heads * width, heads=heads, blocks=int(config["num_layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{base}: {part}/config.json lacks a usable {error}; download the base again.") from error


def base_config(base: str, part: str) -> dict[str, Any]:
    """The configuration of a part (`transformer`, `vae`). Raises BadWeights where there is none."""
    if Path(base).exists() or base.startswith((".", "/", "~", "models")) or base.count("/") != 1:
        file = Path(base) / part / "config.json"
        if not file.is_file():
            raise BadWeights(
                f"{file} is not there: {base} is not a base model in the diffusers layout; `lynx-video download base` fetches it."
            )
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadWeights(f"{file} can't be read as JSON ({error}); download the base again.") from error
        if not isinstance(config, dict):
            raise BadWeights(f"{file} holds no JSON object; download the base again.")
        return config
    from diffusers import WanTransformer3DModel

    try:
        return dict(WanTransformer3DModel.load_config(base, subfolder=part))
    except (OSError, ValueError) as error:
        raise LynxError(f"the base {base} can't be fetched from the hub ({_first_line(error)}).") from error


def check_base_files(base: str, *, transformer: bool = True) -> None:
    """Refuse a local base of which a file is missing or a weights file cut, from the headers; a hub id is left to the hub.

    transformer: False where its weights come from elsewhere (a GGUF file) and need not be there.
    """
    from lynx_video.adapters.weights import read_header

    if not Path(base).is_dir():
        return
    second = ("transformer_2",) if (Path(base) / "transformer_2").is_dir() else ()
    for part in ("text_encoder", "vae", *(("transformer", *second) if transformer else ())):
        folder = Path(base) / part
        files = set(folder.glob("*.safetensors"))
        for index in folder.glob("*.safetensors.index.json"):
            try:
                files |= {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadWeights(f"{index} can't be read as an index of shards ({error}).") from error
        if not files and not any(folder.glob("*.bin")):
            raise BadWeights(f"{folder}: no weights there; `lynx-video download base` fetches the base.")
        for file in sorted(files):
            read_header(file)
    for part, names in (("scheduler", ("scheduler_config.json",)), ("tokenizer", ("tokenizer.json", "spiece.model"))):
        if not any((Path(base) / part / name).is_file() for name in names):
            raise BadWeights(
                f"{Path(base) / part}: no {' or '.join(names)} there; `lynx-video download base` fetches the base."
            )


def load_base(
    base: str,
    dtype: torch.dtype,
    device: str,
    *,
    idle_models: str = "keep",
    transformer_device: str | None = None,
    gguf: Path | None = None,
) -> dict[str, Any]:
    """Tokenizer, text encoder, VAE, transformer and scheduler, frozen, in evaluation mode.

    idle_models: unless "keep", text encoder and VAE stay in host memory. transformer_device: where the transformer goes, if elsewhere
    than the rest. gguf: a file that its weights come from instead of the base. Raises BadWeights naming the part of a folder, LynxError
    for a hub id; what a lack of memory raises comes through as it is.
    """
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
    from transformers import AutoTokenizer, UMT5EncoderModel

    # half precision overflows in the VAE; bfloat16 is what the reference decodes in
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    loaders: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(base, subfolder="tokenizer"),
        "scheduler": lambda: UniPCMultistepScheduler.from_pretrained(base, subfolder="scheduler"),
        "text_encoder": lambda: UMT5EncoderModel.from_pretrained(base, subfolder="text_encoder", dtype=dtype).eval(),
        "vae": lambda: AutoencoderKLWan.from_pretrained(base, subfolder="vae", torch_dtype=vae_dtype).eval(),
        "transformer": lambda: load_transformer(base, dtype, device=transformer_device or device, gguf=gguf),
    }
    loaded: dict[str, Any] = {}
    for part, loader in loaders.items():
        with _loading(base, part):
            loaded[part] = loader()
        if part not in ("tokenizer", "scheduler"):
            loaded[part].requires_grad_(False)
            if part != "transformer" and idle_models == "keep":
                loaded[part].to(device)
    return loaded


@contextmanager
def _loading(base: str, part: str) -> Iterator[None]:
    """Within it what goes wrong is said of this part of the base: BadWeights of a folder, LynxError of a hub id."""
    import torch

    try:
        yield
    except ImportError as error:
        raise MissingDependency(f"{part} of {base} can't be loaded: {_first_line(error)}.") from error
    except (MemoryError, torch.OutOfMemoryError, LynxError):
        raise
    except Exception as error:
        if "allocate memory" in str(error):  # host memory: torch has only a RuntimeError for it
            raise MemoryError(_first_line(error)) from error
        if not Path(base).is_dir():
            raise LynxError(f"{part} of the base {base} can't be loaded from the hub ({_first_line(error)}).") from error
        raise BadWeights(f"{Path(base) / part} can't be loaded ({_first_line(error)}); download the base again.") from error


def load_second(base: str, dtype: torch.dtype, device: str) -> Any:
    """The transformer for low noise of a base with two, frozen, on the device. Raises as `load_base`."""
    with _loading(base, "transformer_2"):
        return load_transformer(base, dtype, part="transformer_2", device=device)


def load_transformer(
    base: str, dtype: torch.dtype, *, part: str = "transformer", device: str = "cpu", gguf: Path | None = None
) -> Any:
    """A transformer of a base, frozen, in evaluation mode, on `device`; its weights from `gguf` if that is given.

    In host memory, weights that are stored in `dtype` stay mapped files. Others are cast one by one, each put on the device at once,
    and of what they are cast from no more than one shard is in memory. Either way the result is `from_pretrained`'s, bit for bit.
    """
    from diffusers import WanTransformer3DModel

    folder = Path(base) / part
    if gguf is not None:
        from lynx_video.runtime.gguf_file import load_gguf_transformer

        return load_gguf_transformer(gguf, folder, dtype).to(device)
    shards = _shards(folder)
    if any(_is_cast(shard, dtype) for shard in shards):
        model, lacking = _cast(folder, shards, dtype, device)
    else:
        model = WanTransformer3DModel.from_pretrained(base, subfolder=part, torch_dtype=dtype)
        lacking = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if lacking:
        raise BadWeights(f"{base}: {part} lacks {min(lacking)}; download the base again.")
    return model.to(device).eval().requires_grad_(False)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files that diffusers would take from a folder; none where it would take others, or none are there."""
    single = folder / "diffusion_pytorch_model.safetensors"
    index = folder / f"{single.name}.index.json"
    if index.is_file():
        return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    return [single] if single.is_file() else []


def _is_cast(shard: Path, dtype: torch.dtype) -> bool:
    from safetensors import safe_open

    stored = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}[str(dtype)]
    with safe_open(shard, framework="pt") as tensors:
        return any(
            tensors.get_slice(name).get_dtype() not in (stored, "F32" if _stays_float32(name) else stored)
            for name in tensors.keys()  # noqa: SIM118 (not a dict)
        )


def _cast(folder: Path, shards: Sequence[Path], dtype: torch.dtype, device: str) -> tuple[Any, set[str]]:
    """The transformer on `device`, and the names of weights that no shard has."""
    import torch
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel
    from safetensors import safe_open

    with init_empty_weights():
        model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
    lacking = {name for name, _ in model.named_parameters()}
    for shard in shards:
        state = {}
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                kept = torch.float32 if _stays_float32(name) else dtype
                state[name] = tensors.get_tensor(name).to(device, kept, copy=True)  # a view would hold the whole shard
        model.load_state_dict(state, strict=False, assign=True)
        lacking -= state.keys()
    return model, lacking


def _stays_float32(name: str) -> bool:
    from diffusers import WanTransformer3DModel

    return any(part in WanTransformer3DModel._keep_in_fp32_modules for part in name.split("."))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split()).rstrip(".")[:300]


def base_fingerprint(base: str) -> str:
    """Hash of a base's transformer, VAE and text encoder weights; a hub id stands for itself."""
    folder = Path(base)
    if not folder.is_dir():
        return f"hub:{base}"
    found = [
        file
        for part in ("transformer", "vae", "text_encoder", "transformer_2")
        for file in sorted((folder / part).glob("*.safetensors"))
    ]
    return fingerprint(found)


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 of small files whole, of files above 64 MiB their size and 64 blocks of 64 KiB spread over them.

    Seconds instead of minutes on 60 GB; different training runs differ everywhere, but a single edited value may go unnoticed.
    """
    import hashlib

    digest, block, blocks = hashlib.sha256(), 65_536, 64
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as handle:
            if size <= 64 * 2**20:
                digest.update(handle.read())
                continue
            for i in range(blocks):
                handle.seek((size - block) * i // (blocks - 1))
                digest.update(handle.read(block))
    return digest.hexdigest()
