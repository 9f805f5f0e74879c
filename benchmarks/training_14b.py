"""How fast adapters train over the 14B transformer: seconds a step, tokens/s, MFU and peak memory on one CUDA GPU.

    python benchmarks/training_14b.py [--steps 3] [--optimizer none|adamw] [--timesteps shared|own] [--compile] [--output FILE.md]
    python benchmarks/training_14b.py --tiny          the same code at toy size on the CPU, in seconds

A Wan2.1-T2V-14B with random weights, made on the device in bfloat16 (no file is read), under full adapters of the official shapes. A
step is forward and backward over one pack of up to 33,600 video tokens, with recomputed blocks: one clip of 81 frames at 480 x 832,
as many stills of that size, or a mixture of shapes; each sample has 512 text tokens, a face and a reference crop of 256 px. The
variable-length kernel is compared with a loop over samples in the same run.

Without an optimizer adapters and gradients are bfloat16: about 46 GB before activations. With AdamW they are float32, as trained: about
98 GB, which several GPUs would share.

MFU is the work that the step calls for, without what is recomputed, over what the same time would do at the rate of one large
bfloat16 matrix product, measured first.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor

from lynx_video import __version__, flow
from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.projection import ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.draft import draft
from lynx_video.training.model import PackedModel
from lynx_video.training.objective import step as packed_step
from lynx_video.training.packing import Segments
from lynx_video.training.sample import Sample
from lynx_video.types import FACE_WIDTH

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """The model and its packs. packs: latent shapes T, h, w. reference: height and width of reference latents."""

    name: str
    blocks: int
    heads: int
    head_width: int
    feed_forward: int
    text_width: int
    text_tokens: int
    channels: int
    reference: int
    registers: int
    resampler: ResamplerConfig
    packs: dict[str, list[Shape]]

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_width


FULL_SIZE = Size(
    name="Wan2.1-T2V-14B",
    blocks=40,
    heads=40,
    head_width=128,
    feed_forward=13824,
    text_width=4096,
    text_tokens=512,
    channels=16,
    reference=32,
    registers=16,
    resampler=ResamplerConfig(),
    packs={
        "clip": [(21, 60, 104)],
        "stills": [(1, 60, 104)] * 21,
        "mixed": [(1, 60, 104), (1, 60, 104), (1, 104, 60), (1, 80, 80), (5, 60, 104), (5, 104, 60), (7, 60, 104)],
    },
)
TINY = Size(
    name="toy",
    blocks=2,
    heads=4,
    head_width=32,
    feed_forward=384,
    text_width=32,
    text_tokens=24,
    channels=4,
    reference=8,
    registers=4,
    resampler=ResamplerConfig(depth=1, width=32, inner=32, queries=4, output=128),
    packs={"clip": [(5, 16, 24)], "stills": [(1, 16, 24)] * 5, "mixed": [(1, 16, 24), (1, 24, 16), (3, 16, 16)]},
)


def build(size: Size, device: torch.device, trained: torch.dtype) -> Adapter:
    """Adapters in `trained` precision on a frozen bfloat16 base, both with random weights, made where they stay."""
    from diffusers import WanTransformer3DModel

    blocks = tuple(range(size.blocks))
    config = AdapterConfig(
        width=size.width,
        heads=size.heads,
        resampler=size.resampler,
        identity=ProjectionConfig(tokens=size.resampler.output, width=size.width, registers=size.registers),
        identity_blocks=blocks,
        reference_blocks=blocks,
    )
    with _made(device, torch.bfloat16):
        transformer = WanTransformer3DModel(
            num_attention_heads=size.heads,
            attention_head_dim=size.head_width,
            in_channels=size.channels,
            out_channels=size.channels,
            text_dim=size.text_width,
            ffn_dim=size.feed_forward,
            num_layers=size.blocks,
        ).requires_grad_(False)
    for name, parameter in transformer.named_parameters():
        if any(kept in name for kept in transformer._keep_in_fp32_modules):  # what from_pretrained keeps
            parameter.data = parameter.data.float()
    with _made(device, trained):
        adapter = Adapter(config)
    adapter.attach(transformer)
    return adapter


@contextmanager
def _made(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Within it modules are made on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def draw(size: Size, shapes: Sequence[Shape]) -> list[Sample]:
    """Samples of these shapes with every condition; their values are noise."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return [
        Sample(
            latents=normal(size.channels, *shape),
            noise=normal(size.channels, *shape),
            text=normal(size.text_tokens, size.text_width),
            face=F.normalize(normal(FACE_WIDTH), dim=0),
            reference=normal(size.channels, 1, size.reference, size.reference),
            reference_text=normal(size.text_tokens, size.text_width),
        )
        for shape in shapes
    ]


def tokens_of(shape: Shape) -> int:
    """Video tokens of a latent: patches are 1 x 2 x 2."""
    frames, height, width = shape
    return frames * (height // 2) * (width // 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Floating point operations of a step. recomputed: what a backward with recomputed blocks does again."""

    needed: float
    recomputed: float

    @staticmethod
    def of(size: Size, shapes: Sequence[Shape]) -> Work:
        """Of forward and backward over a pack, counting matrix products; resampler and time embedding, below 0.1%, are left out.

        A product with frozen weights has one more in the backward (for its input), with trained ones two; the text's has none.
        """
        wide, text, count = size.width, size.text_tokens, len(shapes)
        lengths = [tokens_of(shape) for shape in shapes]
        video, reference = sum(lengths), (size.reference // 2) ** 2
        identity = size.resampler.queries + size.registers
        square = 2 * wide * wide

        def block(video: int, lengths: Sequence[int]) -> tuple[float, float, float, float]:
            """On video tokens, on text, attention among video tokens, attention to text."""
            on_video = video * (6 * square + 4 * wide * size.feed_forward)
            return (
                on_video,
                2 * count * text * square,
                sum(4 * length * length * wide for length in lengths),
                sum(4 * length * text * wide for length in lengths),
            )

        on_video, on_text, among, to_text = block(video, lengths)
        to_adapters = 4 * video * (identity + reference) * wide
        from_identity, from_reference = (2 * count * tokens * square for tokens in (identity, reference))
        forward = size.blocks * (on_video + on_text + among + to_text + to_adapters + from_identity + from_reference)
        backward = size.blocks * (on_video + 2 * among + to_text + 2 * to_adapters + 2 * from_identity + from_reference)
        backward -= 3 * video * square + 2 * among  # nothing trained lies before the first block's self-attention
        features = size.blocks * sum(block(count * reference, [reference] * count))
        embedded = 2 * (2 * count * text * wide * (size.text_width + wide))  # texts of samples and of references
        # latents become tokens and back, which has a backward; references become tokens
        ends = (3 * video + count * reference) * 2 * wide * 4 * size.channels
        return Work(needed=forward + backward + features + embedded + ends, recomputed=forward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where it runs, and how its time and memory are told."""

    device: torch.device

    @property
    def name(self) -> str:
        """The GPU, or what the processor calls itself."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else platform.processor() or platform.machine()

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.type == "cuda"

    def seconds(self, action: Callable[[], None]) -> float:
        """How long `action` takes, to the end of what it started."""
        self._wait()
        began = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - began

    def forget_peak(self) -> None:
        """Begin to watch the peak anew."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> str:
        """The most memory that tensors have held, in GB."""
        return f"{torch.cuda.max_memory_allocated(self.device) / 1e9:.1f}" if self.on_gpu else "not measured"

    def rate(self, size: Size, tokens: int) -> float:
        """Operations a second of a bfloat16 product as large as that of the feed-forward."""
        left = torch.randn(tokens, size.width, device=self.device, dtype=torch.bfloat16)
        right = torch.randn(size.width, size.feed_forward, device=self.device, dtype=torch.bfloat16)
        times = [self.seconds(lambda: torch.mm(left, right)) for _ in range(20)]
        return 2 * tokens * size.width * size.feed_forward / statistics.median(times[5:])

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def in_turn() -> AbstractContextManager[Any]:
    """Within it packs are made without what the variable-length kernel takes, so that attention goes through samples in turn."""

    def of(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Segments:  # noqa: ARG001
        return Segments(queries=queries, keys=keys)

    return patch.object(Segments, "of", staticmethod(of))


def measure(
    machine: Machine,
    model: PackedModel,
    samples: list[Sample],
    optimizer: torch.optim.Optimizer | None,
    request: argparse.Namespace,
) -> list[float]:
    """Seconds of each step after the first, which warms up."""
    count = len(samples) if request.timesteps == "own" else 1
    timesteps = flow.TIMESTEPS * torch.rand(count, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=optimizer is not None):
            loss = packed_step(model, samples, timesteps, machine.device, torch.bfloat16).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.adapter.zero_grad(set_to_none=True)

    return [machine.seconds(step) for _ in range(request.steps + 1)][1:]


def table(size: Size, machine: Machine, request: argparse.Namespace) -> list[str]:
    """Build, measure every pack both ways, and tell."""
    adapter = build(size, machine.device, torch.float32 if request.optimizer == "adamw" else torch.bfloat16)
    model = PackedModel(adapter, recompute=True)
    if request.compile:
        # a graph for each pack and way; past the default of 8 the rest would silently not be compiled
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
        for block in model.transformer.blocks:
            block.compile(dynamic=False)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-5) if request.optimizer == "adamw" else None
    rate = machine.rate(size, max(sum(map(tokens_of, shapes)) for shapes in size.packs.values()))
    ways = {"varlen_attn": nullcontext, "in turn": in_turn} if machine.on_gpu else {"in turn": in_turn}
    weights, trained = (sum(one.numel() for one in module.parameters()) / 1e9 for module in (model.transformer, adapter))
    lines = [
        f"{size.name}, {weights:.3g} billion frozen weights, {trained:.3g} trained; one matrix product {rate / 1e12:.4g} TFLOP/s; "
        f"{request.steps} steps of each row{'' if machine.on_gpu else '; the variable-length kernel needs a GPU'}",
        "",
        "| pack | attention | seconds a step, median [least, most] | tokens/s | MFU | with what is recomputed | peak memory, GB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, shapes in size.packs.items():
        samples, work, tokens = draw(size, shapes), Work.of(size, shapes), sum(map(tokens_of, shapes))
        for way, scope in ways.items():
            machine.forget_peak()
            start = f"| {name}: {len(shapes)} sample(s), {tokens:,} tokens | {way} |"
            try:
                with scope():
                    seconds = measure(machine, model, samples, optimizer, request)
            except torch.OutOfMemoryError:
                adapter.zero_grad(set_to_none=True)
                lines.append(f"{start} out of memory | | | | {machine.peak()} |")
                continue
            middle = statistics.median(seconds)
            used, all_used = (done / middle / rate for done in (work.needed, work.needed + work.recomputed))
            lines.append(
                f"{start} {middle:.3g} [{min(seconds):.3g}, {max(seconds):.3g}] | {tokens / middle:,.0f} | {used:.0%} "
                f"| {all_used:.0%} | {machine.peak()} |"
            )
    return lines


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The request. Ends with a sentence for what cannot be run."""
    parser = argparse.ArgumentParser(description="Measure adapter training over a 14B transformer on one CUDA GPU.")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each row, after one that warms up")
    parser.add_argument(
        "--optimizer", choices=("none", "adamw"), default="none", help="adamw: float32 adapters and their update"
    )
    parser.add_argument("--timesteps", choices=("shared", "own"), default="shared", help="one for the pack, or one a sample")
    parser.add_argument("--compile", action="store_true", help="compile the blocks")
    parser.add_argument("--tiny", action="store_true", help="toy size, on the CPU")
    parser.add_argument("--output", type=Path, help="write the table there too")
    request = parser.parse_args(arguments)
    if request.steps < 1:
        parser.error(f"--steps must be at least 1, not {request.steps}.")
    if not request.tiny and not torch.cuda.is_available():
        raise SystemExit("the 14B transformer needs a CUDA GPU and torch finds none; --tiny runs the same code on the CPU.")
    return request


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    request = parse(arguments)
    machine = Machine(device=torch.device("cpu" if request.tiny else "cuda"))
    lines = [
        f"`{shlex.join(['python', 'benchmarks/training_14b.py', *arguments])}`",
        "",
        f"{time.strftime('%Y-%m-%d')}; {machine.name}; torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"lynx-video {__version__}",
        "",
        *table(TINY if request.tiny else FULL_SIZE, machine, request),
    ]
    print("\n".join(lines))
    if request.output:
        with draft(request.output) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
