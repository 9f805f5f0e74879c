"""Nano's eyes: a face detector and two judges of likeness, small convolutional networks of their own.

The encoder that conditions the adapters is the ArcFace class of `face.embed` at toy size. The judges are two other architectures,
each trained on other people with another seed, and never condition anything: they only score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lynx_video.types import Face

if TYPE_CHECKING:
    from lynx_video.types import Picture

CANVAS, STRIDE = 128, 8


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU(inplace=True))


class DetectorNet(nn.Module):
    """[B, 3, 128, 128] in [-1, 1] -> [B, 15, 16, 16]: a score logit, box sides and five points per cell of 8 px.

    Box sides (left, top, right, bottom) and points (x, y) are offsets from the cell's centre in cells.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _block(32, 64, 2), _block(64, 64))
        self.coarse = nn.Sequential(_block(64, 96, 2), _block(96, 96), _block(96, 96, 2), _block(96, 96), _block(96, 64))
        self.merge = nn.Sequential(_block(128, 64), _block(64, 64))
        self.head = nn.Conv2d(64, 15, 1)

    def forward(self, picture: Tensor) -> Tensor:
        fine = self.fine(picture)
        coarse = F.interpolate(self.coarse(fine), scale_factor=4.0, mode="bilinear", align_corners=False)
        out: Tensor = self.head(self.merge(torch.cat([fine, coarse], 1)))
        return out


def cell_centres() -> Tensor:
    """[2, 16, 16]: x and y of each cell's centre in cells."""
    axis = torch.arange(CANVAS // STRIDE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])


class NanoDetector:
    """Finds drawn faces: the detector interface of `face.detect` over `DetectorNet`."""

    name = "nano"

    def __init__(self, path: Path, threshold: float = 0.5) -> None:
        from safetensors.torch import load_file

        self.path = path
        self.net = DetectorNet().eval()
        self.net.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, image: Picture) -> list[Face]:
        """Faces in a uint8 [H, W, 3] RGB picture, in its pixels, highest score first."""
        height, width = image.shape[:2]
        scale = CANVAS / max(height, width)
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        picture = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        picture = F.interpolate(picture, size=small, mode="bilinear", antialias=True, align_corners=False)
        canvas = torch.zeros(1, 3, CANVAS, CANVAS)
        canvas[:, :, : small[0], : small[1]] = picture
        out = self.net(canvas)[0]
        score = out[0].sigmoid()
        peak = (score == F.max_pool2d(score[None], 3, 1, 1)[0]) & (score > self.threshold)
        centres = cell_centres()
        to_pixels = torch.tensor([STRIDE * width / small[1], STRIDE * height / small[0]])
        faces: list[Face] = []
        for row, column in sorted(peak.nonzero().tolist(), key=lambda cell: -float(score[cell[0], cell[1]])):
            centre, cell = centres[:, row, column], out[:, row, column]
            box = torch.stack([centre - cell[1:3], centre + cell[3:5]]) * to_pixels
            points = (centre + cell[5:].view(5, 2)) * to_pixels
            left, top, right, bottom = box.flatten().tolist()
            face = Face(box=(left, top, right, bottom), points=points.numpy(), score=float(score[row, column]))
            if all(_overlap(face, other) < 0.4 for other in faces):
                faces.append(face)
        return faces


def _overlap(a: Face, b: Face) -> float:
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / max(1e-6, a.size + b.size - shared)


class JudgeNet(nn.Module):
    """Aligned crops [B, 3, 112, 112] in [-1, 1] -> [B, 128] of unit length. Plain convolutions and an average."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AvgPool2d(2),
            _block(3, 32),
            _block(32, 48, 2),
            _block(48, 64),
            _block(64, 96, 2),
            _block(96, 96),
            _block(96, 128, 2),
        )
        self.head = nn.Linear(128 * 7 * 7, 128)

    def forward(self, crop: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(crop).flatten(1)).float(), dim=-1)


class SecondJudgeNet(nn.Module):
    """Shapes as `JudgeNet`: patches of 8 px, blocks of wide depthwise convolutions between them, no average."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 5, padding=2, groups=width),
                nn.GroupNorm(1, width),
                nn.Conv2d(width, 2 * width, 1),
                nn.GELU(),
                nn.Conv2d(2 * width, width, 1),
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, 32, 1), nn.Flatten(), nn.Linear(32 * 14 * 14, 128))

    def forward(self, crop: Tensor) -> Tensor:
        features = self.patches(crop)
        for block in self.blocks:
            features = features + block(features)
        return F.normalize(self.head(features).float(), dim=-1)


class Judge:
    """Scores likeness of aligned crops. network: `JudgeNet` or `SecondJudgeNet`, whose weights lie at `path`."""

    def __init__(self, path: Path, network: Callable[[], nn.Module] = JudgeNet) -> None:
        from safetensors.torch import load_file

        self.path = path
        self.net = network().eval()
        self.net.load_state_dict({key: value.float() for key, value in load_file(path).items()})

    @torch.no_grad()
    def __call__(self, crops: Tensor) -> Tensor:
        """[B, 3, 112, 112] RGB in [-1, 1] -> [B, 128] float32 of unit length."""
        out: Tensor = self.net(crops)
        return out
