"""Drawn training data: stills and clips as uint8 tensors, from seeds.

Seeds are split by purpose, so that no person drawn for one is drawn for another: the conditioning encoder, the judge, the
generative models and the evaluation each see people of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_video.nano import faces, model
from lynx_video.nano.faces import People, Poses, Scenes
from lynx_video.nano.people import HELD_OUT

SEEDS = {
    "vae": 1_000,
    "encoder": 2_000,
    "detector": 3_000,
    "judge": 4_000,
    "base": 5_000,
    "second_judge": 6_000,
    "evaluation": HELD_OUT,
}
PEOPLE, FILMED, PORTRAIT = 30_000, 7_000, 128


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


def train(run: Path, part: str = "all") -> None:
    """The stage that draws and encodes the world of the base: `run/stills.pt`, `run/clips.pt`.

    30,000 people with two stills each. The first 7,000 also have a clip, in a scene and pose of its own. The parts can run side by
    side.
    """
    from lynx_video.nano.recipe import base

    who = faces.people(PEOPLE, generator("base"))
    filmed = faces.select(who, slice(0, FILMED))
    for number, (name, make) in enumerate((("stills", _stills), ("clips", _clips))):
        if part in (name, "all"):
            stored = make(run, base.load_vae(run), who if name == "stills" else filmed, generator("base", number + 1))
            torch.save({"who": base.as_dict(who), **stored}, run / f"{name}.partial")
            (run / f"{name}.partial").replace(run / f"{name}.pt")


def _stills(_: Path, vae: Any, who: People, rng: torch.Generator) -> dict[str, Any]:
    from lynx_video.nano.recipe import base
    from lynx_video.nano.recipe.vae import flat

    halves, drawn_scenes = [], []
    for half in range(2):
        scene, pose, parts = faces.scenes(who, rng), faces.poses(len(who), rng), []
        for start in range(0, len(who), 250):
            part = slice(start, start + 250)
            drawn = _draw(faces.select(who, part), faces.select(scene, part), faces.select(pose, part), model.SIZE)
            with flat(vae):
                parts.append(base.to_latents(vae, drawn[:, None])[:, :, 0])
        halves.append(torch.cat(parts))
        drawn_scenes.append(base.as_dict(scene))
        print(f"stills {half + 1}/2", flush=True)
    return {"stills": torch.stack(halves, 1), "still_scenes": drawn_scenes}


def _clips(_: Path, vae: Any, who: People, rng: torch.Generator) -> dict[str, Any]:
    from lynx_video.nano.recipe import base

    scene, motions, latents = faces.scenes(who, rng), [], []
    for start in range(0, len(who), 50):
        part = slice(start, start + 50)
        drawn = clips(faces.select(who, part), rng, scene=faces.select(scene, part))
        latents.append(base.to_latents(vae, drawn.frames))
        motions.append(drawn.motion)
        if start % 1000 == 0:
            print(f"clips {start}/{len(who)}", flush=True)
    return {"clips": torch.cat(latents), "motion": torch.cat(motions), "clip_scenes": base.as_dict(scene)}
