"""The training loop of every stage: seeded steps, warm-up and decay, averaged weights, checkpoints that go on where they were."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast."""

    steps: int
    learning_rate: float
    matrix_rate: float | None = None
    "learning rate of Muon for matrices; None: AdamW for everything"
    warmup: int = 50
    decay: float = 0.6
    "share of the run over which the rate falls to zero"
    average: float = 0.995
    "decay of the averaged weights, which are what is kept"
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Factor on the learning rates at `step`."""
        left = 1 - step / self.steps
        return min(1.0, (step + 1) / self.warmup, left / self.decay + 0.01)


def fit(
    name: str,
    run: Path,
    module: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    *,
    report: Callable[[], str] | None = None,
    every: float = 60.0,
    is_matrix: Callable[[str], bool] = lambda _: True,
) -> None:
    """Train `module`'s parameters that require a gradient, and leave the averaged weights in it.

    `loss(step)` builds the loss of a step. bfloat16 parameters get float32 masters. Every `every` seconds the state goes to
    `run/name.state.pt` (written beside, then renamed) and `report()`, called on the averaged weights, is printed.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    live = [p for _, p in named]
    masters = [p.detach().float().clone().requires_grad_(True) if p.dtype != torch.float32 else p for p in live]
    averages = [p.detach().clone() for p in masters]
    optimizers = _optimizers(named, masters, schedule, is_matrix)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    state_file, start, spent = run / f"{name}.state.pt", 0, 0.0
    if state_file.exists():
        state: dict[str, Any] = torch.load(state_file, weights_only=True)
        start, spent = state["step"], state["spent"]
        for target, saved in ((masters, state["masters"]), (averages, state["averages"])):
            _copy(target, saved)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        _copy(list(module.buffers()), state.get("buffers", []))
        _copy(live, masters)
        print(f"{name}: going on at step {start}", flush=True)
    began, last, smooth = time.monotonic() - spent, time.monotonic(), 0.0

    def checkpoint(step: int) -> None:
        state = {
            "step": step,
            "spent": time.monotonic() - began,
            "masters": [p.detach() for p in masters],
            "averages": averages,
            "buffers": list(module.buffers()),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        partial = state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(state_file)

    def with_averages(function: Callable[[], str]) -> str:
        kept = [p.detach().clone() for p in masters]
        _copy(live, averages)
        result = function()
        _copy(live, kept)
        return result

    for step in range(start, schedule.steps):
        torch.manual_seed(step * 7919 + 17)  # a step's randomness depends on its number alone, so a restart changes nothing
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * schedule.rate(step)
        value = loss(step)
        value.backward()
        for master, parameter in zip(masters, live, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, schedule.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if masters is not live:
            _copy(live, masters)
        weight = 1 - min(schedule.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(averages, [p.detach() for p in masters], weight)
        smooth = float(value.detach()) if step == start else 0.97 * smooth + 0.03 * float(value.detach())
        if time.monotonic() - last > every:
            checkpoint(step + 1)
            note = with_averages(report) if report else ""
            print(f"{name} {step + 1}/{schedule.steps} {time.monotonic() - began:.0f}s loss {smooth:.4f} {note}", flush=True)
            last = time.monotonic()
    _copy(masters, averages)
    _copy(live, averages)
    checkpoint(schedule.steps)
    note = report() if report else ""
    print(f"{name} done {schedule.steps} steps {time.monotonic() - began:.0f}s loss {smooth:.4f} {note}", flush=True)


def _optimizers(
    named: Sequence[tuple[str, nn.Parameter]], masters: Sequence[Tensor], schedule: Schedule, is_matrix: Callable[[str], bool]
) -> list[torch.optim.Optimizer]:
    matrices = [m for (n, _), m in zip(named, masters, strict=True) if schedule.matrix_rate and m.ndim == 2 and is_matrix(n)]
    chosen = {id(m) for m in matrices}
    others = [m for m in masters if id(m) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if others:
        found.append(torch.optim.AdamW(others, schedule.learning_rate, (0.9, 0.98), weight_decay=schedule.weight_decay))
    if matrices:
        found.append(
            torch.optim.Muon(
                matrices,
                lr=schedule.matrix_rate or 0.0,
                weight_decay=schedule.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return found


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        if target is not source:
            target.copy_(source)
