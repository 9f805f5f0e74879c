"""The face detector: scenes, rows of small portraits and clips of drawn people, and pictures of nobody."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lynx_video.nano import faces
from lynx_video.nano.model import FRAMES, SIZE
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.base import SHARES, load_vae
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import autocast
from lynx_video.nano.vision import CANVAS, STRIDE, DetectorNet, cell_centres

DETECTOR = Schedule(steps=3500, learning_rate=2e-3)
DETECTOR_MOUTH = Schedule(steps=5000, learning_rate=8e-4, decay=0.9, average=0.99)
MOUTH = 4.0
"how much more than the other points a mouth corner counts in the detector's second stage"
SCENES, FILMED, FILMED_AT_ONCE = 9_000, 1_080, 8
NOBODY = 0.25
"share of the small pictures in a row that show nobody: a picture with a margin is not yet a face"

Scene = tuple[Tensor, Tensor, Tensor]  # uint8 [3, 128, 128], boxes [P, 4] and points [P, 5, 2] in cells


def train_detector(run: Path) -> nn.Module:
    """First whole scenes. Then also rows of small portraits, clips as the VAE gives them, and nobody; the mouth counts more."""
    model = DetectorNet()
    rng = data.generator("detector")
    _stage("detector", run, model, _Scenes([_scene(rng) for _ in range(SCENES)]), DETECTOR, 1.0)
    rng = data.generator("detector", 1)
    others = (_row, _scene, _nobody, _scene)
    kinds = [(one, _row(rng), others[i % 4](rng)) for i, one in enumerate(_filmed(run, rng))]
    mixed = _Scenes([scene for some in kinds for scene in some], sharpness=3, reach=0.75)
    _stage("detector-mouth", run, model, mixed, DETECTOR_MOUTH, MOUTH)
    return model.eval()


def _stage(name: str, run: Path, model: nn.Module, scenes: _Scenes, schedule: Schedule, mouth: float) -> None:
    """All but the first 200 scenes are trained on. `mouth`: the weight of a mouth corner's error."""
    weights = torch.tensor([1.0] * 10 + [mouth] * 4)

    def loss(_: int) -> Tensor:
        picture, wanted, inside = scenes.batch(torch.randint(200, len(scenes), (24,)))
        with autocast():
            out = model(picture).float()
        score = F.binary_cross_entropy_with_logits(out[:, 0], wanted[:, 0], reduction="none")
        focus = (out[:, 0].sigmoid() - wanted[:, 0]).detach().abs() ** 2
        chosen, aim = out.permute(0, 2, 3, 1)[inside], wanted.permute(0, 2, 3, 1)[inside]
        scale = (aim[:, 1:3] + aim[:, 3:5]).mean(1, keepdim=True).clamp(min=1)
        off: Tensor = ((chosen[:, 1:] - aim[:, 1:]).abs() / scale * weights).mean()
        total: Tensor = (score * focus).sum() / inside.sum() + 4 * off
        return total

    def report() -> str:
        with torch.no_grad():
            picture, wanted, inside = scenes.batch(torch.arange(200))
            out = model(picture)
            found = (out[:, 0].sigmoid() > 0.5)[inside].float().mean()
            false = (out[:, 0].sigmoid() > 0.5)[~inside].float().mean()
            chosen, aim = out.permute(0, 2, 3, 1)[inside], wanted.permute(0, 2, 3, 1)[inside]
            error = (chosen[:, 5:] - aim[:, 5:]).abs() / (aim[:, 1] + aim[:, 3])[:, None]
        off = f"points off by {error.mean():.4f}, mouth by {error[:, 6:].mean():.4f} of the face's width"
        return f"cells found {found:.3f} false {false:.4f} {off}"

    fit(name, run, model, loss, schedule, report=report)


class _Scenes:
    """Scenes and what the detector should say of them.

    sharpness: the higher, the fewer pictures are blurred much. reach: cells up to this far from a face's middle, in cells, are
    asked to see it; above 0.5 a small face on the border of two cells is seen by both, in place of half by each.
    """

    def __init__(self, scenes: list[Scene], sharpness: int = 1, reach: float = 0.5) -> None:
        self.pictures = torch.stack([picture for picture, _, _ in scenes])
        self.targets = [(boxes, points) for _, boxes, points in scenes]
        self.sharpness, self.reach = sharpness, reach

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, blurred, grainy and differently lit; wanted outputs; and the cells that hold a face."""
        centres = cell_centres()
        picture = data.to_signed(self.pictures[index])
        blur = torch.rand(len(index), 1, 1, 1) ** self.sharpness
        picture = picture * (1 - blur) + blur * F.avg_pool2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), 5, 1)
        picture = picture * (1 + torch.randn(len(index), 1, 1, 1) * 0.08) + torch.randn(len(index), 3, 1, 1) * 0.04
        picture = picture + torch.randn_like(picture) * torch.rand(len(index), 1, 1, 1) * 0.1
        wanted, inside = torch.zeros(len(index), 15, 16, 16), torch.zeros(len(index), 16, 16, dtype=torch.bool)
        for row, i in enumerate(index.tolist()):
            for box, points in zip(*self.targets[i], strict=True):
                middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
                near = ((centres - middle[:, None, None]).abs() < (half * 0.35).clamp(min=self.reach)[:, None, None]).all(0)
                value = torch.cat(
                    [
                        torch.ones(1, 16, 16),
                        centres - box[:2, None, None],
                        box[2:, None, None] - centres,
                        (points[:, :, None, None] - centres).flatten(0, 1),
                    ]
                )
                wanted[row] = torch.where(near, value, wanted[row])
                inside[row] |= near
        return picture, wanted, inside


@torch.no_grad()
def _filmed(run: Path, rng: torch.Generator) -> Iterator[Scene]:
    """Frames of drawn clips as the VAE gives them back, enlarged as the detector enlarges them; smiles of all widths."""
    vae = load_vae(run)
    for _ in range(FILMED // FILMED_AT_ONCE):
        who = faces.people(FILMED_AT_ONCE, rng)
        start = faces.poses(len(who), rng)
        start = dataclasses.replace(start, smile=torch.rand(len(who), generator=rng) * 2 - 0.5)
        motion = torch.multinomial(torch.tensor(SHARES), len(who), True, generator=rng)
        amount = (0.6 + 0.6 * torch.rand(len(who), generator=rng)) * (torch.randint(2, (len(who),), generator=rng) * 2 - 1)
        repeated = torch.arange(len(who)).repeat_interleave(FRAMES)
        cast, pose = faces.select(who, repeated), faces.tracks(start, motion, amount, FRAMES)
        drawn = faces.draw(cast, faces.select(faces.scenes(who, rng), repeated), pose, SIZE)
        video = (drawn * 2 - 1).unflatten(0, (len(who), FRAMES)).transpose(1, 2)
        with autocast():
            rebuilt = vae.decode(vae.encode(video).latent_dist.mean).sample
        frames = F.interpolate(
            rebuilt.float().transpose(1, 2).flatten(0, 1), size=CANVAS, mode="bilinear", antialias=True, align_corners=False
        )
        pictures = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        boxes, points = ((spots + 1) / 2 * CANVAS / STRIDE for spots in (faces.boxes(cast, pose), faces.landmarks(cast, pose)))
        yield from zip(pictures, boxes[:, None], points[:, None], strict=True)


def _row(rng: torch.Generator) -> Scene:
    """One to four small pictures side by side or on top of each other, with a margin: portraits, and some that show nobody."""
    count = 1 + int(torch.multinomial(torch.tensor([0.2, 0.3, 0.35, 0.15]), 1, generator=rng))
    narrow, margin, zoom, where, upright, turn = torch.rand(6, generator=rng).tolist()
    size = CANVAS // count
    if count == 1 or narrow < 0.3:  # smaller than what would fill the canvas, as in the second look of `find_faces`
        size = int(size * (0.4 + 0.6 * upright))
    who = faces.people(count, rng)
    pose = faces.poses(count, rng, spread=1.2)
    pose = dataclasses.replace(pose, smile=torch.rand(count, generator=rng) * 2 - 0.5)
    extent = 0.85 + 0.6 * zoom**2
    shift = (torch.rand(count, 2, generator=rng) - 0.5) * 0.5 * max(0.1, extent - 0.85)
    tiles = faces.draw(who, faces.scenes(who, rng), pose, size, centre=shift, extent=extent)
    step = torch.tensor([0, size] if turn < 0.15 else [size, 0])
    room = CANVAS - size - step * (count - 1)
    corner = torch.zeros(2, dtype=torch.int64) if where < 0.6 else (torch.rand(2, generator=rng) * (room + 1)).long()
    shade = torch.tensor(0.5 if margin < 0.6 else 0.0) if margin < 0.85 else torch.rand(3, 1, 1, generator=rng)
    canvas = torch.zeros(3, CANVAS, CANVAS) + shade
    boxes, points = [torch.zeros(0, 4)], [torch.zeros(0, 5, 2)]
    empty = torch.rand(count, generator=rng) < NOBODY
    for i in range(count):
        x, y = (corner + step * i).tolist()
        canvas[:, y : y + size, x : x + size] = _faceless(rng, size) if empty[i] else tiles[i]
        if empty[i]:
            continue
        one = slice(i, i + 1)
        person, place = faces.select(who, one), faces.select(pose, one)
        spots = torch.cat([faces.boxes(person, place).view(2, 2), faces.landmarks(person, place)[0]])
        cells = (((spots - shift[i]) / extent + 1) / 2 * size + torch.tensor([x, y])) / STRIDE
        boxes.append(cells[:2].view(1, 4))
        points.append(cells[None, 2:])
    return (canvas * 255).round().to(torch.uint8), torch.cat(boxes), torch.cat(points)


def _nobody(rng: torch.Generator) -> Scene:
    """A picture without a face."""
    return (_faceless(rng, CANVAS) * 255).round().to(torch.uint8), torch.zeros(0, 4), torch.zeros(0, 5, 2)


def _faceless(rng: torch.Generator, size: int) -> Tensor:
    """[3, size, size]: blocks, clouds or ellipses of colour, or somebody whose head is out of the frame."""
    kind, grain = torch.rand(2, generator=rng).tolist()
    if kind < 0.25:
        who = faces.people(1, rng)
        aside = torch.tensor([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.7], [0.0, -2.2]])[torch.randint(4, (1,), generator=rng)]
        aside = aside * (1 + 0.3 * grain)
        return faces.draw(who, faces.scenes(who, rng), faces.poses(1, rng), size, centre=aside, extent=0.7)[0]
    if kind < 0.75:
        rows, columns = (1 + torch.randint(16, (2,), generator=rng)).tolist()
        blocks = torch.rand(1, 3, rows, columns, generator=rng)
        picture = F.interpolate(blocks, (size, size), mode="nearest" if kind < 0.5 else "bilinear")[0]
    else:
        picture = torch.rand(3, 1, 1, generator=rng).expand(3, size, size)
        y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
        for _ in range(8):
            middle_x, middle_y, wide, high, turn, *colour = torch.rand(8, generator=rng).tolist()
            cos, sin = math.cos(math.pi * turn), math.sin(math.pi * turn)
            off_x, off_y = x - 2 * middle_x + 1, y - 2 * middle_y + 1
            along, across = off_x * cos + off_y * sin, off_y * cos - off_x * sin
            inside = (along / (0.05 + 0.7 * wide)) ** 2 + (across / (0.05 + 0.7 * high)) ** 2 < 1
            picture = torch.where(inside, torch.tensor(colour)[:, None, None], picture)
    grainy: Tensor = picture + torch.randn(3, size, size, generator=rng) * 0.2 * grain**3
    return grainy.clamp(0, 1)


def _scene(rng: torch.Generator) -> Scene:
    """A picture of none to three people."""
    kind = float(torch.rand(1, generator=rng))
    count = 1 if kind < 0.75 else 2 if kind < 0.9 else 3
    who = faces.people(count, rng)
    scene, pose = faces.scenes(who, rng), faces.poses(count, rng, spread=1.4)
    pose = dataclasses.replace(pose, smile=torch.rand(count, generator=rng) * 2 - 0.5)
    tilt = torch.where(torch.rand(count, generator=rng) < 0.3, torch.randn(count, generator=rng) * 0.3, 0.0)
    pose = dataclasses.replace(pose, roll=pose.roll + tilt)
    widths = [CANVAS // count] * (count - 1) + [CANVAS - CANVAS // count * (count - 1)]
    canvas, boxes, points = torch.zeros(3, CANVAS, CANVAS), [], []
    left = 0
    for i, width in enumerate(widths):
        zoom = float(torch.rand(1, generator=rng))
        low = 0.62 if count == 1 else CANVAS / width * 0.8
        extent = low + (3.2 - low) * zoom**2.5
        shift = (torch.rand(1, 2, generator=rng) - 0.5) * max(0.1, 1.4 * (extent - 0.9)) * torch.tensor([width / CANVAS, 1.0])
        one = slice(i, i + 1)
        person, place = faces.select(who, one), faces.select(pose, one)
        drawn = faces.draw(person, faces.select(scene, one), place, CANVAS, centre=shift, extent=extent)[0]
        start = (CANVAS - width) // 2
        canvas[:, :, left : left + width] = drawn[:, :, start : start + width]

        def to_cells(spot: Tensor, offset: int = left - start, extent: float = extent, shift: Tensor = shift[0]) -> Tensor:
            return ((spot - shift) / extent + 1) / 2 * CANVAS / STRIDE + torch.tensor([offset / STRIDE, 0.0])

        boxes.append(to_cells(faces.boxes(person, place)[0].view(2, 2)).flatten())
        points.append(to_cells(faces.landmarks(person, place)[0]))
        left += width
    if kind > 0.96:  # a scene without people: stripes of wall colours
        bars = torch.rand(3, 1, 1 + int(torch.randint(16, (1,), generator=rng)), generator=rng)
        canvas = F.interpolate(bars[None], size=(CANVAS, CANVAS))[0]
        return (canvas * 255).round().to(torch.uint8), torch.zeros(0, 4), torch.zeros(0, 5, 2)
    return (canvas * 255).round().to(torch.uint8), torch.stack(boxes), torch.stack(points)
