"""Estimates that never stand without their n, and intervals that cover what they say they cover."""

import math
import sys

import numpy as np
import pytest

from lynx_video.errors import BadData, MissingDependency
from lynx_video.evaluation.statistics import Estimate, decimals, estimate, paired, ranks


def clustered(rng, subjects=20, clips=5, between=1.0, within=1.0):
    """Values with mean 0, and whose they are: clips of one subject are alike."""
    values = np.repeat(rng.normal(0, between, subjects), clips) + rng.normal(0, within, subjects * clips)
    return values.tolist(), [f"s{i // clips:03}" for i in range(subjects * clips)]


def width(one):
    return one.high - one.low


def test_mean_and_counts():
    found = estimate([0.2, 0.4, None, 0.9], ["a", "a", "a", "b"], worst=1)
    assert found.mean == pytest.approx(0.5)  # over clips, not over the means of subjects
    assert (found.n, found.subjects, found.left_out, found.worst) == (3, 2, 1, 1)
    assert found.low == pytest.approx(0.3)  # two subjects: drawn twice the one, or the other
    assert found.high == pytest.approx(0.9)


def test_text_has_its_n():
    whole = Estimate(mean=0.87, low=0.85, high=0.89, n=800, subjects=40)
    assert str(whole) == "0.87 [0.85, 0.89], n = 800 of 40 subjects"
    assert f"{whole:.3f}" == "0.870 [0.850, 0.890], n = 800 of 40 subjects"
    assert f"{whole}" == str(whole)
    assert str(estimate([0.5, 0.7], ["a", "a"])) == "0.60, n = 2 of 1 subject (one subject: no interval)"
    assert str(estimate([None, None], ["a", "b"])) == "not measured, n = 0, 2 left out"
    assert (
        str(Estimate(mean=0.004, low=0.0031, high=0.005, n=9, subjects=3))
        == "0.0040 [0.0031, 0.0050], n = 9 of 3 subjects (few subjects: too narrow)"
    )
    failed = Estimate(mean=0.5, low=0.4, high=0.6, n=20, subjects=8, left_out=2, worst=3)
    assert str(failed).endswith("n = 20 of 8 subjects, 3 of them failed and counted as the worst, 2 left out")
    with pytest.raises(TypeError):
        float(whole)
    with pytest.raises(ValueError, match="format"):
        f"{whole:x}"


def test_one_subject_has_no_interval():
    found = estimate([0.1, 0.9, 0.5], ["a"] * 3)
    assert (found.low, found.high, found.excludes_zero) == (None, None, None)


def test_the_order_of_clips_changes_no_bit():
    values, subjects = clustered(np.random.default_rng(0))
    values[7] = None
    found = estimate(values, subjects)
    assert estimate(values, subjects) == found
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(values))
        assert estimate([values[i] for i in order], [subjects[i] for i in order]) == found


def test_clips_of_one_subject_are_no_independent_draws():
    values, subjects = clustered(np.random.default_rng(1), clips=20)
    naive = estimate(values, [str(i) for i in range(len(values))])  # as if every clip were somebody else
    honest = estimate(values, subjects)
    assert width(honest) > 2.5 * width(naive)  # sqrt(1 + 19 * 0.5) = 3.2 is the theory
    # clips that have nothing of their subject: no difference but noise
    values, subjects = clustered(np.random.default_rng(1), subjects=40, clips=20, between=0.0)
    naive = estimate(values, [str(i) for i in range(len(values))])
    assert width(estimate(values, subjects)) == pytest.approx(width(naive), rel=0.25)


@pytest.mark.parametrize(("subjects", "said"), [(2, 0.50), (5, 0.92), (10, 0.94), (40, 0.95)])
def test_intervals_cover_what_they_say(subjects, said):
    """As the module says, within three standard errors of the simulation."""
    rng = np.random.default_rng(2)
    runs = 300
    covered = naive = 0
    for _ in range(runs):
        values, names = clustered(rng, subjects)
        found = estimate(values, names)
        covered += found.low <= 0 <= found.high
        wrong = estimate(values, [str(i) for i in range(len(values))])
        naive += wrong.low <= 0 <= wrong.high
    assert covered / runs == pytest.approx(said, abs=3 * math.sqrt(said * (1 - said) / runs))
    assert naive / runs < 0.8 or subjects == 2


def test_against_the_theory_of_the_mean():
    """One clip a subject: the interval is that of Student, within the noise of the draws."""
    values = np.random.default_rng(3).normal(0.5, 0.1, 30)
    found = estimate(values.tolist(), [str(i) for i in range(30)])
    student = 2.045 * values.std(ddof=1) / math.sqrt(30)
    assert found.high - found.mean == pytest.approx(student, rel=0.1)
    assert found.mean - found.low == pytest.approx(student, rel=0.1)


def test_a_pair_says_more_than_two_means():
    values, subjects = clustered(np.random.default_rng(4), within=0.3)
    later = [value + 0.2 + 0.1 * noise for value, noise in zip(values, np.random.default_rng(5).normal(size=100), strict=True)]
    found = paired(values, later, subjects)
    assert found.mean == pytest.approx(0.2, abs=0.05)
    assert found.excludes_zero
    assert width(found) < 0.2 * width(estimate(values, subjects))
    assert paired(later, values, subjects).mean == pytest.approx(-found.mean)
    assert paired(values, values, subjects).excludes_zero is False


def test_a_pair_that_lacks_a_value_is_left_out():
    found = paired([0.1, None, 0.3], [0.2, 0.5, None], ["a", "b", "c"])
    assert (found.mean, found.n, found.left_out) == (pytest.approx(0.1), 1, 2)


def test_ranks():
    values, subjects = clustered(np.random.default_rng(6))
    scores = {
        "low": [value - 3 for value in values],
        "best": [value + 1 for value in values],
        "near": [
            value + 1 - 0.01 * noise for value, noise in zip(values, np.random.default_rng(7).normal(1, 5, 100), strict=True)
        ],
    }
    found = ranks(scores, subjects)
    assert (found["low"].place, found["low"].low, found["low"].high) == (3, 3, 3)  # always
    assert {found["best"].place, found["near"].place} == {1, 2}
    assert (found["best"].low, found["best"].high) == (1, 2)  # cannot be told from "near"
    assert str(found["low"]) == "3 [3, 3] of 3, n = 100 of 20 subjects"
    assert ranks(scores, subjects, "low")["low"].place == 1
    equal = ranks({"a": values, "b": list(values)}, subjects)
    assert [(one.place, one.low, one.high) for one in equal.values()] == [(1, 1, 1)] * 2


def test_ranks_only_where_all_have_a_value():
    found = ranks({"a": [0.9, 0.1, None], "b": [0.5, None, 0.9]}, ["x", "x", "y"])
    assert (found["a"].place, found["a"].n, found["a"].subjects, found["a"].low) == (1, 1, 1, None)
    assert ranks({"a": [None], "b": [0.1]}, ["x"]) == {}


def test_json_and_bad_values():
    found = estimate([0.1, 0.2], ["a", "b"])
    assert Estimate.from_json(found.to_json(), "here") == found
    with pytest.raises(BadData, match="here: no estimate"):
        Estimate.from_json({"mean": 1.0}, "here")
    with pytest.raises(BadData, match="here: no estimate"):
        Estimate.from_json(None, "here")
    with pytest.raises(ValueError, match="finite"):
        estimate([0.1, math.nan], ["a", "b"])
    with pytest.raises(ValueError):
        estimate([0.1, 0.2], ["a"])


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[evaluate\]'"):
        estimate([0.1, 0.2], ["a", "b"])


@pytest.mark.parametrize(
    ("values", "places"), [([0.5], 2), ([1.0, 0.25], 2), ([12.5], 0), ([1.5, 0.1], 1), ([0.0034], 4), ([], 2), ([0.0], 2)]
)
def test_digits(values, places):
    assert decimals(values) == places
