"""How far a nano clip does what its prompt says: the share of wall, shirt and motion that were asked for and are seen."""

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


def following(frames: Video, prompt: str, detector: Detector) -> float | None:
    """0 to 1, or None if the prompt asks for nothing that can be told. frames: uint8 [F, H, W, 3]."""
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    seen: list[bool] = []
    for probe, pattern in ((probes.wall, r"(\w+) (?:wall|background)"), (probes.shirt, r"(\w+) shirt")):
        asked = re.search(pattern, text)
        if asked and asked[1] in faces.COLOURS:
            seen.append(probe(frames) == asked[1])
    phrases = [(phrase, motion) for motion, ways in DOES.items() for phrase in ways if phrase and phrase in text]
    if phrases:
        motion = max(phrases, key=lambda pair: len(pair[0]))[1]
        found = [one for one in largest_faces(frames, detector) if one is not None]
        told = len(found) == len(frames) and probes.motion(np.stack([one.face.points for one in found]), frames.shape[2])
        seen.append(told == motion)
    return sum(seen) / len(seen) if seen else None
