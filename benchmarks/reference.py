"""Our full and lite against the reference implementation: the same weights and inputs, in turn, from a face vector to frames.

    python benchmarks/reference.py --reference PATH [--size mid|14b|toy] [--arm full|lite] [--steps 4] [--rounds 3] [--output FILE.md]

PATH is a checkout of bytedance/lynx; nothing of it is in this repository, and no file of it is changed. Its own transformers and
pipeline classes run over the very tensors of our model, which has random weights and is made where it runs: `mid`, width 384 with 8
blocks and a VAE as that of Wan 2.1 but narrow, takes minutes on a CPU; `14b`, the shapes of Wan2.1-T2V-14B, needs a large CUDA GPU.

Both sides run under the diffusers installed here; `reference_side.py` says what is lent to the reference for that, in memory. Attention
is torch's `scaled_dot_product_attention` on both, in place of the flash-attn that the reference asks for.

First both make the same clip: the final latents and the frames are compared, and the run ends if they differ by more than rounding. In
that run the operations are counted, and set beside the arithmetic of the same clip with every key and value computed once. Then they
take turns, A B A B. Both begin with the face vector and the crop and end with uint8 frames: finding the face, safety checks and
writing the file, which differ too, are left out. With one thread on a CPU, seconds are the processor's, which other work on the
machine lengthens less. A ratio is the median of those of neighbours.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from reference_side import ARMS, Made, Request, Theirs, load_reference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lynx_video import GenerateConfig, __version__, generate
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.bench.made import Source, draw_scene, make
from lynx_video.bench.size import SIZES, Size
from lynx_video.config import FULL, LITE, Defaults, RuntimeConfig
from lynx_video.draft import draft
from lynx_video.pipeline import workload
from lynx_video.pipeline.components import Blueprint, Components
from lynx_video.runtime.device import device_of

PROMPT, NEGATIVE = "a person smiles at the camera", "glasses"
LATENTS = {"fp32": 5e-4, "bf16": 5e-2}
"largest difference of the final latents, relative to their largest value"
FRAMES = {"fp32": 0.01, "bf16": 4.0}
"average difference of the frames, grey levels; bfloat16 is coarse, and a VAE of random weights does not smooth it"
WHOLE, DECODE, ROUNDING = 1.0, 0.55, 1 + 1e-6
"what is asked: of the reference's time and of the arithmetic; of the reference's time to decode, in lite"


def _transformer(width: int, heads: int, blocks: int) -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=16,
        out_channels=16,
        text_dim=256,
        freq_dim=256,
        ffn_dim=width * 27 // 10,
        num_layers=blocks,
        cross_attn_norm=True,
    )


def _clips(full_frames: int, lite_frames: int, height: int, width: int, reference: int) -> dict[str, Defaults]:
    shape: dict[str, Any] = {"height": height, "width": width, "reference_size": reference, "negative_prompt": NEGATIVE}
    return {
        "full": Defaults(num_frames=full_frames, fps=FULL.fps, guidance_scale_i=FULL.guidance_scale_i, **shape),
        "lite": Defaults(num_frames=lite_frames, fps=LITE.fps, guidance_scale_i=None, **shape),
    }


MADE = {
    "mid": Size(
        name="mid",
        transformer=lambda: _transformer(384, 3, 8),
        vae=lambda: diffusers.AutoencoderKLWan(base_dim=16, num_res_blocks=2),
        **_clips(25, 33, 256, 320, 256),
        resampler=ResamplerConfig(depth=4, width=512, queries=16, output=384, inner=512),
        token_width=(384, 256),
        registers=16,
        encoder_layers=4,
    ),
    "toy": Size(
        name="toy",
        transformer=lambda: _transformer(96, 2, 4),
        vae=lambda: diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1),
        **_clips(5, 9, 64, 96, 64),
        resampler=ResamplerConfig(depth=1, width=64, queries=8, output=96, inner=64),
        token_width=(96, 64),
        registers=4,
        encoder_layers=2,
    ),
    "14b": SIZES["14b"],
}


class Ours:
    """`generate`, over the components it is given."""

    def __init__(self, components: Components, request: Request) -> None:
        self.components, self.request = components, request
        self.config = GenerateConfig(seed=request.seed, num_inference_steps=request.steps)
        self.transformer, self.resampler = components.transformer, components.adapter.resampler

    def make(self, on_step: Callable[[], None]) -> Made:
        clip = generate(self.components, self.request.identity, self.request.prompt, self.config, on_step=lambda _: on_step())
        return Made(latents=clip.latents, frames=torch.from_numpy(clip.frames))


@dataclass
class Phases:
    """How much of something, seconds or operations, went where."""

    text: float = 0.0
    "the text encoder"
    portrait: float = 0.0
    "the VAE's encoder over the reference crop, and the resampler: the same on both sides, and not in the arithmetic"
    memory: float = 0.0
    "what else precedes the first pass: reference features, and the keys and values that are computed once"
    denoise: float = 0.0
    decode: float = 0.0
    "from the last step to frames"
    passes: int = 0
    "of the denoising, a batch counted by its entries"

    @property
    def whole(self) -> float:
        """End to end."""
        return self.text + self.portrait + self.memory + self.denoise + self.decode


def watch(side: Ours | Theirs, meter: Callable[[], float]) -> tuple[Made, Phases]:
    """Let a side make its clip, and read `meter` between the phases."""
    phases, components = Phases(), side.components
    first: list[float] = []
    last = [0.0]

    def seen(_: Any, given: Sequence[Any], named: dict[str, Any]) -> None:
        latents = given[0] if given else named["hidden_states"]
        if isinstance(latents, Tensor) and latents.shape[2] > 1:  # a video, not the still of the reference
            if not first:
                first.append(meter())
            phases.passes += len(latents)

    def told() -> None:
        last[0] = meter()

    vae = components.vae
    modules = {"text": [components.text_encoder], "portrait": [vae.encoder, vae.quant_conv, side.resampler]}
    with ExitStack() as stack:
        for name, parts in modules.items():
            for part in parts:
                stack.enter_context(_metered(part, phases, name, meter))
        hook = side.transformer.register_forward_pre_hook(seen, with_kwargs=True)
        stack.callback(hook.remove)
        began = meter()
        made = side.make(told)
        ended = meter()
    phases.memory = first[0] - began - phases.text - phases.portrait
    phases.denoise, phases.decode = last[0] - first[0], ended - last[0]
    return made, phases


@contextmanager
def _metered(module: torch.nn.Module, phases: Phases, name: str, meter: Callable[[], float]) -> Iterator[None]:
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = meter()

    def after(*_: Any) -> None:
        setattr(phases, name, getattr(phases, name) + meter() - began[0])

    hooks = module.register_forward_pre_hook(before), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def count(side: Ours | Theirs) -> tuple[Made, Phases]:
    """The clip, and the operations that torch counts."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu: attention}) as counter:
        return watch(side, lambda: float(counter.get_total_flops()))


def arithmetic(blueprint: Blueprint, steps: int) -> Phases:
    """What the clip asks for when every key and value is computed once, from configurations alone."""
    model = workload.describe(blueprint)
    work = workload.work_of(blueprint, GenerateConfig(num_inference_steps=steps), RuntimeConfig(), model, None)
    due = workload.arithmetic(model, work)
    text, decode = due.pop("text encoder"), due.pop("VAE decoder")
    memory = sum(due.pop(name) for name in ("text K/V", "identity and reference K/V"))
    return Phases(text=text, memory=memory, denoise=sum(due.values()), decode=decode, passes=work.forwards)


class Distance(NamedTuple):
    """How far two clips are apart. latents: relative to the largest value. mean, most: of the frames, grey levels of 255."""

    latents: float
    mean: float
    most: int


def compare(ours: Made, theirs: Made, dtype: str) -> Distance:
    """Differences of the final latents and of the frames; ends the run if they are not those of rounding."""
    grey = (ours.frames.int() - theirs.frames.int()).abs()
    latents = float((ours.latents - theirs.latents).abs().max() / theirs.latents.abs().max())
    found = Distance(latents, float(grey.float().mean()), int(grey.max()))
    for what, got, limit in (("final latents", found.latents, LATENTS[dtype]), ("frames", found.mean, FRAMES[dtype])):
        if not got <= limit:
            raise SystemExit(f"the {what} differ from the reference's by {got:g}, more than {limit:g}: nothing is timed.")
    return found


def race(request: argparse.Namespace, code: SimpleNamespace, arm: str) -> list[str]:
    """Make the model, check, count, take turns: the lines of one arm."""
    with tempfile.TemporaryDirectory() as folder:
        source = Source(arm=arm, dtype=request.dtype, device=request.device)
        components, blueprint = make(source, Path(folder), size=MADE[request.size])
        needed = arithmetic(blueprint, request.steps)
    asked = Request(identity=draw_scene(components).identity, prompt=PROMPT, seed=42, steps=request.steps)
    sides = Ours(components, asked), Theirs(code, components, asked)
    (mine, my_work), (other, their_work) = map(count, sides)
    apart = compare(mine, other, request.dtype)
    meter = clock(components.device, request.threads)
    if components.device.type == "cuda":  # what the count ran through was no warm-up for a GPU
        for side in sides:
            watch(side, meter)
    pairs = [(watch(sides[0], meter)[1], watch(sides[1], meter)[1]) for _ in range(request.rounds)]
    return [*title(components, request.steps, needed, apart), *tables(arm, pairs, (my_work, their_work, needed))]


def clock(device: torch.device, threads: int) -> Callable[[], float]:
    """Seconds: of the processor for one thread on a CPU, of the clock otherwise, when the device is done."""
    if device.type == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def title(components: Components, steps: int, needed: Phases, apart: Distance) -> list[str]:
    """What was made, and how close the sides are."""
    clip = components.defaults
    frames = (clip.num_frames - 1) // components.temporal_factor + 1
    tokens = frames * (clip.height // components.grid) * (clip.width // components.grid)
    return [
        f"### {components.arm}: {clip.num_frames} frames of {clip.height} x {clip.width}, {tokens:,} video tokens, {steps} steps "
        f"of {needed.passes // steps} passes",
        "",
        f"Final latents differ by {apart.latents:.1e} of the largest value, frames by {apart.mean:.2g} grey levels on average and "
        f"{apart.most} at most.",
        "",
    ]


SECONDS: dict[str, Callable[[Phases], float]] = {
    "end to end": lambda one: one.whole,
    "text encoder": lambda one: one.text,
    "identity and reference, keys and values once": lambda one: one.portrait + one.memory,
    "denoise": lambda one: one.denoise,
    "a pass": lambda one: one.denoise / one.passes,
    "decode": lambda one: one.decode,
}
OPERATIONS: dict[str, Callable[[Phases], float]] = {
    "video, but for portrait": lambda one: one.whole - one.portrait,
    "text encoder": lambda one: one.text,
    "portrait: VAE's encoder, resampler": lambda one: one.portrait,
    "reference features, keys and values once": lambda one: one.memory,
    "denoise": lambda one: one.denoise,
    "a pass": lambda one: one.denoise / one.passes,
    "decode": lambda one: one.decode,
}


def tables(arm: str, pairs: Sequence[tuple[Phases, Phases]], work: tuple[Phases, Phases, Phases]) -> list[str]:
    """Seconds, operations, and what is asked. pairs: of each round. work: operations of ours, of theirs, by the arithmetic."""
    lines = [
        "| seconds, median [least, most] | ours | reference | ours / reference, median [least, most] |",
        "| --- | --- | --- | --- |",
    ]
    ratios = {}
    for name, of in SECONDS.items():
        mine, theirs = ([of(pair[side]) for pair in pairs] for side in (0, 1))
        ratio = [a / b for a, b in zip(mine, theirs, strict=True)]
        ratios[name] = statistics.median(ratio)
        lines.append(f"| {name} | {_spread(mine)} | {_spread(theirs)} | {_spread(ratio)} |")
    lines += [
        "",
        "| GFLOP | ours | reference | arithmetic | ours / arithmetic | ours / reference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shares = {}
    for name, of in OPERATIONS.items():
        mine, theirs, due = (of(one) for one in work)
        shares[name] = mine / due if due else math.nan
        told = [f"{one:.4f}" if math.isfinite(one) else "" for one in (shares[name], mine / theirs if theirs else math.nan)]
        lines.append(f"| {name} | {' | '.join([*(f'{one / 1e9:,.2f}' for one in (mine, theirs, due)), *told])} |")
    again = [(one.denoise - work[2].denoise) / 1e9 for one in work[:2]]
    asked = [
        ("end to end", ratios["end to end"], WHOLE),
        ("operations over the arithmetic", shares[next(iter(OPERATIONS))], WHOLE),
    ]
    asked += [("decode", ratios["decode"], DECODE)] if arm == "lite" else []
    return [
        *lines,
        "",
        f"Keys and values of text, person and reference computed again while denoising: {again[0]:,.2f} GFLOP by ours, "
        f"{again[1]:,.2f} by the reference, {again[1] * 1e11 / work[2].denoise:.1f}% of what denoising needs.",
        "",
        *(
            f"- {name}: {got:.4g}, at most {most:g} is asked: {'met' if got <= most * ROUNDING else 'missed'}"
            for name, got, most in asked
        ),
    ]


def _verdict(got: float, most: float) -> str:
    return "met" if got <= most * ROUNDING else "missed"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The request. Ends with a sentence for what cannot be run."""
    parser = argparse.ArgumentParser(description="Our full and lite against a checkout of the reference implementation.")
    parser.add_argument("--reference", type=Path, required=True, help="folder of a checkout of bytedance/lynx")
    parser.add_argument("--size", choices=MADE, default="mid")
    parser.add_argument("--arm", choices=ARMS, help="only this one")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of a clip")
    parser.add_argument("--rounds", type=int, default=3, help="clips that each side makes")
    parser.add_argument("--dtype", choices=tuple(LATENTS), help="bf16 on a GPU, fp32 on a CPU by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the tables there too")
    request = parser.parse_args(arguments)
    request.dtype = request.dtype or ("fp32" if request.device == "cpu" else "bf16")
    for name in ("steps", "rounds", "threads"):
        if getattr(request, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(request, name)}.")
    if not (request.reference / "modules" / "full" / "lynx_pipeline.py").is_file():
        parser.error(
            f"--reference {request.reference}: no checkout of bytedance/lynx, it has no modules/full/lynx_pipeline.py."
        )
    if request.size == "14b" and not request.device.startswith("cuda"):
        parser.error("--size 14b needs a CUDA GPU; --size mid runs on a CPU.")
    return request


def main(arguments: Sequence[str] | None = None) -> None:
    """Race the arms and print their tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    request = parse(arguments)
    torch.set_num_threads(request.threads)
    code = load_reference(request.reference)
    seconds = f"seconds of the {'processor' if request.device == 'cpu' and request.threads == 1 else 'clock'}"
    shown = [one.replace(str(request.reference), "PATH") for one in arguments]
    used = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    lines = [
        f"`{shlex.join(['python', 'benchmarks/reference.py', *shown])}`",
        "",
        f"{time.strftime('%Y-%m-%d')}; {device_of(request.device).name}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}, {request.threads} thread(s); {used}, lynx-video {__version__}; size {request.size}, "
        f"{request.dtype}; {request.rounds} clip(s) of each side in turn; {seconds}",
    ]
    for arm in [request.arm] if request.arm else ARMS:
        lines += ["", *race(request, code, arm)]
    print("\n".join(lines))
    if request.output:
        with draft(request.output) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
