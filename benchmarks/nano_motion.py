"""How well nano's detector and motion probe read drawn clips that went through the VAE: the ceiling of every motion score.

    python benchmarks/nano_motion.py [--clips 20] [--set calibration|check] [--detector FILE] [--threads 1]

The probe's constants and thresholds were set on "calibration"; the numbers to report are those of "check". Neither set's people are
drawn anywhere else. Prints: what was told of each motion; the scores of each sign where it was drawn and where it was not; how far the
points are off; and in how many pictures of 1 to 4 portraits side by side just so many faces are found.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lynx_video import load
from lynx_video.face.detect import find_faces
from lynx_video.nano import faces, model, people, probes
from lynx_video.nano.recipe import data
from lynx_video.nano.vision import NanoDetector
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.decoding import decode

SETS = {"calibration": 6_000_000, "check": 6_000_001}


def main() -> None:
    """Draw, detect, print."""
    parser = argparse.ArgumentParser(description="Score nano's detector and motion probe on drawn clips.")
    parser.add_argument("--clips", type=int, default=20, help="clips of each motion")
    parser.add_argument("--set", choices=SETS, default="check")
    parser.add_argument("--detector", type=Path, default=None, help="weights to use in place of the shipped ones")
    parser.add_argument("--threads", type=int, default=1)
    request = parser.parse_args()
    torch.set_num_threads(request.threads)
    components = load("nano", with_adapter=False)
    detector = NanoDetector(request.detector) if request.detector else components.faces.detector()
    count = request.clips * len(faces.MOTIONS)
    rng = torch.Generator().manual_seed(SETS[request.set])
    who = faces.people(count, rng)
    drawn = data.clips(who, rng, motion=torch.arange(count) % len(faces.MOTIONS))
    repeated = torch.arange(count).repeat_interleave(model.FRAMES)
    true = (faces.landmarks(faces.select(who, repeated), drawn.poses) + 1) * model.SIZE / 2
    true_points = true.view(count, model.FRAMES, 5, 2).numpy()
    tracks = [_track(_through_vae(components, clip[None]), detector) for clip in drawn.frames]
    print(f"set {request.set}, n = {request.clips} clips a motion, {request.detector or 'the shipped detector'}\n")
    _report(tracks, drawn.motion.tolist(), true_points)
    for number in (1, 2, 3, 4):
        found = sum(len(find_faces(_side_by_side(number, i), detector)) == number for i in range(40))
        print(f"{number} side by side: found in {found} of 40 pictures")


@torch.no_grad()
def _through_vae(components: Any, frames: torch.Tensor) -> NDArray[np.uint8]:
    mean, std = latent_statistics(components.vae, "cpu")
    latents = (components.vae.encode(data.to_signed(frames).transpose(1, 2)).latent_dist.mean - mean) / std
    return decode(components.vae, latents).numpy()


def _track(frames: NDArray[np.uint8], detector: Any) -> NDArray[np.float32] | None:
    """The points [F, 5, 2] of the largest face of each frame; None if one has no face."""
    found = [find_faces(frame, detector) for frame in frames]
    return np.stack([some[0].points for some in found]) if all(found) else None


def _side_by_side(number: int, i: int) -> NDArray[np.uint8]:
    return np.concatenate([people.portrait(100 * number + i * number + k) for k in range(number)], 1)


def _report(tracks: list[NDArray[np.float32] | None], motions: list[int], true: NDArray[np.float32]) -> None:
    told = ["no face" if track is None else probes.motion(track, model.SIZE) for track in tracks]
    signs = [None if track is None else probes.signs(track, model.SIZE) for track in tracks]
    print("| drawn | told right | told otherwise | lowest and mean score | highest score of other motions |")
    print("| --- | --- | --- | --- | --- |")
    for m, name in enumerate(faces.MOTIONS):
        mine = [one for one, motion in zip(told, motions, strict=True) if motion == m]
        wrong = ", ".join(f"{other} {mine.count(other)}" for other in sorted(set(mine) - {name})) or "-"
        own, others = "-", "-"
        if name in probes.SIGNS:
            scores = [(one[name], motion == m) for one, motion in zip(signs, motions, strict=True) if one is not None]
            here, there = [score for score, is_it in scores if is_it], [score for score, is_it in scores if not is_it]
            own, others = f"{min(here):.2f} {np.mean(here):.2f}", f"{max(there):.2f}"
        print(f"| {name} | {mine.count(name)} of {len(mine)} | {wrong} | {own} | {others} |")
    right = np.mean([one == faces.MOTIONS[motion] for one, motion in zip(told, motions, strict=True)])
    off = np.stack([track - one for track, one in zip(tracks, true, strict=True) if track is not None])
    size = np.sqrt(np.square(off).sum(-1).mean((0, 1)))
    print(f"\nall motions: {right:.3f} right of {len(told)}")
    print("points off by (root mean square, px of 64): eyes {:.2f} {:.2f} nose {:.2f} mouth {:.2f} {:.2f}\n".format(*size))


if __name__ == "__main__":
    main()
