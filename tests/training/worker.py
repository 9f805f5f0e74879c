"""A run in the processes that torchrun starts: worker.py RUN JOB (JSON of base, data and config)."""

import json
import sys
from pathlib import Path

import torch

from lynx_video.pipeline.load import survey
from lynx_video.training.config import TrainConfig
from lynx_video.training.launch import launch, prepare

if __name__ == "__main__":
    torch.set_num_threads(1)
    job = json.loads(sys.argv[2])
    blueprint = survey(base=job["base"], with_adapter=False, device="cpu", dtype="fp32")
    launch(prepare(blueprint, Path(job["data"]), TrainConfig(**job["config"])), Path(sys.argv[1]), quiet=True)
