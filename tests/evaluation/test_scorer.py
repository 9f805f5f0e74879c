"""Scores of whole files: planted clips get what is known of them, and nothing but the clip changes its numbers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from planted import filmed

from lynx_video.errors import BadRequest
from lynx_video.evaluation.config import ScoreConfig
from lynx_video.evaluation.layouts import read_folder
from lynx_video.evaluation.metrics.catalogue import metric
from lynx_video.evaluation.scorer import open_recognisers, score_clips
from lynx_video.pipeline.models import MODELS, FaceModels

JUDGES = ("nano judge", "nano second judge", "nano encoder")


@pytest.fixture(scope="session")
def nano_faces():
    from pathlib import Path

    return partial(MODELS["nano"].faces, Path("models"))


@pytest.fixture(scope="session")
def score(here_pool, nano_faces):
    def call(entries, shelf, pool=here_pool, config=None, progress=lambda *_: None):
        records, facts = score_clips(
            entries, shelf, faces=nano_faces, pool=pool, probe=MODELS["nano"].probe, config=config, progress=progress
        )
        return {record.prompt_id: record for record in records}, facts

    return call


@pytest.fixture(scope="session")
def scored(planted, score, tmp_path_factory):
    return score(read_folder(planted)[0], tmp_path_factory.mktemp("shelf"))[0]


def test_every_score_is_in_the_catalogue_and_says_how_many_it_rests_on(scored):
    for record in scored.values():
        assert set(record.counts) == set(record.scores)
        for name, value in record.scores.items():
            assert metric(name)
            assert (value is None) == (name in record.missing)
            if value is not None:
                assert record.counts[name] > 0
    assert scored["honest-0-0"].counts["similarity/nano judge"] == 9


@pytest.mark.parametrize("judge", JUDGES)
def test_a_clip_of_another_person_scores_as_another_person(scored, judge):
    own = [record.scores[f"similarity/{judge}"] for name, record in scored.items() if name.startswith("honest")]
    assert min(own) > 0.7
    assert scored["stranger"].scores[f"similarity/{judge}"] < 0.5
    assert scored["stranger"].scores["coverage"] == 1


def test_a_frozen_photo_is_caught_as_copying(scored):
    # a drawn face that only moves aside is the photo's, pixel by pixel: those that turn are honest
    honest = [scored[f"honest-{i}-0"].scores["pasted"] for i in range(3)]
    assert scored["frozen"].scores["pasted"] > max(honest) + 0.03
    assert scored["frozen"].scores["pasted"] > max(honest[:2]) + 0.3, "the third has hardly any features that could move"
    assert scored["frozen"].scores["yaw_spread"] == pytest.approx(0, abs=0.2)
    assert scored["frozen"].scores["motion_amount"] == pytest.approx(0, abs=1e-3)


def test_a_face_that_leaves_half_the_frames_is_covered_by_half(scored):
    record = scored["half"]
    assert record.scores["coverage"] == 0.5
    assert record.counts["similarity/nano judge"] == 5
    assert record.scores["kept/nano judge"] == pytest.approx(record.scores["similarity/nano judge"] / 2)
    curve = record.per_frame["nano judge"]
    assert [value is None for value in curve] == [False] * 5 + [True] * 5
    assert np.mean(curve[:5]) == pytest.approx(record.scores["similarity/nano judge"], abs=1e-4)
    assert record.failure == ""


def test_shuffled_frames_raise_flicker_and_nothing_about_who_it_is(scored):
    before, after = scored["in-order"], scored["shuffled"]
    assert after.scores["flicker"] > 1.5 * before.scores["flicker"]
    assert after.scores["similarity/nano judge"] == pytest.approx(before.scores["similarity/nano judge"], abs=0.02)


def test_probes_read_what_was_drawn(scored):
    for name in ("honest-0-0", "honest-1-0"):
        assert scored[name].scores["probe/prompt"] == 1
        assert scored[name].scores["probe/motion"] == 1
    assert scored["honest-0-1"].scores["probe/motion"] == 0, "it moves to the left, and was asked to nod"


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("empty", "no frame has a face"),
        ("cut", "does not decode: not a video that can be read"),
        ("text", "does not decode: not a video that can be read"),
        ("gone", "the clip is not there"),
    ],
)
def test_what_is_wrong_with_a_clip_is_named(scored, name, failure):
    record = scored[name]
    assert record.failure.startswith(failure)
    assert record.scores.get("similarity/nano judge") is None
    if name == "empty":
        assert record.scores["coverage"] == 0
        assert record.missing["similarity/nano judge"] == "no frame has a face"
    else:
        assert record.scores == {}


def test_no_face_in_the_reference_is_not_the_clips_fault(scored):
    record = scored["nobody"]
    assert record.failure == ""
    assert record.missing["similarity/nano judge"] == "the reference photo cannot be used: no face was found in it"
    assert record.missing["pasted"] == record.missing["similarity/nano judge"]
    assert record.scores["coverage"] == 1
    assert record.scores["consistency/nano judge"] > 0.8


def test_a_second_run_scores_nothing_again(planted, score, tmp_path):
    entries = read_folder(planted)[0][:4]
    first, facts = score(entries, tmp_path)
    assert facts["scored_now"] == 4
    seen = []
    again, facts = score(entries, tmp_path, progress=lambda *now: seen.append(now))
    assert facts["scored_now"] == 0
    assert seen == []
    assert again == first
    changed, facts = score(entries, tmp_path, config=ScoreConfig(frames=3))
    assert facts["scored_now"] == 4, "another way of looking is another score"
    assert {record.counts["coverage"] for record in changed.values() if record.scores} == {3}


def test_another_order_gives_the_same_numbers(planted, score, scored, tmp_path):
    again, _ = score(read_folder(planted)[0][::-1], tmp_path)
    assert again == scored


@pytest.mark.filterwarnings("ignore")
def test_on_two_ray_workers_the_numbers_are_the_same(planted, score, scored, ray_pool, tmp_path):
    again, _ = score(read_folder(planted)[0], tmp_path, pool=ray_pool)
    assert again == scored


def test_a_changed_clip_is_scored_anew(planted, score, tmp_path):
    from lynx_video.media.video import write_video

    entries = [one for one in read_folder(planted)[0] if one.prompt_id == "honest-0-0"]
    copy = tmp_path / "clip.mp4"
    copy.write_bytes(entries[0].clip.read_bytes())
    mine = [replace(entries[0], clip=copy)]
    first = score(mine, tmp_path / "shelf")[0]["honest-0-0"]
    write_video(copy, filmed(7, 5), 8.0)
    second = score(mine, tmp_path / "shelf")[0]["honest-0-0"]
    assert second.scores["similarity/nano judge"] < 0.5 < first.scores["similarity/nano judge"]


def test_the_model_is_never_scored_only_by_what_it_was_conditioned_on(nano_faces):
    faces = nano_faces()
    recognisers, cautions = open_recognisers(faces)
    assert list(recognisers.models) == list(JUDGES)
    assert recognisers.conditioned == "nano encoder"
    assert cautions == []
    assert all(len(text) == 64 for text in recognisers.hashes().values())
    alone = FaceModels(detector=faces.detector, encoder=faces.encoder, encoder_name="nano encoder")
    with pytest.raises(BadRequest, match="would flatter it"):
        open_recognisers(alone)


def test_one_recogniser_alone_is_a_caution(nano_faces):
    from lynx_video.errors import BadWeights

    def missing():
        raise BadWeights("encoder.safetensors is not there.")

    faces = nano_faces()
    alone = FaceModels(detector=faces.detector, encoder=missing, judges={"nano judge": faces.judges["nano judge"]})
    recognisers, cautions = open_recognisers(alone)
    assert recognisers.conditioned == ""
    assert len(cautions) == 1
    assert "second opinion" in cautions[0]
