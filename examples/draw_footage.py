"""A folder of clips with captions to train on: people drawn by code, three clips of each. draw_footage.py [FOLDER] [PEOPLE]"""

import random
import sys
from pathlib import Path

import torch

from lynx_video.media.video import write_video
from lynx_video.nano import faces, model
from lynx_video.nano.captions import caption
from lynx_video.nano.recipe import data

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "footage")
count = int(sys.argv[2]) if len(sys.argv) > 2 else 24
rng = torch.Generator().manual_seed(77)
who = faces.people(count, rng)
for take in range(3):
    clips = data.clips(who, rng)
    for i, frames in enumerate(clips.frames):
        name = f"person{i:03d}-take{take}"
        write_video(folder / f"{name}.mp4", frames.permute(0, 2, 3, 1).contiguous().numpy(), model.FPS)
        text = caption(clips.scene, i, int(clips.motion[i]), "", random.Random(f"{i}/{take}"))
        (folder / f"{name}.txt").write_text(text + "\n")
print(f"{folder}: {3 * count} clips of {count} people")
