"""What a generation will take on this machine before a weight is read: its layout in memory, its arithmetic and its time.

Sizes come from configurations and from the headers of files; what times rest on is measured on the device in under a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline import released
from lynx_video.pipeline.workload import REACHED, Work, arithmetic, describe, pace_of, sizes_of, work_of
from lynx_video.runtime.device import Device, Rates, device_of, measure
from lynx_video.runtime.memory import GIB, HARM, Layout, Pace, Sizes, choose_layout, gib, least_budget

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint

IDLE: tuple[Literal["keep"], Literal["free"]] = ("keep", "free")
SHOWN = {"texts": "texts", "memories": "the person's memories", "denoising": "denoising", "decoding": "decoding"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a generation will take. text: for a terminal; facts: the same and more as plain JSON values."""

    layout: Layout
    sizes: Sizes
    summary: str
    "the layout and its peak, in one line"
    text: str
    facts: Mapping[str, Any]


def forecast(
    blueprint: Blueprint,
    config: GenerateConfig,
    runtime: RuntimeConfig,
    *,
    computed: Sequence[bool] | None = None,
    device: Device | None = None,
    rates: Rates | None = None,
) -> Forecast:
    """The forecast of one clip.

    computed: for each step whether the blocks are computed; None: as the step cache's calibration says, all where there is none.
    device, rates: None: this machine's, looked at and measured now. Raises BadRequest for sizes off the grid and for a budget that
    no layout meets.
    """
    model = describe(blueprint)
    work = work_of(blueprint, config, runtime, model, computed)
    device = device or device_of(blueprint.device)
    rates = rates or measure(blueprint.device, blueprint.dtype)
    sizes, pace = sizes_of(blueprint, config, runtime, model, work), pace_of(runtime, model, work, rates)
    budget = None if runtime.vram_budget is None else round(runtime.vram_budget * GIB)
    layout = choose_layout(sizes, budget, runtime, device, idle_models=config.idle_models, pace=pace)
    advice = _advice(layout, sizes, work, budget, runtime, device, config, pace)
    total = arithmetic(model, work)
    facts = _facts(blueprint, work, device, rates, layout, budget, total)
    summary = f"{'exact' if layout.exact else 'approximate'} layout, about {gib(layout.peak)} of device memory: {layout}"
    text = "\n".join([*_lines(facts, layout, device, rates), *advice])
    return Forecast(layout=layout, sizes=sizes, summary=summary, text=text, facts={**facts, "advice": advice})


class Needs(NamedTuple):
    """Bytes of GPU memory of a released model in bf16 for a clip of its own size, by estimate."""

    kept: int
    "with everything on the device"
    idle: int
    "with --idle-models free"
    least: int
    "with the smallest --vram-budget"


def needs(model: str) -> Needs:
    """What lynx-full or lynx-lite needs, by its known shapes; nothing is measured."""
    blueprint = replace(released.released(model, ("base", "adapter"), dtype="bf16", device="cpu"), device="cuda")
    described, runtime, config = describe(blueprint), RuntimeConfig(), GenerateConfig()
    work = work_of(blueprint, config, runtime, described, None)
    sizes = sizes_of(blueprint, config, runtime, described, work)
    device = Device(name="", kind="cuda", memory=0, free=0, host_memory=0, host_free=0)
    kept, idle = (choose_layout(sizes, None, runtime, device, idle_models=one).peak for one in IDLE)
    return Needs(kept, idle, least_budget(sizes, device))


def _facts(
    blueprint: Blueprint,
    work: Work,
    device: Device,
    rates: Rates,
    layout: Layout,
    budget: int | None,
    operations: Mapping[str, int],
) -> dict[str, Any]:
    chosen = work.plan
    return {
        "base": blueprint.base_name,
        "by_known_shapes": blueprint.base_name == released.NAME,
        "arm": blueprint.arm,
        "device": device.name,
        "device_bytes": device.memory,
        "device_free_bytes": device.free,
        "host_free_bytes": device.host_free,
        "torch_dtype": str(blueprint.dtype).removeprefix("torch."),
        "frames": chosen.num_frames,
        "height": chosen.height,
        "width": chosen.width,
        "steps": chosen.steps,
        "steps_computed": work.computed,
        "windows": chosen.windows.to_json(blueprint.temporal_factor) if chosen.windows is not None else None,
        "forwards": work.forwards,
        "video_tokens": work.tokens,
        "budget_bytes": budget,
        "exact_layout": layout.exact,
        "layout": str(layout),
        **{
            name: getattr(layout, name)
            for name in ("quantize", "offload", "vae_tiling", "idle_models", "text_encoder", "adapter", "text_projections")
        },
        "memory": dict(layout.device),
        "peak_bytes": layout.peak,
        "host_bytes": layout.host,
        "arithmetic": dict(operations),
        "seconds": {name: round(value, 3) for name, value in layout.seconds.items()},
        "slowdown": layout.slowdown,
        "rates": {name: getattr(rates, name) for name in ("matmul", "attention", "convolution", "traffic")}
        | {"link": rates.link if math.isfinite(rates.link) else None},
    }


def _lines(facts: Mapping[str, Any], layout: Layout, device: Device, rates: Rates) -> list[str]:
    total = sum(facts["arithmetic"].values())
    clip = f"{facts['frames']} frames of {facts['width']}x{facts['height']}"
    skipped = facts["steps"] - facts["steps_computed"]
    steps = f"{facts['steps']} steps{f' ({skipped} from the step cache)' if skipped else ''}"
    if facts["windows"] is not None:
        clip += " in {number} windows of {frames} that overlap by {overlap} or more".format(**facts["windows"])
    there = f" of {gib(device.memory)}" if device.memory else ""
    memory = "Device memory" if device.apart else "Memory"
    known = ["By the known shapes: the base's weights are not there."] if facts["by_known_shapes"] else []
    return [
        f"{clip}, {steps}, {facts['forwards']} forwards of {facts['video_tokens']:,} video tokens on {device.name}, "
        f"{facts['torch_dtype']}",
        *known,
        f"Layout          {'exact' if layout.exact else 'approximate'}: {layout}",
        f"{memory:<16}{gib(layout.peak)} at most{there}, by estimate",
        *(f"  {SHOWN[phase]:<22}{gib(size):>13}" for phase, size in layout.device.items()),
        f"Host memory     {gib(layout.host)} at most, by estimate; {gib(device.host_free)} are free",
        f"Time            {_time(sum(layout.seconds.values()))}, loading aside",
        *(f"  {SHOWN[phase]:<22}{_time(seconds):>13}" for phase, seconds in layout.seconds.items()),
        f"Arithmetic      {_operations(total)}; measured here: {_operations(rates.matmul)}/s of matrix products, "
        f"{_operations(rates.attention)}/s of attention, {_operations(rates.convolution)}/s of convolutions",
        f"Of these rates {REACHED:.0%} are expected inside a forward; what it reads and writes besides is counted, not measured.",
    ]


def _advice(
    layout: Layout,
    sizes: Sizes,
    work: Work,
    budget: int | None,
    runtime: RuntimeConfig,
    device: Device,
    config: GenerateConfig,
    pace: Pace,
) -> list[str]:
    """Sentences on what does not fit, and on what would be faster at a price."""
    found = []
    if config.step_cache != "off" and work.computed == work.plan.steps:
        found.append(
            "The step cache is not calibrated here: `lynx-video calibrate` does that, and `generate` refuses until then."
        )
    if device.apart and layout.offload == "block" and layout.slowdown >= 1.1 and HARM[layout.quantize] == 0:
        kind: Literal["fp8", "fp8-storage"] = "fp8" if device.fp8 and sizes.word == 2 else "fp8-storage"
        try:
            other = choose_layout(
                sizes, budget, replace(runtime, quantize=kind), device, idle_models=config.idle_models, pace=pace
            )
        except BadRequest:
            other = layout
        if sum(other.seconds.values()) < 0.9 * sum(layout.seconds.values()):
            found.append(
                f"Fetching the blocks takes longer than computing them ({layout.slowdown:g} times the time): "
                f"--quantize {kind} would take {_time(sum(other.seconds.values()))}, but is not exact."
            )
    if device.apart and device.memory and budget is None and layout.peak > device.memory:
        wanted = math.floor(device.memory / GIB)
        try:
            other = choose_layout(sizes, wanted * GIB, runtime, device, idle_models=config.idle_models, pace=pace)
            how = "exact" if other.exact else "not exact"
            found.append(f"It does not fit this device; with --vram-budget {wanted} it does ({how}).")
        except BadRequest as error:
            found.append(f"It does not fit this device: {error}")
    if not layout.exact and budget is not None and runtime.quantize is None and runtime.gguf is None:
        roomy = replace(device, host_memory=0, host_free=0)
        exact = choose_layout(sizes, budget, runtime, roomy, idle_models=config.idle_models, pace=pace)
        if exact.exact:
            found.append(
                f"An exact layout would fit the budget but needs {gib(exact.host)} of host memory; {gib(device.host_free)} are free."
            )
    if device.apart and device.free and layout.peak > device.free:
        found.append(f"Only {gib(device.free)} of the device are free now.")
    if device.host_free and layout.host > device.host_free:
        found.append(f"The host memory for it is not there: {gib(layout.host)} are needed, {gib(device.host_free)} are free.")
    return found


def _operations(number: float) -> str:
    """2.5e17 -> `250 PFLOP`."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e6:.3g} MFLOP"


def _time(seconds: float) -> str:
    """3661 -> `1 h 1 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    for unit, name, below in ((86_400, "d", 3600), (3600, "h", 60), (60, "min", 1)):
        if seconds >= unit:
            whole, rest = divmod(round(seconds), unit)
            small = {3600: "h", 60: "min", 1: "s"}[below]
            return f"{whole} {name} {rest // below} {small}"
    return f"{seconds:.0f} s"
