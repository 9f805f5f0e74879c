"""From `--preset` and the options beside it to settings: what is named on the command line replaces what the preset says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lynx_video.cli.options import given
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.studio.setup import ModelFlags
from lynx_video.studio.speed import tune

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.generate import Plan
    from lynx_video.runtime.parallel import Degrees, Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedFlags:
    """How much exactness is given for speed."""

    preset: Literal["exact", "balanced", "fast", "draft"] = "exact"
    "exact, or how much of the likeness is given for speed: docs/speed.md has the price of each; the options here replace its settings"


def tuned(
    flags: SpeedFlags, model: ModelFlags, config: GenerateConfig, runtime: RuntimeConfig
) -> tuple[GenerateConfig, RuntimeConfig]:
    """The settings of the preset for this model, with those replaced that were named on the command line.

    Raises BadRequest for a preset that needs a few-step LoRA where none is known.
    """
    return tune(flags.preset, model, given(config), given(runtime))


def shares(blueprint: Blueprint, chosen: Plan) -> Degrees:
    """How the processes that torchrun started share the generation.

    Raises BadRequest for a number of them that fits nothing, and for an attention kernel that cannot share heads.
    """
    from lynx_video.runtime.attention import can_share_tokens
    from lynx_video.runtime.parallel import choose_degrees, started

    runtime = blueprint.runtime
    degrees = choose_degrees(
        started()[1],
        len(chosen.tables[0]),
        blueprint.shape.heads,
        chosen.tokens(blueprint.patch_size),
        pass_degree=runtime.pass_degree,
        ulysses_degree=runtime.ulysses_degree,
        ring_degree=runtime.ring_degree,
    )
    if degrees.ulysses > 1 and not can_share_tokens(runtime.attention_backend):
        raise BadRequest(
            f"--attention-backend {runtime.attention_backend} can't share heads among {degrees.ulysses} processes: say native, or "
            f"--ulysses-degree 1 --ring-degree {degrees.tokens}."
        )
    return degrees


@contextmanager
def sharing(blueprint: Blueprint, degrees: Degrees) -> Iterator[Ranks | None]:
    """Within it they know each other; None where there is one."""
    from lynx_video.runtime.parallel import ranks

    if degrees.count == 1:
        yield None
        return
    with ranks(blueprint.device, degrees) as mine:
        yield mine
