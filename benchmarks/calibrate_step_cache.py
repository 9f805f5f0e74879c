"""Measures nano's step caches over several people, prompts and seeds; what ships beside its adapters comes from here.

    python benchmarks/calibrate_step_cache.py [--model nano|nano-lite] [--clips 8] [--output step_cache.json]

`lynx-video calibrate` does the same for any model, with portraits that are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_video import GenerateConfig, load
from lynx_video.evaluation.prompts import NANO_PROMPTS
from lynx_video.nano.people import album
from lynx_video.pipeline.calibration import calibrate, made_for, save_calibration
from lynx_video.pipeline.identify import identify
from lynx_video.runtime.cache import mean_of


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Calibrate nano's step cache.")
    parser.add_argument("--model", default="nano", choices=("nano", "nano-lite"))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("step_cache.json"))
    request = parser.parse_args()
    components = load(request.model)
    found = []
    for i in range(request.clips):
        sitter = identify(components.faces, album(10_000 + i, 0)[0], reference_size=components.defaults.reference_size)
        prompt = NANO_PROMPTS[i % len(NANO_PROMPTS)].text
        found.append(calibrate(components, sitter.identity, prompt, GenerateConfig(seed=i)))
        print(f"{i + 1}/{request.clips}: {' '.join(f'{drift:.3f}' for drift in found[-1].drift)}", flush=True)
    mean = mean_of(found)
    save_calibration(request.output, mean, made_for(components))
    print(f"{request.output}: {' '.join(f'{drift:.3f}' for drift in mean.drift)}, total {sum(mean.drift):.3f}")


if __name__ == "__main__":
    main()
