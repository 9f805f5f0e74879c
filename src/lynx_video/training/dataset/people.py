"""Who is who: face vectors of one person found together by average linkage, exactly, whatever their order.

Two groups become one where the mean cosine between their members is highest, as long as it reaches the threshold. Since a mean of
cosines only reaches it if one of them does, groups never reach beyond the connected pieces of the graph "cosine >= threshold":
those are found first, by blocks; within a piece nearest neighbours are followed until two are each other's (NN-chain, Murtagh 1983;
exact for average linkage).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME_PERSON = 0.5  # between ArcFace vectors of photographs; two pictures of different people have about 0.0 to 0.3
_BLOCK = 2048  # rows compared at a time: 16 MB of cosines
_SLACK = 1e-3  # pieces are found in float32; a little more than needed only makes them larger, not wrong


def group_people(vectors: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Indices of the vectors [N, 512] (of unit length) by person: each group ascends, the groups by their first member."""
    groups: list[list[int]] = []
    for piece in connected_pieces(vectors, threshold - _SLACK):
        groups += _linked(vectors, piece, threshold)
    return sorted(sorted(group) for group in groups)


def connected_pieces(vectors: NDArray[np.float32], threshold: float) -> list[list[int]]:
    """Indices of the vectors [N, 512] (of unit length) that hang together by pairs of at least this cosine; by first member."""
    parent = list(range(len(vectors)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for start in range(0, len(vectors), _BLOCK):
        for other in range(start, len(vectors), _BLOCK):
            rows, columns = np.nonzero(vectors[start : start + _BLOCK] @ vectors[other : other + _BLOCK].T >= threshold)
            for a, b in zip((rows + start).tolist(), (columns + other).tolist(), strict=True):
                if a < b and (one := root(a)) != (two := root(b)):
                    parent[max(one, two)] = min(one, two)
    pieces: dict[int, list[int]] = {}
    for index in range(len(vectors)):
        pieces.setdefault(root(index), []).append(index)
    return list(pieces.values())


def _linked(vectors: NDArray[np.float32], piece: Sequence[int], threshold: float) -> list[list[int]]:
    """The groups within a piece. The mean cosine between two groups is the product of their sums over that of their sizes."""
    sums, sizes = vectors[list(piece)].astype(np.float64), np.ones(len(piece))
    members = [[index] for index in piece]
    waiting = np.ones(len(piece), dtype=bool)
    groups: list[list[int]] = []
    chain: list[int] = []
    while waiting.any():
        if not chain:
            chain.append(int(np.argmax(waiting)))
        tip = chain[-1]
        likeness = np.where(waiting, sums @ sums[tip] / (sizes * sizes[tip]), -np.inf)
        likeness[tip] = -np.inf
        nearest = int(np.argmax(likeness))
        # Of equally near ones the one it came from, or the chain might run in a circle.
        if len(chain) > 1 and likeness[chain[-2]] >= likeness[nearest]:
            nearest = chain[-2]
        if likeness[nearest] < threshold:
            groups.append(members[tip])  # merging others makes none of them nearer than the nearest was
            waiting[tip] = False
            chain.pop()
        elif len(chain) > 1 and nearest == chain[-2]:
            sums[nearest] += sums[tip]
            sizes[nearest] += sizes[tip]
            members[nearest] += members[tip]
            waiting[tip] = False
            del chain[-2:]
        else:
            chain.append(nearest)
    return groups
