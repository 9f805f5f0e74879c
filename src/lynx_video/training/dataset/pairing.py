"""Which pictures of a person go together: duplicates out, people found, and for each target the references it is learned with.

A reference is never of the target's own file, and never nearly equal to any frame of it that was looked at: what can be copied is
copied instead of learned. The same items give the same pairs, whatever order they come in.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from lynx_video.training.dataset.finding import Finding
from lynx_video.training.dataset.people import group_people
from lynx_video.training.dataset.source import Drop

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An item that passed every look at it alone. vector: float32 [512], the mean of its looks. thumbnails: uint8 [looks, 16, 16]."""

    finding: Finding
    vector: NDArray[np.float32]
    thumbnails: NDArray[np.uint8]

    @property
    def key(self) -> str:
        """The item's key."""
        return self.finding.item.key


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What an item is in the set. references: keys of the items a target is learned with; empty for what is only a reference."""

    finding: Finding
    person: str
    references: tuple[str, ...]


def assign_roles(
    candidates: Sequence[Candidate], *, same_person: float, near: float, references: int, seed: int
) -> tuple[list[Role], list[Drop]]:
    """The items that stay, in the order of their keys, and those that do not.

    same_person, near, references, seed: as in the config.
    """
    # Of two that are the same, the one with a caption stays.
    kept, drops = _without_copies(sorted(candidates, key=lambda one: (not one.finding.is_target, one.key)))
    roles: list[Role] = []
    for person, members in _people(kept, same_person).items():
        alike, same = _likeness(members, near)
        staying: list[int] = []
        for number, member in enumerate(members):
            earlier = [other for other in staying if same[number, other]]
            if earlier:
                drops.append(_drop(member, "duplicate", f"looks the same as {members[earlier[0]].finding.item.name}"))
            else:
                staying.append(number)
        found, lost = _pair(person, [members[i] for i in staying], alike[np.ix_(staying, staying)], references, seed)
        roles += found
        drops += lost
    return sorted(roles, key=lambda role: role.finding.item.key), drops


def _without_copies(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Drop]]:
    """Of files with equal bytes (and equal parts of clips) the first."""
    first: dict[tuple[str, float | None, float | None], Candidate] = {}
    drops = []
    for one in candidates:
        item = one.finding.item
        original = first.setdefault((one.finding.content, item.start, item.stop), one)
        if original is not one:
            drops.append(_drop(one, "duplicate", f"the same bytes as {original.finding.item.name}"))
    return list(first.values()), drops


def _people(candidates: Sequence[Candidate], same_person: float) -> dict[str, list[Candidate]]:
    """Items by person: by the name they were given, or else by their faces."""
    named: dict[str, list[Candidate]] = defaultdict(list)
    unnamed = []
    for one in candidates:
        if one.finding.item.person is None:
            unnamed.append(one)
        else:
            named[one.finding.item.person].append(one)
    if unnamed:
        numbers = (name for number in count(1) if (name := f"unnamed-{number:05d}") not in named)
        groups = group_people(np.stack([one.vector for one in unnamed]), same_person)
        named |= {next(numbers): [unnamed[i] for i in group] for group in groups}
    return dict(named)


def _likeness(members: Sequence[Candidate], near: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two tables [M, M] of a person's items: which show a nearly equal picture somewhere, and which do so throughout."""
    owner = np.concatenate([np.full(len(one.thumbnails), i) for i, one in enumerate(members)])
    starts = np.searchsorted(owner, np.arange(len(members)))
    flat = np.concatenate([one.thumbnails.reshape(len(one.thumbnails), -1) for one in members]).astype(np.int16)
    alike = np.zeros((len(members), len(members)), dtype=bool)
    same = np.zeros_like(alike)
    for i, one in enumerate(members):
        looks = flat[owner == i]
        close = np.stack([np.abs(flat - look).mean(axis=1) < near for look in looks])  # [looks of i, looks of all]
        alike[i] = np.logical_or.reduceat(close.any(axis=0), starts)
        for j in np.flatnonzero(alike[i]).tolist():
            if len(members[j].thumbnails) == len(looks) and members[j].finding.kind == one.finding.kind:
                same[i, j] = close[:, owner == j].diagonal().all()
    return alike, same


def _pair(
    person: str, members: Sequence[Candidate], alike: NDArray[np.bool_], references: int, seed: int
) -> tuple[list[Role], list[Drop]]:
    roles, drops = [], []
    files = {one.finding.item.file for one in members}
    is_learned = False
    for number, one in enumerate(members):
        item = one.finding.item
        others = [i for i, other in enumerate(members) if other.finding.item.file != item.file and not alike[number, i]]
        if others:
            chosen = _choose(item.key, [members[i] for i in others], references, seed) if one.finding.is_target else ()
            is_learned |= one.finding.is_target
            roles.append(Role(finding=one.finding, person=person, references=chosen))
        elif len(files) == 1:
            drops.append(_drop(one, "one photo only", f"{person} is in no other file, so there is no reference"))
        else:
            drops.append(_drop(one, "nothing to pair with", f"all {len(members) - 1} others of {person} look the same"))
    if roles and not is_learned:
        drops += [
            Drop(item=role.finding.item.name, reason="no target", detail=f"no captioned picture of {person}") for role in roles
        ]
        return [], drops
    return roles, drops


def _choose(key: str, others: Sequence[Candidate], references: int, seed: int) -> tuple[str, ...]:
    """Some of the others, drawn by seed and key; one of every file before a second of any."""
    drawn = sorted(others, key=lambda other: hashlib.sha256(f"{seed}/{key}/{other.key}".encode()).digest())
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int, str]] = []
    for other in drawn:
        rounds.append((seen[other.finding.item.file], len(rounds), other.key))
        seen[other.finding.item.file] += 1
    return tuple(chosen for *_, chosen in sorted(rounds)[:references])


def _drop(one: Candidate, reason: str, detail: str) -> Drop:
    return Drop(item=one.finding.item.name, reason=reason, detail=detail)
