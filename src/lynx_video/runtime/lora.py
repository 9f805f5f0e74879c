"""LoRA: differences to the weights of the stock transformer, from files in any of the usual layouts, on and off at no cost.

    files = [check_lora(spec, shape) for spec in specs]; loras = load_loras_(transformer, files); with loras.on(): transformer(...)

They are off unless in scope, and off, the transformer is the stock one bit for bit. A layer's own product is left as it is and the
difference added to it, so any kind of layer will do, quantised ones too: quantise first, then load, then compile, then offload.
Everything a file says is added: low-rank products with their alpha, and whole differences of weights, biases, norms and modulation
(`diff`, `diff_b`, `diff_m`), which other loaders leave out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video.errors import BadRequest, BadWeights
from lynx_video.runtime.lora_file import LoraFile as LoraFile
from lynx_video.runtime.lora_file import check_lora as check_lora
from lynx_video.runtime.lora_file import linear_sizes


def load_loras_(transformer: Any, files: Sequence[LoraFile]) -> Loras:
    """Put the sum of the files on `transformer`, switched off. Raises BadWeights where a file does not fit it after all."""
    if any(attn.fused_projections for block in transformer.blocks for attn in (block.attn1, block.attn2)):
        raise BadRequest("LoRAs need the attention projections apart: load them before fuse_qkv_projections.")
    if any(isinstance(module, LowRank) for module in transformer.modules()):
        raise BadRequest("the transformer has LoRAs already: remove them first, or load all of them at once.")
    switch = Switch()
    linears: dict[str, list[_Difference]] = defaultdict(list)
    sums: dict[str, Tensor] = {}
    for file in files:
        for layer, tensors in _read(file):
            if linear_sizes(layer) is None:
                _add_to_parameters(file, transformer, layer, tensors, sums)
            else:
                linears[layer].append(_difference(file, layer, tensors, transformer))
    for layer, differences in linears.items():
        transformer.set_submodule(layer, _low_rank(transformer.get_submodule(layer), switch, differences))
    swapped = []
    for name, value in sums.items():
        holder, _, last = name.rpartition(".")
        module = transformer.get_submodule(holder)
        plain = module.get_parameter(last)
        beside = nn.Parameter(value.to(plain.device, plain.dtype), requires_grad=False)
        module.register_parameter(f"{last}{_BESIDE}", beside)  # so that it moves wherever the module moves
        swapped.append((module, last))
    return Loras(transformer, tuple(files), switch, tuple(linears), tuple(swapped))


class Switch:
    """Whether the differences are on; one for all layers, a plain value on the host: turning it waits for nothing."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


class Loras:
    """The LoRAs on a transformer. Off, unless in the scope of `on()`."""

    def __init__(
        self,
        transformer: Any,
        files: tuple[LoraFile, ...],
        switch: Switch,
        layers: tuple[str, ...],
        swapped: tuple[tuple[nn.Module, str], ...],
    ) -> None:
        self.files = files
        self._transformer, self._switch, self._layers, self._swapped = transformer, switch, layers, swapped

    def on(self) -> AbstractContextManager[None]:
        """Within it the LoRAs count."""
        return self.enabled(True)

    def off(self) -> AbstractContextManager[None]:
        """Within it they do not, wherever it is entered."""
        return self.enabled(False)

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        """Within it the LoRAs are on or off; after it, as they were."""
        before = self._switch.on
        self._turn(on)
        try:
            yield
        finally:
            self._turn(before)

    def remove_(self) -> None:
        """Give the transformer its own layers back."""
        self._turn(False)
        for layer in self._layers:
            self._transformer.set_submodule(layer, self._transformer.get_submodule(layer).base)
        for module, name in self._swapped:
            del module._parameters[f"{name}{_BESIDE}"]
        self._layers, self._swapped = (), ()

    def _turn(self, on: bool) -> None:
        if on == self._switch.on:
            return
        self._switch.on = on
        for (
            module,
            name,
        ) in self._swapped:  # two parameters change places: no copy, no kernel, and for the compiler the same graph
            parameters = module._parameters
            other = f"{name}{_BESIDE}"
            parameters[name], parameters[other] = parameters[other], parameters[name]


class LowRank(nn.Module):
    """A linear layer of any kind and the difference to it: up(down(x)) and a bias, added while the switch is on.

    down: [R, in], up: [out, R], with all scales in it; both or none. bias: [out]. Off, the result is the layer's own, bit for bit.
    """

    def __init__(
        self, base: nn.Module, switch: Switch, down: Tensor | None, up: Tensor | None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.down = nn.Parameter(down) if down is not None else None
        self.up = nn.Parameter(up) if up is not None else None
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = self.base(x)
        if not self.switch.on:
            return out
        if self.down is not None and self.up is not None:
            hidden = nn.functional.linear(x.to(self.down.dtype), self.down)
            if out.dtype == hidden.dtype:  # one kernel, rounded once
                out = torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), self.up.t()).view(out.shape)
            else:
                out = out + nn.functional.linear(hidden, self.up).to(out.dtype)
        return out if self.bias is None else out + self.bias.to(out.dtype)


_BESIDE = "_with_lora"


@dataclass(frozen=True, slots=True)
class _Difference:
    """What one file adds to one linear layer, scales in it, in the layer's dtype on its device."""

    down: Tensor | None
    up: Tensor | None
    bias: Tensor | None


def _low_rank(base: nn.Module, switch: Switch, differences: Sequence[_Difference]) -> LowRank:
    """All differences to a layer as one: low ranks beside each other, so that several LoRAs take one product."""
    downs = [one.down for one in differences if one.down is not None]
    ups = [one.up for one in differences if one.up is not None]
    biases = [one.bias for one in differences if one.bias is not None]
    down, up = (torch.cat(downs), torch.cat(ups, 1)) if downs else (None, None)
    return LowRank(base, switch, down, up, torch.stack(biases).sum(0) if biases else None).requires_grad_(False)


def _difference(file: LoraFile, layer: str, tensors: Mapping[str, Tensor], transformer: Any) -> _Difference:
    linear = transformer.get_submodule(layer)
    wide, high = int(linear.in_features), int(linear.out_features)
    downs, ups, factor = [], [], file.scale
    if "down" in tensors:
        rank = len(tensors["down"])
        alpha = float(tensors["alpha"]) if "alpha" in tensors else file.default_alpha.get(layer, float(rank))
        factor = file.scale * alpha / rank
        downs.append(tensors["down"])
        ups.append(tensors["up"] * factor)
    if "weight" in tensors:  # a whole difference is a product with the identity
        whole = tensors["weight"] * file.scale
        downs.append(torch.eye(wide) if wide < high else whole)
        ups.append(whole if wide < high else torch.eye(high))
    # a bias of the second product shares its factor
    biases = [tensors[kind] * by for kind, by in (("bias", file.scale), ("up_bias", factor)) if kind in tensors]
    shapes = {(one.shape[1], high) for one in downs} | {(wide, len(one)) for one in (*ups, *biases)}
    if shapes - {(wide, high)}:
        key = next(iter(file.layers[layer].values()))
        raise BadWeights(f"{file.path}: {key} does not fit the layer of {wide} to {high} that this base has there.")
    dtype = getattr(linear, "compute_dtype", None) or linear.weight.dtype  # the first is what quantised layers have
    if not dtype.is_floating_point or dtype.itemsize < 2:
        dtype = transformer.dtype
    device = next(linear.parameters()).device
    down, up = (torch.cat(downs).to(device, dtype), torch.cat(ups, 1).to(device, dtype)) if downs else (None, None)
    bias = torch.stack(biases).sum(0).to(device, dtype) if any(bool(one.any()) for one in biases) else None
    return _Difference(down, up, bias)


def _add_to_parameters(
    file: LoraFile, transformer: Any, layer: str, tensors: Mapping[str, Tensor], sums: dict[str, Tensor]
) -> None:
    """Whole differences of what is no linear layer: the sum of parameter and differences, float32, into `sums`.

    In most files they are all zero; such a one is left out.
    """
    for kind, difference in tensors.items():
        key = file.layers[layer][kind]
        name = layer if layer.endswith("scale_shift_table") else f"{layer}.{kind}"
        try:
            plain = transformer.get_parameter(name)
        except AttributeError as error:
            raise BadWeights(f"{file.path}: this base has no {name} for {key}.") from error
        if not plain.is_floating_point() or plain.dtype.itemsize < 2:
            raise BadWeights(
                f"{file.path}: {key} can't be added to {name}, which is quantised here; leave that part unquantised."
            )
        if plain.shape != difference.shape:
            raise BadWeights(f"{file.path}: {key} has shape {list(difference.shape)}, this base has {list(plain.shape)} there.")
        if difference.any():
            sums[name] = sums.get(name, plain.detach().float().cpu()) + file.scale * difference


def _read(file: LoraFile) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Layer by layer, what the file holds of it, float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, framework="pt") as stored:
            for layer, kinds in file.layers.items():
                yield layer, {kind: stored.get_tensor(key).float() for kind, key in kinds.items()}
    except (SafetensorError, OSError) as error:
        raise BadWeights(f"{file.path} can't be read ({error}); download it again.") from error
