"""Loading: a base and an adapter, checked against each other before a weight is read, as `Components`.

This is the only place that knows which models exist; everything above it works on `Components`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import FULL, LITE, Defaults
from lynx_video.errors import BadRequest, BadWeights, LynxError, MissingDependency

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lynx_video.adapters.attach import Adapter
    from lynx_video.adapters.weights import AdapterFiles, BaseShape
    from lynx_video.face.detect import Detector

NANO = Path(__file__).parent.parent / "nano" / "weights"
DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceModels:
    """Where faces come from; each is loaded when first called and then kept.

    detector finds faces; encoder turns aligned crops [B, 3, 112, 112] in [-1, 1] into the vectors [B, 512] the adapter was trained
    with; judge, if there is one, turns such crops into vectors of its own for scoring.
    """

    detector: Callable[[], Detector]
    encoder: Callable[[], Callable[[Tensor], Tensor]]
    judge: Callable[[], Callable[[Tensor], Tensor]] | None = None
    judge_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model by name: where its base, adapter and face models lie."""

    base: str
    adapter: str
    faces: Callable[[Path], FaceModels]
    needs_safety_checker: bool = True


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

    @property
    def temporal_factor(self) -> int:
        """Frames a latent frame stands for."""
        return int(self.vae.config.scale_factor_temporal)

    @property
    def grid(self) -> int:
        """Height and width must be multiples of this many pixels: the VAE's factor times the patch."""
        return int(self.vae.config.scale_factor_spatial) * int(self.transformer.config.patch_size[-1])


def _nano_faces(_: Path) -> FaceModels:
    from lynx_video.face.embed import load_arcface
    from lynx_video.nano.vision import Judge, NanoDetector

    return FaceModels(
        detector=functools.cache(lambda: NanoDetector(NANO / "face" / "detector.safetensors")),
        encoder=functools.cache(lambda: load_arcface(NANO / "face" / "encoder.safetensors")),
        judge=functools.cache(lambda: Judge(NANO / "face" / "judge.safetensors")),
        judge_name="nano judge",
    )


def photograph_faces(models: Path, *, detector: Path | None = None, arcface: Path | None = None, device: str = "cpu") -> FaceModels:
    """SCRFD (or YuNet) and the official ArcFace, from `models/face` or by path."""
    from lynx_video.face.detect import SCRFD, YuNet
    from lynx_video.face.embed import load_arcface

    found = detector or models / "face" / "buffalo_l"
    weights = arcface or models / "face" / "recognition_arcface_ir_se50.pth"
    return FaceModels(
        detector=functools.cache(lambda: YuNet(found) if "yunet" in found.name.lower() else SCRFD(found)), encoder=functools.cache(lambda: load_arcface(weights, device))
    )


MODELS: dict[str, Model] = {
    "nano": Model(base=str(NANO / "base"), adapter=str(NANO / "lynx_full"), faces=_nano_faces, needs_safety_checker=False),
    "nano-lite": Model(base=str(NANO / "base"), adapter=str(NANO / "lynx_lite"), faces=_nano_faces, needs_safety_checker=False),
    "lynx-full": Model(base="models/Wan2.1-T2V-14B-Diffusers", adapter="models/lynx_full", faces=photograph_faces),
    "lynx-lite": Model(base="models/Wan2.1-T2V-14B-Diffusers", adapter="models/lynx_lite", faces=photograph_faces),
}


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
) -> Components:
    """Load a model.

    model: nano, nano-lite, lynx-full or lynx-lite; base and adapter override its paths. base: a folder in the diffusers layout or a hub
    id. adapter: a folder, a file or several. dtype: bf16, fp16, fp32 or a torch dtype; None: bf16 on CUDA, fp32 elsewhere.
    parts: {"identity"}, {"reference"} or both; None: all the adapter has. with_adapter: False loads no adapter weights, for
    identities that bring their memories. Raises BadWeights for files that are missing, cut, mixed or made for another base, before
    the base's weights are read; BadRequest for unknown names.
    """
    import torch

    from lynx_video.adapters.attach import Adapter, AdapterConfig
    from lynx_video.adapters.weights import inspect, load_adapter

    spec = _model(model)
    if (base is None) != (adapter is None) and with_adapter and model.startswith("nano"):
        raise BadRequest("give base and adapter together: nano's adapter fits no other base, and no other adapter fits nano.")
    chosen_device, chosen_dtype = _device(device), _dtype(dtype, device)
    base_name = str(base) if base is not None else _under(spec.base, models)
    paths = [Path(_under(spec.adapter, models))] if adapter is None else _paths(adapter)
    shape = base_shape(base_name)
    if with_adapter:
        files = inspect(paths, shape, parts)
        arm, defaults, adapter_hash = files.arm, _defaults(paths, files.arm), fingerprint(files.files)
    else:
        files, arm, defaults, adapter_hash = None, "full", _defaults(paths, _arm_of(paths)), ""
    parts_of_base = _load_base(base_name, chosen_dtype, chosen_device)
    if files is not None:
        loaded = load_adapter(files, dtype=chosen_dtype, device=chosen_device)
    else:
        loaded = Adapter(AdapterConfig(width=shape.width, heads=shape.heads))
    loaded.attach(parts_of_base["transformer"])
    custom = base is not None or adapter is not None
    return Components(
        **parts_of_base,
        adapter=loaded,
        faces=faces or (photograph_faces if custom and model.startswith("nano") else spec.faces)(Path(models)),
        defaults=defaults,
        arm=arm,
        base_name=base_name,
        base_hash=base_fingerprint(base_name),
        adapter_hash=adapter_hash,
        device=torch.device(chosen_device),
        dtype=chosen_dtype,
    )


def _model(name: str) -> Model:
    if name not in MODELS:
        raise BadRequest(f"unknown model {name!r}; the models are {', '.join(MODELS)}.")
    return MODELS[name]


def _under(path: str, models: str | Path) -> str:
    """A default path, moved to another models folder if one is given."""
    return str(Path(models) / Path(path).name) if path.startswith("models/") else path


def _paths(adapter: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(adapter)] if isinstance(adapter, (str, Path)) else [Path(one) for one in adapter]


def _device(device: str | torch.device | None) -> str:
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BadRequest(f"unknown device {device!r}; examples are cuda, cuda:1 and cpu.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BadRequest(f"device {device!r} is not available: this torch sees no CUDA device; --device cpu works everywhere.")
    return str(chosen)


def _dtype(dtype: str | torch.dtype | None, device: str | torch.device | None) -> torch.dtype:
    import torch

    table = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if dtype is None:
        return torch.bfloat16 if _device(device).startswith("cuda") else torch.float32
    if isinstance(dtype, str):
        if dtype not in table:
            raise BadRequest(f"unknown torch dtype {dtype!r}; choose {', '.join(DTYPES)}.")
        return table[dtype]
    if dtype not in table.values():
        raise BadRequest(f"dtype {dtype} is not supported; choose torch.bfloat16, torch.float16 or torch.float32.")
    return dtype


def base_shape(base: str) -> BaseShape:
    """Width, heads and blocks of a base, from its transformer's config alone. Raises BadWeights if it is no text-to-video Wan."""
    from lynx_video.adapters.weights import BaseShape

    config = _base_config(base, "transformer")
    if config.get("_class_name") != "WanTransformer3DModel":
        raise BadWeights(f"{base}: transformer/config.json is of {config.get('_class_name')}, expected WanTransformer3DModel.")
    if config.get("image_dim") or config.get("added_kv_proj_dim"):
        raise BadWeights(f"{base} is an image-to-video model; Lynx needs a text-to-video base such as Wan2.1-T2V-14B.")
    try:
        heads, width = int(config["num_attention_heads"]), int(config["attention_head_dim"])
        return BaseShape(width=heads * width, heads=heads, blocks=int(config["num_layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeights(f"{base}: transformer/config.json lacks a usable {error}; download the base again.") from error


def _base_config(base: str, part: str) -> dict[str, Any]:
    if Path(base).exists() or base.startswith((".", "/", "~", "models")) or base.count("/") != 1:
        file = Path(base) / part / "config.json"
        if not file.is_file():
            raise BadWeights(
                f"{file} is not there: {base} is not a base model in the diffusers layout; `lynx-video download base` fetches it."
            )
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadWeights(f"{file} can't be read as JSON ({error}); download the base again.") from error
        return config
    from diffusers import WanTransformer3DModel

    try:
        return dict(WanTransformer3DModel.load_config(base, subfolder=part))
    except (OSError, ValueError) as error:
        raise LynxError(f"the base {base} can't be fetched from the hub ({_first_line(error)}).") from error


def _load_base(base: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    # half precision overflows in the VAE; bfloat16 is what the reference decodes in
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    loaders: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(base, subfolder="tokenizer"),
        "text_encoder": lambda: UMT5EncoderModel.from_pretrained(base, subfolder="text_encoder", dtype=dtype).to(device).eval(),
        "vae": lambda: AutoencoderKLWan.from_pretrained(base, subfolder="vae", torch_dtype=vae_dtype).to(device).eval(),
        "transformer": lambda: (
            WanTransformer3DModel.from_pretrained(base, subfolder="transformer", torch_dtype=dtype).to(device).eval()
        ),
        "scheduler": lambda: UniPCMultistepScheduler.from_pretrained(base, subfolder="scheduler"),
    }
    loaded: dict[str, Any] = {}
    for part, loader in loaders.items():
        try:
            loaded[part] = loader()
        except ImportError as error:
            raise MissingDependency(f"{part} of {base} can't be loaded: {_first_line(error)}.") from error
        except Exception as error:  # noqa: BLE001 (these libraries raise anything for a broken file)
            raise BadWeights(f"{Path(base) / part} can't be loaded ({_first_line(error)}); download the base again.") from error
        if part not in ("tokenizer", "scheduler"):
            loaded[part].requires_grad_(False)
    return loaded


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:300]


def _defaults(paths: Sequence[Path], arm: str) -> Defaults:
    """The arm's defaults, overridden by a `lynx.json` beside the adapter."""
    defaults = FULL if arm == "full" else LITE
    for path in paths:
        file = (path if path.is_dir() else path.parent) / "lynx.json"
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return replace(defaults, **{one.name: values[one.name] for one in fields(Defaults) if one.name in values})
        except (OSError, ValueError, TypeError) as error:
            raise BadWeights(f"{file} can't be read as the adapter's defaults ({error}).") from error
    return defaults


def _arm_of(paths: Sequence[Path]) -> str:
    return "lite" if any("lite" in path.name for path in paths) else "full"


def base_fingerprint(base: str) -> str:
    """Hash of a base's transformer, VAE and text encoder weights; a hub id stands for itself."""
    folder = Path(base)
    if not folder.is_dir():
        return f"hub:{base}"
    found = [file for part in ("transformer", "vae", "text_encoder") for file in sorted((folder / part).glob("*.safetensors"))]
    return fingerprint(found)


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 over each file's size and 16 blocks of 64 KiB spread over it: fast on 60 GB, and no two real weights share it."""
    import hashlib

    digest, block = hashlib.sha256(), 65_536
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as handle:
            for i in range(16):
                handle.seek(max(0, (size - block) * i // 15))
                digest.update(handle.read(block))
    return digest.hexdigest()
