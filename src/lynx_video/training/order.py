"""Which examples make which pack, in which order: a function of the seed and the epoch, the same for any number of processes.

An epoch takes every still of the image stage, or every clip of the video stage with stills for a share of the tokens. Samples of one
shape share packs first, so that a compiled block meets few shapes; what is left of each shape shares mixed packs, and none is lost.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lynx_video.errors import BadData
from lynx_video.training.config import TrainConfig
from lynx_video.training.shards import Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Where a run is in its data: the next pack of an epoch."""

    epoch: int = 0
    pack: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """One pack: numbers of examples, the epoch they are drawn for, and whether all have one shape and no more would fit."""

    examples: tuple[int, ...]
    epoch: int
    uniform: bool


class Order:
    """The packs of a run. Raises BadData if the set has nothing for the stage, or an example that no pack can hold."""

    def __init__(self, entries: Sequence[Entry], config: TrainConfig, patch: tuple[int, int, int]) -> None:
        self.config = config
        self.lengths = [video_tokens(entry, patch) for entry in entries]
        self.shapes = [entry.latent for entry in entries]
        self.stills = [i for i, entry in enumerate(entries) if entry.frames == 1]
        self.clips = [i for i, entry in enumerate(entries) if entry.frames > 1]
        if not (self.stills if config.stage == "image" else self.clips):
            wanted = "stills" if config.stage == "image" else "clips"
            raise BadData(f"the training set has no {wanted}, which the {config.stage} stage learns from; build it with some.")
        used = self.stills if config.stage == "image" else self.clips + self.stills
        longest = max(used, key=lambda i: self.lengths[i])
        if self.lengths[longest] > config.tokens:
            raise BadData(
                f"example {entries[longest].key} has {self.lengths[longest]} video tokens, a pack holds {config.tokens}; "
                f"say --tokens {self.lengths[longest]} or more."
            )
        self._epoch: tuple[int, list[Planned]] = (-1, [])

    def take(self, cursor: Cursor, count: int) -> tuple[list[Planned], Cursor]:
        """The next `count` packs, and where the run is after them."""
        taken: list[Planned] = []
        while len(taken) < count:
            packs = self.epoch(cursor.epoch)
            part = packs[cursor.pack : cursor.pack + count - len(taken)]
            taken += part
            at = cursor.pack + len(part)
            cursor = Cursor(epoch=cursor.epoch + 1) if at == len(packs) else Cursor(epoch=cursor.epoch, pack=at)
        return taken, cursor

    def epoch(self, number: int) -> list[Planned]:
        """All packs of an epoch, shuffled."""
        if self._epoch[0] != number:
            self._epoch = (number, self._plan(number))
        return self._epoch[1]

    def _plan(self, number: int) -> list[Planned]:
        rng = random.Random(stable_seed(self.config.seed, "order", number))
        chosen = list(self.stills if self.config.stage == "image" else self.clips)
        if self.config.stage == "video" and self.config.still_share and self.stills:
            chosen += self._some_stills(rng)
        rng.shuffle(chosen)
        by_shape: dict[tuple[int, int, int], list[int]] = {}
        for i in chosen:
            by_shape.setdefault(self.shapes[i], []).append(i)
        packs: list[tuple[tuple[int, ...], bool]] = []
        left: list[int] = []
        for same in by_shape.values():
            room = self.config.tokens // self.lengths[same[0]]
            whole = len(same) // room * room
            packs += [(tuple(same[at : at + room]), True) for at in range(0, whole, room)]
            left += same[whole:]
        packs += [(pack, False) for pack in self._first_fit(left)]
        rng.shuffle(packs)
        return [Planned(examples=examples, epoch=number, uniform=uniform) for examples, uniform in packs]

    def _some_stills(self, rng: random.Random) -> list[int]:
        share = self.config.still_share
        wanted = sum(self.lengths[i] for i in self.clips) * share / (1 - share)
        found: list[int] = []
        pool: list[int] = []
        while wanted > 0:
            if not pool:
                pool = rng.sample(self.stills, len(self.stills))
            found.append(pool.pop())
            wanted -= self.lengths[found[-1]]
        return found

    def _first_fit(self, left: list[int]) -> list[tuple[int, ...]]:
        """Longest first, each into the first pack that has room."""
        bins: list[tuple[list[int], int]] = []
        for i in sorted(left, key=lambda i: -self.lengths[i]):
            at = next((n for n, (_, used) in enumerate(bins) if used + self.lengths[i] <= self.config.tokens), None)
            if at is None:
                bins.append(([i], self.lengths[i]))
            else:
                bins[at][0].append(i)
                bins[at] = (bins[at][0], bins[at][1] + self.lengths[i])
        return [tuple(examples) for examples, _ in bins]


def video_tokens(entry: Entry, patch: tuple[int, int, int]) -> int:
    """L: video tokens of an example."""
    frames, height, width = entry.latent
    return (frames // patch[0]) * (height // patch[1]) * (width // patch[2])


def split_held_out(entries: Sequence[Entry], count: int) -> tuple[list[Entry], list[Entry]]:
    """Entries to train on, and about `count` of people that are kept out entirely; never more than a quarter of the people."""
    people = sorted({entry.person for entry in entries}, key=lambda person: hashlib.sha256(person.encode()).digest())
    out: set[str] = set()
    sizes = dict.fromkeys(people, 0)
    for entry in entries:
        sizes[entry.person] += 1
    found = 0
    for person in people[: len(people) // 4]:
        if found >= count:
            break
        out.add(person)
        found += sizes[person]
    return [e for e in entries if e.person not in out], [e for e in entries if e.person in out]


def stable_seed(*words: object) -> int:
    """A seed of 63 bits from any words, the same on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, words)).encode()).digest()[:8], "big") >> 1
