"""A folder of clips with planted faults, drawn rather than generated: what each should score is known."""

import json

import numpy as np
import torch

from lynx_video.evaluation.grid import draw_subjects
from lynx_video.media.image import read_picture, write_picture
from lynx_video.media.video import write_video
from lynx_video.nano import faces, model
from lynx_video.nano.people import benchmark_person
from lynx_video.nano.recipe import data

PEOPLE = 3


def filmed(number, seed, motion="nods", wall="white", shirt="red"):
    """uint8 [9, 64, 64, 3]: person `number` of the benchmark, doing something."""
    colours = list(faces.COLOURS)
    scene = faces.Scenes(wall=torch.tensor([colours.index(wall)]), shirt=torch.tensor([colours.index(shirt)]))
    rng = torch.Generator().manual_seed(seed)
    drawn = data.clips(benchmark_person(number), rng, motion=torch.tensor([faces.MOTIONS.index(motion)]), scene=scene)
    return drawn.frames[0].permute(0, 2, 3, 1).contiguous().numpy()


PROMPT = "the person nods wearing a red shirt in front of a white wall"


def plant(folder):
    """Honest clips of three people, and one of each fault, all by the first person's reference; the manifest names them."""
    import cv2

    people = draw_subjects(folder, PEOPLE)
    lines = []

    def put(name, frames=None, subject=people[0], raw=None, prompt=PROMPT, reference=None):
        file = folder / "clips" / f"{name}.mp4"
        if frames is not None:
            write_video(file, frames, model.FPS)
        elif raw is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
        lines.append(
            {
                "clip": file.relative_to(folder).as_posix(),
                "subject": subject.name,
                "reference": (reference or subject.reference).relative_to(folder).as_posix(),
                "others": [other.relative_to(folder).as_posix() for other in subject.others],
                "prompt": prompt,
                "prompt_id": name,
            }
        )

    for i, person in enumerate(people):
        for take in range(2):
            put(f"honest-{i}-{take}", filmed(i, 10 * i + take, motion=("nods", "moves to the left")[take]), person)
    put("stranger", filmed(7, 5))
    photo = cv2.resize(read_picture(people[0].reference), (64, 64), interpolation=cv2.INTER_AREA)
    put("frozen", np.stack([photo] * 9))
    half = np.concatenate([filmed(0, 3), filmed(0, 4)[:1]])
    half[5:] = half[5:, :1, :1]
    put("half", half)
    honest = filmed(0, 1, motion="moves to the left")
    put("shuffled", honest[[4, 0, 7, 2, 8, 1, 6, 3, 5]])
    put("in-order", honest)
    put("empty", np.full((9, 64, 64, 3), 200, np.uint8))
    put("cut", raw=(folder / "clips" / "frozen.mp4").read_bytes()[:700])
    put("text", raw=b"this is no video")
    put("gone")
    faceless = folder / "subjects" / "nobody.png"
    write_picture(faceless, np.full((256, 256, 3), 120, np.uint8))
    put("nobody", filmed(0, 1), reference=faceless)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
