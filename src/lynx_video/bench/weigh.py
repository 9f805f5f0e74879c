"""Host memory of a side, in a process of its own: what others in the same process hold cannot be told apart."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from lynx_video.bench.record import Request, Row
from lynx_video.bench.side import Side, hold
from lynx_video.errors import LynxError


def weigh(request: Request, side: Side) -> int | None:
    """The most bytes of host memory that making the model and one short turn of `side` take, mapped files included.

    None where the side cannot be run or the system does not say.
    """
    alone = replace(request, sides=(side,), weigh=False, rounds=1, steps=1)
    context = multiprocessing.get_context("spawn")  # a fork would begin with what this process holds
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_alone, alone, torch.get_num_threads()).result()


def run_alone(request: Request, threads: int) -> int | None:
    """What the process does: hold the one side and take one turn, watched."""
    from lynx_video.bench import turn
    from lynx_video.bench.race import open_stage
    from lynx_video.runtime.host import peak_host_memory

    torch.set_num_threads(threads)
    side = request.sides[0]
    with tempfile.TemporaryDirectory() as folder, peak_host_memory() as peak:
        stage = open_stage(request, Path(folder))
        try:
            one = hold(stage.components, stage.blueprint, side, stage.scene)
            if request.video:
                turn.time_clip(one, Row(name=side.name, way=side.way), stage.clock, request.steps)
            else:
                turn.predict(one.way)
        except (LynxError, RuntimeError, MemoryError):
            return None
    return peak.total or None
