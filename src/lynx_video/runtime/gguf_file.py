"""GGUF files of a Wan transformer as the base: weights in blocks of 2 to 8 bits, widened layer by layer as they are used.

Such files (city96, QuantStack and others) keep the official names (`blocks.0.self_attn.q.weight`), which diffusers knows. The file is
mapped and stays mapped: diffusers' own way of reading one would copy it whole into memory first. What a file has in 32 or 16 bits
(biases, norms, modulation, the patch embedding) becomes plain parameters; bfloat16 too, which diffusers would take for quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lynx_video.errors import BadWeights, MissingDependency

if TYPE_CHECKING:
    from lynx_video.adapters.weights import BaseShape

_ARCHITECTURES = ("wan", "pig")  # pig: a converter that names all of its files so
_PREFIX = "model.diffusion_model."
_QUERY = re.compile(r"blocks\.(\d+)\.(?:self_attn\.q|attn1\.to_q)\.weight")


def check_gguf(file: Path, base: BaseShape, channels: int | None = None) -> None:
    """Refuse what is no text-to-video Wan transformer of the base's shape, from the header alone.

    channels: of the latents the base takes. Raises BadWeights; MissingDependency without the package.
    """
    tensors = dict(_tensors(_reader(file)))
    widths = {int(match[1]): int(tensors[name].shape[-1]) for name in tensors if (match := _QUERY.fullmatch(name))}
    if not widths:
        raise BadWeights(
            f"{file} has no Wan transformer in it; name a GGUF file of the base, such as wan2.1-t2v-14b-Q8_0.gguf."
        )
    if any("img_emb" in name or "k_img" in name or "add_k_proj" in name for name in tensors):
        raise BadWeights(f"{file} is of an image-to-video model; Lynx needs a text-to-video one, such as wan2.1-t2v-14b.")
    if set(widths) != set(range(base.blocks)) or set(widths.values()) != {base.width}:
        raise BadWeights(
            f"{file} has {len(widths)} blocks of width {widths[min(widths)]}, the base has {base.blocks} of width {base.width}; "
            "name a GGUF file of the same model."
        )
    takes = int(tensors["patch_embedding.weight"].shape[-2]) if "patch_embedding.weight" in tensors else 0
    if channels is not None and takes != channels:
        raise BadWeights(
            f"{file} takes latents of {takes} channels, the base of {channels}; name a GGUF file of the same model."
        )
    unknown = {tensor.tensor_type.name for tensor in tensors.values()} - set(_usable_types())
    if unknown:
        raise BadWeights(
            f"{file} is in {', '.join(sorted(unknown))}, which can't be used here; take a Q8_0 or K file (as Q5_K_M)."
        )


def load_gguf_transformer(file: Path, config_folder: Path, dtype: torch.dtype) -> Any:
    """The `WanTransformer3DModel` of a file that `check_gguf` took, in host memory, frozen, in evaluation mode.

    config_folder: where the base transformer's `config.json` is. dtype: what it computes in. Raises BadWeights for weights that are
    missing or of another shape than the configuration says.
    """
    from diffusers import GGUFQuantizationConfig, WanTransformer3DModel

    state = {name: _parameter(name, tensor) for name, tensor in _tensors(_reader(file))}
    try:
        model = WanTransformer3DModel.from_single_file(
            state,
            config=str(config_folder),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            local_files_only=True,
        )
    except (ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        if "allocate memory" in reason:  # torch has only a RuntimeError for it
            raise MemoryError(reason) from error
        if "meta tensor" in reason:
            raise BadWeights(f"{file} lacks weights that the base's transformer has; download it again, or another.") from error
        raise BadWeights(f"{file} does not fit the base ({reason}).") from error
    return model.requires_grad_(False).eval()


def _reader(file: Path) -> Any:
    """Maps the file, copy on write, so that torch may have its pages; reads the header."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependency("a GGUF file needs gguf, which is not installed: pip install 'lynx-video[gguf]'") from error
    if not file.is_file():
        raise BadWeights(f"{file} is not there; --gguf names a GGUF file of the base's transformer.")
    try:
        reader = GGUFReader(file, mode="c")
        field = reader.get_field("general.architecture")
        architecture = str(bytes(field.parts[field.data[-1]]), "utf-8") if field is not None else None
    except (ValueError, KeyError, IndexError, OSError, TypeError, OverflowError) as error:
        raise BadWeights(f"{file} is no whole GGUF file ({error}); download it again.") from error
    if architecture not in (None, *_ARCHITECTURES):
        raise BadWeights(f"{file} is a GGUF file of {architecture}; expected a Wan text-to-video transformer.")
    return reader


def _tensors(reader: Any) -> Iterator[tuple[str, Any]]:
    for tensor in reader.tensors:
        yield tensor.name.removeprefix(_PREFIX), tensor


def _parameter(name: str, tensor: Any) -> torch.Tensor:
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    data, kind = torch.from_numpy(tensor.data), tensor.tensor_type
    if kind.name in ("F32", "F16"):
        return data
    if kind.name == "BF16":
        return data.view(torch.bfloat16)
    parameter: torch.Tensor = GGUFParameter(data, quant_type=kind)
    if "time_embed" in name:  # every Wan keeps it in float32; diffusers would leave a tensor that is no parameter
        parameter = torch.nn.Parameter(dequantize_gguf_tensor(parameter).float(), requires_grad=False)
    return parameter


def _usable_types() -> list[str]:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    return ["F32", "F16", *(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES)]
