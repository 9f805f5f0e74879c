"""The moving picture of the README: portraits of unseen people beside their clips, as one looping WebP.

python benchmarks/showcase.py [--output docs/nano/showcase.webp]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from lynx_video import GenerateConfig, generate, load
from lynx_video.media.video import write_video
from lynx_video.nano.people import portrait

PROMPTS = (
    "a person smiles wearing a green shirt in front of a yellow wall",
    "a person nods wearing a red shirt in front of a white wall",
    "a person shakes the head wearing a blue shirt in front of an orange wall",
    "a person tilts the head wearing a white shirt in front of a purple wall",
    "a person moves to the left wearing a black shirt in front of a green wall",
    "a person moves to the right wearing a yellow shirt in front of a blue wall",
)


def main() -> None:
    """Generate one clip a prompt, each of somebody else, and lay them out two in a row."""
    parser = argparse.ArgumentParser(description="Make the README's moving picture.")
    parser.add_argument("--output", type=Path, default=Path("docs/nano/showcase.webp"))
    request = parser.parse_args()
    components = load("nano")
    pairs = []
    for number, prompt in enumerate(PROMPTS):
        picture = portrait(seed=100 + number)
        clip = generate(components, picture, prompt, GenerateConfig(seed=number))
        print(f"{prompt}: similarity {clip.similarity}")
        still = np.repeat(cv2.resize(picture, (192, 192), interpolation=cv2.INTER_AREA)[None], len(clip.frames), 0)
        film = np.stack([cv2.resize(frame, (192, 192), interpolation=cv2.INTER_CUBIC) for frame in clip.frames])
        pairs.append(np.pad(np.concatenate([still, film], 2), ((0, 0), (0, 8), (0, 16), (0, 0)), constant_values=255))
    rows = [np.concatenate(pairs[start : start + 2], 2) for start in range(0, len(pairs), 2)]
    forth = np.concatenate(rows, 1)
    write_video(request.output, np.concatenate([forth, forth[::-1][1:-1]]), 8.0, {"prompts": list(PROMPTS)})


if __name__ == "__main__":
    main()
