"""The best of several seeds: each is scored, the best is kept, and all scores are told."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from lynx_video import GenerateConfig, generate, load
from lynx_video.errors import BadRequest
from lynx_video.nano.people import portrait
from lynx_video.pipeline.best import generate_best, worth
from lynx_video.pipeline.identify import identify

PROMPT = "a person nods wearing a red shirt in front of a white wall"
CONFIG = GenerateConfig(seed=3, num_inference_steps=4)


@pytest.fixture(scope="module")
def nano():
    return load("nano")


@pytest.fixture(scope="module")
def who(nano):
    return identify(nano.faces, portrait(5), reference_size=nano.defaults.reference_size).identity


def test_the_best_is_the_clip_of_the_seed_with_the_highest_score(nano, who):
    told = []
    clip, candidates = generate_best(nano, who, PROMPT, CONFIG, 3, on_candidate=told.append, facts={"portrait": "a.png"})
    assert told == candidates
    assert [one.seed for one in candidates] == [3, 4, 5]
    assert len({one.score for one in candidates}) == 3
    assert clip.seed == max(candidates, key=lambda one: one.score).seed
    alone = generate(nano, who, PROMPT, replace(CONFIG, seed=clip.seed))
    assert np.array_equal(clip.frames, alone.frames)
    assert clip.settings["best_of"] == [asdict(one) for one in candidates]
    assert clip.settings["seed"] == clip.seed
    assert clip.settings["portrait"] == "a.png"
    for one in candidates:
        assert one.prompt is None
        assert one.score == pytest.approx(one.similarity * one.coverage)


def test_prompt_following_can_overrule_likeness(nano, who):
    plain, _ = generate_best(nano, who, PROMPT, CONFIG, 2)
    other = {3: 4, 4: 3}[plain.seed]
    frames = {plain.seed: plain.frames}
    clip, candidates = generate_best(
        nano, who, PROMPT, CONFIG, 2, follow=lambda seen, _: 0.1 if np.array_equal(seen, frames[plain.seed]) else 1.0
    )
    assert clip.seed == other
    assert sorted(one.prompt for one in candidates) == [0.1, 1.0]


def test_of_equals_the_lowest_seed_is_kept(nano, who):
    clip, candidates = generate_best(nano, who, PROMPT, CONFIG, 2, follow=lambda *_: 0.0)
    assert [one.score for one in candidates] == [0.0, 0.0]
    assert clip.seed == 3


def test_a_clip_without_a_face_is_worth_nothing(nano, who):
    clip = generate(nano, who, PROMPT, CONFIG)
    assert worth(replace(clip, similarity=None, coverage=0.0), 1.0).score == 0
    assert worth(replace(clip, similarity=-0.2, coverage=1.0), None).score == 0
    assert worth(replace(clip, similarity=0.5, coverage=0.5), 0.5).score == 0.125


def test_without_a_recogniser_there_is_no_best(nano, who):
    with pytest.raises(BadRequest, match="needs a recogniser"):
        generate_best(replace(nano, faces=replace(nano.faces, judges={})), who, PROMPT, CONFIG, 2)
    with pytest.raises(BadRequest, match="aligned crop"):
        generate_best(nano, replace(who, aligned=None), PROMPT, CONFIG, 2)
    with pytest.raises(BadRequest, match="got 0"):
        generate_best(nano, who, PROMPT, CONFIG, 0)
