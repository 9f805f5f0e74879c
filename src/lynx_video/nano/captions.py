"""Captions of drawn scenes, in the words that nano's text encoder knows.

A caption names the motion, the shirt and the wall; while the base model trains it also names some identity traits, so that the
frozen base can draw the variety of people. While adapters train and in use, identity comes from the portrait alone.
"""

from __future__ import annotations

import random
import re

from lynx_video.nano import faces
from lynx_video.nano.faces import People, Scenes

_SUBJECTS = ("a person", "the person", "a man", "a woman", "someone")
DOES = {
    "stays still": ("stays still", "looks at the camera", ""),
    "nods": ("nods", "is nodding", "nods the head"),
    "shakes the head": ("shakes the head", "is shaking the head", "shakes her head", "shakes his head"),
    "tilts the head": ("tilts the head", "is tilting the head", "tilts her head", "tilts his head"),
    "moves to the left": ("moves to the left", "is moving to the left", "moves left"),
    "moves to the right": ("moves to the right", "is moving to the right", "moves right"),
    "smiles": ("smiles", "is smiling", "smiles at the camera"),
}
_ORDERS = (
    "{who} {does} wearing a {shirt} shirt in front of a {wall} wall{traits}",
    "{who} in a {shirt} shirt {does} in front of a {wall} wall{traits}",
    "in front of a {wall} wall {who} in a {shirt} shirt {does}{traits}",
    "{who}{traits} {does} {shirt} shirt {wall} wall",
    "{who} wearing a {shirt} shirt {does} {wall} background{traits}",
)


def caption(scene: Scenes, i: int, motion: int | None, traits: str, rng: random.Random) -> str:
    """The caption of entry `i`; `motion` None for a still, `traits` as `describe` gives them or empty."""
    does = "" if motion is None else rng.choice(DOES[faces.MOTIONS[motion]])
    text = rng.choice(_ORDERS).format(
        who=rng.choice(_SUBJECTS),
        does=does,
        shirt=faces.SHIRTS[int(scene.shirt[i])],
        wall=faces.WALLS[int(scene.wall[i])],
        traits=f" with {traits}" if traits else "",
    )
    return " ".join(text.split())


def describe(who: People, i: int, keep: float, rng: random.Random) -> str:
    """The traits of entry `i`, each named with probability `keep`."""

    def name(table: dict[str, tuple[float, float, float]], index: int) -> str:
        return list(table)[index]

    style = faces.STYLES[int(who.style[i])]
    glasses = faces.GLASSES[int(who.glasses[i])]
    parts = [
        f"{name(faces.SKIN, int(who.skin[i]))} skin",
        f"a {faces.SHAPES[int(who.shape[i])]} face",
        "a bald head" if style == "bald" else f"{name(faces.HAIR, int(who.hair[i]))} {style} hair",
        f"{name(faces.EYES, int(who.eyes[i]))} eyes",
        "no glasses" if glasses == "no" else f"{glasses} {name(faces.FRAMES, int(who.frame[i]))} glasses",
        faces.BEARDS[int(who.beard[i])],
        f"{faces.BROWS[int(who.brows[i])]} brows",
    ]
    return " ".join(part for part in parts if rng.random() < keep)


def _vocabulary() -> tuple[str, ...]:
    sources = [*_SUBJECTS, *_ORDERS, *(d for options in DOES.values() for d in options)]
    sources += [*faces.COLOURS, *faces.SKIN, *faces.HAIR, *faces.EYES, *faces.FRAMES]
    sources += [*faces.STYLES, *faces.SHAPES, *faces.GLASSES, *faces.BEARDS, *faces.BROWS]
    sources += ["skin face hair eyes head glasses brows with no image of"]
    words = set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(sources))))
    return ("<pad>", "</s>", "<unk>", *sorted(words))


WORDS = _vocabulary()
