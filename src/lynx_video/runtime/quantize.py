"""Quantization: the linear layers of the blocks held, and some computed, in 8 or 4 bits; the rest and the adapter stay as they are.

| kind | a weight takes | computed in | by | runs on |
| --- | --- | --- | --- | --- |
| fp8 | 8 bits | float8, activations scaled by token | torchao | CUDA from compute capability 8.9 |
| fp8-storage | 8 bits | the model's dtype | this module | everything |
| int8 | 8 bits | int8 by token on CUDA from 8.0, elsewhere the model's dtype | torchao | everything |
| nf4 | 4 bits | the model's dtype | bitsandbytes | CUDA, CPU |

Embedders, norms and the output layer keep their precision: they are 2% of the weights and every block sees their error. So do the
adapter's terms, which are modules of their own and never here.

fp8-storage is neither diffusers' layerwise casting nor torchao's weight-only float8. The first has no scale, so weights of a
hundredth and less fall among the subnormals of float8, and writes each weight back after its product; the second widens through
float32. Here a row's scale is a power of two, which costs no precision in a floating format: what is computed with is exactly what is
stored, in plain tensors that offloading, compiling and LoRAs take for a linear layer like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lynx_video.errors import BadRequest, MissingDependency

Kind = Literal["fp8", "fp8-storage", "int8", "nf4"]
KINDS: tuple[Kind, ...] = ("fp8", "fp8-storage", "int8", "nf4")
_PACKAGES = {"fp8": "torchao", "int8": "torchao", "nf4": "bitsandbytes"}
_NF4_BLOCK, _NF4_OUTER_BLOCK = 64, 256


@torch.no_grad()
def quantize_(transformer: Any, kind: str, device: torch.device | str | None = None, *, stay: bool = False) -> None:
    """Quantize the blocks of a `WanTransformer3DModel` in place, layer by layer.

    device: where layers visit to be quantized, one at a time, and where they will be computed; they go back to where they were, unless
    they are to `stay`. None: where they are. Load LoRAs, compile and offload afterwards. Raises BadRequest for blocks without a plain
    linear layer (quantized already, or from a GGUF file), and as `check_quantization`.
    """
    layers = [
        (block, name) for block in transformer.blocks for name, layer in block.named_modules() if type(layer) is nn.Linear
    ]
    if not layers:
        raise BadRequest(f"quantize {kind}: the transformer's weights are quantized already; load the base's own.")
    first = layers[0][0].get_submodule(layers[0][1]).weight
    check_quantization(kind, device or first.device, transformer.dtype)
    for block, name in layers:
        layer = block.get_submodule(name)
        home = layer.weight.device
        made = _quantized(layer.to(device or home), kind)
        block.set_submodule(name, (made if stay else made.to(home)).train(layer.training))


def check_quantization(kind: str, device: torch.device | str, dtype: torch.dtype) -> None:
    """Refuse what this device or installation cannot run; the last word has a product of 64 x 64 on the device.

    Raises MissingDependency for a package that is not there, BadRequest for the rest.
    """
    if kind not in KINDS:
        raise BadRequest(f"unknown quantization {kind!r}; the kinds are {', '.join(KINDS)}.")
    device = torch.device(device)
    if kind == "fp8":
        _check_fp8(device, dtype)
    _import(kind)
    try:
        with torch.no_grad():
            layer = nn.Linear(64, 64, dtype=dtype, device=device)
            _quantized(layer, kind).eval()(torch.zeros(1, 32, 64, dtype=dtype, device=device))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (RuntimeError, NotImplementedError, AssertionError, ValueError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
        raise BadRequest(f"quantize {kind} can't run on {device} here ({reason}); choose another or none.") from error


def quantized_bytes(kind: str, rows: int, columns: int, itemsize: int = 2) -> int:
    """Bytes of a linear layer's weight [rows, columns] with its scales, the bias apart; "none": as it is, `itemsize` bytes each."""
    count = rows * columns
    if kind == "fp8":
        return count + 4 * rows
    if kind == "fp8-storage":
        return count + itemsize * rows
    if kind == "int8":
        return count + 5 * rows  # a float32 scale and an int8 zero point a row
    if kind == "nf4":
        blocks = -(-count // _NF4_BLOCK)
        return count // 2 + blocks + 4 * -(-blocks // _NF4_OUTER_BLOCK)
    if kind == "none":
        return count * itemsize
    raise BadRequest(f"unknown quantization {kind!r}; the kinds are {', '.join(KINDS)}.")


def block_linears(config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of each linear layer in one block, from the transformer's configuration: eight of attention, two of ffn.

    The sixth and seventh (`attn2.to_k`, `attn2.to_v`) are the text projections.
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    inner = int(config["ffn_dim"])
    return (*((width, width),) * 8, (inner, width), (width, inner))


class Float8Linear(nn.Linear):
    """A linear layer whose weight lies in float8 (e4m3) and is widened for each product. [..., columns] -> [..., rows].

    scale: [rows, 1], a power of two in the model's dtype: weight * scale is exact there.
    """

    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        rows, columns = layer.weight.shape
        super().__init__(columns, rows, bias=layer.bias is not None, device="meta", dtype=layer.weight.dtype)
        self.compute_dtype = layer.weight.dtype  # what LoRA loaders ask for
        largest = layer.weight.detach().abs().amax(1, keepdim=True).float()
        scale = torch.exp2(torch.floor(torch.log2(largest / torch.finfo(torch.float8_e4m3fn).max)) + 1)
        scale = torch.where(largest > 0, scale, torch.ones_like(scale))
        self.weight = nn.Parameter((layer.weight.detach() / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """The product in the dtype of `x`."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def _quantized(layer: nn.Linear, kind: str) -> nn.Module:
    """A layer in place of `layer`, on its device; torchao changes the layer itself."""
    if kind == "fp8-storage":
        return Float8Linear(layer)
    if kind == "nf4":
        return _nf4(layer)
    from torchao.quantization import quantize_ as torchao_quantize_

    torchao_quantize_(layer, _torchao_config(kind, layer.weight.device))
    return layer


def _torchao_config(kind: str, device: torch.device) -> Any:
    """`set_inductor_config` off: it would change the compiler's settings for the whole process."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    if kind == "fp8":
        return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    return Int8WeightOnlyConfig(set_inductor_config=False)


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    dtype, device = layer.weight.dtype, layer.weight.device
    new: nn.Module = Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    new.weight = Params4bit(
        layer.weight.detach(),
        requires_grad=False,
        blocksize=_NF4_BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        module=new,
    )
    new.bias = layer.bias
    # on some CPUs the first forward would repack the weight, in place, into a layout that not every width has
    new.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return new.to(device)


def _check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BadRequest(f"quantize fp8 computes on NVIDIA GPUs, not on {device.type}; fp8-storage and int8 run everywhere.")
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device)
        raise BadRequest(f"quantize fp8 needs a GPU from RTX 40 or H100 on, this is {name}; fp8-storage and int8 run on it.")
    if dtype != torch.bfloat16:
        raise BadRequest(f"quantize fp8 needs bf16, the model is loaded in {dtype}; say --torch-dtype bf16.")


def _import(kind: str) -> None:
    package = _PACKAGES.get(kind)
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingDependency(
            f"quantize {kind} needs {package}, which is not installed: pip install 'lynx-video[quantize]'"
        ) from error
