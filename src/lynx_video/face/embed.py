"""The face encoder: an IR-SE residual network (ArcFace), its loader, and the 512 numbers of a crop.

Names and shapes are those of facexlib's `recognition_arcface_ir_se50.pth`, the encoder the Lynx resampler was trained on; it
cannot be swapped for another. Depth and widths are read from the file, so the same code runs the toy encoder.
Sources: He et al. 2016 (identity mappings), Hu et al. 2018 (squeeze and excitation), Deng et al. 2019 (ArcFace, the IR block).
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lynx_video.errors import BadPicture, BadRequest, BadWeights
from lynx_video.face.likeness import signed
from lynx_video.types import FACE_WIDTH

if TYPE_CHECKING:
    from lynx_video.types import Picture

CROP_SIZE = 112


@dataclass(frozen=True, kw_only=True, slots=True)
class IRSEConfig:
    """Shape of an IR-SE network; the defaults are IR-SE50.

    widths: channels of each stage; a stage halves height and width. units: residual units of each stage.
    stem: channels of the first convolution, None: as the first stage.
    reduction: how many times narrower than its stage a squeeze is (but at least 1 channel wide).
    dropout: share of features dropped before the last layer while training.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    units: tuple[int, ...] = (3, 4, 14, 3)
    stem: int | None = None
    reduction: int = 16
    dropout: float = 0.4

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.units):
            raise BadRequest(f"IRSEConfig needs as many widths as units, not {len(self.widths)} and {len(self.units)}.")
        if min(*self.widths, *self.units, self.reduction, 1 if self.stem is None else self.stem) < 1:
            raise BadRequest("IRSEConfig: widths, units, stem and reduction must be at least 1.")
        if any(a == b for a, b in zip(self.widths, self.widths[1:], strict=False)):
            raise BadRequest(
                f"IRSEConfig: neighbouring stages need different widths to be told apart in a file, not {self.widths}."
            )
        if not 0 <= self.dropout < 1:
            raise BadRequest(f"IRSEConfig: dropout must be from 0 to below 1, not {self.dropout}.")

    @property
    def side(self) -> int:
        """Height and width of the last feature map for a 112 px crop."""
        side = CROP_SIZE
        for _ in self.widths:
            side = -(-side // 2)
        return side


class _Squeeze(nn.Module):
    """Scales each channel by what the whole map says of it."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        gate = self.fc2(functional.relu(self.fc1(features.mean((2, 3), keepdim=True))))
        return features * torch.sigmoid(gate)


class _Unit(nn.Module):
    """A residual unit; the stride sits in its second convolution."""

    def __init__(self, width_in: int, width: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.stride = stride
        # The short way has weights only where the width changes; otherwise it just drops every other pixel.
        self.shortcut_layer = (
            nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if width_in != width
            else None
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            _Squeeze(width, max(1, width // reduction)),
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.shortcut_layer is None:
            short = features[:, :, :: self.stride, :: self.stride]
        else:
            short = self.shortcut_layer(features)
        residual: Tensor = self.res_layer(features)
        return residual + short


class IRSE(nn.Module):
    """The bare network: float [B, 3, 112, 112] **BGR** in [-1, 1] -> float [B, 512], not normalised.

    This is what is trained and saved; `FaceEncoder` is what the rest of the project calls.
    """

    def __init__(self, config: IRSEConfig) -> None:
        super().__init__()
        self.config = config
        stem = config.widths[0] if config.stem is None else config.stem
        self.input_layer = nn.Sequential(nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem))
        units: list[_Unit] = []
        width_in = stem
        for width, count in zip(config.widths, config.units, strict=True):
            for number in range(count):
                units.append(_Unit(width_in, width, 2 if number == 0 else 1, config.reduction))
                width_in = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(width_in * config.side**2, FACE_WIDTH),
            nn.BatchNorm1d(FACE_WIDTH),
        )

    def forward(self, crops: Tensor) -> Tensor:
        features: Tensor = self.output_layer(self.body(self.input_layer(crops)))
        return features


class FaceEncoder(nn.Module):
    """A frozen IR-SE network as the project calls it: [B, 3, 112, 112] RGB in [-1, 1] -> float32 [B, 512] of unit length.

    Runs without gradients, on the device the network is on.
    """

    def __init__(self, network: IRSE) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of the weights by name, in hex: the same for the same weights in a .pth and in a .safetensors file."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            if tensor.is_floating_point():  # a counter of training steps is no weight
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> FaceEncoder:  # noqa: ARG002  torch's signature
        """Stays in evaluation mode: an encoder whose batch statistics moved would no longer be the one the adapters know."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, crops: Tensor) -> Tensor:
        """crops: float [B, 3, 112, 112] RGB in [-1, 1], any device. Raises BadPicture for another shape."""
        if crops.ndim != 4 or tuple(crops.shape[1:]) != (3, CROP_SIZE, CROP_SIZE):
            raise BadPicture(f"The face encoder takes crops [B, 3, {CROP_SIZE}, {CROP_SIZE}], not {list(crops.shape)}.")
        weight = next(self.network.parameters())
        features = self.network(crops.to(weight.device, weight.dtype).flip(1))  # RGB -> BGR, as the weights were trained
        return functional.normalize(features.float(), dim=-1)


def load_arcface(path: str | Path, device: str | torch.device = "cpu") -> FaceEncoder:
    """The face encoder in a .pth or .safetensors file, in float32 and evaluation mode on the device.

    Raises BadWeights, naming the file and the key, for a file that is missing, cut, or not an IR-SE ArcFace.
    """
    path = Path(path)
    state = _read(path)
    config = _config_of(state, path)
    with torch.device("meta"):
        network = IRSE(config)
    _check(state, network, path)
    network.load_state_dict(state, assign=True)
    return FaceEncoder(network.to(device))


def embed_crop(encoder: Callable[[Tensor], Tensor], crop: Picture) -> Tensor:
    """float32 [512] of unit length, on the CPU: the embedding of one aligned crop, uint8 [112, 112, 3] RGB.

    encoder: a `FaceEncoder`, or what stands in for one. Raises BadPicture for another array.
    """
    if crop.dtype != np.uint8 or crop.shape != (CROP_SIZE, CROP_SIZE, 3):
        raise BadPicture(f"The crop must be uint8 [{CROP_SIZE}, {CROP_SIZE}, 3], not {crop.dtype} {list(crop.shape)}.")
    return encoder(signed(np.ascontiguousarray(crop[None])))[0].float().cpu()


def encoder_hash(encoder: Callable[[Tensor], Tensor]) -> str:
    """What a face encoder is known by: `FaceEncoder.hash`; empty for anything else."""
    return encoder.hash if isinstance(encoder, FaceEncoder) else ""


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, float32 (counters as they are), without the prefix that DataParallel adds."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not there"
        raise BadWeights(f"The face encoder {path} {what}; the official one is recognition_arcface_ir_se50.pth.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise BadWeights(f"The face encoder {path} cannot be read: permission denied.") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError):
        # What torch says here is a page of advice, such as to unpickle the file after all.
        raise BadWeights(
            f"The face encoder {path} cannot be read: it is cut, not a weights file, or holds more than tensors; get it again."
        ) from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadWeights(f"The face encoder {path} holds no plain table of tensors, so it is not an IR-SE ArcFace.")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    for name, value in tensors.items():
        if value.is_floating_point():
            if not torch.isfinite(value).all():
                raise BadWeights(f"The face encoder {path} holds values in {name} that are not finite; the file is damaged.")
            tensors[name] = value.float()
    return tensors


def _config_of(state: Mapping[str, Tensor], path: Path) -> IRSEConfig:
    """Depth and widths as the shapes tell them: a stage begins at the first unit and wherever the width changes."""

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise BadWeights(f"The face encoder {path} has no {key}, so it is not an IR-SE ArcFace (facexlib's layout).")
        if state[key].ndim != 4:
            raise BadWeights(
                f"The face encoder {path} has {key} {list(state[key].shape)} where a convolution [O, I, h, w] belongs."
            )
        return state[key].shape

    stem = shape("input_layer.0.weight")[0]
    numbers = {int(found[1]) for name in state if (found := re.match(r"body\.(\d+)\.", name))}
    widths: list[int] = []
    units: list[int] = []
    squeezed: list[int] = []
    for number in range(max(numbers, default=0) + 1):
        width = shape(f"body.{number}.res_layer.1.weight")[0]
        if widths and width == widths[-1]:
            units[-1] += 1
            continue
        widths.append(width)
        units.append(1)
        squeezed.append(shape(f"body.{number}.res_layer.5.fc1.weight")[0])
    fits = (r for r in (16, *range(1, max(widths) + 1)) if [max(1, width // r) for width in widths] == squeezed)
    reduction = next(fits, 16)  # where none fits, the comparison of shapes names the first that is off
    if min(stem, *widths) < 1:
        raise BadWeights(f"The face encoder {path} has a convolution without channels.")
    return IRSEConfig(widths=tuple(widths), units=tuple(units), stem=stem, reduction=reduction)


def _check(state: Mapping[str, Tensor], network: IRSE, path: Path) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing = [name for name in expected if name not in state]
    if missing:
        raise BadWeights(f"The face encoder {path} lacks {_some(missing)}; the file is incomplete or of another layout.")
    unknown = [name for name in state if name not in expected]
    if unknown:
        raise BadWeights(f"The face encoder {path} holds {_some(unknown)}, which an IR-SE ArcFace does not have.")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise BadWeights(f"The face encoder {path} has {name} {list(state[name].shape)}, expected {list(shape)}.")


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
