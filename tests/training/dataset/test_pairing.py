"""Duplicates go, people are found, and no target is ever learned with its own file or with a picture that looks like it."""

import dataclasses
import itertools
import random

import numpy as np
import pytest

from lynx_video.training.dataset.config import Bucket
from lynx_video.training.dataset.finding import Finding
from lynx_video.training.dataset.framing import View
from lynx_video.training.dataset.pairing import Candidate, assign_roles
from lynx_video.training.dataset.source import Item

VIEW = View(bucket=Bucket(9, 64, 64), times=(), scaled=(64, 64), corner=(0, 0))
_numbers = itertools.count()


def candidate(name, face=0, person=None, content=None, target=True, looks=None, kind="clip", part=(None, None)):
    """An item whose vector points along axis `face`; its thumbnails are noise of its own, unless given."""
    vector = np.zeros(512, np.float32)
    vector[face] = 1
    if looks is None:
        looks = np.random.default_rng(next(_numbers)).integers(0, 255, (5 if kind == "clip" else 1, 16, 16), dtype=np.uint8)
    return Candidate(
        finding=Finding(
            item=Item(key=f"{name}-{part[0]}", file=name, person=person, start=part[0], stop=part[1]),
            kind=kind,
            content=content or name,
            clip=VIEW if target else None,
            still=None,
            moment=0.0,
            span=50.0,
            sharpness=0.1,
            yaw=0.0,
        ),
        vector=vector,
        thumbnails=looks,
    )


def assign(candidates, references=3, seed=0, near=3.0):
    roles, drops = assign_roles(candidates, same_person=0.5, near=near, references=references, seed=seed)
    return {role.finding.item.key.removesuffix("-None"): role for role in roles}, {
        drop.item: (drop.reason, drop.detail) for drop in drops
    }


def test_faces_make_people_and_people_make_pairs():
    roles, drops = assign([candidate(f"{who}{number}", face=i) for i, who in enumerate("ab") for number in range(3)])
    assert not drops
    assert {role.person for key, role in roles.items() if key[0] == "a"} == {"unnamed-00001"}
    assert {role.person for key, role in roles.items() if key[0] == "b"} == {"unnamed-00002"}
    for key, role in roles.items():
        assert {other[0] for other in role.references} == {key[0]}
        assert len(set(role.references)) == 2


def test_a_known_name_counts_more_than_the_face():
    roles, drops = assign([candidate("a0", 0, "ann"), candidate("a1", 1, "ann"), candidate("b0", 0), candidate("b1", 0)])
    assert not drops
    assert {key: role.person for key, role in roles.items()} == {
        "a0": "ann",
        "a1": "ann",
        "b0": "unnamed-00001",
        "b1": "unnamed-00001",
    }


def test_a_made_up_name_is_never_one_that_is_given():
    given = [candidate(f"a{number}", 0, "unnamed-00001") for number in range(2)]
    roles, _ = assign([*given, candidate("b0", 1), candidate("b1", 1)])
    assert roles["a0"].person == "unnamed-00001"
    assert roles["b0"].person == "unnamed-00002"


def test_parts_of_a_clip_are_no_references_of_each_other():
    parts = [candidate("film", 0, part=(i, i + 1)) for i in range(4)]
    roles, drops = assign([*parts, candidate("other", 0)], references=3)
    assert not drops
    for key, role in roles.items():
        mine = key.split("-")[0]
        assert role.references
        assert all(not reference.startswith(mine) for reference in role.references)
    assert roles["film-0"].references == ("other-None",)
    assert len(roles["other"].references) == 3
    _, drops = assign(parts)
    assert {reason for reason, _ in drops.values()} == {"one photo only"}
    assert len(drops) == 4


def test_one_of_every_file_comes_before_a_second_of_any():
    parts = [candidate("film", 0, part=(i, i + 1)) for i in range(20)]
    roles, _ = assign([*parts, candidate("x", 0), candidate("y", 0), candidate("z", 0)], references=3)
    files = {reference.rsplit("-", 1)[0] for reference in roles["x"].references}
    assert files == {"film", "y", "z"}


def test_pairs_depend_on_seed_and_key_alone():
    crowd = [candidate(f"a{number:02d}", 0) for number in range(12)]
    first, _ = assign(crowd)
    shuffled = crowd.copy()
    random.Random(1).shuffle(shuffled)
    assert assign(shuffled)[0] == first
    assert {key: role.references for key, role in assign(crowd, seed=1)[0].items()} != {
        key: role.references for key, role in first.items()
    }
    assert len({role.references for role in first.values()}) > 6
    assert all(len(role.references) == 3 for role in first.values())


def test_equal_bytes_are_a_duplicate_even_under_two_names():
    roles, drops = assign(
        [candidate("a0", 0, "ann", content="x"), candidate("b0", 1, "bob", content="x"), candidate("a1", 0, "ann")]
    )
    assert drops == {"b0": ("duplicate", "the same bytes as a0")}
    assert set(roles) == {"a0", "a1"}


def test_of_two_copies_the_one_with_a_caption_stays():
    looks = np.random.default_rng(0).integers(20, 200, (1, 16, 16), dtype=np.uint8)
    for copies in ({"content": "x"}, {"looks": looks, "kind": "photo"}):
        roles, drops = assign([candidate("a0", target=False, **copies), candidate("a1", **copies), candidate("a2")])
        assert list(drops) == ["a0"]
        assert roles["a1"].references == ("a2-None",)


def test_a_clip_that_looks_the_same_throughout_is_a_duplicate():
    looks = np.random.default_rng(0).integers(20, 200, (5, 16, 16), dtype=np.uint8)
    again = looks + np.random.default_rng(1).integers(0, 3, looks.shape, dtype=np.uint8)
    roles, drops = assign([candidate("a0", looks=looks), candidate("a1", looks=again), candidate("a2")])
    assert drops == {"a1": ("duplicate", "looks the same as a0")}
    assert "a1-None" not in {key for role in roles.values() for key in role.references}


def test_what_shares_a_frame_is_kept_and_never_paired():
    looks = np.random.default_rng(0).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    overlapping = np.random.default_rng(1).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    overlapping[0] = looks[4]
    overlapping[1] = looks[1]  # one equal look at the same place is no duplicate either
    frame = candidate("a2", looks=looks[2:3].copy(), kind="photo")
    roles, drops = assign([candidate("a0", looks=looks), candidate("a1", looks=overlapping), frame, candidate("a3")])
    assert not drops
    assert set(roles["a0"].references) == {"a3-None"}
    assert set(roles["a1"].references) == {"a2-None", "a3-None"}
    assert set(roles["a2"].references) == {"a1-None", "a3-None"}
    assert set(roles["a3"].references) == {"a0-None", "a1-None", "a2-None"}
    assert not assign([candidate("a0", looks=looks), candidate("a1", looks=overlapping)])[0]


def test_who_has_one_file_or_only_lookalikes_is_dropped():
    looks = np.random.default_rng(0).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    still = candidate("b1", 1, looks=looks[:1].copy(), kind="photo")
    roles, drops = assign([candidate("a0", 0), candidate("b0", 1, looks=looks), still])
    assert not roles
    assert drops["a0"] == ("one photo only", "unnamed-00001 is in no other file, so there is no reference")
    assert drops["b0"] == ("nothing to pair with", "all 1 others of unnamed-00002 look the same")


def test_references_alone_are_no_person_to_learn():
    roles, drops = assign([candidate("a0", target=False), candidate("a1", target=False)])
    assert not roles
    assert {reason for reason, _ in drops.values()} == {"no target"}
    roles, drops = assign([candidate("a0"), candidate("a1", target=False)])
    assert not drops
    assert roles["a0"].references == ("a1-None",)
    assert roles["a1"].references == ()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_target_gets_more_references_than_asked_for(count):
    roles, _ = assign([candidate(f"a{number}") for number in range(4)], references=count)
    assert {len(role.references) for role in roles.values()} == {min(count, 3)}


def test_a_candidate_is_its_items_key():
    one = candidate("a")
    assert one.key == one.finding.item.key
    assert dataclasses.replace(one.finding, clip=None).is_target is False
