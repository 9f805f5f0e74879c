"""The trainer, in three levels: `run` goes through the steps, `train_step` makes one, `forward_backward` takes one pack.

One process or many run the same code and, since every draw comes from seed, epoch and example, learn the same.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.errors import Cancelled, Diverged
from lynx_video.runtime.parallel import Processes
from lynx_video.training.checkpoint import latest, load_checkpoint, read_progress, save_checkpoint
from lynx_video.training.config import TrainConfig
from lynx_video.training.feed import Drawn, Feed
from lynx_video.training.journal import Journal, StepFacts
from lynx_video.training.model import PackedModel
from lynx_video.training.objective import step
from lynx_video.training.order import Cursor
from lynx_video.training.parallel import full, local

if TYPE_CHECKING:
    from lynx_video.adapters.attach import Adapter

Validation = Callable[["Trainer", int], tuple[dict[str, float], dict[str, Path]]]
Feeder = Callable[[Cursor], Feed]


class Trainer:
    """A run over a model that is ready: adapter initialised and attached, base frozen, parts sharded.

    feeder: makes the feed that begins at a cursor. facts: what else a checkpoint must agree on, such as the base and the training
    set (plain JSON values). validate: called every `validate_every` steps and at the end, on the averaged weights.
    """

    def __init__(
        self,
        model: PackedModel,
        config: TrainConfig,
        run: Path,
        feeder: Feeder,
        among: Processes,
        *,
        dtype: torch.dtype,
        facts: Mapping[str, Any] | None = None,
        validate: Validation | None = None,
    ) -> None:
        self.model, self.config, self.folder, self.feeder, self.among = model, config, run, feeder, among
        self.dtype, self.facts, self.validate = dtype, dict(facts or {}), validate
        self.adapter: Adapter = model.adapter
        self.named = dict(self.adapter.named_parameters())
        self.parameters = list(self.named.values())
        self.optimizers = make_optimizers(self.named, config)
        self.average = {name: p.detach().clone() for name, p in self.named.items()} if config.average else {}
        self.cursor, self.done, self.skipped, self.in_a_row = Cursor(), 0, 0, 0
        if config.compile:
            for block in model.transformer.blocks:
                block.compile(dynamic=False)

    def run(self, journal: Callable[[int], Journal]) -> int:
        """Train to the last step, from the newest checkpoint if there is one; the number of steps done.

        journal: opens the log at a step. SIGTERM ends the run after the step it is in, with a checkpoint. Raises Cancelled then,
        Diverged if too many steps in a row gave no number, BadRequest if the checkpoint was made with another config.
        """
        self._resume()
        feed = self.feeder(self.cursor)
        try:
            with journal(self.done) as log, _terminated() as told:
                while self.done < self.config.steps:
                    facts, unreadable = self.train_step(feed)
                    for sentence in unreadable:
                        log.note(f"left out: {sentence}")
                    log.step(facts)
                    last = self.done == self.config.steps
                    stop = bool(self.among.sum(torch.tensor([float(told())], dtype=torch.float64))[0])
                    if self.validate is not None and (last or self.done % self.config.validate_every == 0):
                        with self.averaged():
                            log.validation(self.done, *self.validate(self, self.done))
                    if last or stop or self.done % self.config.checkpoint_every == 0:
                        self._checkpoint()
                    if stop and not last:
                        raise Cancelled(f"stopped after step {self.done}; the same command goes on from there.")
        finally:
            feed.close()
        return self.done

    def train_step(self, feed: Feed) -> tuple[StepFacts, list[str]]:
        """One optimizer step over the packs of one ration; and sentences on examples that could not be read."""
        began, ration = time.monotonic(), feed.take()
        rate = self.config.rate(self.done)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        counts = torch.tensor(
            [
                sum(len(pack.samples) for pack in ration.packs),
                sum(map(self._tokens, ration.packs)),
                len(ration.unreadable),
            ],
            dtype=torch.float64,
        )
        samples, tokens, lost = (int(count) for count in self.among.sum(counts))
        unreadable = [one for some in self.among.gather(ration.unreadable) for one in some] if lost else []
        loss = sum(self.forward_backward(pack, samples) for pack in ration.packs)
        loss = float(self.among.sum(torch.tensor([loss], dtype=torch.float64))[0])
        norm = float(full(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)))
        self.cursor = ration.cursor
        self.done += 1
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self._follow()
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.in_a_row >= self.config.max_skipped:
            raise Diverged(
                f"step {self.done}: the loss ({loss}) or the gradient ({norm}) was no number {self.in_a_row} times in a row; "
                f"train anew in another folder with a smaller --learning-rate."
            )
        return (
            StepFacts(
                step=self.done,
                stage=self.config.stage,
                loss=loss,
                learning_rate=self.optimizers[0].param_groups[0]["lr"],
                gradient_norm=norm,
                samples=samples,
                tokens=tokens,
                seconds=time.monotonic() - began,
                skipped=self.skipped,
                peak_memory=torch.cuda.max_memory_allocated() if self.among.device.type == "cuda" else None,
            ),
            unreadable,
        )

    def forward_backward(self, pack: Drawn, samples: int) -> float:
        """Add the gradients of one pack's part in the mean over `samples` of all processes; that part of the loss."""
        eager = self.config.compile and not pack.uniform  # a shape of its own is not worth a graph of its own
        with self.precision(), torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
            result = step(self.model, pack.samples, pack.timesteps, self.among.device, self.dtype)
            part = result.losses.sum() / samples
            (part * self.among.count).backward()  # FSDP takes the mean of the gradients over processes
        return float(part.detach())

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, if the run is in bfloat16."""
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.among.device.type, torch.bfloat16)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the adapter has its averaged weights."""
        if not self.average:
            yield
            return
        kept = {name: local(p).detach().clone() for name, p in self.named.items()}
        self._set({name: local(value) for name, value in self.average.items()})
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            local(parameter).copy_(values[name])

    @torch.no_grad()
    def _follow(self) -> None:
        """Draw the averages towards the weights; faster at first, so that the start is forgotten."""
        if self.average:
            weight = 1 - min(self.config.average, self.done / (self.done + 9))
            averages = [local(self.average[name]) for name in self.named]
            torch._foreach_lerp_(averages, [local(p).detach() for p in self.parameters], weight)

    def _tokens(self, pack: Drawn) -> int:
        patch = math.prod(self.model.transformer.config.patch_size)
        return sum(math.prod(one.latents.shape[1:]) // patch for one in pack.samples)

    def _checkpoint(self) -> None:
        progress = {
            "step": self.done,
            "cursor": asdict(self.cursor),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "config": self.config.as_json() | self.facts,
        }
        save_checkpoint(self.folder, self.adapter, self.optimizers, self.average, progress, self.among, keep=self.config.keep)

    def _resume(self) -> None:
        found = latest(self.folder)
        if found is None:
            return
        progress = read_progress(found, self.config.as_json() | self.facts)
        load_checkpoint(found, self.adapter, self.optimizers, self.average, self.among)
        self.done, self.cursor = progress["step"], Cursor(**progress["cursor"])
        self.skipped, self.in_a_row = progress["skipped"], progress["in_a_row"]


def make_optimizers(named: Mapping[str, torch.nn.Parameter], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for matrices and AdamW for the rest; `peak` in a group is its highest rate."""
    matrices = [p for p in named.values() if config.matrix_rate is not None and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in named.values() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if others:
        betas = (0.9, config.beta2)
        found.append(torch.optim.AdamW(others, config.learning_rate, betas, weight_decay=config.weight_decay))
    if matrices and config.matrix_rate is not None:
        found.append(
            torch.optim.Muon(
                matrices,
                lr=config.matrix_rate,
                weight_decay=config.weight_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


@contextlib.contextmanager
def _terminated() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM is noted, not obeyed; the function says whether it came."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
