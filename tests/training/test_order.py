"""Which packs, in which order: within the budget, nothing lost, the same again, and the same for any number of processes."""

from collections import Counter

import pytest

from lynx_video.errors import BadData, BadRequest
from lynx_video.training.config import TrainConfig
from lynx_video.training.order import Cursor, Order, split_held_out, stable_seed, video_tokens
from lynx_video.training.shards import Entry

PATCH = (1, 2, 2)


def entry(i, shape, person="p"):
    return Entry(
        key=f"e{i}", shard="0.tar", offset=0, size=1, latent=shape, text_tokens=3, frames=1 if shape[0] == 1 else 9,
        height=8, width=8, caption="", person=person, source="", sources=(),
    )  # fmt: skip


@pytest.fixture
def entries():
    shapes = ((1, 8, 8), (1, 4, 4), (3, 8, 8), (2, 8, 12))
    return [entry(i, shapes[i % 4], f"p{i % 10}") for i in range(90)]


def config(**changes):
    return TrainConfig(**({"stage": "video", "tokens": 150} | changes))


def test_an_epoch_has_every_clip_once_and_its_share_of_stills(entries):
    order = Order(entries, config(still_share=0.25), PATCH)
    packs = order.epoch(0)
    seen = Counter(i for pack in packs for i in pack.examples)
    assert [i for i in seen if entries[i].frames > 1 and seen[i] != 1] == []
    assert {i for i in seen if entries[i].frames > 1} == {i for i, one in enumerate(entries) if one.frames > 1}
    tokens = {kind: sum(video_tokens(entries[i], PATCH) * n for i, n in seen.items() if (entries[i].frames == 1) == kind)
              for kind in (True, False)}  # fmt: skip
    assert tokens[True] / sum(tokens.values()) == pytest.approx(0.25, abs=0.02)
    for pack in packs:
        lengths = [video_tokens(entries[i], PATCH) for i in pack.examples]
        assert sum(lengths) <= 150
        same = len({entries[i].latent for i in pack.examples}) == 1
        assert pack.uniform == (same and sum(lengths) + lengths[0] > 150)


def test_image_stage_is_stills_only(entries):
    seen = Counter(i for pack in Order(entries, config(stage="image"), PATCH).epoch(0) for i in pack.examples)
    assert seen == Counter(i for i, one in enumerate(entries) if one.frames == 1)


def test_the_order_is_a_function_of_seed_and_epoch(entries):
    order = Order(entries, config(), PATCH)
    first, second = order.epoch(0), order.epoch(1)
    assert first != second
    assert Order(entries, config(), PATCH).epoch(0) == first
    assert order.epoch(0) == first
    assert Order(entries, config(seed=1), PATCH).epoch(0) != first


def test_taking_goes_through_epochs_without_loss(entries):
    order, cursor, taken = Order(entries, config(), PATCH), Cursor(), []
    length = len(order.epoch(0)) + len(order.epoch(1))
    while len(taken) < length:
        some, cursor = order.take(cursor, 4)
        assert len(some) == 4
        taken += some
    assert taken[:length] == order.epoch(0) + order.epoch(1)
    again, _ = Order(entries, config(), PATCH).take(Cursor(epoch=1, pack=2), 3)
    assert again == order.epoch(1)[2:5]


def test_what_cannot_be_packed_is_named(entries):
    with pytest.raises(BadData, match="e2 has 48 video tokens, a pack holds 40; say --tokens 48"):
        Order(entries, config(tokens=40), PATCH)
    stills = [one for one in entries if one.frames == 1]
    with pytest.raises(BadData, match="no clips"):
        Order(stills, config(), PATCH)
    with pytest.raises(BadData, match="no stills"):
        Order([one for one in entries if one.frames > 1], config(stage="image"), PATCH)


def test_held_out_people_are_out_entirely(entries):
    kept, out = split_held_out(entries, 12)
    assert {one.person for one in kept}.isdisjoint(one.person for one in out)
    assert 12 <= len(out) <= 20
    assert sorted(kept + out, key=lambda one: one.key) == sorted(entries, key=lambda one: one.key)
    assert split_held_out(entries, 0)[1] == []
    assert len({one.person for one in split_held_out(entries, 10_000)[1]}) == 2, "never more than a quarter of the people"


def test_seeds_are_stable():
    assert stable_seed(3, "order", 1) == stable_seed(3, "order", 1) != stable_seed(3, "order", 2)
    assert 0 <= stable_seed("x") < 2**63


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "--steps must be 1 or more"),
        ({"drop_text": 1.5}, "--drop-text is a share"),
        ({"average": 1.0}, "--average must be"),
        ({"learning_rate": 0.0}, "--learning-rate must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0"),
        ({"matrix_rate": -1.0}, "--matrix-rate must be above 0"),
        ({"sampling_spread": 0.0}, "spread"),
        ({"warmup": -1}, "--warmup must be 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, words):
    with pytest.raises(BadRequest, match=words):
        TrainConfig(**changes)


def test_the_rate_rises_and_falls():
    one = TrainConfig(steps=100, warmup=10, decay=0.5)
    assert [one.rate(step) for step in (0, 4, 9, 40, 50, 75, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.02])
    assert TrainConfig(warmup=0).rate(0) == 1.0
