"""The step cache: what the blocks add to the video tokens changes slowly, so some steps take it from the step before.

Which steps are computed is known before the first one: a calibration says how far the blocks' contribution drifts between noise
levels, and a step is skipped while the drift since the last computed one stays within a threshold. So the decision is one for all
passes, the same on every process, costs no synchronisation, and the time of a run can be told beforehand.

    cache = cache_(transformer); with cache.step("prompt", compute=False): transformer(...)
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lynx_video.errors import BadWeights

_HOOK = "lynx_video_step_cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How far what the blocks add drifts as the noise goes down, for one base and adapter.

    sigmas: noise levels of the steps it was measured at, falling, after the flow shift. drift: for each but the first, the norm of the
    change from the level before over the norm, the mean over passes and clips. clips: how many were looked at.
    """

    sigmas: tuple[float, ...]
    drift: tuple[float, ...]
    clips: int = 1

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        sound = all(math.isfinite(one) and one >= 0 for one in (*self.sigmas, *self.drift))
        if len(self.sigmas) < 2 or len(self.drift) != len(self.sigmas) - 1 or not falling or not sound:
            raise BadWeights(
                "a step cache's calibration needs falling noise levels and the drift between them; calibrate again."
            )

    def total(self, sigma: float) -> float:
        """Drift from the highest level down to `sigma`: linear between the levels measured, nothing beyond them."""
        passed = bisect.bisect_left([-one for one in self.sigmas], -sigma)
        if passed == 0:
            return 0.0
        if passed == len(self.sigmas):
            return sum(self.drift)
        above, below = self.sigmas[passed - 1], self.sigmas[passed]
        return sum(self.drift[: passed - 1]) + self.drift[passed - 1] * (above - sigma) / (above - below)


def computed_steps(calibration: Calibration, sigmas: Sequence[float], threshold: float) -> tuple[bool, ...]:
    """For each step, at noise level sigmas[i], whether the blocks are computed. The first and the last always are.

    threshold: drift, as a share of what the blocks add, up to which an earlier step's contribution still serves.
    """
    found, since = [], 0.0
    for i, sigma in enumerate(sigmas):
        here = calibration.total(sigma)
        compute = i in (0, len(sigmas) - 1) or here - since > threshold
        since = here if compute else since
        found.append(compute)
    return tuple(found)


def mean_of(calibrations: Sequence[Calibration]) -> Calibration:
    """One calibration from several clips on the same levels."""
    if not calibrations or len({one.sigmas for one in calibrations}) != 1:
        raise BadWeights("calibrations are averaged over clips with the same steps and flow shift.")
    drift = tuple(sum(values) / len(values) for values in zip(*(one.drift for one in calibrations), strict=True))
    return Calibration(sigmas=calibrations[0].sigmas, drift=drift, clips=sum(one.clips for one in calibrations))


@dataclass(kw_only=True, slots=True)
class StepCache:
    """What the blocks added in each pass's last computed step, and whether they are computed in this one."""

    transformer: Any
    compute: bool = True
    name: str = ""
    measure: bool = False
    added: dict[str, Tensor] = field(default_factory=dict)
    "by pass: what all blocks together added to the tokens, [B, L, D]"
    drifts: dict[str, list[Tensor]] = field(default_factory=dict)
    "by pass, with `measure`: the drift since the step before, 0-dim each"
    entered: Tensor | None = None

    @contextmanager
    def step(self, name: str, *, compute: bool) -> Iterator[None]:
        """Within it a forward belongs to the pass `name`; a pass that has nothing kept is computed whatever is asked."""
        self.name, self.compute = name, compute or name not in self.added
        try:
            yield
        finally:
            self.entered, self.name, self.compute = None, "", True

    def keep(self, added: Tensor) -> None:
        """Remember what the blocks added in this pass."""
        before = self.added.get(self.name)
        if self.measure and before is not None:
            change = (added.float() - before.float()).norm() / added.float().norm()
            self.drifts.setdefault(self.name, []).append(change)
        self.added[self.name] = added

    def calibration(self, sigmas: Sequence[float]) -> Calibration:
        """What was measured over a run at these levels; passes that left early count as far as they went."""
        columns = list(self.drifts.values())
        if not columns or max(len(column) for column in columns) != len(sigmas) - 1:
            raise BadWeights("a calibration needs one whole run with `measure` on.")
        found = []
        for i in range(len(sigmas) - 1):
            seen = [float(column[i]) for column in columns if i < len(column)]
            found.append(sum(seen) / len(seen))
        return Calibration(sigmas=tuple(sigmas), drift=tuple(found))

    def clear(self) -> None:
        """Forget everything: between generations."""
        self.added.clear()
        self.drifts.clear()
        self.entered, self.compute, self.measure = None, True, False

    def remove(self) -> None:
        """Take the hooks off the transformer."""
        self.clear()
        for block in self.transformer.blocks:
            block._diffusers_hook.remove_hook(_HOOK, recurse=False)


def cache_(transformer: Any) -> StepCache:
    """Put the step cache on a transformer's blocks. Register it last: a skipped block then fetches no offloaded weights either.

    With every step computed the output equals that without a cache, bit for bit.
    """
    from diffusers.hooks import HookRegistry, ModelHook

    cache = StepCache(transformer=transformer)
    last = len(transformer.blocks) - 1

    class Skip(ModelHook):  # type: ignore[misc]
        """Runs its block, or hands the tokens on; the first block adds what was kept, the last one keeps what was added."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def new_forward(self, _: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not cache.compute:
                return hidden_states + cache.added[cache.name] if self.number == 0 else hidden_states
            if self.number == 0 and cache.name:
                cache.entered = hidden_states
            out: Tensor = self.fn_ref.original_forward(hidden_states, *args, **kwargs)
            if self.number == last and cache.name and cache.entered is not None:
                cache.keep(out - cache.entered)
            return out

    for number, block in enumerate(transformer.blocks):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Skip(number), _HOOK)
    return cache
