"""What can be done on the page, without a page: asked, refused, expected, and done again."""

from dataclasses import replace

import numpy as np
import pytest
from opened import wait_until

from lynx_video.errors import BadRequest, LynxError
from lynx_video.media.image import file_hash
from lynx_video.media.video import read_video
from lynx_video.media.watermark import detect
from lynx_video.ui import view
from lynx_video.ui.session import LARGEST_SEED
from lynx_video.ui.words import about, examples, hint


@pytest.fixture(scope="module")
def ann(desk, pictures):
    return desk.portrait(pictures["one"], "ann.png")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "word " * 10_000}, "the prompt has 50000 characters"),
        ({"prompt": "a naked child"}, "minor"),
        ({"seed": None}, "the seed must be a whole number"),
        ({"seed": 1.5}, "the seed must be a whole number"),
        ({"seed": -1}, "the seed must be a whole number"),
        ({"seed": LARGEST_SEED + 1}, "the seed must be a whole number"),
        ({"watermark": False}, "needs a reason"),
        ({"watermark": False, "no_watermark": "  "}, "needs a reason"),
        ({"preset": "quickest"}, "unknown preset 'quickest'"),
        ({"values": {"width": 60}}, "nearest good values are 56 or 64"),
        ({"values": {"num_frames": 6}}, "nearest good values are 5 or 7"),
        ({"values": {"num_inference_steps": 0}}, "num_inference_steps must be a whole number"),
        ({"values": {"num_inference_steps": 2.5}}, "num_inference_steps must be a whole number"),
        ({"values": {"ip_start": 0.8, "ip_stop": 0.2}}, "a step window needs"),
    ],
)
def test_what_cannot_be_is_refused_before_it_waits(desk, form, ann, changes, words):
    with pytest.raises(LynxError, match=words):
        desk.ask(ann, form(**changes))
    assert list(desk.scratch.iterdir()) == []


def test_without_a_portrait_or_with_one_that_is_gone(desk, form, ann, tmp_path):
    with pytest.raises(BadRequest, match="there is no portrait yet"):
        desk.ask(None, form())
    with pytest.raises(BadRequest, match="drop it again"):
        desk.ask(replace(ann, path=tmp_path / "gone.png"), form())


def test_consent_can_be_demanded(desk, form, ann, monkeypatch):
    monkeypatch.setattr(desk, "consent_required", True)
    with pytest.raises(BadRequest, match="say who agreed"):
        desk.ask(ann, form(consent=" "))


def test_the_request_names_only_what_was_turned(desk, form, ann):
    asked = desk.request(ann, form(values={"ip_scale": 0.8}, seed=5.0, carried={"fps": 12.0}))
    assert asked.generation == {"fps": 12.0, "ip_scale": 0.8, "num_inference_steps": 3, "num_frames": 5, "seed": 5}
    assert isinstance(asked.generation["seed"], int)
    assert (asked.face_index, asked.name, asked.marks.no_watermark) == (0, "ann.png", "")


def test_consent_over_the_network_is_a_text_and_no_file(desk, form, ann, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    asked = desk.request(ann, form(consent=str(secret)))
    assert asked.marks.consent == str(secret)


def test_every_preset_is_expected_and_more_steps_take_longer(desk):
    settings = desk.settings("exact")
    usual = desk.outlooks("exact", settings)
    assert [one.preset for one in usual] == ["exact", "balanced", "fast", "draft"]
    assert all(one.seconds > 0 and one.memory > 0 and not one.refusal for one in usual)
    assert usual[0].seconds > usual[1].seconds > usual[3].seconds
    longer = desk.outlooks("exact", {**settings, "num_inference_steps": 40})
    assert longer[0].seconds > 1.5 * usual[0].seconds
    refused = desk.outlooks("exact", {**settings, "width": 60})
    assert all("multiple of 8" in one.refusal for one in refused)
    assert view.outlook_label(refused[0]) == "exact: not possible"
    assert "multiple of 8" in view.about_preset(refused[0])


def test_settings_again_make_the_same_clip(desk, form, ann):
    first = desk.ask(ann, form(values={"ip_scale": 0.7, "scheduler": "euler"}, seed=11, consent="drawn", preset="draft"))
    wait_until(lambda: first.ended)
    assert first.state == "done", first.said
    entry = desk.clip(first.target.name)
    again = desk.again(entry.record, ann)
    assert (again.seed, again.preset, again.consent, again.carried) == (11, "draft", "drawn", {})
    assert (again.values["ip_scale"], again.values["scheduler"], again.values["num_inference_steps"]) == (0.7, "euler", 3)
    assert entry.record["portrait_hash"] == ann.hash == file_hash(ann.path)
    second = desk.ask(ann, again)
    wait_until(lambda: second.ended)
    assert second.record["frames_hash"] == first.record["frames_hash"]
    assert second.target != first.target
    found, _ = desk.past(10)
    assert [entry.name for entry in found][:2] == [second.target.name, first.target.name]


def test_a_clip_without_a_mark_says_why(desk, form, ann):
    job = desk.ask(ann, form(watermark=False, no_watermark="for a measurement"))
    wait_until(lambda: job.ended)
    assert job.state == "done", job.said
    assert not detect(read_video(job.target)[0]).found
    shown = view.facts(job.record, alike=0.8)
    assert "none: for a measurement" in shown
    assert f"Similarity {job.record['similarity']:.2f}: " in shown
    again = desk.again(job.record, ann)
    assert (again.watermark, again.no_watermark) == (True, ""), "the reason was that clip's"
    assert "no watermark" in view.taken_over({}, job.record, "nano", ann.hash, False)


def test_who_agreed_goes_with_the_picture(desk, form, ann, pictures):
    job = desk.ask(ann, form(consent="Ann, by letter"))
    wait_until(lambda: job.ended)
    bob = desk.portrait(pictures["small"], "bob.png")
    for other in (bob, None):
        assert desk.again(job.record, other).consent == ""
        assert "not taken over" in view.taken_over({}, job.record, "nano", other and other.hash, False)
    assert desk.again(job.record, ann).consent == "Ann, by letter"


def test_the_face_that_was_chosen_is_the_one_in_the_clip(desk, form, pictures):
    family = desk.portrait(pictures["three"], "family.png")
    jobs = [desk.ask(family, form(face=face)) for face in (0, 2)]
    for job in jobs:
        wait_until(lambda job=job: job.ended)
    assert [job.record["face_index"] for job in jobs] == [0, 2]
    frames = [read_video(job.target)[0].astype(int) for job in jobs]
    assert np.abs(frames[0] - frames[1]).mean() > 5


def test_what_is_said_of_settings_taken_over():
    record = {"portrait_hash": "a", "model": "nano-lite"}
    said = view.taken_over({"ip_blocks": frozenset({2, 0})}, record, "nano", "b", True)
    for words in ("another picture", "has to be written again", "made with nano-lite", "ip_blocks 0, 2"):
        assert words in said
    assert view.taken_over({}, {"portrait_hash": "a", "model": "nano"}, "nano", "a", False).count(".") == 1
    assert "drop it above" in view.taken_over({}, {}, "nano", None, False)


def test_the_model_says_which_words_it_knows(desk):
    assert "drawn people only" in about(desk)
    assert "shakes the head" in hint(True)
    assert "orange" in hint(True)
    assert "nods" not in hint(False)
    assert ("nods, orange shirt, black wall", "the person nods wearing a orange shirt in front of a black wall") in examples(
        True
    )
    assert [name for name, _ in examples(False)][:2] == ["laughs", "drinks tea"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59.6, "60 s"), (100, "1 min 40 s"), (1800, "30 min"), (3700, "62 min"), (7300, "2 h 1 min")],
)
def test_durations_in_words(seconds, words):
    assert view.duration(seconds) == words


def test_a_message_begins_with_a_capital_unless_a_name_stands_there():
    assert view.sentence("the disk\nis  full.") == "The disk is full."
    assert view.sentence("me.png: no such file.") == "me.png: no such file."
    assert view.sentence("num_frames must be 5.") == "num_frames must be 5."
