"""LoRA files in any of the usual layouts: which key holds which part of which layer, told and checked from the header alone.

Known are Wan's own names (lightx2v, CausVid, FusionX and others, `diffusion_model.blocks.0.self_attn.q.lora_down.weight`), those of
musubi-tuner (`lora_unet_blocks_0_self_attn_q`) and those of diffusers and PEFT (`transformer.blocks.0.attn1.to_q.lora_A.weight`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.errors import BadRequest, BadWeights

if TYPE_CHECKING:
    from lynx_video.adapters.weights import BaseShape

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_")
KINDS = {  # how a key ends -> what it holds of its layer
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}
NAMES = (  # Wan's own names -> those of diffusers, applied one after the other to the name of a layer
    (r"\bself_attn\b", "attn1"),
    (r"\bcross_attn\b", "attn2"),
    (r"(attn[12])\.([qkv])$", r"\1.to_\2"),
    (r"(attn[12])\.o$", r"\1.to_out.0"),
    (r"\.ffn\.0$", ".ffn.net.0.proj"),
    (r"\.ffn\.2$", ".ffn.net.2"),
    (r"^(blocks\.\d+)\.norm3$", r"\1.norm2"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^text_embedding\.0$", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2$", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0$", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2$", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1$", "condition_embedder.time_proj"),
    (r"^head\.head$", "proj_out"),
    (r"^head\.modulation$", "scale_shift_table"),
)
LINEARS = {  # linear layers by name, and how many times the base's width they take and give (None: another size)
    r"blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)": (1, 1),
    r"blocks\.\d+\.ffn\.net\.0\.proj": (1, None),
    r"blocks\.\d+\.ffn\.net\.2": (None, 1),
    r"condition_embedder\.t(ext|ime)_embedder\.linear_1": (None, 1),
    r"condition_embedder\.t(ext|ime)_embedder\.linear_2": (1, 1),
    r"condition_embedder\.time_proj": (1, 6),
    r"proj_out": (1, None),
}
OTHERS = re.compile(r"blocks\.\d+\.(norm2|attn[12]\.norm_[qk])|patch_embedding|(blocks\.\d+\.)?scale_shift_table")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """A checked file: where it lies, how strongly it counts, and which key holds what of which layer, in the names of diffusers."""

    path: Path
    scale: float
    layers: Mapping[str, Mapping[str, str]]
    "layer -> kind (a value of KINDS) -> key"
    default_alpha: Mapping[str, float]
    "layer -> alpha where the file's metadata say it and no key does; elsewhere it is the rank"


def check_lora(spec: str, base: BaseShape) -> LoraFile:
    """The LoRA that `PATH` or `PATH:SCALE` names, from its header alone; a folder with one safetensors file will do.

    Raises BadRequest for a scale that is no number from -10 to 10; BadWeights, naming file and key, for a file that is missing, cut, no
    LoRA, of a kind that is not known, or made for a base of another size.
    """
    path, scale = _split(spec)
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        if len(inside) != 1:
            raise BadWeights(f"{path} holds {len(inside)} safetensors files; name the one that is the LoRA.")
        path = inside[0]
    shapes, metadata = _header(path)
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        layer, kind = _place(path, key)
        others = layers.setdefault(layer, {})
        if kind in others:
            raise BadWeights(f"{path}: {key} and {others[kind]} say the same of {layer}; keep one of them.")
        others[kind] = key
    if not any("down" in kinds or "weight" in kinds or "bias" in kinds for kinds in layers.values()):
        raise BadWeights(f"{path} holds no LoRA (its first key is {next(iter(shapes), 'none')!r}).")
    for layer, kinds in layers.items():
        _check_layer(path, layer, kinds, shapes, base)
    ranks = {layer: shapes[kinds["down"]][0] for layer, kinds in layers.items() if "down" in kinds}
    return LoraFile(path=path, scale=scale, layers=layers, default_alpha=_stated_alphas(path, metadata, ranks))


def _split(spec: str) -> tuple[Path, float]:
    """Path and scale; of two readings that exist the longer path is meant."""
    head, colon, tail = spec.rpartition(":")
    if Path(spec).exists() or not colon:
        return Path(spec), 1.0
    try:
        scale = float(tail)
    except ValueError:
        scale = math.nan
    if not -10 <= scale <= 10:
        if not Path(head).exists():
            return Path(spec), 1.0
        raise BadRequest(f"the scale of the LoRA {head} must be a number from -10 to 10 (1 is as trained), got {tail!r}.")
    return Path(head), scale


def _header(file: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise BadWeights(f"the LoRA {file} is not there; name a safetensors file as PATH or PATH:SCALE.")
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
            return shapes, dict(tensors.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise BadWeights(f"the LoRA {file} is not a complete safetensors file ({error}); download it again.") from error


def _place(file: Path, key: str) -> tuple[str, str]:
    """Layer (name of diffusers) and kind of a key."""
    name = key
    if name.endswith(".diff_m"):  # the modulation, a parameter that has no layer of its own
        name = name.removesuffix("_m").removesuffix("diff") + "modulation.diff"
    ending = next((end for end in sorted(KINDS, key=len, reverse=True) if name.endswith(end)), None)
    if ending is None:
        what = (
            "a LoRA of a kind that is not supported (LoKr, LoHa, DoRA)"
            if re.search(r"lokr|hada|dora|magnitude", key)
            else "no LoRA"
        )
        raise BadWeights(f"{file}: {key} is {what}; expected keys such as diffusion_model.blocks.0.self_attn.q.lora_A.weight.")
    layer = name.removesuffix(ending)
    for prefix in PREFIXES:
        layer = layer.removeprefix(prefix)
    if key.startswith("lora_unet_"):
        layer = _dotted(layer)
    for pattern, ours in NAMES:
        layer = re.sub(pattern, ours, layer)
    if linear_sizes(layer) is None and not OTHERS.fullmatch(layer):
        if re.search(r"_img\b|img_emb|image_embedder|add_[kv]_proj", layer):
            raise BadWeights(f"{file}: {key} belongs to an image-to-video base; name a LoRA for a text-to-video Wan.")
        raise BadWeights(f"{file}: {key} belongs to no layer of a text-to-video Wan; name a LoRA for this base.")
    kind = KINDS[ending]
    if linear_sizes(layer) is None and kind not in ("weight", "bias"):
        raise BadWeights(
            f"{file}: {key} is a low-rank difference of something that is no linear layer, which is not supported."
        )
    return layer, kind


def _dotted(name: str) -> str:
    """`blocks_0_self_attn_q` -> `blocks.0.self_attn.q`, as musubi-tuner and kohya spell it."""
    name = re.sub(r"^blocks_(\d+)_", r"blocks.\1.", name)
    name = re.sub(r"(self_attn|cross_attn)_", r"\1.", name)
    return re.sub(r"(ffn|text_embedding|time_embedding|time_projection|head)_(?=\w+$)", r"\1.", name)


def linear_sizes(layer: str) -> tuple[int | None, int | None] | None:
    """How many times the base's width a linear layer takes and gives (None: another size); None for what is no linear layer."""
    return next((sizes for pattern, sizes in LINEARS.items() if re.fullmatch(pattern, layer)), None)


def _check_layer(
    file: Path, layer: str, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], base: BaseShape
) -> None:
    block = re.match(r"blocks\.(\d+)\.", layer)
    if block and int(block[1]) >= base.blocks:
        key = next(iter(kinds.values()))
        raise BadWeights(
            f"{file}: {key} is for block {block[1]}, this base has {base.blocks} blocks; name a LoRA for this base."
        )
    if ("down" in kinds) != ("up" in kinds) or ("down" not in kinds and ("alpha" in kinds or "up_bias" in kinds)):
        raise BadWeights(f"{file}: {', '.join(kinds.values())} lacks the other half of its product; download the file again.")
    if "alpha" in kinds and math.prod(shapes[kinds["alpha"]]) != 1:
        raise BadWeights(f"{file}: {kinds['alpha']} has shape {list(shapes[kinds['alpha']])}; expected one number.")
    sizes = linear_sizes(layer)
    if sizes is None:
        return
    wanted = [None if size is None else size * base.width for size in sizes]
    seen: list[tuple[str, int | None, int]] = []
    for kind, axes in (("down", (None, 0)), ("up", (1, None)), ("weight", (1, 0)), ("bias", (1,)), ("up_bias", (1,))):
        if kind not in kinds:
            continue
        key = kinds[kind]
        if len(shapes[key]) != len(axes):
            raise BadWeights(f"{file}: {key} has shape {list(shapes[key])}; expected {len(axes)} dimensions.")
        seen += [(key, wanted[axis], size) for axis, size in zip(axes, shapes[key], strict=True) if axis is not None]
    for key, expected, size in seen:
        if expected is not None and size != expected:
            width = size * base.width // expected
            raise BadWeights(
                f"{file}: {key} has shape {list(shapes[key])}: the LoRA is made for a base of width {width}, this base has width "
                f"{base.width}; name a LoRA for this base."
            )
    if "down" in kinds and shapes[kinds["down"]][0] != shapes[kinds["up"]][1]:
        raise BadWeights(f"{file}: {kinds['down']} and {kinds['up']} differ in rank; download the file again.")


def _stated_alphas(file: Path, metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """Alpha by layer, from the configuration that PEFT and diffusers write into a file's metadata."""
    try:
        stated = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix("transformer."): value for key, value in stated.items()}
        if config.get("use_dora"):
            raise BadWeights(f"{file} is a DoRA, which is not supported; name a plain LoRA.")
        if "lora_alpha" not in config:
            return {}
        patterns = dict(config.get("alpha_pattern") or {})
        alphas = {
            layer: float(next((a for p, a in patterns.items() if re.search(rf"(^|\.){p}$", layer)), config["lora_alpha"]))
            for layer in ranks
        }
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise BadWeights(f"{file}: its metadata can't be read as a LoRA's configuration ({error}).") from error
    if config.get("use_rslora"):  # scaled by the root of the rank
        alphas = {layer: alpha * math.sqrt(ranks[layer]) for layer, alpha in alphas.items()}
    return alphas
