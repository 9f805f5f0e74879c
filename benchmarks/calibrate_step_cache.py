"""Measures for the step cache how far what the blocks add drifts between noise levels, over several clips, for one base and adapter.

    python benchmarks/calibrate_step_cache.py [--model nano|nano-lite|lynx-full|lynx-lite] [--clips 8] [--portraits FOLDER]
        [--steps N] [--output step_cache.json]

A first run with `--step-cache` measures one clip by itself; this takes the mean over people, prompts and seeds. The result goes beside
the adapter, where `generate` looks for it. Nano draws its people; the real models need a folder of portraits.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lynx_video import GenerateConfig, generate, load
from lynx_video.evaluation.prompts import NANO_PROMPTS, PROMPTS
from lynx_video.nano.people import album
from lynx_video.pipeline.calibration import known_calibration
from lynx_video.pipeline.identify import identify
from lynx_video.runtime.cache import Calibration, mean_of, save_calibration


def portraits(request: argparse.Namespace) -> Iterator[Any]:
    """As many portraits as clips are wanted: drawn people of their own, or the pictures of a folder."""
    if request.portraits is None:
        for i in range(request.clips):
            yield album(10_000 + i, 0)[0]
        return
    files = sorted(file for file in request.portraits.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise SystemExit(f"{request.portraits} holds no portraits (.png, .jpg, .webp).")
    for i in range(request.clips):
        yield files[i % len(files)]


def measured(request: argparse.Namespace) -> list[Calibration]:
    """One calibration a clip."""
    components = load(request.model, models=request.models)
    drawn = request.model.startswith("nano")
    prompts = NANO_PROMPTS if drawn else PROMPTS
    found = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, portrait in enumerate(portraits(request)):
            components.calibration = Path(folder) / f"{i}.json"
            sitter = identify(components.faces, portrait, reference_size=components.defaults.reference_size)
            config = GenerateConfig(seed=i, step_cache=0.1, num_inference_steps=request.steps)
            generate(components, sitter.identity, prompts[i % len(prompts)].text, config)
            one = known_calibration(components.calibration)
            assert one is not None
            found.append(one)
            print(f"{i + 1}/{request.clips}: {' '.join(f'{drift:.3f}' for drift in one.drift)}", flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Calibrate the step cache of a model.")
    parser.add_argument("--model", default="nano", choices=("nano", "nano-lite", "lynx-full", "lynx-lite"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--steps", type=int, help="the arm's own number by default")
    parser.add_argument("--output", type=Path, default=Path("step_cache.json"))
    request = parser.parse_args()
    if not request.model.startswith("nano") and request.portraits is None:
        parser.error("the real models need --portraits FOLDER")
    mean = mean_of(measured(request))
    save_calibration(request.output, mean)
    print(f"{request.output}: {' '.join(f'{drift:.3f}' for drift in mean.drift)}, total {sum(mean.drift):.3f}")


if __name__ == "__main__":
    main()
