"""From planned packs to samples: examples read, conditions dropped, noise drawn, one step ahead of the training.

Every draw comes from the seed, the epoch and the example's key, so that it is the same for any number of processes and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_video import flow
from lynx_video.errors import BadData
from lynx_video.training.config import TrainConfig
from lynx_video.training.order import Cursor, Order, Planned, stable_seed
from lynx_video.training.sample import Sample
from lynx_video.training.shards import Conditions, Entry, Shards
from lynx_video.types import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A pack ready to train on; timesteps [1] or [n], 0 to 1000."""

    samples: list[Sample]
    timesteps: Tensor
    uniform: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Ration:
    """What one process trains on in one step. cursor: where the run is after it. unreadable: sentences on examples left out."""

    packs: list[Drawn]
    cursor: Cursor
    unreadable: list[str]


class Feed:
    """The rations of one process, in order, read by a thread while the step before is computed."""

    def __init__(
        self,
        shards: Shards,
        entries: Sequence[Entry],
        order: Order,
        config: TrainConfig,
        *,
        cursor: Cursor,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.shards, self.entries, self.order, self.config = shards, entries, order, config
        self.rank, self.processes = rank, processes
        self._reader = ThreadPoolExecutor(1, "feed")
        self._next: Future[Ration] = self._reader.submit(self._ration, cursor)

    def take(self) -> Ration:
        """The next ration. Raises BadData if nothing of it can be read."""
        ration = self._next.result()
        self._next = self._reader.submit(self._ration, ration.cursor)
        return ration

    def close(self) -> None:
        """Stop reading ahead."""
        self._next.cancel()
        self._reader.shutdown(wait=True)

    def _ration(self, cursor: Cursor) -> Ration:
        planned, after = self.order.take(cursor, self.config.packs)
        packs: list[Drawn] = []
        unreadable: list[str] = []
        for one in planned[self.rank :: self.processes]:
            packs.append(self._draw(one, unreadable))
        spare = next((pack for pack in packs if pack.samples), None)
        if spare is None:
            raise BadData(f"no example of a whole step can be read: {unreadable[0]}")
        # every process must run the same number of packs: an empty one repeats another
        packs = [pack if pack.samples else spare for pack in packs]
        return Ration(packs=packs, cursor=after, unreadable=unreadable)

    def _draw(self, planned: Planned, unreadable: list[str]) -> Drawn:
        samples, timesteps = [], []
        for i in planned.examples:
            try:
                example = self.shards.read(self.entries[i])
            except BadData as error:
                unreadable.append(str(error))
                continue
            generator = torch.Generator().manual_seed(stable_seed(self.config.seed, planned.epoch, example.key))
            timesteps.append(flow.sample_sigmas(1, self.config.timestep_sampling, generator) * flow.TIMESTEPS)
            samples.append(draw_sample(example, self.shards.conditions, self.config, generator))
        if samples and self.config.timesteps == "pack":
            timesteps = timesteps[:1]
        return Drawn(
            samples=samples,
            timesteps=torch.cat(timesteps) if timesteps else torch.zeros(1),
            uniform=planned.uniform and len(samples) == len(planned.examples),
        )


def draw_sample(example: Example, conditions: Conditions, config: TrainConfig, generator: torch.Generator) -> Sample:
    """An example with its noise, under the conditions that the draw leaves it.

    Text, identity and reference are dropped independently: the text for the empty prompt, the face for zeros, the reference for the
    grey picture, which are what guidance takes its differences from. Where just one of identity and reference is dropped, it is
    switched off instead for the share `alone`, so that each adapter also learns to do without the other.
    """
    draw = torch.rand(5, generator=generator).tolist()
    noise = torch.randn(example.latents.shape, generator=generator)
    which = int(draw[0] * len(example.faces))
    no_text, no_face, no_reference = (
        value < share
        for value, share in zip(draw[1:4], (config.drop_text, config.drop_identity, config.drop_reference), strict=True)
    )
    off = no_face != no_reference and draw[4] < config.alone
    if config.arm == "lite":
        off = False
    return Sample(
        latents=example.latents,
        noise=noise,
        text=conditions.empty_text if no_text else padded(example.text, len(conditions.empty_text)),
        face=torch.zeros_like(example.faces[which]) if no_face else example.faces[which],
        reference=None if config.arm == "lite" else conditions.nobody_reference if no_reference else example.references[which],
        reference_text=conditions.reference_text,
        identity_scale=0.0 if off and no_face else 1.0,
        reference_scale=0.0 if off and no_reference else 1.0,
    )


def padded(text: Tensor, length: int) -> Tensor:
    """Embeddings [S, D] with the zeros after the last token put back: the base attends to them too."""
    if len(text) > length:
        raise BadData(f"a caption of {len(text)} tokens, where the base takes {length}; build the set again for this base.")
    return torch.cat([text, text.new_zeros(length - len(text), text.shape[1])])
