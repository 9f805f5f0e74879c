"""How far a nano clip does what its prompt says: wall, shirt and motion that are asked for and seen; and is it well drawn?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.face.likeness import largest_faces
from lynx_video.nano import faces, probes
from lynx_video.nano.captions import DOES

if TYPE_CHECKING:
    from lynx_video.face.detect import Detector
    from lynx_video.types import Video


def probe(frames: Video, prompt: str, detector: Detector) -> dict[str, float]:
    """What can be told of a clip, uint8 [F, H, W, 3], 0 to 1 each.

    wall, shirt, motion: 1 if it is as the prompt asks, for those it asks for. prompt: the mean of wall and shirt; following: of all
    three. clean and steady, asked or not: see `probes`.
    """
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    seen: dict[str, float] = {}
    for name, tell, pattern in (("wall", probes.wall, r"(\w+) (?:wall|background)"), ("shirt", probes.shirt, r"(\w+) shirt")):
        asked = re.search(pattern, text)
        if asked and asked[1] in faces.COLOURS:
            seen[name] = float(tell(frames) == asked[1])
    scene = list(seen.values())
    phrases = [(phrase, motion) for motion, ways in DOES.items() for phrase in ways if phrase and phrase in text]
    if phrases:
        motion = max(phrases, key=lambda pair: len(pair[0]))[1]
        found = [one for one in largest_faces(frames, detector) if one is not None]
        told = len(found) == len(frames) and probes.motion(np.stack([one.face.points for one in found]), frames.shape[2])
        seen["motion"] = float(told == motion)
    if scene:
        seen["prompt"] = sum(scene) / len(scene)
    everything = [*scene, *([seen["motion"]] if phrases else [])]
    if everything:
        seen["following"] = sum(everything) / len(everything)
    return {**seen, "clean": probes.clean(frames), "steady": probes.steady(frames)}
