"""The face models: conditioning encoder, judge and detector, each on people of its own.

Encoder and judge learn from pairs of pictures of the same person (a contrastive loss over the batch). The encoder also learns to
name the traits, so that nothing visible is missing from its vector; the judge sees identities only, other people, another
architecture, another seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lynx_video.face.align import arcface_template
from lynx_video.face.embed import IRSE, IRSEConfig
from lynx_video.nano import faces
from lynx_video.nano.faces import People
from lynx_video.nano.model import FRAMES, SIZE
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.base import SHARES, load_vae
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.vision import CANVAS, STRIDE, DetectorNet, JudgeNet, cell_centres

ENCODER = Schedule(steps=220, learning_rate=2e-3)
JUDGE = Schedule(steps=500, learning_rate=2e-3)
DETECTOR = Schedule(steps=3500, learning_rate=2e-3)
DETECTOR_MOUTH = Schedule(steps=5000, learning_rate=8e-4, decay=0.9, average=0.99)
MOUTH = 4.0
"how much more than the other points a mouth corner counts in the detector's second stage"
FILMED, FILMED_AT_ONCE = 1080, 8
NOBODY = 0.25
"share of the small pictures in a row that show nobody: a picture with a margin is not yet a face"
PAIRS = 64
VIEWS = 4
TRAITS = ("skin", "hair", "style", "shape", "eyes", "glasses", "frame", "beard", "brows")
ENCODER_CONFIG = IRSEConfig(widths=(16, 24, 32, 48), units=(2, 2, 2, 2), dropout=0.1)


def train(run: Path, part: str = "all") -> None:
    """Train `part` (encoder, judge, detector or all); writes `run/encoder.safetensors` and so on."""
    for name, function in (("encoder", _encoder), ("judge", _judge), ("detector", _detector)):
        if part in (name, "all"):
            torch.manual_seed({"encoder": 2, "judge": 3, "detector": 4}[name])
            module = function(run)
            weights = {
                key: value.to(torch.float16) if value.is_floating_point() else value
                for key, value in module.state_dict().items()
            }
            save_file({key: value.contiguous() for key, value in weights.items()}, run / f"{name}.safetensors")


class _Gallery:
    """Pictures of many people in several views, and aligned crops of them."""

    def __init__(self, purpose: str, count: int) -> None:
        rng = data.generator(purpose)
        self.who = faces.people(count, rng)
        views = [data.stills(self.who, rng) for _ in range(VIEWS)]
        self.pictures = torch.stack([pictures for pictures, _, _ in views], 1)
        self.points = torch.stack([faces.landmarks(self.who, pose) for _, _, pose in views], 1)

    def pairs(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices [count] and crops [count, 2, 3, 112, 112] of two different views each."""
        index = torch.randperm(len(self.who))[:count]
        first = torch.randint(VIEWS, (count,))
        second = (first + 1 + torch.randint(VIEWS - 1, (count,))) % VIEWS
        rows, views = index.repeat_interleave(2), torch.stack([first, second], 1).flatten()
        return index, crops(self.pictures[rows, views], self.points[rows, views], noise=1.0).unflatten(0, (count, 2))


def crops(pictures: Tensor, points: Tensor, noise: float) -> Tensor:
    """uint8 [B, 3, S, S] and points [B, 5, 2] in frame units -> aligned [B, 3, 112, 112] in [-1, 1].

    With `noise` the landmarks are off by a pixel or so and the pictures blurred, grainy and differently lit, as clips are.
    """
    count, size = pictures.shape[0], pictures.shape[-1]
    video = data.to_signed(pictures)
    if noise:
        points = points + torch.randn_like(points) * 0.02 * noise + torch.randn(count, 1, 2) * 0.01 * noise
        soft = F.avg_pool2d(F.pad(video, (1, 1, 1, 1), mode="replicate"), 3, 1)
        tiny = F.interpolate(F.interpolate(video, size=size // 2, mode="area"), size=size, mode="bilinear", align_corners=False)
        blur = torch.rand(count, 1, 1, 1) * noise
        video = torch.where(torch.rand(count, 1, 1, 1) < 0.5, soft, tiny) * blur + video * (1 - blur)
        light, tint = 1 + torch.randn(count, 1, 1, 1) * 0.06 * noise, torch.randn(count, 3, 1, 1) * 0.03 * noise
        video = video * light + tint + torch.randn_like(video) * torch.rand(count, 1, 1, 1) * 0.12 * noise
    template = torch.tensor(arcface_template()) / 56 - 1  # 112 px as [-1, 1]
    # least squares for a + ib: template -> frame
    centre_from, centre_to = template.mean(0), points.mean(1, keepdim=True)
    source, target = template - centre_from, points - centre_to
    length = (source**2).sum()
    a = (source * target).sum((1, 2)) / length
    b = (source[:, 0] * target[..., 1] - source[:, 1] * target[..., 0]).sum(1) / length
    rotation = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    shift = centre_to[:, 0] - (rotation @ centre_from)
    grid = F.affine_grid(torch.cat([rotation, shift[..., None]], -1), [count, 3, 112, 112], align_corners=False)
    # outside the picture is black, as cv2.warpAffine leaves it
    return (F.grid_sample((video + 1), grid, align_corners=False) - 1).clamp(-1, 1)


def _contrast(vectors: Tensor) -> Tensor:
    """Vectors [P, 2, E] of unit length; each view must find its partner among all others."""
    flat = vectors.flatten(0, 1)
    scores = flat @ flat.T / 0.07
    scores.fill_diagonal_(-1e4)
    partner = torch.arange(len(flat)) ^ 1
    return F.cross_entropy(scores, partner)


def _auc(vectors: Tensor) -> str:
    scores = vectors[:, 0] @ vectors[:, 1].T
    same, other = scores.diagonal(), scores[~torch.eye(len(scores), dtype=torch.bool)]
    auc = (same[:, None] > other[None]).float().mean()
    top = (scores.argmax(1) == torch.arange(len(scores))).float().mean()
    return f"auc {auc:.4f} top-1 of {len(scores)} {top:.2f} same {same.mean():.2f} other {other.mean():.2f}"


class _EncoderWithTraits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = IRSE(ENCODER_CONFIG)
        sizes = (4, 7, 7, 3, 4, 3, 4, 3, 3)
        self.traits = nn.ModuleList(nn.Linear(512, size) for size in sizes)


def _encoder(run: Path) -> nn.Module:
    model = _EncoderWithTraits()
    gallery, held = _Gallery("encoder", 8000), _Gallery("encoder", 256)

    def embed(pairs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = model.encoder(pairs.flatten(0, 1).flip(1))  # BGR, as the real encoder is fed
        vectors: Tensor = F.normalize(out.float(), dim=-1).unflatten(0, pairs.shape[:2])
        return vectors

    def loss(_: int) -> Tensor:
        model.train()
        index, pairs = gallery.pairs(PAIRS)
        vectors = embed(pairs)
        return _contrast(vectors) + 0.3 * _trait_loss(model.traits, gallery.who, index, vectors)

    def report() -> str:
        model.eval()
        with torch.no_grad():
            return _auc(embed(held_pairs))

    held_pairs = held.pairs(256)[1]
    fit("encoder", run, model, loss, ENCODER, report=report)
    return model.encoder.eval()


def _trait_loss(heads: nn.ModuleList, who: People, index: Tensor, vectors: Tensor) -> Tensor:
    total = torch.zeros(())
    for name, head in zip(TRAITS, heads, strict=True):
        wanted = getattr(who, name)[index].repeat_interleave(2)
        if name == "frame":  # nobody can tell the colour of glasses that are not there
            wanted = torch.where(who.glasses[index].repeat_interleave(2) > 0, wanted, -100)
        if name == "hair":
            wanted = torch.where((who.style[index] == 0).repeat_interleave(2), -100, wanted)
        total = total + F.cross_entropy(head(vectors.flatten(0, 1) * 8), wanted)
    return total / len(TRAITS)


def _judge(run: Path) -> nn.Module:
    model = JudgeNet()
    gallery, held = _Gallery("judge", 8000), _Gallery("evaluation", 256)
    held_pairs = held.pairs(256)[1]

    def embed(pairs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = model(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        return out

    def report() -> str:
        with torch.no_grad():
            return _auc(embed(held_pairs))

    fit("judge", run, model, lambda _: _contrast(embed(gallery.pairs(PAIRS)[1])), JUDGE, report=report)
    return model.eval()


Scene = tuple[Tensor, Tensor, Tensor]  # uint8 [3, 128, 128], boxes [P, 4] and points [P, 5, 2] in cells


def _detector(run: Path) -> nn.Module:
    """First whole scenes. Then also rows of small portraits, clips as the VAE gives them, and nobody; the mouth counts more."""
    model = DetectorNet()
    rng = data.generator("detector")
    _train_detector("detector", run, model, _Scenes([_scene(rng) for _ in range(9000)]), DETECTOR, 1.0)
    rng = data.generator("detector", 1)
    others = (_row, _scene, _nobody, _scene)
    kinds = [(one, _row(rng), others[i % 4](rng)) for i, one in enumerate(_filmed(run, rng))]
    mixed = _Scenes([scene for some in kinds for scene in some], sharpness=3, reach=0.75)
    _train_detector("detector-mouth", run, model, mixed, DETECTOR_MOUTH, MOUTH)
    return model.eval()


def _train_detector(name: str, run: Path, model: nn.Module, scenes: _Scenes, schedule: Schedule, mouth: float) -> None:
    """All but the first 200 scenes are trained on. `mouth`: the weight of a mouth corner's error."""
    weights = torch.tensor([1.0] * 10 + [mouth] * 4)

    def loss(_: int) -> Tensor:
        picture, wanted, inside = scenes.batch(torch.randint(200, len(scenes), (24,)))
        with torch.autocast("cpu", torch.bfloat16):
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
        with torch.autocast("cpu", torch.bfloat16):
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
