"""`python -m lynx_video.nano.recipe STAGE [--run FOLDER]`."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch

STAGES = ("vae", "face", "data", "base", "few_step", "export")


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="lynx_video.nano.recipe", description="Train the nano models from seeds.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("part", nargs="?", default="", help="a part of the stage, where it has parts")
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="folder for checkpoints and results")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    request = parser.parse_args()
    if request.threads:
        torch.set_num_threads(request.threads)
    request.run.mkdir(parents=True, exist_ok=True)
    stage = import_module(f"lynx_video.nano.recipe.{request.stage}")
    stage.train(request.run, request.part) if request.part else stage.train(request.run)


if __name__ == "__main__":
    main()
