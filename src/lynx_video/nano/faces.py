"""People drawn by code: who (traits), how (pose, motion) and where (wall, shirt), rendered from distance fields.

Everything is batched: a `People`, `Scenes` or `Poses` of N entries holds tensors whose first dimension is N. The frame
spans [-1, 1] in x (right) and y (down), whatever its size in pixels, so a portrait at 256 px and a clip at 64 px show
the same drawing. Nothing here is learned; the same generator seed gives the same people.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.18, 0.18),
    "green": (0.18, 0.60, 0.28),
    "blue": (0.18, 0.36, 0.82),
    "yellow": (0.94, 0.82, 0.25),
    "purple": (0.52, 0.26, 0.66),
    "orange": (0.95, 0.53, 0.15),
    "white": (0.93, 0.93, 0.93),
    "black": (0.12, 0.12, 0.14),
}
WALLS = SHIRTS = tuple(COLOURS)
SKIN = {"pale": (0.99, 0.87, 0.77), "tan": (0.89, 0.68, 0.51), "brown": (0.62, 0.42, 0.29), "dark": (0.37, 0.24, 0.17)}
HAIR = {
    "black": (0.09, 0.08, 0.09),
    "brown": (0.42, 0.25, 0.13),
    "blond": (0.94, 0.80, 0.42),
    "ginger": (0.80, 0.36, 0.09),
    "grey": (0.70, 0.71, 0.74),
    "blue": (0.20, 0.32, 0.74),
    "pink": (0.92, 0.45, 0.66),
}
EYES = {"brown": (0.34, 0.18, 0.08), "blue": (0.12, 0.42, 0.88), "green": (0.13, 0.60, 0.25), "amber": (0.82, 0.56, 0.06)}
FRAMES = {"black": (0.06, 0.06, 0.06), "red": (0.86, 0.10, 0.10), "blue": (0.10, 0.25, 0.78), "gold": (0.87, 0.69, 0.15)}
STYLES = ("bald", "short", "fringe", "long", "afro", "bun", "mohawk")
SHAPES = ("round", "narrow", "square")
GLASSES = ("no", "round", "square")
BEARDS = ("no beard", "a moustache", "a beard")
BROWS = ("thin", "thick", "slanted")
MOTIONS = ("stays still", "nods", "shakes the head", "tilts the head", "moves to the left", "moves to the right", "smiles")

_YAW_SHIFT, _PITCH_SHIFT = 0.19, 0.15  # how far features travel over the face for a turn of 1
_NECK_Y = 0.50  # the head tilts about this point
_EYE_Y, _NOSE_Y, _MOUTH_Y = -0.06, 0.16, 0.35


@dataclass(frozen=True, kw_only=True, slots=True)
class People:
    """N drawn identities. Trait fields are int64 [N] indices into the tables above; the rest float32."""

    skin: Tensor
    hair: Tensor
    style: Tensor
    shape: Tensor
    eyes: Tensor
    glasses: Tensor
    frame: Tensor
    beard: Tensor
    brows: Tensor
    tint: Tensor  # [N, 3, 3] small shifts of skin, hair and eye colour
    width: Tensor  # [N] shift of the face's half width
    height: Tensor  # [N] shift of the face's half height
    volume: Tensor  # [N] thickness of the hair, 0.08 to 0.13

    def __len__(self) -> int:
        return self.skin.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """N scenes: int64 [N] indices of wall and shirt colour."""

    wall: Tensor
    shirt: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Poses:
    """N poses, float32 [N] each: turns in [-1, 1], place in frame units, smile in [-0.5, 1.5]."""

    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    x: Tensor
    y: Tensor
    scale: Tensor
    smile: Tensor


Batch = TypeVar("Batch", People, Scenes, Poses)


def select(batch: Batch, index: Tensor | slice) -> Batch:
    """The entries of a batch at `index`, in that order."""
    return dataclasses.replace(batch, **{f.name: getattr(batch, f.name)[index] for f in dataclasses.fields(batch)})


def people(count: int, generator: torch.Generator) -> People:
    """`count` people with independent traits."""

    def pick(options: int, weights: list[float] | None = None) -> Tensor:
        return torch.multinomial(torch.tensor(weights or [1.0] * options), count, True, generator=generator)

    def spread(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    return People(
        skin=pick(len(SKIN)),
        hair=pick(len(HAIR)),
        style=pick(len(STYLES), [0.6, 1, 1, 1, 1, 1, 0.8]),
        shape=pick(len(SHAPES)),
        eyes=pick(len(EYES)),
        glasses=pick(len(GLASSES), [1.3, 1, 1]),
        frame=pick(len(FRAMES)),
        beard=pick(len(BEARDS), [1.5, 0.8, 0.8]),
        brows=pick(len(BROWS)),
        tint=(torch.rand(count, 3, 3, generator=generator) - 0.5) * torch.tensor([0.05, 0.06, 0.04])[:, None],
        width=spread(-0.02, 0.02),
        height=spread(-0.02, 0.02),
        volume=spread(0.08, 0.13),
    )


def scenes(who: People, generator: torch.Generator) -> Scenes:
    """A scene for each person; the wall is never the colour of the hair."""
    count = len(who)
    wall = torch.randint(len(WALLS), (count,), generator=generator)
    shirt = torch.randint(len(SHIRTS), (count,), generator=generator)
    table = torch.tensor(list(COLOURS.values()))
    for _ in range(2):  # move on to the next colour while it clashes
        hair = torch.tensor(list(HAIR.values()))[who.hair]
        clash = (table[wall] - hair).abs().sum(-1) < 0.45
        wall = torch.where(clash, (wall + 1) % len(WALLS), wall)
    return Scenes(wall=wall, shirt=shirt)


def poses(count: int, generator: torch.Generator, *, spread: float = 1.0) -> Poses:
    """Natural resting poses; `spread` 0 is a passport photo, 1 the variety of the training set."""

    def about(middle: float, half: float) -> Tensor:
        return middle + (torch.rand(count, generator=generator) * 2 - 1) * half * spread

    return Poses(
        yaw=about(0, 0.45),
        pitch=about(0, 0.35),
        roll=about(0, 0.10),
        x=about(0, 0.08),
        y=about(0.02, 0.04),
        scale=about(1.0, 0.06),
        smile=about(0.1, 0.4),
    )


def tracks(start: Poses, motion: Tensor, amount: Tensor, frames: int) -> Poses:
    """`start` [N] carried through `frames` frames of `motion` (int64 [N], index into MOTIONS): Poses of N * frames.

    `amount` [N] is the strength; its sign picks the direction where a motion has two.
    """
    t = torch.linspace(0, 1, frames)[None] if frames > 1 else torch.zeros(1, 1)
    value = {f.name: getattr(start, f.name)[:, None].expand(-1, t.shape[1]).clone() for f in dataclasses.fields(start)}
    strength, sign = amount.abs()[:, None], torch.where(amount < 0, -1.0, 1.0)[:, None]

    def does(name: str) -> Tensor:
        return (motion == MOTIONS.index(name)).float()[:, None]

    wave = torch.sin(2 * math.pi * t) * strength * sign
    value["pitch"] = value["pitch"] * (1 - 0.6 * does("nods")) + does("nods") * wave * 0.85
    value["yaw"] = value["yaw"] * (1 - 0.6 * does("shakes the head")) + does("shakes the head") * wave * 0.85
    value["roll"] = value["roll"] + does("tilts the head") * sign * strength * 0.38 * t
    value["x"] = value["x"] + (does("moves to the right") - does("moves to the left")) * strength * 0.40 * (t - 0.5)
    smiles = does("smiles")
    value["smile"] = value["smile"] * (1 - smiles) + smiles * (-0.4 + 1.7 * strength.clamp(max=1.1) * t)
    value["yaw"] = value["yaw"].clamp(-0.95, 0.95)
    value["pitch"] = value["pitch"].clamp(-0.95, 0.95)
    return Poses(**{name: tensor.reshape(-1) for name, tensor in value.items()})


def _face_size(who: People) -> tuple[Tensor, Tensor]:
    width = torch.tensor([0.53, 0.41, 0.52])[who.shape] + who.width
    height = torch.tensor([0.56, 0.61, 0.56])[who.shape] + who.height
    return width, height


def _eye_x(width: Tensor) -> Tensor:
    return 0.42 * width + 0.03


def _mouth_half(smile: Tensor) -> Tensor:
    return 0.18 + 0.05 * smile


def landmarks(who: People, pose: Poses) -> Tensor:
    """The five points every face model uses, [N, 5, 2] in frame units: left eye, right eye, nose, mouth corners."""
    width, _ = _face_size(who)
    eye, mouth = _eye_x(width), _mouth_half(pose.smile)
    lift = 0.7 * mouth * pose.smile * 0.5
    zero = torch.zeros_like(eye)
    points = torch.stack(
        [
            torch.stack([-eye, zero + _EYE_Y], -1),
            torch.stack([eye, zero + _EYE_Y], -1),
            torch.stack([zero + 0.05 * pose.yaw, zero + _NOSE_Y], -1),
            torch.stack([-mouth, _MOUTH_Y - lift + 0.02], -1),
            torch.stack([mouth, _MOUTH_Y - lift + 0.02], -1),
        ],
        1,
    )
    return _to_frame(points, pose)


def boxes(who: People, pose: Poses) -> Tensor:
    """Face boxes [N, 4] (left, top, right, bottom) in frame units: the skin, not the hair."""
    width, height = _face_size(who)
    corner = torch.stack([torch.stack([sx * width, sy * height], -1) for sx in (-1, 1) for sy in (-0.85, 1)], 1)
    flat = dataclasses.replace(pose, yaw=pose.yaw * 0.25, pitch=pose.pitch * 0.2, roll=pose.roll * 0)
    spots = _to_frame(corner, flat)
    middle = _to_frame(torch.zeros(len(who), 1, 2), pose) - _to_frame(torch.zeros(len(who), 1, 2), flat)
    spots = spots + middle * torch.tensor([0.7, 0.7])
    return torch.cat([spots.amin(1), spots.amax(1)], -1)


def _to_frame(points: Tensor, pose: Poses) -> Tensor:
    """Points [N, P, 2] on the face plane, into frame units."""
    x = points[..., 0] * torch.cos(pose.yaw)[:, None] + _YAW_SHIFT * pose.yaw[:, None]
    y = points[..., 1] + _PITCH_SHIFT * pose.pitch[:, None] - _NECK_Y
    cos, sin = torch.cos(pose.roll)[:, None], torch.sin(pose.roll)[:, None]
    turned_x, turned_y = x * cos - y * sin, x * sin + y * cos + _NECK_Y
    unit = (pose.scale * _UNIT)[:, None]
    return torch.stack([turned_x * unit + pose.x[:, None], turned_y * unit + pose.y[:, None] + _DROP], -1)


_UNIT, _DROP = 1.10, 0.03  # head units in frame units, and how far below the middle the head sits


def draw(who: People, scene: Scenes, pose: Poses, size: int, *, centre: Tensor | None = None, extent: float = 1.0) -> Tensor:
    """Pictures [N, 3, size, size], float32 RGB in [0, 1].

    `extent` shows [-extent, extent] of the frame about `centre` ([N, 2], default the middle): above 1 zooms out.
    """
    count = len(who)
    pixel = 2.0 * extent / size
    axis = (torch.arange(size) + 0.5) * pixel - extent
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    if centre is not None:
        grid_x, grid_y = grid_x + centre[:, 0, None, None], grid_y + centre[:, 1, None, None]

    def value(tensor: Tensor) -> Tensor:
        return tensor.float()[:, None, None]

    def colour(table: dict[str, tuple[float, float, float]], index: Tensor, shift: int | None = None) -> Tensor:
        chosen = torch.tensor(list(table.values()))[index]
        return (chosen if shift is None else chosen + who.tint[:, shift]).clamp(0, 1)[:, :, None, None]

    unit = value(pose.scale) * _UNIT
    x, y = (grid_x - value(pose.x)) / unit, (grid_y - value(pose.y) - _DROP) / unit
    sharp = unit / pixel

    def cover(distance: Tensor) -> Tensor:
        return (0.5 - distance * sharp).clamp_(0, 1)

    image = colour(COLOURS, scene.wall).expand(count, 3, size, size).clone()

    def paint(shade: Tensor | float, mask: Tensor) -> None:
        image.add_((shade - image).mul_(mask[:, None]))

    skin, hair, iris = colour(SKIN, who.skin, 0), colour(HAIR, who.hair, 1), colour(EYES, who.eyes, 2)
    shirt, frame = colour(COLOURS, scene.shirt), colour(FRAMES, who.frame)
    width, height = (value(v) for v in _face_size(who))
    volume, yaw, pitch, smile = value(who.volume), value(pose.yaw), value(pose.pitch), value(pose.smile)
    style = value(who.style)

    def styled(*names: str) -> Tensor:
        return sum((style == STYLES.index(name)).float() for name in names)  # type: ignore[return-value]

    cos, sin = torch.cos(value(pose.roll)), torch.sin(value(pose.roll))
    head_x, head_y = x * cos + (y - _NECK_Y) * sin, -x * sin + (y - _NECK_Y) * cos + _NECK_Y
    skull_x, skull_y = head_x - yaw * 0.05, head_y - pitch * 0.03

    # behind the head
    paint(hair * 0.82, cover(_box(skull_x, skull_y - 0.12, width + 0.09 + volume, 0.62, 0.3)) * styled("long"))
    paint(hair * 0.9, cover(torch.hypot(skull_x, skull_y + 0.18) - (0.60 + volume * 1.3)) * styled("afro"))
    paint(hair, cover(_ellipse(skull_x, skull_y + height + 0.06, 0.23, 0.17 + volume)) * styled("bun"))
    paint(hair, cover(_box(skull_x + yaw * 0.08, skull_y + height, 0.11, 0.14 + volume * 1.5, 0.05)) * styled("mohawk"))
    # body
    paint(skin * 0.84, cover(_box(x, y - 0.60, 0.17, 0.30, 0.05)))
    paint(shirt, cover(_box(x, y - 1.22, 0.82, 0.55, 0.40)))
    paint(shirt * 0.78, cover(_ring(_ellipse(x, y - 0.66, 0.21, 0.10), 0.022)) * (y > 0.66))
    for side in (-1, 1):
        paint(skin * 0.88, cover(_ellipse(skull_x - side * width * 0.98 + yaw * 0.06, skull_y - 0.02, 0.10, 0.13)))
    # head
    round_, jaw = value(torch.tensor([2.1, 2.2, 3.8])[who.shape]), value(torch.tensor([0.10, 0.24, 0.04])[who.shape])
    taper = 1 - jaw * (skull_y / height).clamp(0, 1) ** 2
    reach = ((skull_x / (width * taper)).abs() + 1e-6) ** round_ + ((skull_y / height).abs() + 1e-6) ** round_
    head = (reach ** (1 / round_) - 1) * torch.minimum(width, height) * 0.8
    on_head = cover(head)
    paint(skin, on_head)
    # features live on the face plane
    face_x, face_y = (head_x - yaw * _YAW_SHIFT) / torch.cos(yaw), head_y - pitch * _PITCH_SHIFT
    beard = value(who.beard)
    paint(hair * 0.85, cover(0.17 + 0.05 * (face_x / width) ** 2 - face_y) * (beard == 2) * on_head)
    top = -height * 0.5
    bottom_of_hair = torch.full_like(head, -9.0)
    for name, line in (
        ("short", top - 0.02 + 0 * head_x),
        ("fringe", top * 0.58 + 0 * head_x),
        ("long", top - 0.12 + 0.60 * head_x.abs()),
        ("afro", top - 0.02 + 0 * head_x),
        ("bun", top - 0.12 + 0.3 * head_x**2),
    ):
        bottom_of_hair = torch.where(styled(name) > 0, line, bottom_of_hair)
    paint(hair, cover(skull_y - pitch * 0.06 - bottom_of_hair) * cover(head - volume * 0.55))
    sideburns = _box(skull_x.abs() - width * 0.96, skull_y + 0.15, 0.05 + volume * 0.3, 0.25, 0.03)
    paint(hair, cover(sideburns) * styled("short", "fringe"))
    strip = _box(skull_x - yaw * 0.06, skull_y + height * 0.93, 0.10, 0.16, 0.05)
    paint(hair, cover(strip) * styled("mohawk") * cover(head - volume))
    # eyes and brows
    eye_x, eye = _eye_x(width), 0.165
    tilt = value(torch.tensor([0.0, 0.0, 0.45])[who.brows])
    thick = value(torch.tensor([0.022, 0.055, 0.045])[who.brows])
    for side in (-1, 1):
        off_x, off_y = face_x - side * eye_x, face_y - _EYE_Y
        white = cover(_ellipse(off_x, off_y, eye, eye * 0.85))
        paint(0.97, white)
        gaze = torch.hypot(off_x - yaw * 0.04, off_y - pitch * 0.03)
        paint(iris, white * cover(gaze - eye * 0.68))
        paint(0.04, white * cover(gaze - eye * 0.32))
        paint(hair * 0.5, cover(_box(off_x, off_y + 0.22 + side * off_x * tilt, eye * 1.05, thick, 0.02)))
    # nose, mouth, moustache
    paint(skin * 0.70, cover(_ellipse(face_x - yaw * 0.05, face_y - _NOSE_Y, 0.06, 0.045)))
    mouth = _mouth_half(smile)
    curve = face_y - _MOUTH_Y + smile * 0.7 * face_x**2 / mouth - smile * 0.05
    lip = torch.tensor([0.72, 0.26, 0.28])[None, :, None, None]
    paint(lip, cover(_ellipse(face_x, curve, mouth, 0.042 + 0.02 * smile.clamp(min=0))) * on_head)
    moustache = _ellipse(face_x, face_y - _MOUTH_Y + 0.115 - 0.12 * face_x.abs(), 0.20, 0.055)
    paint(hair * 0.75, cover(moustache) * (beard == 1) * on_head)
    # glasses
    kind, lens = value(who.glasses), eye_x * 0.92
    for side in (-1, 1):
        off_x, off_y = face_x - side * eye_x, face_y - _EYE_Y
        paint(frame, cover(_ring(_ellipse(off_x, off_y, lens, lens), 0.032)) * (kind == 1))
        paint(frame, cover(_ring(_box(off_x, off_y, lens, lens * 0.82, 0.03), 0.032)) * (kind == 2))
    paint(frame, cover(_box(face_x, face_y - _EYE_Y, 0.035, 0.03, 0.01)) * (kind > 0))
    return image.clamp_(0, 1)


def _ellipse(x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
    inner = ((x / half_width) ** 2 + (y / half_height) ** 2 + 1e-6).sqrt()
    slope = ((x / half_width**2) ** 2 + (y / half_height**2) ** 2 + 1e-6).sqrt()
    return inner * (inner - 1) / slope


def _box(x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float, radius: float) -> Tensor:
    out_x, out_y = x.abs() - half_width + radius, y.abs() - half_height + radius
    outside = torch.hypot(out_x.clamp(min=0), out_y.clamp(min=0))
    return outside + torch.maximum(out_x, out_y).clamp(max=0) - radius


def _ring(distance: Tensor, half_thickness: float) -> Tensor:
    return distance.abs() - half_thickness
