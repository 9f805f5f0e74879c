"""Clips longer than the model was trained for, on nano: what windows do to seams, likeness and motion, and what else could be done.

    python benchmarks/nano_long.py [--people 12] [--steps 8] [--times 2,4] [--output benchmarks/results/NAME] [--strip FILE.webp]

Every way makes one clip of each person, with the same prompt and the same draw of noise, at so many times the length nano was trained
for. A join is the boundary between two latent frames at which the window that counts most changes; inside are the other boundaries but
the first. Where there is one window, its joins are put where those of the default's are: what chance gives. Scored: the frame-to-frame
difference at joins over that inside, the largest over the median, flicker, motion, similarity by the judge in the first and the last
quarter, coverage. Intervals: 95% bootstrap over people. The default's latents are checked against those of `generate`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lynx_video import GenerateConfig, __version__, generate, load
from lynx_video.draft import draft
from lynx_video.errors import LynxWarning
from lynx_video.evaluation.metrics.picture import flicker
from lynx_video.evaluation.prompts import NANO_PROMPTS
from lynx_video.evaluation.statistics import Estimate, estimate, paired
from lynx_video.face.likeness import likeness
from lynx_video.nano.people import album
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.denoise import initial_noise
from lynx_video.pipeline.generate import plan
from lynx_video.pipeline.identify import identify
from lynx_video.pipeline.memories import memories_of, texts_of
from lynx_video.pipeline.predict import Conditions, Expert, combine, predict
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps
from lynx_video.pipeline.windows import Windows, blend, default_overlap, divide, faded

Clip = NDArray[np.uint8]
TRAINED, DEFAULT, ONE, CUTS = "trained length", "windows (default)", "as one, no windows", "hard cuts"
MEASURES = {
    "ratio": "difference at joins / inside",
    "largest": "largest / median difference",
    "flicker": "flicker",
    "motion": "frame-to-frame difference",
    "first": "similarity, first quarter",
    "last": "similarity, last quarter",
    "coverage": "coverage",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a long clip is made. at: its windows at a step; None: it is one. noise: of so many latent frames and a seed."""

    at: Callable[[int], Windows] | None
    noise: Callable[[tuple[int, ...], int], Tensor] = initial_noise
    joins: tuple[int, ...] = ()


@dataclass(kw_only=True, slots=True)
class Seen:
    """What was seen of one way at one length, one value a person."""

    values: dict[str, list[float | None]] = field(default_factory=dict)
    forwards: int = 0
    frames: list[Clip] = field(default_factory=list)


def ways(total: int, length: int, every: bool) -> dict[str, Way]:
    """All ways at a length in latent frames; not `every`: those that stand in for them."""
    overlap = default_overlap(length)
    default = divide(total, length, overlap)
    found = {
        ONE: Way(at=None, joins=joins_of(default)),
        CUTS: fixed(cut(total, length)),
        DEFAULT: fixed(default),
    }
    if every:
        found |= {
            f"overlap of {other} latent frames": fixed(divide(total, length, other))
            for other in (overlap - 1, overlap + 1)
            if 0 < other < length
        }
        found |= {
            "first frame of a window left out": fixed(without_first(default)),
            "starts that move from step to step": Way(at=lambda step: moved(total, length, overlap, step)),
            "noise used again": Way(at=lambda _: default, noise=again(length, length - overlap), joins=joins_of(default)),
        }
    return found


def fixed(windows: Windows) -> Way:
    """The same windows at every step."""
    return Way(at=lambda _: windows, joins=joins_of(windows))


def joins_of(windows: Windows) -> tuple[int, ...]:
    """The latent frames at which another window counts most than in the one before."""
    weights = np.zeros((windows.count, windows.total))
    for number, (start, row) in enumerate(zip(windows.starts, windows.weights, strict=True)):
        weights[number, start : start + windows.length] = row
    heaviest = weights.argmax(0)
    return tuple(i for i in range(1, windows.total) if heaviest[i] != heaviest[i - 1])


def cut(total: int, length: int) -> Windows:
    """Windows side by side; of two that have a frame, since the last is aligned to the end, the first counts alone."""
    starts = (*range(0, total - length, length), total - length)
    weights = [[1.0] * length for _ in starts]
    for number in range(1, len(starts)):
        for i in range(starts[number - 1] + length - starts[number]):
            weights[number][i] = 0.0
    return Windows(length=length, starts=starts, weights=tuple(map(tuple, weights)))


def without_first(windows: Windows) -> Windows:
    """The same, but what a window that begins inside the clip says of its first latent frame is not heard."""
    weights = [list(row) for row in windows.weights]
    for number in range(1, windows.count):
        weights[number][0] = 0.0
    sums = [0.0] * windows.total
    for start, row in zip(windows.starts, weights, strict=True):
        for i, weight in enumerate(row, start):
            sums[i] += weight
    return replace(
        windows,
        weights=tuple(
            tuple(weight / sums[i] for i, weight in enumerate(row, start))
            for start, row in zip(windows.starts, weights, strict=True)
        ),
    )


def moved(total: int, length: int, overlap: int, step: int) -> Windows:
    """Windows whose inner starts move by a part of a stride from step to step."""
    stride = length - overlap
    offset = 1 + step * max(1, stride * 5 // 8) % stride
    return faded(length, tuple(sorted({0, *range(offset, total - length, stride), total - length})))


def again(length: int, stride: int) -> Callable[[tuple[int, ...], int], Tensor]:
    """Noise as FreeNoise has it (Qiu et al. 2024): a window's draw, then the same frames shuffled, stride by stride."""

    def noise(shape: tuple[int, ...], seed: int) -> Tensor:
        first = initial_noise((*shape[:2], length, *shape[3:]), seed)
        rng = torch.Generator().manual_seed(seed)
        order = list(range(length))
        while len(order) < shape[2]:
            taken = order[len(order) - length : len(order) - length + stride]
            order += [taken[i] for i in torch.randperm(stride, generator=rng)]
        return first[:, :, order[: shape[2]]]

    return noise


def main() -> None:
    """Generate in turn, score, print, write."""
    parser = argparse.ArgumentParser(description="Long clips on nano.")
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--times", default="2,4", help="lengths, in times the trained one; all ways are tried at the last")
    parser.add_argument("--output", type=Path, default=None, help="file without its ending: .md and .json are written")
    parser.add_argument("--strip", type=Path, default=None, help="WebP of frames across joins of the last length")
    request = parser.parse_args()
    torch.set_num_threads(1)
    components = load("nano", device="cpu")
    trained = components.defaults.num_frames
    lengths = [1 + (trained - 1) * int(one) for one in request.times.split(",")]
    seen: dict[tuple[int, str], Seen] = {}
    began = time.process_time()
    for person in range(request.people):
        for frames in (trained, *lengths):
            _film_all(components, person, frames, request.steps, frames == lengths[-1], seen)
        print(f"{person + 1}/{request.people}, {time.process_time() - began:.0f} s of the processor", flush=True)
    _write(request, seen, time.process_time() - began)
    if request.strip is not None:
        _strip(request.strip, {name: one for (frames, name), one in seen.items() if frames == lengths[-1]})


def _film_all(components: Any, person: int, frames: int, steps: int, every: bool, seen: dict[tuple[int, str], Seen]) -> None:
    """One clip of a person by every way at a length, scored."""
    factor, trained = components.temporal_factor, components.defaults.num_frames
    length, total = (trained - 1) // factor + 1, (frames - 1) // factor + 1
    prompt = NANO_PROMPTS[2 + 7 * person % 18].text  # of those that move
    sitter = identify(components.faces, album(person, 0)[0], reference_size=components.defaults.reference_size).identity
    chosen = {TRAINED: Way(at=None)} if frames == trained else ways(total, length, every)
    for name, way in chosen.items():
        row = seen.setdefault((frames, name), Seen())
        latents, forwards = film(components, sitter, prompt, GenerateConfig(seed=person, num_inference_steps=steps), total, way)
        if name == DEFAULT and person == 0:
            _check(components, sitter, prompt, GenerateConfig(num_frames=frames, num_inference_steps=steps, seed=0), latents)
        clip = decode(components.vae, latents).numpy()
        row.forwards = forwards
        row.frames.append(clip)
        for measure, value in score(components, sitter, clip, way.joins).items():
            row.values.setdefault(measure, []).append(value)


@torch.no_grad()
def film(components: Any, sitter: Any, prompt: str, config: GenerateConfig, total: int, way: Way) -> tuple[Tensor, int]:
    """Latents of `total` frames made in a way, and how many forwards that took."""
    chosen = plan(components, config)
    memories = memories_of(components, sitter, None, config, chosen, sampled=True)[0]
    texts = texts_of(components, prompt, chosen, config)[0]
    expert = Expert(adapter=components.adapter, texts=texts, memories=memories)
    conditions = Conditions(identity=chosen.identity, reference=chosen.reference)
    scheduler = make_scheduler(components.scheduler, config)
    timesteps = set_timesteps(scheduler, chosen.steps, "cpu")
    shape = (*chosen.latent_shape[:2], total, *chosen.latent_shape[3:])
    latents, forwards = way.noise(shape, config.seed), 0
    for step, (t, table) in enumerate(zip(timesteps, chosen.tables, strict=True)):

        def say(_: int, part: Tensor, t: Tensor = t, table: Any = table, progress: float = step / chosen.steps) -> Tensor:
            return combine(table, predict(expert, conditions, table, part, t, progress, compute=True))

        windows = way.at(step) if way.at is not None else None
        velocity = say(0, latents) if windows is None else blend(windows, windows.shares("cpu"), latents, say)
        forwards += len(table) * (windows.count if windows is not None else 1)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents, forwards


def _check(components: Any, sitter: Any, prompt: str, config: GenerateConfig, latents: Tensor) -> None:
    """That the default of this table is what `generate` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LynxWarning)
        made = generate(components, sitter, prompt, config)
    if not torch.equal(made.latents, latents):
        raise SystemExit("the windows of this benchmark are not those of `generate`.")


def score(components: Any, sitter: Any, clip: Clip, joins: tuple[int, ...]) -> dict[str, float | None]:
    """Everything that is measured of one clip."""
    factor = components.temporal_factor
    differences = np.abs(np.diff(clip.astype(np.float64), axis=0)).mean((1, 2, 3))
    into = {latent: differences[(latent - 1) * factor] for latent in range(1, (len(clip) - 1) // factor + 1)}
    inside = [value for latent, value in into.items() if latent not in joins and latent > 1]
    later = [value for latent, value in into.items() if latent > 1]
    quarter = max(1, len(clip) // 4)
    faces, judge = components.faces, components.faces.judge()
    first, last, whole = (
        likeness(part, sitter.aligned, faces.detector(), judge) for part in (clip[:quarter], clip[-quarter:], clip)
    )
    return {
        "ratio": float(np.mean([into[latent] for latent in joins]) / np.mean(inside)) if joins and inside else None,
        "largest": float(max(later) / np.median(later)),
        "flicker": flicker(clip).value,
        "motion": float(differences.mean() / 255),
        "first": first.similarity,
        "last": last.similarity,
        "coverage": whole.coverage,
    }


def _write(request: argparse.Namespace, seen: dict[tuple[int, str], Seen], seconds: float) -> None:
    """The tables as markdown and the numbers as JSON; printed in any case."""
    subjects = [str(i) for i in range(request.people)]
    numbers: dict[str, Any] = {"people": request.people, "steps": request.steps, "seconds": round(seconds), "rows": []}
    lines = [
        f"`python benchmarks/nano_long.py --people {request.people} --steps {request.steps} --times {request.times}`",
        "",
        f"n = {request.people} drawn people, one clip each; nano, {request.steps} steps; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, lynx-video {__version__}, {platform.machine()}, one thread, {seconds:.0f} s of the "
        "processor. Brackets: 95% bootstrap intervals over people. In italics: the paired difference from the default of that "
        "length, where its interval excludes 0.",
    ]
    for frames in sorted({frames for frames, _ in seen}):
        lines += ["", f"### {frames} frames", "", f"| | forwards | {' | '.join(MEASURES.values())} |"]
        lines.append("| --- " * (len(MEASURES) + 2) + "|")
        against = seen.get((frames, DEFAULT))
        for name, row in ((name, row) for (length, name), row in seen.items() if length == frames):
            values = {measure: estimate(row.values[measure], subjects) for measure in MEASURES}
            other = against if against is not None and against is not row else None
            apart = {
                measure: paired(other.values[measure], row.values[measure], subjects)
                for measure in MEASURES
                if other is not None
            }
            lines.append(
                f"| {name} | {row.forwards} | "
                + " | ".join(_cell(values[measure], apart.get(measure), measure) for measure in MEASURES)
                + " |"
            )
            numbers["rows"].append(
                {
                    "frames": frames,
                    "way": name,
                    "forwards": row.forwards,
                    **{measure: one.to_json() for measure, one in values.items()},
                    "against_default": {measure: one.to_json() for measure, one in apart.items()},
                    "drift": paired(row.values["first"], row.values["last"], subjects).to_json(),
                }
            )
    print("\n".join(lines))
    if request.output is not None:
        for ending, text in ((".md", "\n".join(lines)), (".json", json.dumps(numbers, indent=1))):
            with draft(request.output.with_name(request.output.name + ending)) as partial:
                partial.write_text(text + "\n", encoding="utf-8")


def _cell(one: Estimate, apart: Estimate | None, measure: str) -> str:
    """`.87 [.85, .89]`, and the difference where its interval excludes 0."""
    if one.mean is None:
        return ""
    digits = 4 if measure in ("flicker", "motion") else 2
    text = f"{one.mean:.{digits}f}"
    if one.low is not None and one.high is not None:
        text += f" [{one.low:.{digits}f}, {one.high:.{digits}f}]"
    if apart is not None and apart.excludes_zero and apart.mean is not None:
        text += f" *{apart.mean:+.{digits}f}*"
    return text


def _strip(file: Path, rows: dict[str, Seen], people: tuple[int, ...] = (3, 4, 9)) -> None:
    """Frames around the first joins of some people's clips, a row a way."""
    from PIL import Image, ImageDraw

    size, left, frames = 64, 220, range(5, 22)
    shown = [i for i in people if i < len(next(iter(rows.values())).frames)] or [0]
    page = Image.new("RGB", (left + len(frames) * size, len(shown) * (len(rows) * size + 12)), "white")
    pen = ImageDraw.Draw(page)
    for block, person in enumerate(shown):
        for number, (name, row) in enumerate(rows.items()):
            top = block * (len(rows) * size + 12) + number * size
            pen.text((6, top + size // 2 - 6), name, fill="black")
            for column, frame in enumerate(frames):
                page.paste(Image.fromarray(row.frames[person][frame]), (left + column * size, top))
    with draft(file) as partial:
        page.save(partial, format="WEBP", quality=85)


if __name__ == "__main__":
    main()
