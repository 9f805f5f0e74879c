"""What a training set is made to be; every field ends up in its card."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from lynx_video.errors import BadRequest


class Bucket(NamedTuple):
    """The frames, height and width in pixels that examples of one kind share."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """What goes into a training set and how it is encoded."""

    bucket: tuple[str, ...] = ()
    "size of examples, FRAMESxHEIGHTxWIDTH (1 frame: stills), may be given several times; the model's own by default, moving and still"
    references: int = 3
    "other pictures of the same person that an example gets, at most"
    looks: int = 5
    "frames of a clip in which faces are looked for"
    present: float = 0.8
    "share of these frames that must show the face"
    smallest_face: float = 0.1
    "size of the face (forehead to chin), as a share of the picture's shorter side, from which on it counts"
    enlargement: float = 2.0
    "how many times a picture may be enlarged, to fill its bucket or the reference crop"
    sharpness: float = 0.02
    "sharpness of the face from which on it counts: about 0.3 in a sharp portrait, 0.02 where everything is soft"
    turned: float = 35.0
    "degrees by which the face may be turned away in the best frame"
    bystander: float = 0.25
    "area of a second face, as a share of the first one's, from which on the picture shows several people"
    same_person: float | None = None
    "mean cosine of face vectors from which on two sets of pictures show one person: 0.5 by default, 0.8 for nano's drawn people"
    near: float = 3.0
    "grey levels (of 255, mean over a thumbnail) below which two pictures are the same one"
    augment: str = field(default="default", metadata={"metavar": "STEPS"})
    "changes to reference pictures, in order and with commas between them: default, none, or of light, background, jitter and flip"
    seed: int = 42
    "seed of the pairs, the changes and the references' latents"
    licence: str = ""
    "note kept in the card: under which licence and with whose consent the pictures are used"
    shard_megabytes: int = 256
    "size from which on a new shard begins"

    def __post_init__(self) -> None:
        for text in self.bucket:
            parse_bucket(text)
        _between("references", self.references, 1, 1000)
        _between("looks", self.looks, 1, 1000)
        _between("present", self.present, 0, 1)
        _between("smallest_face", self.smallest_face, 0, 1)
        _between("enlargement", self.enlargement, 1, 100)
        _between("sharpness", self.sharpness, 0, 20)
        _between("turned", self.turned, 0, 180)
        _between("bystander", self.bystander, 0, 1)
        if self.same_person is not None:
            _between("same_person", self.same_person, -1, 1)
        _between("near", self.near, 0, 255)
        _between("seed", self.seed, 0, 2**63 - 1)
        _between("shard_megabytes", self.shard_megabytes, 1, 1_000_000)


def parse_bucket(text: str) -> Bucket:
    """`9x64x64` -> frames, height, width. Raises BadRequest for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise BadRequest(f"bucket must be FRAMESxHEIGHTxWIDTH such as 81x480x832, got {text!r}.")
    return Bucket(int(match[1]), int(match[2]), int(match[3]))


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also what is not a number
        raise BadRequest(f"{name} must be from {low:g} to {high:g}, got {value!r}.")
