"""The step cache: which steps are computed, and that nothing changes while all are."""

import math
from itertools import pairwise

import pytest
import torch

from lynx_video.errors import BadWeights
from lynx_video.runtime.cache import (
    Calibration,
    cache_,
    computed_steps,
    mean_of,
)

LEVELS = (1.0, 0.8, 0.5, 0.1)
KNOWN = Calibration(sigmas=LEVELS, drift=(0.5, 0.1, 0.3), clips=2)


def test_drift_is_linear_between_the_levels():
    assert [KNOWN.total(sigma) for sigma in LEVELS] == pytest.approx([0, 0.5, 0.6, 0.9])
    assert KNOWN.total(0.9) == pytest.approx(0.25)
    assert KNOWN.total(0.65) == pytest.approx(0.55)
    assert KNOWN.total(2.0) == 0
    assert KNOWN.total(0.0) == pytest.approx(0.9)


def test_a_step_is_skipped_while_the_drift_since_the_last_computed_one_is_small():
    sigmas = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1)  # totals 0 .25 .5 .533 .567 .6 .75 .9
    assert computed_steps(KNOWN, sigmas, 0.001) == (True,) * 8
    assert computed_steps(KNOWN, sigmas, 0.11) == (True, True, True, False, False, False, True, True)
    assert computed_steps(KNOWN, sigmas, 0.07) == (True, True, True, False, False, True, True, True)
    assert computed_steps(KNOWN, sigmas, 100) == (True, *[False] * 6, True)
    assert computed_steps(KNOWN, sigmas[:1], 100) == (True,)


def test_more_is_never_computed_at_a_higher_threshold():
    sigmas = [1 - i / 50 for i in range(50)]
    counts = [sum(computed_steps(KNOWN, sigmas, threshold)) for threshold in (0.001, 0.01, 0.05, 0.1, 0.3, 1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 45
    assert counts[-1] == 2


def test_a_mean_over_clips():
    other = Calibration(sigmas=LEVELS, drift=(0.7, 0.1, 0.1))
    assert mean_of([KNOWN, other]) == Calibration(sigmas=LEVELS, drift=(0.6, 0.1, 0.2), clips=3)
    with pytest.raises(BadWeights, match="same steps"):
        mean_of([KNOWN, Calibration(sigmas=(1.0, 0.5), drift=(0.7,))])


@pytest.mark.parametrize(
    ("sigmas", "drift"),
    [
        ((1.0,), ()),
        ((0.5, 1.0), (0.1,)),
        ((1.0, 1.0), (0.1,)),
        ((1.0, 0.5), (0.1, 0.1)),
        ((1.0, 0.5), (-0.1,)),
        ((1.0, 0.5), (math.nan,)),
    ],
)
def test_no_calibration(sigmas, drift):
    with pytest.raises(BadWeights, match="calibrat"):
        Calibration(sigmas=sigmas, drift=drift)


@pytest.fixture
def inputs(golden):
    data = golden("full_two_pass")
    return data["initial_latents"], torch.tensor([999.0]), data["prompt_embeds"]


@torch.no_grad()
def test_computed_steps_equal_those_without_a_cache(attached, inputs):
    transformer = attached("full").transformer
    plain = transformer(*inputs, return_dict=False)[0]
    cache = cache_(transformer)
    assert torch.equal(transformer(*inputs, return_dict=False)[0], plain)
    with cache.step("prompt", compute=True):
        assert torch.equal(transformer(*inputs, return_dict=False)[0], plain)
    assert list(cache.added) == ["prompt"]
    cache.remove()
    assert torch.equal(transformer(*inputs, return_dict=False)[0], plain)
    assert cache.added == {}


@torch.no_grad()
def test_a_skipped_step_runs_no_block_and_adds_what_was_added(attached, inputs):
    transformer = attached("full").transformer
    ran = []
    for block in transformer.blocks:
        block.ffn.register_forward_hook(lambda *_: ran.append(1))
    plain = transformer(*inputs, return_dict=False)[0]
    cache = cache_(transformer)
    with cache.step("prompt", compute=True):
        transformer(*inputs, return_dict=False)
    ran.clear()
    with cache.step("prompt", compute=False):
        again = transformer(*inputs, return_dict=False)[0]
    assert ran == []
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-5)  # same input: what it adds is what it would compute
    with cache.step("none", compute=False):  # this pass has nothing kept
        transformer(*inputs, return_dict=False)
    assert len(ran) == len(transformer.blocks)
    ran.clear()
    transformer(*inputs, return_dict=False)  # outside of any step: always computed, never kept
    assert len(ran) == len(transformer.blocks)
    assert sorted(cache.added) == ["none", "prompt"]


@torch.no_grad()
def test_what_is_measured(attached, inputs):
    transformer = attached("full").transformer
    latents, timestep, text = inputs
    cache = cache_(transformer)
    cache.measure = True
    entered, added = [], []
    transformer.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    transformer.blocks[-1].register_forward_hook(lambda _m, _a, out: added.append(out - entered[-1]))
    for scale in (1.0, 0.9, 0.7):
        with cache.step("prompt", compute=True):
            transformer(latents * scale, timestep, text, return_dict=False)
    expected = [float((b - a).norm() / b.norm()) for a, b in pairwise(added)]
    found = cache.calibration([1.0, 0.9, 0.7])
    assert found.drift == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 1e-3
    with pytest.raises(BadWeights, match="whole run"):
        cache.calibration([1.0, 0.9])
