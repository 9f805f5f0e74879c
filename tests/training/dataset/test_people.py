"""Grouping is average linkage, exactly, in whatever order the vectors come."""

import numpy as np
import pytest

from lynx_video.training.dataset import people
from lynx_video.training.dataset.people import connected_pieces, group_people


def unit(array):
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


def crowd(count, members, spread, seed, width=16):
    """count people whose vectors lie about as far apart as spread says; their owners."""
    rng = np.random.default_rng(seed)
    middles = unit(rng.normal(size=(count, width)))
    owner = np.repeat(np.arange(count), members)
    return unit(middles[owner] + spread * rng.normal(size=(len(owner), width)) / np.sqrt(width)), owner


def plain(vectors, threshold):
    """Average linkage as the definition says: merge the two nearest groups until none are near enough."""
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    groups = [[i] for i in range(len(vectors))]
    while len(groups) > 1:
        best = max((cosines[np.ix_(a, b)].mean(), -i, -j) for i, a in enumerate(groups) for j, b in enumerate(groups) if i < j)
        if best[0] < threshold:
            break
        i, j = -best[1], -best[2]
        groups[i] += groups.pop(j)
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_groups_are_those_of_the_definition(seed, threshold):
    vectors, _ = crowd(8, 5, 1.0, seed)
    assert group_people(vectors, threshold) == plain(vectors, threshold)


def test_the_order_does_not_matter():
    vectors, _ = crowd(20, 6, 0.9, 1)
    order = np.random.default_rng(0).permutation(len(vectors))
    back = group_people(vectors[order], 0.5)
    assert sorted(sorted(order[group].tolist()) for group in map(np.array, back)) == group_people(vectors, 0.5)


def test_blocks_make_no_difference(monkeypatch):
    vectors, _ = crowd(20, 6, 0.9, 2)
    whole = group_people(vectors, 0.5)
    monkeypatch.setattr(people, "_BLOCK", 7)
    assert group_people(vectors, 0.5) == whole


def test_a_chain_of_lookalikes_is_not_one_person():
    """Neighbours on an arc resemble each other, its ends do not: single linkage would make them one."""
    angles = np.linspace(0, np.pi, 13)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert len(connected_pieces(vectors, 0.9)) == 1
    groups = group_people(vectors, 0.9)
    assert len(groups) > 3
    for group in groups:
        assert (vectors[group] @ vectors[group].T).mean() >= 0.9


def test_many_people_are_told_apart_in_seconds():
    vectors, owner = crowd(1500, 4, 0.5, 3, width=512)
    groups = group_people(vectors, 0.5)
    assert len(groups) == 1500
    assert all(len(set(owner[group].tolist())) == 1 for group in groups)


def test_one_and_equal_vectors():
    vectors, _ = crowd(1, 1, 0, 0)
    assert group_people(vectors, 0.5) == [[0]]
    assert group_people(vectors.repeat(5, 0), 0.99) == [[0, 1, 2, 3, 4]]
