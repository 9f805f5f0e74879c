"""Checkpoints of a run: `RUN/checkpoints/step-000500/`, whole or not there, for any number of processes.

`progress.json` says where the run was and what it was made with; the tensors are in the layout of torch.distributed.checkpoint, so a
run can go on with another number of processes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lynx_video.errors import BadOutput, BadRequest, BadWeights
from lynx_video.runtime.parallel import Processes
from lynx_video.training.config import FREE

FOLDER, PROGRESS = "checkpoints", "progress.json"


def latest(run: Path) -> Path | None:
    """The newest finished checkpoint of a run."""
    found = sorted(folder for folder in (run / FOLDER).glob("step-*") if (folder / PROGRESS).is_file())
    return found[-1] if found else None


def save_checkpoint(
    run: Path,
    adapter: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    progress: dict[str, Any],
    among: Processes,
    *,
    keep: int,
) -> Path:
    """Write a checkpoint beside its place, rename it, and remove the oldest beyond `keep`. Raises BadOutput, with none half-written."""
    from torch.distributed.checkpoint.api import CheckpointException  # not an Exception
    from torch.distributed.checkpoint.state_dict_saver import save

    place = run / FOLDER / f"step-{progress['step']:07d}"
    partial = place.with_name(f".{place.name}.partial")
    if among.first:
        shutil.rmtree(partial, ignore_errors=True)
    among.wait()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _one_process():
            save(_state(adapter, optimizers, average), checkpoint_id=partial, no_dist=among.count == 1)
        if among.first:
            (partial / PROGRESS).write_text(json.dumps(progress, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (Exception, CheckpointException) as error:
        if among.first:
            shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise BadOutput(f"{place}: the checkpoint cannot be written ({reason}); earlier ones are untouched.") from error
    if among.first:
        if place.exists():
            shutil.rmtree(place)
        partial.replace(place)
        for old in sorted((run / FOLDER).glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    among.wait()
    return place


def read_progress(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The progress of a checkpoint. Raises BadRequest, naming the field, if it was made with another config."""
    try:
        progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        made_with = dict(progress["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadWeights(f"{folder / PROGRESS} is not the progress of a run ({error!r}); remove {folder}.") from error
    for name in sorted(set(made_with) | set(config)):
        if name not in FREE and made_with.get(name) != config.get(name):
            raise BadRequest(
                f"{folder} was made with {name} {made_with.get(name)!r}, this run has {config.get(name)!r}; "
                f"give the same, or train in another folder."
            )
    return progress


def load_checkpoint(
    folder: Path,
    adapter: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: dict[str, Tensor],
    among: Processes,
) -> None:
    """Read a checkpoint into adapter, optimizers and averaged weights. Raises BadWeights for one that is damaged."""
    from torch.distributed.checkpoint.api import CheckpointException  # not an Exception
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    state = _state(adapter, optimizers, average)
    try:
        with _one_process():
            load(state, checkpoint_id=folder, no_dist=among.count == 1)
    except (Exception, CheckpointException) as error:
        raise BadWeights(f"{folder} can't be read ({type(error).__name__}); remove it to go on from the one before.") from error
    # adapter and averages were read in place; optimizers make copies of their state
    for number, optimizer in enumerate(optimizers):
        set_optimizer_state_dict(adapter, optimizer, state[f"optimizer.{number}"])


def _state(adapter: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: dict[str, Tensor]) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    state: dict[str, Any] = {"adapter": get_model_state_dict(adapter), "average": average}
    for number, optimizer in enumerate(optimizers):
        state[f"optimizer.{number}"] = get_optimizer_state_dict(adapter, optimizer)
    return state


@contextmanager
def _one_process() -> Iterator[None]:
    """Without the remark that there is only one process, where that is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
