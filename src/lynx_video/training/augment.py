"""Reference pictures made different from the target: other light, other background, another crop, as steps on pixels and points.

Where the reference shows the very light, wall and framing of the clip it is trained with, the adapter learns to copy them. The
paper therefore trains on portraits whose expression (X-Nemo), light (LBM) and background were changed (section Training). What plain
arithmetic can do is here; what needs a model of its own comes in through `Restyle`. All draws come from the `rng` that is passed, so
the same generator gives the same picture; no step writes to what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from lynx_video.errors import BadRequest
from lynx_video.face.align import arcface_template, require_picture, require_points, similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Picture, Points

DEFAULT_STEPS = ("background", "light", "jitter")  # the matte is surest on the picture as it was taken
_DISPLAY_GAMMA = 2.2  # from stored values to light, near enough to sRGB's own curve
_MIRRORED = (1, 0, 2, 4, 3)  # the points are named as the viewer sees them: in a mirror left and right change places


@dataclass(frozen=True, kw_only=True, slots=True)
class Portrait:
    """A picture of one person and where the face is in it."""

    picture: Picture
    "uint8 [H, W, 3] RGB"
    points: Points
    "float32 [5, 2], x and y in pixels, in the order of `lynx_video.types.Face`"


class Step(Protocol):
    """One augmentation: a portrait in, another one of the same person out."""

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """The changed portrait; the one given stays as it is."""
        ...


Matte: TypeAlias = "Callable[[Portrait], NDArray[np.float32]]"
"""Where the person is: float32 [H, W], 1 on the person, 0 behind."""

Style: TypeAlias = "Callable[[Picture, Points, int], tuple[Picture, Points]]"
"""Picture, points and a seed -> the same person drawn anew, and where the points are now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """Another exposure, contrast and colour of the light, and a side it comes from; exposure, colour and side act on linear light."""

    probability: float = 0.8
    "how often it acts, 0 to 1"
    exposure: float = 0.45
    "stops brighter or darker, at most"
    gamma: float = 0.2
    "the curve of the mid tones: an exponent between 1 / (1 + gamma) and 1 + gamma"
    white_balance: float = 0.2
    "stops by which red and blue are raised or lowered, at most"
    gradient: float = 0.8
    "stops between the lit side and the other, at most"

    def __post_init__(self) -> None:
        _check(self, exposure=3.0, gamma=1.0, white_balance=1.0, gradient=4.0)

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """Change the light of the whole picture."""
        if rng.random() >= self.probability:
            return portrait
        height, width = portrait.picture.shape[:2]
        curve = (1 + self.gamma) ** rng.uniform(-1, 1)
        stops = (
            np.zeros((height, width, 3), np.float32)
            + self._colour(rng)
            + np.float32(rng.uniform(-self.exposure, self.exposure))
        )
        angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, self.gradient)
        x, y = _face_frame(portrait)
        # a face is about 90 units wide: the light changes over the head and hardly beyond
        side = np.tanh((x * math.cos(angle) + y * math.sin(angle)) / 80)
        stops += (strength / 2 * side)[:, :, None].astype(np.float32)
        stored = (portrait.picture.astype(np.float32) / 255) ** np.float32(curve) * np.exp2(stops / _DISPLAY_GAMMA)
        return Portrait(picture=np.rint(np.clip(stored, 0, 1) * 255).astype(np.uint8), points=portrait.points)

    def _colour(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """float32 [3]: stops of red, green and blue whose mean, weighted as the eye does, is zero."""
        warm, tint = rng.uniform(-self.white_balance, self.white_balance, 2)
        stops = np.array([warm, tint / 3, -warm], np.float32)
        return stops - np.float32(stops @ np.array([0.2126, 0.7152, 0.0722], np.float32))


@dataclass(frozen=True, kw_only=True, slots=True)
class GrabCutMatte:
    """The person found by OpenCV's GrabCut (Rother et al. 2004), started from a head-and-shoulders shape around the face points.

    Meant for portraits, upright and with some background: hair against a wall of its colour and hands beside the head get lost.
    """

    side: int = 320
    "pixels of the longer side at which it works; the matte is scaled up afterwards"
    rounds: int = 4
    "iterations of GrabCut"
    trust: float = 0.72
    "share of the head-and-shoulders shape that must be found; with less, hair or shoulders were taken for background"

    def __call__(self, portrait: Portrait) -> NDArray[np.float32]:
        """float32 [H, W] in 0 to 1; all ones where nothing can be told: no room for a background, or too little found."""
        import cv2

        height, width = portrait.picture.shape[:2]
        scale = min(1.0, self.side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = Portrait(
            picture=cv2.resize(portrait.picture, size, interpolation=cv2.INTER_AREA),
            points=portrait.points * np.array([size[0] / width, size[1] / height], np.float32),
        )
        labels = _head_and_shoulders(small)
        expected = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if not (labels == cv2.GC_BGD).any() or not (labels == cv2.GC_FGD).any():
            return np.ones((height, width), np.float32)
        state = np.zeros((2, 1, 65), np.float64)
        cv2.setRNGSeed(0)  # GrabCut starts with a k-means on OpenCV's own generator; without this no run repeats
        cv2.grabCut(small.picture[:, :, ::-1].copy(), labels, None, state[0], state[1], self.rounds, cv2.GC_INIT_WITH_MASK)
        person = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
        person = cv2.morphologyEx(person, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        # the piece that holds the face, without holes: a highlight on the forehead is no window
        pieces = cv2.connectedComponents(person)[1]
        face = np.bincount(pieces[labels == cv2.GC_FGD], minlength=2)[1:].argmax() + 1
        outline = cv2.findContours((pieces == face).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        filled = cv2.drawContours(np.zeros(person.shape, np.float32), outline, -1, 1.0, cv2.FILLED)
        if filled[expected].mean() < self.trust:
            return np.ones((height, width), np.float32)
        soft = cv2.resize(cv2.GaussianBlur(filled, (0, 0), 1.0), (width, height), interpolation=cv2.INTER_LINEAR)
        # the soft edge moves inwards, so that no rim of the old wall stays around the hair
        matte: NDArray[np.float32] = np.clip(soft * 1.8 - 0.8, 0, 1).astype(np.float32)
        return matte


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """Another background: one colour, a gradient of two, or blurred noise.

    Where the matte finds almost nobody or almost no background, the portrait stays as it is.
    """

    probability: float = 0.5
    "how often it acts, 0 to 1"
    matte: Matte = GrabCutMatte()
    "finds the person; a segmentation model can take its place"
    kinds: tuple[str, ...] = ("flat", "gradient", "noise")
    "what may come behind, each as likely"
    least: float = 0.05
    "share of the picture that person and background must each cover at least"

    def __post_init__(self) -> None:
        _check(self, least=0.5)
        if not self.kinds or not set(self.kinds) <= {"flat", "gradient", "noise"}:
            raise BadRequest(f"the kinds of background are flat, gradient and noise, got {', '.join(self.kinds) or 'none'}.")

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """Put another background behind the person."""
        if rng.random() >= self.probability:
            return portrait
        height, width = portrait.picture.shape[:2]
        behind = _scene(self.kinds[rng.integers(len(self.kinds))], height, width, rng)
        matte = self.matte(portrait)
        if matte.shape != (height, width):
            raise BadRequest(f"the matte must be [{height}, {width}] as the picture is, got {list(matte.shape)}.")
        if not self.least <= float(matte.mean()) <= 1 - self.least:
            return portrait
        weight = matte[:, :, None]
        mixed = portrait.picture * weight + behind * (1 - weight)
        return Portrait(picture=np.rint(np.clip(mixed, 0, 255)).astype(np.uint8), points=portrait.points)


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """The mirror image. Not among the default steps: faces are not symmetric, and a recogniser sees partings and moles."""

    probability: float = 0.5
    "how often it acts, 0 to 1"

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """Mirror picture and points."""
        if rng.random() >= self.probability:
            return portrait
        points = portrait.points[list(_MIRRORED)]
        points[:, 0] = portrait.picture.shape[1] - 1 - points[:, 0]
        return Portrait(picture=np.ascontiguousarray(portrait.picture[:, ::-1]), points=points)


@dataclass(frozen=True, kw_only=True, slots=True)
class CropJitter:
    """Points moved, scaled and turned together, so that the aligned crops show a little more, less or another part."""

    probability: float = 1.0
    "how often it acts, 0 to 1"
    shift: float = 0.08
    "share of the distance between the eyes and the mouth by which the points move, at most"
    scale: float = 0.10
    "the points spread by a factor between 1 / (1 + scale) and 1 + scale"
    turn: float = 6.0
    "degrees either way, at most"

    def __post_init__(self) -> None:
        _check(self, shift=1.0, scale=1.0, turn=45.0)

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """Move the points; the picture stays."""
        if rng.random() >= self.probability:
            return portrait
        points = portrait.points.astype(np.float64)
        height = float(np.linalg.norm(points[:2].mean(axis=0) - points[3:].mean(axis=0)))
        move = rng.uniform(-self.shift, self.shift, 2) * height
        spread = (1 + self.scale) ** rng.uniform(-1, 1)
        angle = math.radians(rng.uniform(-self.turn, self.turn))
        turn = spread * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        centre = points.mean(axis=0)
        return Portrait(picture=portrait.picture, points=((points - centre) @ turn + centre + move).astype(np.float32))


@dataclass(frozen=True, kw_only=True, slots=True)
class Restyle:
    """A model of your own as a step: another expression, a relit face, other hair. None is shipped.

    The paper changes expressions with X-Nemo and light with LBM. Wrap such a model in a function that takes the picture, the points
    and a seed and gives the new picture and where the points are in it. It must keep who the person is: filter what it makes with a
    face recogniser, as the paper does.
    """

    style: Style
    "picture, points, seed -> picture, points; it is given copies"
    probability: float = 1.0
    "how often it acts, 0 to 1"

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, portrait: Portrait, rng: np.random.Generator) -> Portrait:
        """Raises BadPicture or NoFace for a picture or points that cannot be used."""
        if rng.random() >= self.probability:
            return portrait
        picture, points = self.style(portrait.picture.copy(), portrait.points.copy(), int(rng.integers(2**31)))
        return Portrait(picture=require_picture(picture), points=require_points(points))


_STEPS: dict[str, Callable[[], Step]] = {"light": Light, "background": Background, "jitter": CropJitter, "flip": Flip}


def steps(names: Sequence[str]) -> list[Step]:
    """The steps of these names with their default strengths, in this order. Raises BadRequest for an unknown name."""
    for name in names:
        if name not in _STEPS:
            raise BadRequest(f"unknown augmentation {name!r}; the augmentations are {', '.join(_STEPS)}.")
    return [_STEPS[name]() for name in names]


def augment(portrait: Portrait, steps: Sequence[Step], rng: np.random.Generator) -> Portrait:
    """The portrait after all steps, each on the result of the one before.

    Raises BadPicture or NoFace for a portrait whose picture or points cannot be used.
    """
    portrait = Portrait(picture=require_picture(portrait.picture), points=require_points(portrait.points))
    for step in steps:
        portrait = step(portrait, rng)
    return portrait


def _check(step: Light | Background | Flip | CropJitter | Restyle, **limits: float) -> None:
    """Raises BadRequest for a probability that is none and a strength below zero or above its limit."""
    for name, most in {"probability": 1.0, **limits}.items():
        value = getattr(step, name)
        if not 0 <= value <= most:
            raise BadRequest(f"{type(step).__name__}: {name} must be between 0 and {most:g}, got {value}.")


def _face_frame(portrait: Portrait) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of every pixel, [H, W], from the middle of the points, upright, in pixels of the 112 px crop.

    In these units the eyes are 35 apart, the chin is 45 below and the top of the skull about 75 above.
    """
    matrix = similarity(portrait.points, arcface_template())
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    centre = portrait.points.astype(np.float64).mean(axis=0)
    y, x = np.mgrid[: portrait.picture.shape[0], : portrait.picture.shape[1]].astype(np.float64)
    return (x - centre[0]) * scale, (y - centre[1]) * scale


def _head_and_shoulders(portrait: Portrait) -> NDArray[np.uint8]:
    """uint8 [H, W]: GrabCut's labels, surely or probably person or background, from where the face is."""
    import cv2

    x, y = _face_frame(portrait)

    def ellipse(across: float, up: float, down: float) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (x / across) ** 2 + (y / np.where(y < 0, up, down)) ** 2 < 1
        return inside

    def body(neck: float, shoulders: float, top: float) -> NDArray[np.bool_]:
        """Below `top`, from the width of the neck to that of the shoulders in half the height of a head."""
        below: NDArray[np.bool_] = (y > top) & (np.abs(x) < neck + (shoulders - neck) * np.clip((y - top) / 60, 0, 1))
        return below

    labels: NDArray[np.uint8] = np.full(portrait.picture.shape[:2], cv2.GC_BGD, np.uint8)
    labels[ellipse(105, 135, 100) | body(60, 260, 25)] = cv2.GC_PR_BGD
    if not (labels == cv2.GC_BGD).any():  # a close portrait: what lies beside the head at the very edge
        edge = max(1, labels.shape[1] // 25)
        labels[:, :edge] = labels[:, -edge:] = cv2.GC_BGD
        labels[y > 45] = cv2.GC_PR_BGD
    strange = ~_colours_of(portrait.picture, labels == cv2.GC_BGD)  # big hair: near the head, of no colour seen farther off
    labels[(labels == cv2.GC_PR_BGD) & strange] = cv2.GC_PR_FGD
    labels[ellipse(50, 75, 52) | body(16, 130, 50)] = cv2.GC_PR_FGD
    labels[ellipse(33, 60, 38) | body(12, 60, 50)] = cv2.GC_FGD
    return labels


def _colours_of(picture: Picture, where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool [H, W]: pixels of a colour that occurs in `where`, give or take 16 to 32 of 256 levels."""
    cells = picture >> 4
    seen = np.zeros((18, 18, 18), bool)
    seen[tuple(cells[where].T + 1)] = True
    for axis in range(3):
        seen = seen | np.roll(seen, 1, axis) | np.roll(seen, -1, axis)
    found: NDArray[np.bool_] = seen[tuple(np.moveaxis(cells, 2, 0) + 1)]
    return found


def _scene(kind: str, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """float32 [H, W, 3] in 0 to 255: a background of this kind."""
    import cv2

    one, two = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    if kind == "flat":
        return np.broadcast_to(one, (height, width, 3))
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        along = x / width * np.float32(math.cos(angle)) + y / height * np.float32(math.sin(angle))
        share = ((along - along.min()) / max(float(np.ptp(along)), 1e-6))[:, :, None]
        mixed: NDArray[np.float32] = one * (1 - share) + two * share
        return mixed
    # blobs of colour, as a room out of focus: few random cells, scaled up smoothly
    cells = int(rng.integers(3, 9))
    spread = rng.uniform(20, 80)
    noise = one + rng.normal(0, spread, (cells, cells, 3)).astype(np.float32)
    blurred: NDArray[np.float32] = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    return blurred
