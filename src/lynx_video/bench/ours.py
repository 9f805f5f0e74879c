"""Our way: the very functions that `generate` calls, in its order, so that its phases can be timed apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lynx_video.adapters.memory import Memory, TextMemory
from lynx_video.bench.made import Scene
from lynx_video.bench.way import Clock, Steps, Way
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.calibration import known_calibration, steps_to_compute
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.denoise import denoise
from lynx_video.pipeline.generate import parking
from lynx_video.pipeline.guidance import Table
from lynx_video.pipeline.memories import memories_of, on_device, texts_of
from lynx_video.pipeline.predict import Conditions, Expert, predict
from lynx_video.pipeline.schedule import levels, make_scheduler, set_timesteps

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components


class Ours(Way):
    """What `generate` does, up to scoring. Raises BadRequest for a step cache that was never measured: it would skip nothing."""

    def __init__(self, components: Components, scene: Scene, config: GenerateConfig) -> None:
        super().__init__(components, scene, config)
        if config.step_cache != "off" and known_calibration(components) is None:
            raise BadRequest("the step cache was not measured for this model: name a calibration with --calibration.")
        self._memory: Mapping[str, Memory] = {}
        self._text: Mapping[str, TextMemory] = {}
        self._computed = steps_to_compute(components, config.step_cache, levels(self.timesteps))
        self._conditions = self._fresh_conditions()

    @property
    def kinds(self) -> list[str]:
        return [_kind(table, compute) for table, compute in self._schedule()]

    @property
    def forwards(self) -> int:
        return sum(len(table) for table, compute in self._schedule() if compute)

    @property
    def remembered(self) -> dict[str, Tensor]:
        """Keys and values of the person and of nobody, by name."""
        return {f"{who}.{name}": tensor for who, memory in self._memory.items() for name, tensor in memory.tensors().items()}

    def memories(self) -> None:
        self._memory = memories_of(self.components, self.scene.identity, None, self.config, self.plan, sampled=True)[0]

    def texts(self) -> None:
        self._text = texts_of(self.components, self.scene.prompt, self.plan, self.config)[0]
        self._conditions = self._fresh_conditions()

    @contextmanager
    def ready(self) -> Iterator[None]:
        with parking(self.components, self.config.idle_models):
            yield

    def forward(self) -> Tensor:
        return self._predict(self.plan.tables[0][:1])["prompt"]

    def predictions(self) -> Mapping[str, Tensor]:
        return self._predict(self.plan.tables[0])

    def steps(self, limit: int | None, clock: Clock) -> Steps:
        chosen = shortened(self._schedule(), limit)
        scheduler = make_scheduler(self.components.scheduler, self.config)
        timesteps = set_timesteps(scheduler, len(chosen), self.device)
        tables, computed = zip(*chosen, strict=True)
        if self.components.cache is not None:
            self.components.cache.clear()
        marks = [clock.now()]
        latents = denoise(
            [self._expert()],
            scheduler,
            self.noise,
            timesteps,
            tables,
            self._conditions,
            computed=computed if self._computed is not None else None,
            on_step=lambda _: marks.append(clock.now()),
        )
        if self.components.cache is not None:
            self.components.cache.clear()
        return Steps.between(marks, [_kind(*one) for one in chosen], latents)

    def decode(self, latents: Tensor) -> Tensor:
        self.forget()
        with on_device(self.components, "vae", self.config.idle_models):
            return decode(self.components.vae, latents, tiling=bool(self.components.runtime.vae_tiling))

    def forget(self) -> None:
        self._memory, self._text = {}, {}
        self._conditions.batches.clear()

    def _schedule(self) -> list[tuple[Table, bool]]:
        computed = self._computed or (True,) * self.plan.steps
        return list(zip(self.plan.tables, computed, strict=True))

    @torch.no_grad()
    def _predict(self, table: Table) -> dict[str, Tensor]:
        found = predict(self._expert(), self._conditions, table, self.noise, self.timesteps[0], 0.0, compute=True)
        return {one.name: prediction for one, prediction in zip(table, found, strict=True)}

    def _expert(self) -> Expert:
        held = self.components
        return Expert(adapter=held.adapter, texts=self._text, memories=self._memory, cache=held.cache, loras=held.loras)

    def _fresh_conditions(self) -> Conditions:
        runtime = self.components.runtime
        return Conditions(
            identity=self.plan.identity,
            reference=self.plan.reference,
            mode=runtime.passes,
            lora_passes=runtime.lora_passes,
        )


def shortened(schedule: list[tuple[Table, bool]], limit: int | None) -> list[tuple[Table, bool]]:
    """So many steps of a schedule, the commonest kinds more often, each at least once, in the order in which they first come."""
    if limit is None or limit >= len(schedule):
        return schedule
    counts, kinds = Counter(schedule), list(dict.fromkeys(schedule))
    times = dict.fromkeys(kinds, 1)
    for _ in range(limit - len(kinds)):
        rarest = max(kinds, key=lambda kind: counts[kind] / times[kind])
        times[rarest] += 1
    return [kind for kind in kinds for _ in range(times[kind])]


def _kind(table: Table, compute: bool) -> str:
    passes = f"{len(table)} pass{'es' if len(table) > 1 else ''}"
    return passes if compute else f"{passes} from the cache"
