"""What packing buys: tokens/s and peak memory of a training step of nano's full adapter, against three ways without packs.

    python benchmarks/training.py [--steps 6] [--budget 4096] [--dtype fp32|bf16] [--recompute] [--compile] [--output FILE.md]

A step is forward, backward and AdamW over the adapter on the frozen base. Every arm takes the same samples from the same weights:

    packed               ours: `PackedModel` and `objective.step`
    padded               one batch a step; latents padded to its largest T, h and w, padding masked out of attention and loss
    one shape at a time  a batch of each shape in the step, gradients added up
    stock loop           what a user of diffusers writes: one sample at a time, diffusers' own attention dispatch

The middle two compute attention by the same formula as ours, so that they differ in packing alone. There are two mixes: stills and
clips of several shapes, and clips of one shape, where there is nothing to pad. Texts have the base's full length and references one
size, as in the product, so neither is ever padded. Only tokens of latents count, not those of padding or references.

Before anything is timed, losses and gradients of every arm must equal the packed ones. Arms take turns, a step each. With one thread,
seconds are the processor's, which other work on the machine lengthens less. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_video import __version__, flow, load
from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.attention import Attention
from lynx_video.adapters.memory import Memory, reference_features
from lynx_video.adapters.projection import KeysValues
from lynx_video.draft import draft
from lynx_video.nano import model as nano
from lynx_video.training.model import PackedModel
from lynx_video.training.objective import step as packed_step
from lynx_video.training.packing import PLAIN_SCORES
from lynx_video.training.sample import Sample, runs

MIXES = {
    "several-shapes": [(frames, *size) for frames in (1, 3, 5) for size in ((16, 16), (12, 20), (20, 12))],
    "one-shape": [(5, 16, 16)],
}
"latent shapes T, h, w; each is as likely as the others"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 1e-1)}
"largest difference of a sample's loss, and of a parameter's gradient relative to its norm"
DISTINCT = 3
"different steps that are repeated, so that compiled blocks meet no new shapes when they are timed"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one optimizer step learns from: samples, equal shapes side by side, and a timestep for each or one for all."""

    samples: list[Sample]
    timesteps: Tensor

    @property
    def tokens(self) -> int:
        """Video tokens, without padding."""
        return sum(tokens_of(one.latents.shape) for one in self.samples)

    @property
    def padding(self) -> float:
        """The share of tokens that is padding when the samples are one batch."""
        return 1 - self.tokens / (len(self.samples) * tokens_of(largest(self.samples)))


def tokens_of(shape: Sequence[int]) -> int:
    """Tokens of a latent [C, T, h, w]: patches are 1 x 2 x 2."""
    return shape[1] * (shape[2] // 2) * (shape[3] // 2)


def largest(samples: Sequence[Sample]) -> tuple[int, int, int, int]:
    """C, and the largest T, h and w."""
    channels, *rest = (max(sizes) for sizes in zip(*(one.latents.shape for one in samples), strict=True))
    return (channels, *rest)


def draw_steps(shapes: Sequence[tuple[int, int, int]], budget: int, own_timesteps: bool) -> list[Step]:
    """Steps of samples drawn at random until the next would pass `budget` tokens; values are noise, shapes are what counts."""
    rng, times = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    def sample(shape: tuple[int, int, int]) -> Sample:
        latent = (nano.LATENT_CHANNELS, *shape)
        return Sample(
            latents=normal(*latent),
            noise=normal(*latent),
            text=normal(nano.TEXT_TOKENS, nano.TEXT_WIDTH),
            face=F.normalize(normal(512), dim=0),
            reference=normal(nano.LATENT_CHANNELS, 1, 16, 16),
            reference_text=reference_text,
        )

    reference_text = normal(nano.TEXT_TOKENS, nano.TEXT_WIDTH)
    steps: list[Step] = []
    while len(steps) < DISTINCT:
        chosen: list[tuple[int, int, int]] = []
        while True:
            shape = shapes[int(torch.randint(len(shapes), (), generator=rng))]
            if sum(tokens_of((0, *one)) for one in (*chosen, shape)) > budget:
                break
            chosen.append(shape)
        timesteps = flow.TIMESTEPS * torch.rand(len(chosen) if own_timesteps else 1, generator=times)
        steps.append(Step(samples=[sample(one) for one in sorted(chosen)], timesteps=timesteps))
    return steps


class Masked(Attention):
    """The product's processor over a padded batch, with the attention formula of packs. mask: [B, 1, 1, L], True for real keys."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002  the stock block has none to give
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)

    def _attend(self, query_BLNK: Tensor, memory: KeysValues, mask: Tensor | None, parallel: Any) -> Tensor:  # noqa: ARG002
        query, key, value = (x.type_as(query_BLNK).transpose(1, 2) for x in (query_BLNK, *memory))
        if query.shape[2] * key.shape[2] <= PLAIN_SCORES:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            out = torch.softmax(scores, -1) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(2)


Grouping = Callable[[Sequence[Sample]], Iterator[slice]]


def together(samples: Sequence[Sample]) -> Iterator[slice]:
    """One batch of all."""
    yield slice(0, len(samples))


def by_shape(samples: Sequence[Sample]) -> Iterator[slice]:
    """A batch of each shape."""
    return runs([one.latents.shape for one in samples])


def one_by_one(samples: Sequence[Sample]) -> Iterator[slice]:
    """A batch of each sample."""
    return (slice(i, i + 1) for i in range(len(samples)))


ARMS: dict[str, tuple[Grouping, type[Attention]] | None] = {
    "packed": None,
    "padded": (together, Masked),
    "one shape at a time": (by_shape, Masked),
    "stock loop": (one_by_one, Attention),
}


class Arm:
    """One way to take a step, with an adapter, a base and an optimizer of its own; `losses` leaves gradients, `step` uses them."""

    def __init__(self, name: str, adapter: Adapter, request: argparse.Namespace) -> None:
        self.adapter = copy.deepcopy(adapter)
        self.transformer = self.adapter.transformer
        self.dtype = DTYPES[request.dtype]
        self.way = ARMS[name]
        self.model: PackedModel | None = None
        if self.way is None:
            self.model = PackedModel(self.adapter, recompute=request.recompute)
        else:
            self.adapter.detach()
            self.adapter.attach(self.transformer, self.way[1])
            if request.recompute:
                self.transformer.enable_gradient_checkpointing()
        if request.compile:
            for block in self.transformer.blocks:
                block.compile(dynamic=False)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-5)

    def step(self, step: Step) -> None:
        """Forward, backward and update."""
        self.losses(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def losses(self, step: Step) -> Tensor:
        """A loss a sample; the gradients of their mean are added to the adapter's."""
        if self.model is not None:
            with self._autocast():
                result = packed_step(self.model, step.samples, step.timesteps, CPU, self.dtype)
            result.loss.backward()
            return result.losses.detach()
        assert self.way is not None
        timesteps = step.timesteps.expand(len(step.samples))
        found = [self._batch(step.samples[some], timesteps[some], len(step.samples)) for some in self.way[0](step.samples)]
        return torch.cat(found)

    def _batch(self, samples: Sequence[Sample], timesteps: Tensor, count: int) -> Tensor:
        size = largest(samples)

        def padded(tensor: Tensor) -> Tensor:
            ends = [end for have, want in zip(tensor.shape[:0:-1], size[:0:-1], strict=True) for end in (0, want - have)]
            return F.pad(tensor, ends)

        sigmas = (timesteps / flow.TIMESTEPS).view(-1, 1, 1, 1, 1)
        clean, noise = (torch.stack([padded(getattr(one, name)) for one in samples]) for name in ("latents", "noise"))
        noisy = flow.interpolate(clean, noise, sigmas).to(self.dtype)
        text = torch.stack([one.text for one in samples]).to(self.dtype)
        with self._autocast():
            memory = self._memory(samples)
            self._mask(samples, padded)
            with self.adapter.using(memory):
                outputs = self.transformer(noisy, timesteps, text, return_dict=False)[0].float()
                losses = torch.stack([_loss(output, one) for output, one in zip(outputs, samples, strict=True)])
                # inside: recomputed blocks must find their memory in scope
                with torch.autocast("cpu", enabled=False):
                    (losses.sum() / count).backward()
        return losses.detach()

    def _memory(self, samples: Sequence[Sample]) -> Memory:
        faces, references, texts = (
            torch.stack([getattr(one, name) for one in samples]) for name in ("face", "reference", "reference_text")
        )
        self._mask([], None)
        features = reference_features(self.transformer, references, texts)
        return Memory(identity=self.adapter.identity_memory(faces), reference=self.adapter.reference_memory(features))

    def _mask(self, samples: Sequence[Sample], padded: Callable[[Tensor], Tensor] | None) -> None:
        """Put the mask of real tokens in the scope of every self-attention; none where nothing is padded."""
        mask = None
        if padded is not None and len({one.latents.shape for one in samples}) > 1:
            real = torch.stack([padded(torch.ones_like(one.latents[:1]))[0, :, ::2, ::2] for one in samples])
            mask = real.flatten(1).bool()[:, None, None]
        for block in self.transformer.blocks:
            if isinstance(block.attn1.processor, Masked):
                block.attn1.processor.mask = mask

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", self.dtype) if self.dtype != torch.float32 else nullcontext()


def _loss(output: Tensor, sample: Sample) -> Tensor:
    """Flow matching loss over the part of `output` that is not padding."""
    _, frames, height, width = sample.latents.shape
    real = output[:, :frames, :height, :width]
    return (real - flow.velocity(sample.latents, sample.noise)).pow(2).mean()


def check(arms: dict[str, Arm], step: Step, dtype: str) -> dict[str, tuple[float, float]]:
    """How far each arm's losses and gradients are from the packed ones; ends the run if that is too far."""
    losses: dict[str, Tensor] = {}
    gradients: dict[str, list[Tensor]] = {}
    for name, arm in arms.items():
        losses[name] = arm.losses(step)
        gradients[name] = [parameter.grad for parameter in arm.adapter.parameters() if parameter.grad is not None]
        arm.optimizer.zero_grad(set_to_none=True)
    found = {}
    for name in arms:
        loss = float((losses[name] - losses["packed"]).abs().max())
        pairs = zip(gradients[name], gradients["packed"], strict=True)
        gradient = max(float((ours - packed).norm() / packed.norm()) for ours, packed in pairs)
        found[name] = (loss, gradient)
        for what, got, most in zip(("losses", "gradients"), found[name], TOLERANCE[dtype], strict=True):
            if not got <= most:
                raise SystemExit(f"{name}: {what} differ from the packed ones by {got:.2e}, more than {most:g}.")
    return found


@dataclass
class Row:
    """What was seen of one arm. seconds: of each timed step. peak, before: bytes, of a process of its own."""

    difference: tuple[float, float]
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    before: int = 0


def load_adapter(dtype: str) -> Adapter:
    """Nano's full adapter in fp32, to be trained, on its frozen base in `dtype`."""
    return load("nano", dtype=dtype, device="cpu").adapter.float().requires_grad_(True)


def race(steps: Sequence[Step], request: argparse.Namespace) -> dict[str, Row]:
    """Check, warm up, then time the arms in turns."""
    adapter = load_adapter(request.dtype)
    arms = {name: Arm(name, adapter, request) for name in ARMS}
    rows = {name: Row(difference) for name, difference in check(arms, steps[0], request.dtype).items()}
    if request.compile:
        for step in steps:
            for arm in arms.values():
                arm.step(step)
    clock = time.process_time if request.threads == 1 else time.perf_counter
    for turn in range(request.steps):
        for name, arm in arms.items():
            began = clock()
            arm.step(steps[turn % len(steps)])
            rows[name].seconds.append(clock() - began)
    return rows


def peak_memory() -> int:
    """The most memory this process has held, bytes."""
    # where there is one, the kernel's own account: in Linux, ru_maxrss of a child begins at what its parent had held
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def weigh(name: str, mix: str, arguments: Sequence[str]) -> tuple[int, int]:
    """Peak memory of an arm in a process of its own, and that before its first step."""
    command = [sys.executable, __file__, *arguments, "--alone", name, "--mix", mix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} alone failed:\n{done.stderr}")
    before, peak = json.loads(done.stdout.splitlines()[-1])
    return before, peak


def alone(name: str, steps: Sequence[Step], request: argparse.Namespace) -> None:
    """Take the steps with one arm and print its memory before and at most."""
    arm = Arm(name, load_adapter(request.dtype), request)
    before = peak_memory()
    for step in steps:
        arm.step(step)
    print(json.dumps([before, peak_memory()]))


def table(mix: str, steps: Sequence[Step], rows: dict[str, Row]) -> list[str]:
    """The lines of one mix."""

    def rates(row: Row) -> list[float]:
        return [steps[i % len(steps)].tokens / seconds for i, seconds in enumerate(row.seconds)]

    lines = [
        f"### {mix}",
        "",
        f"{DISTINCT} different steps of {min(len(step.samples) for step in steps)} to {max(len(step.samples) for step in steps)} "
        f"samples and {min(step.tokens for step in steps)} to {max(step.tokens for step in steps)} tokens, repeated",
        "",
        "| | tokens/s, median [least, most] | packed is faster by | peak memory, MB | of it by the steps | padding "
        "| losses and gradients differ by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        rate = rates(row)
        pairs = zip(row.seconds, rows["packed"].seconds, strict=True)
        factor = statistics.median(mine / packed for mine, packed in pairs)
        padding = statistics.mean(step.padding for step in steps) if name == "padded" else 0.0
        weight = f"{row.peak / 1e6:.0f} | {(row.peak - row.before) / 1e6:.0f}" if row.peak else "not measured | not measured"
        lines.append(
            f"| {name} | {statistics.median(rate):,.0f} [{min(rate):,.0f}, {max(rate):,.0f}] | {factor:.2f} | {weight} "
            f"| {padding:.0%} | {row.difference[0]:.1e}, {row.difference[1]:.1e} |"
        )
    return lines


def hardware() -> str:
    """The CPU by name, its cores, and how busy they are."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The request. Ends with a sentence for what cannot be run."""
    parser = argparse.ArgumentParser(description="Tokens/s and memory of a training step, packed and not.")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each arm")
    parser.add_argument("--budget", type=int, default=4096, help="most video tokens of a step")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16: base in bf16, adapter in fp32 under autocast")
    parser.add_argument("--timesteps", choices=("own", "shared"), default="own", help="one a sample, or one for the whole step")
    parser.add_argument("--recompute", action="store_true", help="keep only the blocks' inputs for the backward")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, in every arm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mix", choices=MIXES, help="only this one")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which starts a process for each arm")
    parser.add_argument("--output", type=Path, help="write the table there too")
    parser.add_argument("--alone", choices=ARMS, help=argparse.SUPPRESS)
    request = parser.parse_args(arguments)
    least = max(tokens_of((0, *shape)) for shapes in MIXES.values() for shape in shapes)
    if request.budget < least:
        parser.error(f"--budget must be at least {least}, the tokens of the largest sample, not {request.budget}.")
    if request.steps < 1:
        parser.error(f"--steps must be at least 1, not {request.steps}.")
    return request


def main(arguments: Sequence[str] | None = None) -> None:
    """Race and weigh the arms on each mix and print a table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    request = parse(arguments)
    torch.set_num_threads(request.threads)
    if request.compile:
        # arms share the code of the stock block, and past the default of 8 graphs the rest would silently not be compiled
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    mixes = [request.mix] if request.mix else list(MIXES)
    if request.alone:
        alone(request.alone, draw_steps(MIXES[mixes[0]], request.budget, request.timesteps == "own"), request)
        return
    lines = [
        f"`{shlex.join(['python', 'benchmarks/training.py', *arguments])}`",
        "",
        f"{time.strftime('%Y-%m-%d')}; {hardware()}, {request.threads} thread(s); torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, lynx-video {__version__}; nano full, {request.dtype}; "
        f"seconds of the {'processor' if request.threads == 1 else 'clock'}",
    ]
    for mix in mixes:
        steps = draw_steps(MIXES[mix], request.budget, request.timesteps == "own")
        rows = race(steps, request)
        if not request.no_memory:
            for name, row in rows.items():
                row.before, row.peak = weigh(name, mix, arguments)
        lines += ["", *table(mix, steps, rows)]
    print("\n".join(lines))
    if request.output:
        with draft(request.output) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
