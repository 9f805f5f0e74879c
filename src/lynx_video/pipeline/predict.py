"""What the transformer predicts for the passes of one step: one after the other, as one batch, or shared among processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from lynx_video.adapters.attach import FULL_STRENGTH, Adapter, Influence
from lynx_video.adapters.memory import Memory, TextMemory, stack_memories, stack_texts
from lynx_video.errors import BadRequest
from lynx_video.pipeline.guidance import Pass, Table

if TYPE_CHECKING:
    from lynx_video.runtime.cache import StepCache
    from lynx_video.runtime.lora import Loras
    from lynx_video.runtime.parallel import Ranks

BATCH_TOKENS = 2048
"""Video tokens of a pass up to which `auto` runs the passes as one batch on a GPU, which so few do not fill. A CPU gains nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """A transformer with its adapter, and what a generation put in its memory.

    texts: of "prompt" and "negative". memories: of "person" and "nobody"; empty: the base alone. least: the lowest timestep it serves
    (a base with two experts has one for high and one for low noise).
    """

    adapter: Adapter
    texts: Mapping[str, TextMemory]
    memories: Mapping[str, Memory]
    least: float = 0.0
    cache: StepCache | None = None
    loras: Loras | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """How the passes of all steps are run.

    identity, reference: how strong, when and where the adapters speak. mode: one pass after the other or all as one batch; auto: the
    batch where it is small. lora_passes: in which passes the LoRAs are on. ranks: the processes that share the work, or None.
    """

    identity: Influence = FULL_STRENGTH
    reference: Influence = FULL_STRENGTH
    mode: Literal["auto", "sequential", "batched"] = "auto"
    lora_passes: Literal["all", "prompt"] = "all"
    ranks: Ranks | None = None
    batches: dict[tuple[int, Table], tuple[TextMemory, Memory]] = field(default_factory=dict)
    "the stacked memories of a batch, made once"

    def at(self, progress: float) -> tuple[Influence, Influence]:
        """The influences at a share of the steps."""
        return self.identity.at(progress), self.reference.at(progress)


def batched(conditions: Conditions, table: Table, tokens: int, device: torch.device) -> bool:
    """Whether the passes of a table, of so many video tokens each, run as one batch.

    Raises BadRequest where that was asked for and cannot be.
    """
    if len(table) == 1:
        return False
    if conditions.mode == "batched" and conditions.lora_passes == "prompt":
        raise BadRequest("--passes batched cannot have LoRAs in one pass only; say --lora-passes all, or --passes sequential.")
    small = device.type != "cpu" and tokens <= BATCH_TOKENS
    fits = conditions.mode == "batched" or (conditions.mode == "auto" and small)
    return fits and conditions.lora_passes == "all"


def predict(
    expert: Expert,
    conditions: Conditions,
    table: Table,
    latents: Tensor,
    timestep: Tensor,
    progress: float,
    *,
    compute: bool,
    window: int = 0,
) -> list[Tensor]:
    """The prediction of every pass of the table, in its order, each [1, C, T, h, w] float32.

    latents: [1, C, T, h, w]. timestep: 0-dim. compute: False lets a step cache answer for the blocks. window: which window of a long
    clip the latents are; a step cache keeps them apart.
    """
    ranks, now = conditions.ranks, _Moment(latents, timestep, progress, compute, window)
    mine: Table = ranks.share(table) if ranks is not None else table
    if not mine:
        predictions = []
    elif batched(conditions, mine, _tokens(expert, latents), latents.device):
        predictions = _as_batch(expert, conditions, mine, now)
    else:
        predictions = [_alone(expert, conditions, one, now) for one in mine]
    if ranks is not None:
        predictions = ranks.gather(predictions, len(table), latents)
    return predictions


class _Moment(NamedTuple):
    """What all passes of a step have in common."""

    latents: Tensor
    timestep: Tensor
    progress: float
    compute: bool
    window: int


def _alone(expert: Expert, conditions: Conditions, one: Pass, now: _Moment) -> Tensor:
    with_lora = conditions.lora_passes == "all" or one.name == "prompt"
    text, memory = expert.texts[one.text], expert.memories.get(one.who)
    with _scope(expert, conditions, text, memory, one.name, now, with_lora=with_lora):
        return _forward(expert, now.latents, now.timestep, text)


def _as_batch(expert: Expert, conditions: Conditions, table: Table, now: _Moment) -> list[Tensor]:
    key = (id(expert), table)
    if key not in conditions.batches:
        texts = stack_texts([expert.texts[one.text] for one in table])
        conditions.batches[key] = texts, stack_memories([expert.memories.get(one.who, Memory()) for one in table])
    text, memory = conditions.batches[key]
    name = "+".join(one.name for one in table)
    with _scope(expert, conditions, text, memory, name, now, with_lora=True):
        many = _forward(expert, now.latents.expand(len(table), *now.latents.shape[1:]), now.timestep, text)
    return list(many.split(1))


@contextmanager
def _scope(
    expert: Expert,
    conditions: Conditions,
    text: TextMemory,
    memory: Memory | None,
    name: str,
    now: _Moment,
    *,
    with_lora: bool,
) -> Iterator[None]:
    identity, reference = conditions.at(now.progress)
    with ExitStack() as stack:
        stack.enter_context(expert.adapter.using(memory, text=text, identity=identity, reference=reference))
        if expert.cache is not None:
            kept_as = f"{name} of window {now.window}" if now.window else name
            stack.enter_context(expert.cache.step(kept_as, compute=now.compute))
        if expert.loras is not None:
            stack.enter_context(expert.loras.enabled(with_lora))
        yield


def _forward(expert: Expert, latents: Tensor, timestep: Tensor, text: TextMemory) -> Tensor:
    # the text projections are in memory: the transformer itself only needs the dtype and one token to embed
    inputs: Any = latents.to(text.embeddings.dtype), timestep.expand(len(latents)), text.embeddings[:, :1]
    predicted: Tensor = expert.adapter.transformer(*inputs, return_dict=False)[0]
    return predicted.float()


def _tokens(expert: Expert, latents: Tensor) -> int:
    in_time, down, across = expert.adapter.transformer.config.patch_size
    frames, height, width = latents.shape[2:]
    return int(frames // in_time * (height // down) * (width // across))


def combine(table: Table, predictions: Sequence[Tensor]) -> Tensor:
    """The velocity: the predictions, weighted and summed in the table's order."""
    velocity = torch.zeros_like(predictions[0])
    for one, predicted in zip(table, predictions, strict=True):
        velocity += one.weight * predicted
    return velocity
