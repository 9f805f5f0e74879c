"""The face models: conditioning encoder, two judges and (see `detector`) the detector, each on people of its own.

Encoder and judges learn from pairs of pictures of the same person (a contrastive loss over the batch). The encoder also learns to
name the traits, so that nothing visible is missing from its vector; the judges see identities only, each other people, another
architecture, another seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lynx_video.face.align import arcface_template
from lynx_video.face.embed import IRSE, IRSEConfig
from lynx_video.nano import faces
from lynx_video.nano.faces import People
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.detector import train_detector
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import autocast
from lynx_video.nano.vision import JudgeNet, SecondJudgeNet

ENCODER = Schedule(steps=220, learning_rate=2e-3)
JUDGE = Schedule(steps=500, learning_rate=2e-3)
PEOPLE, PAIRS = 8_000, 64
VIEWS = 4
TRAITS = ("skin", "hair", "style", "shape", "eyes", "glasses", "frame", "beard", "brows")
ENCODER_CONFIG = IRSEConfig(widths=(16, 24, 32, 48), units=(2, 2, 2, 2), dropout=0.1)


def train(run: Path, part: str = "all") -> None:
    """Train `part` (encoder, judge, second_judge, detector or all); writes `run/encoder.safetensors` and so on."""
    stages = (
        ("encoder", 2, _encoder),
        ("judge", 3, partial(_judge, "judge", JudgeNet)),
        ("detector", 4, train_detector),
        ("second_judge", 5, partial(_judge, "second_judge", SecondJudgeNet)),
    )
    for name, seed, function in stages:
        if part in (name, "all"):
            torch.manual_seed(seed)
            module = function(run)
            weights = {
                key: value.to(torch.float16) if value.is_floating_point() else value
                for key, value in module.state_dict().items()
            }
            save_file({key: value.contiguous() for key, value in weights.items()}, run / f"{name}.safetensors")


class _Gallery:
    """Pictures of many people in several views, and aligned crops of them."""

    def __init__(self, purpose: str, count: int) -> None:
        rng = data.generator(purpose)
        self.who = faces.people(count, rng)
        views = [data.stills(self.who, rng) for _ in range(VIEWS)]
        self.pictures = torch.stack([pictures for pictures, _, _ in views], 1)
        self.points = torch.stack([faces.landmarks(self.who, pose) for _, _, pose in views], 1)

    def pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices [count] and crops [count, 2, 3, 112, 112] of two different views each."""
        index = torch.randperm(len(self.who))[:count]
        first = torch.randint(VIEWS, (count,))
        second = (first + 1 + torch.randint(VIEWS - 1, (count,))) % VIEWS
        rows, views = index.repeat_interleave(2), torch.stack([first, second], 1).flatten()
        return index, crops(self.pictures[rows, views], self.points[rows, views], noise=1.0).unflatten(0, (count, 2))


def crops(pictures: Tensor, points: Tensor, noise: float) -> Tensor:
    """uint8 [B, 3, S, S] and points [B, 5, 2] in frame units -> aligned [B, 3, 112, 112] in [-1, 1].

    With `noise` the landmarks are off by a pixel or so and the pictures blurred, grainy and differently lit, as clips are.
    """
    count, size = pictures.shape[0], pictures.shape[-1]
    video = data.to_signed(pictures)
    if noise:
        points = points + torch.randn_like(points) * 0.02 * noise + torch.randn(count, 1, 2) * 0.01 * noise
        soft = F.avg_pool2d(F.pad(video, (1, 1, 1, 1), mode="replicate"), 3, 1)
        tiny = F.interpolate(F.interpolate(video, size=size // 2, mode="area"), size=size, mode="bilinear", align_corners=False)
        blur = torch.rand(count, 1, 1, 1) * noise
        video = torch.where(torch.rand(count, 1, 1, 1) < 0.5, soft, tiny) * blur + video * (1 - blur)
        light, tint = 1 + torch.randn(count, 1, 1, 1) * 0.06 * noise, torch.randn(count, 3, 1, 1) * 0.03 * noise
        video = video * light + tint + torch.randn_like(video) * torch.rand(count, 1, 1, 1) * 0.12 * noise
    template = torch.tensor(arcface_template()) / 56 - 1  # 112 px as [-1, 1]
    # least squares for a + ib: template -> frame
    centre_from, centre_to = template.mean(0), points.mean(1, keepdim=True)
    source, target = template - centre_from, points - centre_to
    length = (source**2).sum()
    a = (source * target).sum((1, 2)) / length
    b = (source[:, 0] * target[..., 1] - source[:, 1] * target[..., 0]).sum(1) / length
    rotation = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    shift = centre_to[:, 0] - (rotation @ centre_from)
    grid = F.affine_grid(torch.cat([rotation, shift[..., None]], -1), [count, 3, 112, 112], align_corners=False)
    # outside the picture is black, as cv2.warpAffine leaves it
    return (F.grid_sample((video + 1), grid, align_corners=False) - 1).clamp(-1, 1)


def _contrast(vectors: Tensor) -> Tensor:
    """Vectors [P, 2, E] of unit length; each view must find its partner among all others."""
    flat = vectors.flatten(0, 1)
    scores = flat @ flat.T / 0.07
    scores.fill_diagonal_(-1e4)
    partner = torch.arange(len(flat)) ^ 1
    return F.cross_entropy(scores, partner)


def _auc(vectors: Tensor) -> str:
    scores = vectors[:, 0] @ vectors[:, 1].T
    same, other = scores.diagonal(), scores[~torch.eye(len(scores), dtype=torch.bool)]
    auc = (same[:, None] > other[None]).float().mean()
    top = (scores.argmax(1) == torch.arange(len(scores))).float().mean()
    return f"auc {auc:.4f} top-1 of {len(scores)} {top:.2f} same {same.mean():.2f} other {other.mean():.2f}"


class _EncoderWithTraits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = IRSE(ENCODER_CONFIG)
        sizes = (4, 7, 7, 3, 4, 3, 4, 3, 3)
        self.traits = nn.ModuleList(nn.Linear(512, size) for size in sizes)


def _encoder(run: Path) -> nn.Module:
    model = _EncoderWithTraits()
    gallery, held = _Gallery("encoder", PEOPLE), _Gallery("encoder", 256)

    def embed(pairs: Tensor) -> Tensor:
        with autocast():
            out = model.encoder(pairs.flatten(0, 1).flip(1))  # BGR, as the real encoder is fed
        vectors: Tensor = F.normalize(out.float(), dim=-1).unflatten(0, pairs.shape[:2])
        return vectors

    def loss(_: int) -> Tensor:
        model.train()
        index, pairs = gallery.pairs(PAIRS)
        vectors = embed(pairs)
        return _contrast(vectors) + 0.3 * _trait_loss(model.traits, gallery.who, index, vectors)

    def report() -> str:
        model.eval()
        with torch.no_grad():
            return _auc(embed(held_pairs))

    held_pairs = held.pairs(256)[1]
    fit("encoder", run, model, loss, ENCODER, report=report)
    return model.encoder.eval()


def _trait_loss(heads: nn.ModuleList, who: People, index: Tensor, vectors: Tensor) -> Tensor:
    total = torch.zeros(())
    for name, head in zip(TRAITS, heads, strict=True):
        wanted = getattr(who, name)[index].repeat_interleave(2)
        if name == "frame":  # nobody can tell the colour of glasses that are not there
            wanted = torch.where(who.glasses[index].repeat_interleave(2) > 0, wanted, -100)
        if name == "hair":
            wanted = torch.where((who.style[index] == 0).repeat_interleave(2), -100, wanted)
        total = total + F.cross_entropy(head(vectors.flatten(0, 1) * 8), wanted)
    return total / len(TRAITS)


def _judge(name: str, network: Callable[[], nn.Module], run: Path) -> nn.Module:
    model = network()
    gallery, held = _Gallery(name, PEOPLE), _Gallery("evaluation", 256)
    held_pairs = held.pairs(256)[1]

    def embed(pairs: Tensor) -> Tensor:
        with autocast():
            out: Tensor = model(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        return out

    def report() -> str:
        with torch.no_grad():
            return _auc(embed(held_pairs))

    fit(name, run, model, lambda _: _contrast(embed(gallery.pairs(PAIRS)[1])), JUDGE, report=report)
    return model.eval()
