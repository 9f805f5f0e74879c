"""Drawn training data: stills and clips as uint8 tensors, from seeds.

Seeds are split by purpose, so that no person drawn for one is drawn for another: the conditioning encoder, the judge, the
generative models and the evaluation each see people of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_video.nano import faces, model
from lynx_video.nano.faces import People, Poses, Scenes

SEEDS = {"vae": 1_000, "encoder": 2_000, "detector": 3_000, "judge": 4_000, "base": 5_000, "evaluation": 9_000_000}


def generator(purpose: str, number: int = 0) -> torch.Generator:
    """The generator of a purpose's `number`-th draw."""
    return torch.Generator().manual_seed(SEEDS[purpose] + number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clips:
    """N drawn clips. frames uint8 [N, F, 3, S, S]; motion int64 [N]; poses of N * F frames."""

    frames: Tensor
    scene: Scenes
    motion: Tensor
    poses: Poses


def stills(who: People, rng: torch.Generator, size: int = model.SIZE) -> tuple[Tensor, Scenes, Poses]:
    """One picture of each person in a scene and pose of its own: uint8 [N, 3, size, size]."""
    scene, pose = faces.scenes(who, rng), faces.poses(len(who), rng)
    return _draw(who, scene, pose, size), scene, pose


def clips(who: People, rng: torch.Generator, *, motion: Tensor | None = None, scene: Scenes | None = None) -> Clips:
    """One clip of each person; motion and scene are drawn where not given."""
    count = len(who)
    scene = scene or faces.scenes(who, rng)
    start = faces.poses(count, rng, spread=0.7)
    if motion is None:
        motion = torch.randint(len(faces.MOTIONS), (count,), generator=rng)
    amount = (0.85 + 0.3 * torch.rand(count, generator=rng)) * (torch.randint(2, (count,), generator=rng) * 2 - 1)
    poses = faces.tracks(start, motion, amount, model.FRAMES)
    repeated = torch.arange(count).repeat_interleave(model.FRAMES)
    frames = _draw(faces.select(who, repeated), faces.select(scene, repeated), poses, model.SIZE)
    return Clips(frames=frames.unflatten(0, (count, model.FRAMES)), scene=scene, motion=motion, poses=poses)


def _draw(who: People, scene: Scenes, pose: Poses, size: int, chunk: int = 64) -> Tensor:
    parts = []
    for start in range(0, len(who), chunk):
        part = slice(start, start + chunk)
        drawn = faces.draw(faces.select(who, part), faces.select(scene, part), faces.select(pose, part), size)
        parts.append((drawn * 255).round().to(torch.uint8))
    return torch.cat(parts)


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 [0, 255] to float [-1, 1]."""
    return pictures.float() / 127.5 - 1
