"""From examples to samples: conditions are dropped independently, at the shares asked for, and draws don't depend on the process."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lynx_video.errors import BadData
from lynx_video.training.feed import Feed, draw_sample, padded
from lynx_video.training.order import Cursor, Order
from lynx_video.training.shards import Shards


@pytest.fixture
def shards(noise_set):
    return Shards(noise_set)


def state_of(sample, shards):
    """(text, identity, reference), each "own", "dropped" or "off"."""
    conditions = shards.conditions
    text = "dropped" if torch.equal(sample.text, conditions.empty_text) else "own"
    face = "own" if sample.face.any() else "dropped"
    reference = "dropped" if torch.equal(sample.reference, conditions.nobody_reference) else "own"
    return (
        text,
        "off" if sample.identity_scale == 0 else face,
        "off" if sample.reference_scale == 0 else reference,
    )


@pytest.mark.parametrize("alone", [0.0, 1.0])
def test_conditions_are_dropped_independently(shards, small, alone):
    config = small(drop_text=0.3, drop_identity=0.4, drop_reference=0.2, alone=alone)
    example, generator = shards.read(shards.entries[0]), torch.Generator().manual_seed(0)
    count = 4000
    seen = Counter(state_of(draw_sample(example, shards.conditions, config, generator), shards) for _ in range(count))
    lost = "off" if alone else "dropped"
    for text, text_share in (("own", 0.7), ("dropped", 0.3)):
        for (identity, reference), share in {
            ("own", "own"): 0.6 * 0.8,
            (lost, "own"): 0.4 * 0.8,
            ("own", lost): 0.6 * 0.2,
            ("dropped", "dropped"): 0.4 * 0.2,
        }.items():
            assert seen[text, identity, reference] / count == pytest.approx(text_share * share, abs=0.03)
    assert sum(seen.values()) == count
    assert len(seen) == 8


def test_both_pictures_of_the_person_are_used_together(shards, small):
    config = small(drop_identity=0.0, drop_reference=0.0)
    example, generator = shards.read(shards.entries[0]), torch.Generator().manual_seed(0)
    seen = Counter()
    for _ in range(200):
        sample = draw_sample(example, shards.conditions, config, generator)
        which = next(i for i in range(2) if torch.equal(sample.face, example.faces[i]))
        assert torch.equal(sample.reference, example.references[which])
        seen[which] += 1
    assert min(seen.values()) > 60


def test_lite_has_no_reference(shards, small):
    sample = draw_sample(shards.read(shards.entries[0]), shards.conditions, small(arm="lite"), torch.Generator())
    assert sample.reference is None


def rations(shards, config, count, rank=0, processes=1):
    order = Order(shards.entries, config, (1, 2, 2))
    feed = Feed(shards, shards.entries, order, config, cursor=Cursor(), rank=rank, processes=processes)
    try:
        return [feed.take() for _ in range(count)]
    finally:
        feed.close()


def test_processes_share_what_one_would_take(shards, small):
    """Sample for sample and number for number, noise and noise levels included."""
    config = small(packs=4, timesteps="sample")
    alone = rations(shards, config, 5)
    pair = [rations(shards, config, 5, rank, 2) for rank in range(2)]
    for step, ration in enumerate(alone):
        shared = [pair[i % 2][step].packs[i // 2] for i in range(4)]
        for one, other in zip(ration.packs, shared, strict=True):
            assert torch.equal(one.timesteps, other.timesteps)
            for mine, theirs in zip(one.samples, other.samples, strict=True):
                assert torch.equal(mine.noise, theirs.noise)
                assert torch.equal(mine.latents, theirs.latents)
        assert ration.cursor == pair[0][step].cursor == pair[1][step].cursor


def test_noise_is_new_in_every_epoch(shards, small):
    config = small(stage="image", packs=1, tokens=10_000)
    first, second = rations(shards, config, 2)
    assert (first.cursor.epoch, second.cursor.epoch) == (1, 2)
    same = [
        torch.equal(a.noise, b.noise)
        for a in first.packs[0].samples
        for b in second.packs[0].samples
        if a.latents.shape == b.latents.shape and torch.equal(a.latents, b.latents)
    ]
    assert len(same) == len(first.packs[0].samples)
    assert not any(same)


@pytest.mark.parametrize("timesteps", ["pack", "sample"])
def test_noise_levels(shards, small, timesteps):
    for ration in rations(shards, small(timesteps=timesteps), 3):
        for pack in ration.packs:
            assert pack.timesteps.shape == ((1,) if timesteps == "pack" else (len(pack.samples),))
            assert ((pack.timesteps > 0) & (pack.timesteps < 1000)).all()


def test_text_is_padded_with_zeros():
    text = torch.ones(3, 4)
    assert torch.equal(padded(text, 5), torch.cat([text, torch.zeros(2, 4)]))
    with pytest.raises(BadData, match="caption of 3 tokens"):
        padded(text, 2)


def test_a_step_that_cannot_be_read_at_all(shards, small, monkeypatch):
    def read(entry):
        raise BadData(f"{entry.key} is broken")

    monkeypatch.setattr(shards, "read", read)
    with pytest.raises(BadData, match=r"no example of a whole step.*is broken"):
        rations(shards, small(), 1)


def test_an_unreadable_pack_is_replaced(shards, small, monkeypatch):
    """Every process must run the same number of packs, so one that is empty repeats another."""
    config = small(packs=2)
    planned, _ = Order(shards.entries, config, (1, 2, 2)).take(Cursor(), 2)
    broken = {shards.entries[i].key for i in planned[0].examples}
    original = shards.read
    monkeypatch.setattr(shards, "read", lambda entry: _refuse(entry, broken) or original(entry))
    ration = rations(shards, config, 1)[0]
    assert len(ration.packs) == 2
    assert ration.packs[0] is ration.packs[1]
    assert len(ration.unreadable) == len(broken)


def _refuse(entry, broken):
    if entry.key in broken:
        raise BadData(f"{entry.key} is broken")


def test_noise_levels_follow_the_config(small):
    from lynx_video.flow import sample_sigmas, shifted

    generator = torch.Generator().manual_seed(0)
    uniform = sample_sigmas(20_000, replace(small(), sampling="uniform").timestep_sampling, generator)
    normal = sample_sigmas(20_000, replace(small(), sampling_mean=0.5).timestep_sampling, generator)
    moved = sample_sigmas(20_000, replace(small(), sampling="uniform", sampling_shift=3.0).timestep_sampling, generator)
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.005)
    assert torch.logit(normal).mean() == pytest.approx(0.5, abs=0.03)
    assert torch.logit(normal).std() == pytest.approx(1.0, abs=0.03)
    assert moved.median() == pytest.approx(float(shifted(torch.tensor(0.5), 3.0)), abs=0.01)
    assert float(shifted(torch.tensor(0.5), 3.0)) == 0.75
