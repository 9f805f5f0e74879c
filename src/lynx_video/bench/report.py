"""A race told as markdown, for people and for `benchmarks/results`, and as plain values, for programs."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lynx_video import __version__
from lynx_video.bench.profile import Profile
from lynx_video.bench.record import APART, Result, Row, Turn
from lynx_video.runtime.memory import gib

LARGEST = 12
"""Operations of a profile that are shown."""


def report(result: Result, command: str) -> str:
    """The whole report."""
    parts = [_head(result, command), _forwards(result)]
    if result.request.video:
        parts.append(_clips(result))
    if any(row.peaks or row.estimate or row.host is not None for row in result.rows):
        parts.append(_memory(result))
    parts += [_profile(row.name, row.profile) for row in result.rows if row.profile is not None]
    parts += [list(_remarks(result))]
    return "\n".join("\n".join(lines) + "\n" for lines in parts if lines).rstrip() + "\n"


def facts(result: Result, command: str) -> dict[str, Any]:
    """The same and more, as plain JSON values."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "device": result.device.name,
        "torch_dtype": str(result.dtype).removeprefix("torch."),
        "model": str(result.request.source),
        "frames": result.clip[0],
        "height": result.clip[1],
        "width": result.clip[2],
        "video_tokens": result.tokens,
        "threads": result.threads,
        "versions": versions(),
        "rates": {"matmul": result.rates.matmul, "attention": result.rates.attention},
        "kernel_seconds": {name: statistics.median(seconds) for name, seconds in result.kernels.seconds.items()},
        "sides": {row.name: _row_facts(result, row) for row in result.rows},
    }


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    import diffusers
    import torch

    return {"lynx-video": __version__, "torch": str(torch.__version__), "diffusers": str(diffusers.__version__)}


def _row_facts(result: Result, row: Row) -> dict[str, Any]:
    done = bool(row.turns)
    timed_clip = done and bool(row.turns[0].steps)
    return {
        "way": row.way,
        "missing": row.missing or None,
        "layout": row.layout or None,
        "difference": row.difference,
        "turns": [asdict(turn) for turn in row.turns],
        "forward_seconds": statistics.median(row.times(_of_forward)) if done else None,
        "forward_ratio": row.ratio(_of_forward, _of_forward) if done else None,
        "clip_seconds": statistics.median(row.times(_of_clip(row.kinds))) if timed_clip else None,
        "clip_ratio": row.ratio(_of_clip(row.kinds), _of_clip(row.beside_kinds)) if timed_clip else None,
        "steps": row.kinds,
        "flop_counted": row.work,
        "flop_arithmetic": row.arithmetic,
        "seconds_at_rates": result.at_rates(row),
        "seconds_of_kernels": result.apart(row) if done else None,
        "host_syncs": list(row.counts.syncs) if row.counts else None,
        "kernels": row.counts.kernels if row.counts else None,
        "device_bytes": row.peaks,
        "estimated_bytes": row.estimate,
        "host_bytes": row.host,
        "profile": [asdict(one) for one in row.profile.operations] if row.profile else None,
    }


def _head(result: Result, command: str) -> list[str]:
    request, rates = result.request, result.rates
    frames, height, width = result.clip
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    on_cpu = f", {result.threads} thread(s)" if result.device.kind == "cpu" else ""
    return [
        f"`{command}`",
        "",
        f"{time.strftime('%Y-%m-%d')}; {result.device.name}{on_cpu}; {said}, Python {platform.python_version()}; "
        f"{request.source}, {str(result.dtype).removeprefix('torch.')}; {frames} frames of {width}x{height}, {result.total_steps} "
        f"steps, {result.tokens:,} video tokens a pass; {request.rounds} rounds in turn. Measured here: "
        f"{rates.matmul / 1e12:.3g} TFLOP/s of matrix products, {rates.attention / 1e12:.3g} of attention. "
        f"Times are medians [least, most]{', in seconds of the processor' if result.processor else ''}.",
    ]


def _forwards(result: Result) -> list[str]:
    launched = "kernels launched" if result.device.kind == "cuda" else "operations dispatched"
    lines = [
        "### A forward",
        "",
        f"| | seconds | of exact's | tokens/s | TFLOP counted | by arithmetic | of the chip's rates | of its kernels apart "
        f"| host syncs | {launched} | differs from exact by |",
        f"|{' --- |' * 11}",
    ]
    for row in result.rows:
        if row.missing:
            lines.append(f"| {row.name} | not run: {row.missing} |{' |' * 9}")
            continue
        seconds = statistics.median(row.times(_of_forward))
        counts = row.counts
        cells = [
            _spread(row.times(_of_forward)),
            f"{row.ratio(_of_forward, _of_forward):.3f}",
            f"{result.tokens / seconds:,.0f}",
            _tera(row.work["forward"]),
            _tera(row.arithmetic["forward"]),
            "" if result.processor else f"{result.at_rates(row) / seconds:.0%}",
            f"{result.apart(row) / seconds:.0%}",
            str(len(counts.syncs)) if counts else "",
            f"{counts.kernels:,}" if counts and counts.kernels is not None else "not seen",
            f"{row.difference:.1e}" if row.difference is not None else "",
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines


def _clips(result: Result) -> list[str]:
    lines = [
        "### A clip",
        "",
        "| | a step | person | texts | denoising | decoding | seconds | of exact's | TFLOP counted | by arithmetic |",
        f"|{' --- |' * 10}",
    ]
    for row in result.rows:
        if not row.turns:
            continue
        clip = _of_clip(row.kinds)
        ratio = row.ratio(clip, _of_clip(row.beside_kinds))
        phases = {name: statistics.median(turn.phases[name] for turn in row.turns) for name in APART}
        cells = [
            "; ".join(f"{kind}: {_spread([s for turn in row.turns for s in turn.steps[kind]])}" for kind in row.kinds),
            _seconds(phases["memories"]) if row.way != "wan" else "",
            _seconds(phases["texts"]),
            _seconds(statistics.median(turn.denoising(row.kinds) for turn in row.turns)),
            _seconds(phases["decoding"]),
            _spread(row.times(clip)),
            f"{ratio:.3f}",
            _tera(row.work["clip"]),
            _tera(row.arithmetic["clip"]) if "clip" in row.arithmetic else "",
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines


def _memory(result: Result) -> list[str]:
    on_device = any(row.peaks for row in result.rows)
    phases = ("memories", "texts", "denoising", "decoding") if result.request.video else ("denoising",)
    header = ["", *(f"{phase}, GiB" for phase in phases if on_device), "planned", "host, GiB"]
    lines = ["### Memory at most", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in result.rows:
        if row.missing:
            continue
        cells = [row.name]
        for phase in phases if on_device else ():
            planned = f" of {row.estimate[phase] / 2**30:.2f}" if phase in row.estimate else ""
            cells.append(f"{row.peaks[phase] / 2**30:.2f}{planned}" if phase in row.peaks else "")
        cells.append(f"{gib(max(row.estimate.values()))}: {row.layout}" if row.estimate else "")
        cells.append(f"{row.host / 2**30:.2f}" if row.host is not None else "not measured")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _profile(name: str, profile: Profile) -> list[str]:
    total = profile.total
    shares = ", ".join(f"{kind} {spent / total:.0%}" for kind, spent in profile.kinds.items())
    return [
        f"### One block of {name}: {total:,.0f} microseconds",
        "",
        f"{shares}.",
        "",
        "| operation | kind | calls | microseconds | share |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {one.name[:90].replace('|', '/')} | {one.kind} | {one.calls} | {one.microseconds:,.0f} "
            f"| {one.microseconds / total:.1%} |"
            for one in profile.operations[:LARGEST]
        ),
    ]


def _remarks(result: Result) -> Iterator[str]:
    request = result.request
    yield (
        "`plain` is the same method without the exact levers, `wan` is diffusers' WanPipeline without identity. The chip's rates: what "
        "matrix products and attention of a forward would take at the rates measured, the text's keys and values kept; its kernels "
        "apart: what these very kernels took in the same rounds."
    )
    for name, words, sign, to in (
        ("plain", "The exact levers save", 1, "of"),
        ("wan", "Over WanPipeline identity adds", -1, "to"),
    ):
        row = result.row(name)
        if row is None:
            continue
        ratios = {"a forward": row.ratio(_of_forward, _of_forward)}
        if request.video:
            ratios["a clip"] = row.ratio(_of_clip(row.kinds), _of_clip(row.beside_kinds))
        shares = (f"{sign * (1 - 1 / ratio):.1%} {to} {what}" for what, ratio in ratios.items())
        yield f"{words} {', '.join(shares)}."
    if request.video and request.steps is not None and request.steps < result.total_steps:
        timed = f"{request.steps} were timed in each turn (one of each kind at least)"
        yield f"Of the {result.total_steps} steps {timed}; the rest is reckoned."
    if request.video and not result.spoken:
        yield "Texts: a table of random embeddings stands in for the text encoder, whose time and memory are not in the numbers."
    if result.device.kind != "cuda":
        if result.processor:
            yield "The chip's rates were measured in time of the wall, which is another than the processor's: no share is given."
        yield "On a CPU host syncs are those that would be on a GPU, and operations are counted that compute or copy something."


def _of_forward(turn: Turn) -> float:
    return turn.forward


def _of_clip(kinds: dict[str, int]) -> Callable[[Turn], float]:
    return lambda turn: turn.clip(kinds)


def _spread(values: Sequence[float]) -> str:
    return f"{_seconds(statistics.median(values))} [{_seconds(min(values))}, {_seconds(max(values))}]"


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _tera(flops: int) -> str:
    return f"{flops / 1e12:.4g}"
