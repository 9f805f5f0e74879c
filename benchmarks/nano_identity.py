"""Does nano keep the person, and does it still obey? Clips of people never seen in training, scored by the judge and by probes.

    python benchmarks/nano_identity.py [--people 64] [--steps N] [--arm nano|nano-lite] [--output docs/nano]

Five rows: no adapter, identity only, reference only, both, and the ceiling (another drawn clip of the person through the VAE). Every
clip goes through the product's own `generate`. Intervals are 95% bootstrap intervals over people.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lynx_video import GenerateConfig, __version__, generate, load
from lynx_video.face.likeness import largest_faces, signed
from lynx_video.media.image import write_picture
from lynx_video.nano import captions, faces, model, probes
from lynx_video.nano.recipe import data
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.identify import identify

Floats = NDArray[np.float64]
MODES: dict[str, dict[str, float]] = {
    "none": {"ip_scale": 0.0, "ref_scale": 0.0},
    "identity only": {"ip_scale": 1.0, "ref_scale": 0.0},
    "reference only": {"ip_scale": 0.0, "ref_scale": 1.0},
    "both": {"ip_scale": 1.0, "ref_scale": 1.0},
}


@dataclass
class Row:
    """What was seen of one mode."""

    vectors: list[Floats] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    right: dict[str, list[float]] = field(default_factory=lambda: {"wall": [], "shirt": [], "motion": []})
    seconds: list[float] = field(default_factory=list)
    clips: list[NDArray[np.uint8]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    "motion asked for, motion told by the tracks"


def main() -> None:
    """Generate, score, print a table and write sheets."""
    parser = argparse.ArgumentParser(description="Score nano's clips of unseen people.")
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--model", default="nano", choices=("nano", "nano-lite"))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--output", type=Path, default=Path("docs/nano"))
    parser.add_argument("--threads", type=int, default=0)
    request = parser.parse_args()
    if request.threads:
        torch.set_num_threads(request.threads)
    components = load(request.model)
    modes = request.modes.split(",")
    if unknown := set(modes) - set(MODES):
        parser.error(f"unknown mode {min(unknown)!r}; the modes are {', '.join(MODES)}")
    if request.model == "nano-lite":
        modes = [name for name in modes if "reference" not in name and name != "both"]
    rng = data.generator("evaluation", 7)
    who = faces.people(request.people, rng)
    portraits = (
        faces.draw(who, faces.scenes(who, rng), faces.poses(request.people, rng, spread=0.5), 256).permute(0, 2, 3, 1) * 255
    )
    real = data.clips(who, rng)
    words = random.Random(7)
    rows = {name: Row() for name in (*modes, "ceiling")}
    sitters: list[Any] = []
    judge = components.faces.judge
    assert judge is not None
    began = time.monotonic()
    for i in range(request.people):
        picture = portraits[i].round().to(torch.uint8).contiguous().numpy()
        sitter = identify(components.faces, picture, reference_size=components.defaults.reference_size)
        sitters.append((picture, judge()(signed(sitter.identity.aligned[None]))[0].double().numpy()))
        prompt = captions.caption(real.scene, i, int(real.motion[i]), "", words)
        wanted = {
            "wall": faces.WALLS[int(real.scene.wall[i])],
            "shirt": faces.SHIRTS[int(real.scene.shirt[i])],
            "motion": faces.MOTIONS[int(real.motion[i])],
        }
        for name in modes:
            config = GenerateConfig(seed=1000 + i, num_inference_steps=request.steps, **MODES[name])  # type: ignore[arg-type]
            clip = generate(components, sitter.identity, prompt, config)
            _score(rows[name], clip.frames, clip.seconds, wanted, components)
        _score(rows["ceiling"], _through_vae(components, real.frames[i : i + 1]), 0.0, wanted, components)
        if i % 8 == 7:
            print(f"{i + 1}/{request.people} {time.monotonic() - began:.0f}s", flush=True)
    _report(request, components, rows, sitters)


@torch.no_grad()
def _through_vae(components: Any, frames: torch.Tensor) -> NDArray[np.uint8]:
    video = data.to_signed(frames).transpose(1, 2)
    mean, std = latent_statistics(components.vae, "cpu")
    latents = (components.vae.encode(video).latent_dist.mean - mean) / std
    return decode(components.vae, latents).numpy()


def _score(row: Row, frames: NDArray[np.uint8], seconds: float, wanted: dict[str, str], components: Any) -> None:
    found = [one for one in largest_faces(frames, components.faces.detector()) if one]
    points = [one.face.points for one in found]
    row.coverage.append(len(points) / len(frames))
    if points:
        row.vectors.append(components.faces.judge()(signed(np.stack([one.crop for one in found]))).double().numpy())
    else:
        row.vectors.append(np.zeros((1, 128)))
    row.right["wall"].append(float(probes.wall(frames) == wanted["wall"]))
    row.right["shirt"].append(float(probes.shirt(frames) == wanted["shirt"]))
    told = probes.motion(np.stack(points), frames.shape[2]) if len(points) == len(frames) else "no face"
    row.right["motion"].append(float(told == wanted["motion"]))
    row.told.append((wanted["motion"], told))
    row.seconds.append(seconds)
    row.clips.append(frames)


def _report(request: Any, components: Any, rows: dict[str, Row], sitters: list[Any]) -> None:
    gallery = np.stack([vector for _, vector in sitters])
    count = len(gallery)
    lines = [
        f"model {request.model}, n = {count} people, one clip each, {model.FRAMES} frames, seed 1000 + i, "
        f"{request.steps or components.defaults.num_inference_steps} steps, guidance {components.defaults.guidance_scale} / "
        f"{components.defaults.guidance_scale_i}; judge: {components.faces.judge_name}; 95% bootstrap intervals over people",
        "",
        f"| | cosine | AUC | top-1 of {count} | coverage | wall | shirt | motion | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    results: dict[str, Any] = {}
    for name, row in rows.items():
        scores = np.stack([(vectors @ gallery.T).mean(0) for vectors in row.vectors])  # [clip, person]
        measures: dict[str, Callable[[NDArray[np.int64]], float]] = {
            "cosine": lambda pick, scores=scores: float(scores[pick, pick].mean()),
            "auc": lambda pick, scores=scores: _auc(scores, pick),
            "top1": lambda pick, scores=scores: float((scores[pick].argmax(1) == pick).mean()),
        }
        plain = {key: np.array(values) for key, values in {"coverage": row.coverage, **row.right}.items()}
        for key, values in plain.items():
            measures[key] = lambda pick, values=values: float(values[pick].mean())
        results[name] = {key: _interval(measure, count) for key, measure in measures.items()}
        results[name]["seconds"] = float(np.median(row.seconds))
        cells = [f"{middle:.3f} [{low:.2f}, {high:.2f}]" for middle, low, high in (results[name][key] for key in measures)]
        lines.append(f"| {name} | {' | '.join(cells)} | {results[name]['seconds']:.2f} |")
    lines += ["", "| motion told right | " + " | ".join(rows) + " |", "| --- " * (len(rows) + 1) + "|"]
    for motion in faces.MOTIONS:
        cells = [f"{sum(told == motion for asked, told in row.told if asked == motion)}" for row in rows.values()]
        asked = sum(asked == motion for asked, _ in next(iter(rows.values())).told)
        lines.append(f"| {motion} (n = {asked}) | {' | '.join(cells)} |")
    print("\n".join(lines))
    request.output.mkdir(parents=True, exist_ok=True)
    stem = request.model
    (request.output / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = {
        "version": __version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    (request.output / f"{stem}.json").write_text(
        json.dumps({"about": about, "rows": results}, indent=1) + "\n", encoding="utf-8"
    )
    _sheets(request.output, stem, rows, sitters)


def _auc(scores: Floats, pick: NDArray[np.int64]) -> float:
    """Chance that a clip is nearer to its own person than to another, over the people drawn."""
    own = scores[pick, pick]
    others = scores[pick]
    different = np.arange(scores.shape[1])[None] != pick[:, None]
    return float(((own[:, None] > others) & different).sum() / different.sum())


def _interval(measure: Callable[[NDArray[np.int64]], float], count: int, draws: int = 1000) -> tuple[float, float, float]:
    rng = np.random.default_rng(0)
    values = [measure(rng.integers(0, count, count)) for _ in range(draws)]
    low, high = np.percentile(values, [2.5, 97.5])
    return measure(np.arange(count)), float(low), float(high)


def _sheets(output: Path, stem: str, rows: dict[str, Row], sitters: list[Any]) -> None:
    """Portrait beside one frame of each mode, and filmstrips of the last mode before the ceiling."""
    import cv2

    names = list(rows)
    tiles = []
    for i, (picture, _) in enumerate(sitters[:32]):
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        tiles.append(np.concatenate([small, *(rows[name].clips[i][len(rows[name].clips[i]) // 2] for name in names)], 1))
    per_column = -(-len(tiles) // 2)
    columns = [np.concatenate(tiles[start : start + per_column], 0) for start in range(0, len(tiles), per_column)]
    height = max(column.shape[0] for column in columns)
    columns = [np.pad(column, ((0, height - column.shape[0]), (0, 8), (0, 0)), constant_values=255) for column in columns]
    _write(output / f"{stem}-people.png", np.concatenate(columns, 1))
    shown = "both" if "both" in rows else names[-2]
    strips = []
    for i, (picture, _) in enumerate(sitters[:12]):
        small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        strips.append(np.concatenate([small, np.full((64, 8, 3), 255, np.uint8), *rows[shown].clips[i]], 1))
    _write(output / f"{stem}-clips.png", np.concatenate(strips, 0))


def _write(path: Path, image: NDArray[np.uint8]) -> None:
    write_picture(path, np.ascontiguousarray(image.repeat(2, 0).repeat(2, 1)))


if __name__ == "__main__":
    main()
