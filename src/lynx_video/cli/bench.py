"""`lynx-video bench`: several ways to make the same clip, timed in turn."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lynx_video.cli.console import Console, hush_libraries
from lynx_video.cli.options import named, options
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.presets import SPEED
from lynx_video.studio.setup import ModelFlags

if TYPE_CHECKING:
    from lynx_video.bench.made import Source
    from lynx_video.bench.side import Side

WAYS = ("plain", "exact", "wan")
LOADED = ("model", "base_model_path", "adapter_path")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchFlags:
    """What is compared, and how often."""

    size: Literal["nano", "mid", "14b"] | None = None
    "a model with random weights instead: nano's shapes, mid (seconds on a CPU), or those of Wan2.1-T2V-14B (needs a CUDA GPU)"
    arm: Literal["full", "lite"] = "full"
    "with --size: the adapter's arm, and its size of clip"
    sides: str = "plain,exact,wan"
    "plain: without the exact levers; exact: as `generate` does it; wan: diffusers' WanPipeline without identity"
    presets: str | None = None
    "further sides, separated by commas: balanced, fast, draft"
    backends: str | None = None
    "further sides, each with this attention kernel: native, cudnn, flash, flash3, ..."
    compile: bool = False
    "a further side with compiled blocks, and one for each --quantize"
    quantize: str | None = None
    "further sides, quantized: fp8, int8, fp8-storage, nf4"
    budgets: str | None = None
    "further sides, each within so many GB of device memory: 24, 16, 12, 8"
    rounds: int = 3
    "timed turns of each side"
    steps: int | None = None
    "denoising steps of a turn; the rest of the clip is reckoned. By default every step"
    video: bool = field(default=True, metadata={"switch": True})
    "time whole clips, or forwards alone"
    num_frames: int | None = None
    "length in frames, the model's own by default"
    height: int | None = None
    "height in pixels"
    width: int | None = None
    "width in pixels"
    num_inference_steps: int | None = None
    "denoising steps of the clip"
    calibration: Path | None = None
    "calibration of the step cache that presets go by, in place of the model's own"
    profile: bool = False
    "look into one block of each side, too: where do the microseconds go"
    weigh: bool = False
    "start each side once more, in a process of its own, for its peak of host memory"
    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "write the tables to this .md file, too"
    overwrite: bool = False
    "replace a file that is there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the tables"

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 1000:
            raise BadRequest(f"--rounds must be a whole number from 1 to 1000, got {self.rounds}.")
        if self.steps is not None and self.steps < 1:
            raise BadRequest(f"--steps must be 1 or more, got {self.steps}.")


@click.command()
@options(ModelFlags, BenchFlags)
def bench(model: ModelFlags, flags: BenchFlags) -> None:
    """Time several ways to make the same clip, in turn: same weights, same inputs.

    \b
    lynx-video bench                                    nano: plain, exact, and WanPipeline without identity
    lynx-video bench --size mid --compile --quantize int8
    lynx-video bench --size 14b --no-video --backends native,cudnn,flash3 --compile --profile

    A checkout of the reference implementation is raced by benchmarks/reference.py --reference PATH, a whole GPU by benchmarks/gpu.sh.
    """
    from lynx_video.media.video import check_output

    console = Console(quiet=flags.quiet, as_json=flags.json)
    if flags.output is not None:
        check_output(flags.output, flags.overwrite, extensions=("md",))
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # before torch is there: its profiler says when it starts and stops
    hush_libraries()
    from lynx_video.bench.race import race
    from lynx_video.bench.record import Request
    from lynx_video.bench.report import facts, report

    request = Request(
        source=source_of(model, flags),
        sides=tuple(sides_of(model, flags)),
        rounds=flags.rounds,
        steps=flags.steps,
        video=flags.video,
        profile=flags.profile,
        weigh=flags.weigh,
        calibration=flags.calibration,
    )
    result = race(request, console.note)
    command = shlex.join(["lynx-video", *sys.argv[1:]])
    text = report(result, command)
    if flags.output is not None:
        from lynx_video.draft import draft

        with draft(flags.output) as partial:
            partial.write_text(text, encoding="utf-8")
    console.result(text.rstrip(), {"output": str(flags.output) if flags.output else None, **facts(result, command)})


def source_of(model: ModelFlags, flags: BenchFlags) -> Source:
    """The model under test. Raises BadRequest for one that is both made and loaded."""
    from lynx_video.bench.made import Source

    if flags.size is None:
        if named("arm"):
            raise BadRequest("--arm belongs to --size; a model has its own: say --model nano-lite or lynx-lite.")
        return Source(
            model=model.model,
            base=model.base_model_path,
            adapter=model.adapter_path,
            models=str(model.models),
            dtype=model.torch_dtype,
            device=model.device,
        )
    if given := [f"--{name.replace('_', '-')}" for name in LOADED if named(name)]:
        raise BadRequest(f"--size makes a model with random weights: leave out {' and '.join(given)}.")
    return Source(size=flags.size, arm=flags.arm, dtype=model.torch_dtype, device=model.device)


def sides_of(model: ModelFlags, flags: BenchFlags) -> Iterator[Side]:
    """The sides that the flags name, `exact` always among them. Raises BadRequest for a name that nobody knows."""
    from lynx_video.bench.side import EXACT, Side
    from lynx_video.runtime.attention import BACKENDS
    from lynx_video.runtime.quantize import KINDS

    base = GenerateConfig(
        num_frames=flags.num_frames,
        height=flags.height,
        width=flags.width,
        num_inference_steps=flags.num_inference_steps,
    )
    wanted = _listed("sides", flags.sides, WAYS)
    if "plain" in wanted:
        yield Side(name="plain", way="plain", config=base)
    yield Side(name=EXACT, config=base)
    if "wan" in wanted:
        yield Side(name="wan", way="wan", config=base)
    for name in _listed("presets", flags.presets, tuple(SPEED)):
        if name != EXACT:
            yield _preset(name, base, model, made=flags.size is not None)
    for name in _listed("backends", flags.backends, tuple(BACKENDS)):
        yield Side(name=name, config=base, runtime=RuntimeConfig(attention_backend=name, compile=name == "flex"))
    if flags.compile:
        yield Side(name="compiled", config=base, runtime=RuntimeConfig(compile=True))
    for kind in _listed("quantize", flags.quantize, KINDS):
        held: Any = RuntimeConfig(quantize=kind)  # type: ignore[arg-type]
        yield Side(name=kind, config=base, runtime=held)
        if flags.compile:
            yield Side(name=f"{kind} compiled", config=base, runtime=replace(held, compile=True))
    for word in _listed("budgets", flags.budgets, None):
        yield Side(name=f"{word} GB", config=base, runtime=RuntimeConfig(vram_budget=_budget(word)))


def _preset(name: str, base: GenerateConfig, model: ModelFlags, *, made: bool) -> Side:
    """A preset of `generate`; one that needs a LoRA which is not there says so in its row."""
    from lynx_video.bench.side import Side
    from lynx_video.pipeline.models import MODELS

    preset = SPEED[name]()
    config, settings = replace(base, **preset.generation), dict(preset.runtime)
    if not preset.few_step:
        return Side(name=name, config=config, runtime=RuntimeConfig(**settings))
    file = None if made or model.base_model_path is not None else MODELS[model.model].few_step
    if file is not None and not file.is_absolute():
        file = model.models / file
    if file is None or not file.is_file():
        return Side(name=name, config=config, unable="it needs a few-step LoRA of this base")
    return Side(name=name, config=config, runtime=RuntimeConfig(**settings, lora_path=(str(file),)))


def _listed(flag: str, words: str | None, known: tuple[str, ...] | None) -> list[str]:
    """The words between commas, each once. Raises BadRequest for one that is not known."""
    found = list(dict.fromkeys(word for part in (words or "").split(",") if (word := part.strip())))
    unknown = [word for word in found if known is not None and word not in known]
    if unknown:
        raise BadRequest(f"--{flag}: unknown {unknown[0]!r}; choose from {', '.join(known or ())}.")
    return found


def _budget(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise BadRequest(f"--budgets: {word!r} is no number of GB, such as 24.") from None
