"""The race: sides checked against each other, then timed in turn, A B A B, so that what slows the machine slows all of them.

Sides that leave their weights in place share them and race together. One that moves its weights has a copy of its own, and races with
`exact` after the others, so that the device need not hold all copies at once. What a side cannot do here is said in its row.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.bench import turn
from lynx_video.bench.kernels import Kernels
from lynx_video.bench.made import Scene, check_source, draw_scene, open_source, without_scoring
from lynx_video.bench.profile import profile_block
from lynx_video.bench.record import Request, Result, Row
from lynx_video.bench.side import EXACT, Held, Side, hold
from lynx_video.bench.way import Clock
from lynx_video.errors import LynxError
from lynx_video.pipeline.generate import plan as plan_of
from lynx_video.pipeline.workload import arithmetic, describe, work_of
from lynx_video.runtime.device import device_of, measure
from lynx_video.runtime.flops import forward

if TYPE_CHECKING:
    from lynx_video.pipeline.calibration import read_calibration
from lynx_video.pipeline.components import Blueprint, Components

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Where sides race: the model they share, who is in the clip, and the clock."""

    request: Request
    components: Components
    blueprint: Blueprint
    scene: Scene
    clock: Clock
    kernels: Kernels
    note: Note


def race(request: Request, note: Note = lambda _: None) -> Result:
    """Run it. note: is told what goes on.

    Raises BadRequest for a model that cannot be made here, and LynxError where `exact` cannot be run or a side that should compute the
    same does not: then nothing is timed.
    """
    check_source(request.source)
    assert len({side.name for side in request.sides}) == len(request.sides), "each side has a name of its own"
    hosts = _weighed(request, note) if request.weigh else {}
    with tempfile.TemporaryDirectory() as folder:
        note(f"model: {request.source}")
        stage = open_stage(request, Path(folder), note)
        rows: dict[str, Row] = {}
        wanted: dict[str, Tensor] = {}
        for heat in _heats(request.sides):
            for name, row in _run_heat(stage, heat, wanted).items():
                rows.setdefault(name, row)
            _clean(stage.components.device)
        result = _result(stage, [rows[side.name] for side in request.sides])
    for row in result.rows:
        row.host = hosts.get(row.name, row.host)
    return result


def open_stage(request: Request, folder: Path, note: Note = lambda _: None) -> Stage:
    """The model of a request, ready for its sides. folder: for the configurations of a made one."""
    components, blueprint = open_source(request.source, folder)
    if request.calibration is not None:
        about, _ = read_calibration(request.calibration)  # whatever it was measured on: the weights are random
        known: dict[str, Any] = {
            "calibration": request.calibration,
            "base_hash": about["base_hash"],
            "lora_hash": about["loras"],
        }
        components, blueprint = replace(components, **known), replace(blueprint, **known)
    components, described = without_scoring(components), describe(blueprint)
    exact = next((side for side in request.sides if side.name == EXACT), request.sides[0])
    tokens = plan_of(blueprint, exact.config).tokens(blueprint.patch_size)
    return Stage(
        request=request,
        components=components,
        blueprint=blueprint,
        scene=draw_scene(components),
        clock=Clock(components.device),
        kernels=Kernels(shape=described.shape, tokens=tokens, terms=described.terms, dtype=components.dtype),
        note=note,
    )


def _heats(sides: Sequence[Side]) -> list[list[Side]]:
    exact = next(side for side in sides if side.name == EXACT)
    together = [exact, *(side for side in sides if not side.own_weights and side is not exact)]
    return [together, *([exact, side] for side in sides if side.own_weights)]


def _run_heat(stage: Stage, sides: Sequence[Side], wanted: dict[str, Tensor]) -> dict[str, Row]:
    """The rows of these sides, `exact` first. wanted: the predictions of `exact`, once it was checked and counted in a heat before."""
    held: dict[str, Held] = {}
    rows: dict[str, Row] = {}
    first = not wanted
    for side in sides:
        row = rows[side.name] = Row(name=side.name, way=side.way, missing=side.unable)
        one = None if side.unable else _attempt(held, row, hold, stage.components, stage.blueprint, side, stage.scene, held)
        if one is not None:
            held[side.name] = one
            row.layout, row.estimate = one.layout, dict(one.estimate)
            if first or side.name != EXACT:
                stage.note(f"{side.name}: checked and counted")
                _check(one, row, held, wanted)
                _count(stage.request, one, row, held)
            elif not stage.request.video:
                turn.remember(one.way)
        if row.missing:
            stage.note(f"{side.name}: not run: {row.missing}")
    if not first and len(held) == 1:
        return rows
    exact = held[EXACT].way
    kinds = {kind: exact.kinds.count(kind) for kind in exact.kinds}
    stage.kernels.backend = exact.components.transformer.blocks[0].attn1.processor._attention_backend
    for number in range(stage.request.rounds):
        stage.note(f"round {number + 1} of {stage.request.rounds}: {', '.join(held)}")
        for name, one in list(held.items()):
            _attempt(held, rows[name], _time, stage, one, rows[name])
            if name in held:
                rows[name].beside.append(rows[EXACT].turns[-1])
        if first:
            stage.kernels.time(stage.clock)
    for row in rows.values():
        row.beside_kinds = kinds
    return rows


def _check(one: Held, row: Row, held: dict[str, Held], wanted: dict[str, Tensor]) -> None:
    """Compare a side's predictions with those wanted; those of `exact` are. Raises LynxError where it should be the same and is not."""
    found: Mapping[str, Tensor] | None = _attempt(held, row, turn.predict, one.way)
    if found is None or one.side.way == "wan":
        return
    if one.side.name == EXACT:
        wanted.update(found)
        return
    row.difference = turn.difference(found, wanted)
    most = turn.TOLERANCE[one.way.components.dtype]
    if one.same and not row.difference <= most:
        raise LynxError(
            f"{row.name} computes something else than {EXACT}: its predictions differ by {row.difference:.1e}, more than {most:g}; "
            "nothing was timed."
        )


def _count(request: Request, one: Held, row: Row, held: dict[str, Held]) -> None:
    if request.profile and row.name in held:
        row.profile = _attempt(held, row, profile_block, one)
    if row.name in held:
        _attempt(held, row, partial(turn.count, video=request.video), one, row)


def _time(stage: Stage, one: Held, row: Row) -> None:
    if stage.request.video:
        turn.time_clip(one, row, stage.clock, stage.request.steps)
    else:
        turn.time_forward(one, row, stage.clock)


def _attempt(held: dict[str, Held], row: Row, run: Callable[..., Any], *arguments: Any) -> Any:
    """What `run` returns; where it fails, the side is out of the race, its row says why, and None is returned.

    Raises LynxError where that side is `exact`.
    """
    try:
        return run(*arguments)
    except (LynxError, RuntimeError, MemoryError, ImportError) as error:
        row.missing = _reason(error)
        device = next((one.way.device for one in held.values()), None)
    held.pop(row.name, None)
    if row.name == EXACT:
        raise LynxError(f"{EXACT} cannot be run here: {row.missing}")
    if device is not None:
        _clean(device)
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory"
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, LynxError) else f"{type(error).__name__}: {text}"


def _clean(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _result(stage: Stage, rows: Sequence[Row]) -> Result:
    components, request = stage.components, stage.request
    described = describe(stage.blueprint)
    exact = next(side for side in request.sides if side.name == EXACT)
    plan = plan_of(stage.blueprint, exact.config)
    for row, side in zip(rows, request.sides, strict=True):
        terms = replace(described.terms, identity_blocks=0, reference_blocks=0) if row.way == "wan" else described.terms
        row.terms = forward(described.shape, stage.kernels.tokens, terms)
        row.arithmetic["forward"] = sum(row.terms.values())
        if row.way == "ours":
            work = work_of(stage.blueprint, side.config, side.runtime, described, None)
            row.arithmetic["clip"] = sum(arithmetic(described, work).values())
    encoder = components.text_encoder
    return Result(
        request=request,
        rows=tuple(rows),
        device=device_of(components.device),
        rates=measure(components.device, components.dtype),
        kernels=stage.kernels,
        dtype=components.dtype,
        tokens=stage.kernels.tokens,
        clip=(plan.num_frames, plan.height, plan.width),
        total_steps=plan.steps,
        threads=torch.get_num_threads(),
        spoken=encoder is not None and encoder.config.num_layers > 0,
        processor=stage.clock.processor,
    )


def _weighed(request: Request, note: Note) -> dict[str, int]:
    from lynx_video.bench.weigh import weigh

    found = {}
    for side in request.sides:
        if side.unable:
            continue
        note(f"{side.name}: weighed in a process of its own")
        host = weigh(request, side)
        if host is not None:
            found[side.name] = host
    return found
