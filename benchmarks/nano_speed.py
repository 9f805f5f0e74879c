"""What a speed-up costs in likeness: every preset and quantization on nano, against the exact clips of the same people and noise.

    python benchmarks/nano_speed.py [--people 40] [--arms exact,balanced,...] [--output docs/speed]

Every arm makes one clip of each person with the same prompt and noise, in turn within one process (exact, balanced, fast, ...; then
the next person), so that the ratios of time are taken side by side. Scored: face similarity by two judges that condition nothing,
coverage, wall, shirt and motion by probes, PSNR and SSIM of the frames to the exact clip's. Intervals: 95% bootstrap over people;
differences from exact are paired. Seconds: the median of a clip's generation without scoring, one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
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

from lynx_video import GenerateConfig, __version__, generate, load
from lynx_video.config import RuntimeConfig
from lynx_video.draft import draft
from lynx_video.evaluation.prompts import NANO_PROMPTS
from lynx_video.evaluation.statistics import Estimate, estimate, paired
from lynx_video.face.likeness import likeness
from lynx_video.nano.people import album
from lynx_video.pipeline.identify import identify
from lynx_video.pipeline.models import MODELS
from lynx_video.presets import SPEED

Clip = NDArray[np.uint8]
EXACT = "exact"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """How clips are made. preset: whether it is one of those that ship."""

    generation: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    preset: bool = False


def presets() -> dict[str, Arm]:
    """The shipped presets, as they are; where this device computes no fp8, `fast` takes int8."""
    found = {}
    for name, make in SPEED.items():
        preset = make()
        runtime = dict(preset.runtime)
        if preset.few_step:
            runtime["lora_path"] = (str(MODELS["nano"].few_step),)
        if runtime.get("quantize") == "fp8" and not torch.cuda.is_available():
            runtime["quantize"] = "int8"
        found[name] = Arm(generation=dict(preset.generation), runtime=runtime, preset=True)
    return found


def arms() -> dict[str, Arm]:
    """Presets, quantizations, and single levers."""
    few_step = {"lora_path": (str(MODELS["nano"].few_step),)}
    return {
        **presets(),
        **{f"quantize {kind}": Arm(runtime={"quantize": kind}) for kind in ("int8", "fp8-storage", "nf4")},
        "bf16": Arm(runtime={"dtype": torch.bfloat16}),
        **{f"guidance up to {share:.0%}": Arm(generation={"guidance_stop": share}) for share in (0.6, 0.4)},
        **{f"step cache {limit:g}": Arm(generation={"step_cache": limit}) for limit in (0.1, 0.2, 0.3, 0.5)},
        **{f"{steps} steps": Arm(generation={"num_inference_steps": steps}) for steps in (8, 4)},
        "4 steps, no guidance": Arm(generation={"num_inference_steps": 4, "guidance_scale": 1.0}),
        "LoRA, 8 steps, g 3": Arm(generation={"num_inference_steps": 8}, runtime=few_step),
        "LoRA, 8 steps, g 1.5": Arm(generation={"num_inference_steps": 8, "guidance_scale": 1.5}, runtime=few_step),
    }


@dataclass(kw_only=True, slots=True)
class Seen:
    """What was seen of one arm, one value a person."""

    values: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    frames: list[Clip] = field(default_factory=list)

    def add(self, name: str, value: float | None) -> None:
        """One more value of a measure."""
        self.values.setdefault(name, []).append(value)


MEASURES = {
    "similarity": "similarity",
    "second": "second judge",
    "coverage": "coverage",
    "prompt": "wall and shirt",
    "motion": "motion",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}


def main() -> None:
    """Generate in turn, score, print, write, plot."""
    parser = argparse.ArgumentParser(description="Likeness beside speed, on nano.")
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--arms", help="comma-separated; all by default")
    parser.add_argument("--output", type=Path, default=Path("docs/speed"))
    request = parser.parse_args()
    torch.set_num_threads(1)
    chosen = arms()
    if request.arms:
        names = [EXACT, *(name for name in request.arms.split(",") if name != EXACT)]
        if unknown := [name for name in names if name not in chosen]:
            parser.error(f"unknown arm {unknown[0]!r}; the arms are {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in names}
    models, unable = loaded(chosen)
    seen = {name: Seen() for name in models}
    for i in range(request.people):
        film(i, models, {name: chosen[name] for name in models}, seen)
        if i % 4 == 3:
            print(f"{i + 1}/{request.people}", flush=True)
    write(request, chosen, seen, unable)


def loaded(chosen: dict[str, Arm]) -> tuple[dict[str, Any], dict[str, str]]:
    """The model of each arm, loaded once for all arms that hold it the same way; and why some cannot be here."""
    found: dict[str, Any] = {}
    models: dict[str, Any] = {}
    unable = {}
    for name, arm in chosen.items():
        key = repr(arm.runtime)
        if key not in models:
            settings = dict(arm.runtime)
            dtype = settings.pop("dtype", None)
            try:
                models[key] = load("nano", dtype=dtype, device="cpu", runtime=RuntimeConfig(**settings))
            except Exception as error:  # noqa: BLE001 (what this machine cannot run is said in the table)
                unable[name] = str(error)
                print(f"{name}: {error}", flush=True)
                continue
        found[name] = models[key]
    return found, unable


def film(number: int, models: dict[str, Any], chosen: dict[str, Arm], seen: dict[str, Seen]) -> None:
    """One clip of a person by every arm, scored."""
    picture = album(number, 0)[0]
    prompt = NANO_PROMPTS[number % len(NANO_PROMPTS)].text
    exact: Clip | None = None
    for name, components in models.items():
        faces = components.faces
        sitter = identify(faces, picture, reference_size=components.defaults.reference_size).identity
        unscored = replace(faces, judges={})
        components.faces = unscored
        config = GenerateConfig(seed=number, **chosen[name].generation)
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = generate(components, sitter, prompt, config)
        seen[name].seconds.append(time.monotonic() - began)
        components.faces = faces
        if exact is None:
            exact = clip.frames
        score(seen[name], clip.frames, exact, sitter, faces, prompt)


def score(row: Seen, frames: Clip, exact: Clip, sitter: Any, faces: Any, prompt: str) -> None:
    """Everything that is measured of one clip."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    judges: list[Callable[[], Any]] = list(faces.judges.values())
    for measure, judge in zip(("similarity", "second"), judges, strict=True):
        found = likeness(frames, sitter.aligned, faces.detector(), judge())
        row.add(measure, found.similarity)
        if measure == "similarity":
            row.add("coverage", found.coverage)
    probe = MODELS["nano"].probe
    assert probe is not None
    told = probe(frames, prompt)
    row.add("prompt", told["prompt"])
    row.add("motion", told["motion"])
    same = np.array_equal(frames, exact)
    row.add("psnr", None if same else float(peak_signal_noise_ratio(exact, frames)))
    row.add("ssim", float(np.mean([structural_similarity(a, b, channel_axis=2) for a, b in zip(exact, frames, strict=True)])))
    row.frames.append(frames)


def write(request: argparse.Namespace, chosen: dict[str, Arm], seen: dict[str, Seen], unable: dict[str, str]) -> None:
    """The table as markdown, the numbers as JSON, a plot and a sheet of frames."""
    subjects = [str(i) for i in range(request.people)]
    baseline = statistics.median(seen[EXACT].seconds)
    numbers: dict[str, Any] = {}
    lines = [
        f"n = {request.people} drawn people, one clip each; nano, seeds 0 to {request.people - 1}; "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, lynx-video {__version__}, {platform.machine()}, one thread. "
        "Brackets: 95% bootstrap intervals over people. In italics: the paired difference from exact, where its interval excludes 0.",
        "",
        f"| | seconds a clip | times as fast | {' | '.join(MEASURES.values())} |",
        "| --- " * (len(MEASURES) + 3) + "|",
    ]
    for name, row in seen.items():
        seconds = statistics.median(row.seconds)
        speed = statistics.median(mine / theirs for mine, theirs in zip(seen[EXACT].seconds, row.seconds, strict=True))
        values = {measure: estimate(row.values[measure], subjects) for measure in MEASURES}
        against = {measure: paired(seen[EXACT].values[measure], row.values[measure], subjects) for measure in MEASURES}
        cells = [cell(values[measure], None if name == EXACT else against[measure], measure) for measure in MEASURES]
        bold = f"**{name}**" if chosen[name].preset else name
        lines.append(f"| {bold} | {seconds:.2f} | {speed:.2f} | {' | '.join(cells)} |")
        numbers[name] = {
            "seconds": seconds,
            "speed": speed,
            "preset": chosen[name].preset,
            "generation": chosen[name].generation,
            "runtime": {key: str(value) for key, value in chosen[name].runtime.items()},
            **{measure: one.to_json() for measure, one in values.items()},
            "against_exact": {measure: one.to_json() for measure, one in against.items()},
        }
    lines += [f"| {name} | cannot run here: {why} |" + " |" * (len(MEASURES) + 1) for name, why in unable.items()]
    print("\n".join(lines))
    request.output.mkdir(parents=True, exist_ok=True)
    with draft(request.output / "nano.md") as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with draft(request.output / "nano.json") as partial:
        partial.write_text(json.dumps({"seconds_exact": baseline, "arms": numbers}, indent=1) + "\n", encoding="utf-8")
    plot(request.output / "pareto.png", numbers)
    sheet(request.output / "sheet.webp", seen)


def cell(one: Estimate, difference: Estimate | None, measure: str) -> str:
    """`.87 [.85, .89]`, and the difference where its interval excludes 0."""
    if one.mean is None:
        return "the same"
    digits = 1 if measure == "psnr" else 3
    text = f"{one.mean:.{digits}f}"
    if one.low is not None and one.high is not None and measure in ("similarity", "second", "motion"):
        text += f" [{one.low:.2f}, {one.high:.2f}]"
    if difference is not None and difference.excludes_zero and difference.mean is not None and measure not in ("psnr", "ssim"):
        text += f" *{difference.mean:+.3f}*"
    return text


def plot(file: Path, numbers: dict[str, Any]) -> None:
    """Likeness over speed: up and to the right is better; the line joins what nothing beats in both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panel = figure.subplots()
    front, best = [], -1.0
    for name, row in sorted(numbers.items(), key=lambda item: -item[1]["speed"]):
        one = row["similarity"]
        if one["mean"] > best:
            best = one["mean"]
            front.append((row["speed"], one["mean"]))
        colour = "#d55e00" if row["preset"] else "#0072b2"
        panel.plot([row["speed"]] * 2, [one["low"], one["high"]], color=colour, linewidth=1.2, alpha=0.6)
        panel.plot([row["speed"]], [one["mean"]], "o", color=colour, markersize=7 if row["preset"] else 5)
        panel.annotate(
            name,
            (row["speed"], one["mean"]),
            xytext=(6, 7) if row["preset"] else (3, -4),
            textcoords="offset points",
            fontsize=10 if row["preset"] else 7,
            rotation=0 if row["preset"] else -45,
            rotation_mode="anchor",
            va="bottom" if row["preset"] else "top",
            color=colour,
        )
    panel.plot(*zip(*front, strict=True), color="#999999", linewidth=1, linestyle="--", zorder=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    panel.set_xlim(0.7, 12)
    panel.set_xlabel("times as fast as exact (log scale)")
    panel.set_ylabel("face similarity to the portrait (nano judge)")
    panel.set_title("Likeness beside speed, nano; orange: presets; bars: 95% intervals over people", fontsize=10)
    panel.grid(alpha=0.3)
    with draft(file) as partial:
        figure.savefig(partial, dpi=110, format="png")


def sheet(file: Path, seen: dict[str, Seen], people: int = 6) -> None:
    """The middle frame of the first people's clips, a row an arm."""
    from PIL import Image, ImageDraw

    size, left = 96, 190
    count = min(people, len(seen[EXACT].frames))
    page = Image.new("RGB", (left + count * size, len(seen) * size), "white")
    pen = ImageDraw.Draw(page)
    for row, (name, one) in enumerate(seen.items()):
        pen.text((6, row * size + size // 2 - 6), name, fill="black")
        for column in range(count):
            frames = one.frames[column]
            picture = Image.fromarray(frames[len(frames) // 2]).resize((size, size), Image.Resampling.LANCZOS)
            page.paste(picture, (left + column * size, row * size))
    with draft(file) as partial:
        page.save(partial, format="WEBP", quality=85)


if __name__ == "__main__":
    main()
