"""A studio on nano: what it refuses, what it keeps, what it publishes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lynx_video.errors import BadPicture, BadRequest, BadWeights, Cancelled, NoFace, Refused
from lynx_video.media.image import write_picture
from lynx_video.media.provenance import read_provenance
from lynx_video.media.video import read_metadata, read_video
from lynx_video.media.watermark import detect
from lynx_video.nano.people import portrait
from lynx_video.pipeline.enrol import save_enrolment
from lynx_video.safety import Gate, SafetyConfig
from lynx_video.studio.publish import consent_noted, frames_hash
from lynx_video.studio.request import Request
from lynx_video.studio.setup import MarkFlags, ModelFlags, SelectFlags, Setup
from lynx_video.studio.studio import Studio

QUICK = {"num_inference_steps": 2, "num_frames": 5}
PROMPT = "the person nods in front of a blue wall"


@pytest.fixture(scope="module")
def alice(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("people") / "alice.png"
    write_picture(file, portrait(seed=5))
    return file


@pytest.fixture(scope="module")
def studio():
    """One studio for all tests here, as a door has one for all requests."""
    return Studio(Setup())


@pytest.fixture
def asked(alice):
    return Request(prompt=PROMPT, portrait=alice, generation=QUICK)


def test_a_clip_is_published_whole_marked_and_signed(studio, asked, tmp_path):
    steps = []
    made = studio.make(replace(asked, marks=MarkFlags(consent="drawn")), tmp_path / "clip.mp4", on_step=steps.append)
    assert [step.number for step in steps] == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    found = read_provenance(made.output)
    assert found.state == "untouched"
    assert found.record == read_metadata(made.output) == made.record
    assert found.record["frames_hash"] == frames_hash(made.clip.frames)
    assert (found.record["prompt"], found.record["portrait"], found.record["consent"]) == (PROMPT, "alice.png", "drawn")
    assert found.record["safety"]["pictures"] == "not needed"
    assert not Path(found.record["base"]).is_absolute()
    frames, _ = read_video(made.output)
    assert detect(frames).found
    assert not detect(made.clip.frames).found


def test_the_model_and_the_person_are_kept(studio, asked, tmp_path, monkeypatch):
    studio.make(asked, tmp_path / "first.mp4")
    kept = studio._held
    monkeypatch.setattr("lynx_video.pipeline.load.assemble", lambda *_, **__: pytest.fail("loaded again"))
    monkeypatch.setattr("lynx_video.studio.studio.sit", lambda *_, **__: pytest.fail("looked for the face again"))
    second = studio.make(replace(asked, preset="balanced", generation={**QUICK, "seed": 2}), tmp_path / "second.mp4")
    assert studio._held is kept
    assert (second.record["preset"], second.record["step_cache"], second.record["seed"]) == ("balanced", 0.2, 2)


def test_a_preset_that_holds_the_model_otherwise_does_not_leak_into_the_next_clip(studio, asked, tmp_path):
    before = studio.make(asked, tmp_path / "before.mp4")
    draft = studio.make(replace(asked, preset="draft", generation={"num_frames": 5}), tmp_path / "draft.mp4")
    after = studio.make(asked, tmp_path / "after.mp4")
    assert draft.record["loras"] == ["lora.safetensors"]
    assert after.record["frames_hash"] == before.record["frames_hash"] != draft.record["frames_hash"]


def test_an_enrolled_person_needs_no_portrait_and_brings_the_consent(studio, asked, alice, tmp_path):
    save_enrolment(tmp_path / "alice.safetensors", studio.enrol(alice, consent="drawn, nobody to ask"))
    request = replace(asked, portrait=None, identity=tmp_path / "alice.safetensors")
    record = studio.make(request, tmp_path / "clip.mp4").record
    assert (record["portrait"], record["identity_file"], record["consent"]) == (
        None,
        "alice.safetensors",
        "drawn, nobody to ask",
    )
    assert record["reference_latent"] == "mean"
    assert record["adapter_hash"]


def test_arms_do_not_mix(asked, alice, tmp_path):
    files = {}
    for model in ("nano", "nano-lite"):
        files[model] = tmp_path / f"{model}.safetensors"
        save_enrolment(files[model], Studio(Setup(model=ModelFlags(model=model))).enrol(alice))
    studio = Studio(Setup())
    made = {
        model: studio.make(replace(asked, portrait=None, identity=file), tmp_path / f"{model}.mp4").record
        for model, file in files.items()
    }
    assert [record["arm"] for record in made.values()] == ["full", "lite"]
    assert [record["guidance_scale_i"] for record in made.values()] == [2.5, None]


def test_what_is_loaded_serves_an_enrolled_person_and_a_part_that_is_off(studio, asked, alice, tmp_path):
    studio.make(asked, tmp_path / "first.mp4")
    save_enrolment(tmp_path / "alice.safetensors", studio.enrol(alice))
    kept = studio._held
    enrolled = studio.make(replace(asked, portrait=None, identity=tmp_path / "alice.safetensors"), tmp_path / "second.mp4")
    off = replace(asked, generation={**QUICK, "ref_scale": 0})
    without = studio.make(off, tmp_path / "third.mp4")
    assert studio._held is kept
    alone = Studio(Setup())
    assert alone.make(off, tmp_path / "alone.mp4").record["frames_hash"] == without.record["frames_hash"]
    fresh = Studio(Setup()).make(replace(asked, portrait=None, identity=tmp_path / "alice.safetensors"), tmp_path / "4.mp4")
    assert fresh.record["frames_hash"] == enrolled.record["frames_hash"]


def test_a_private_record_keeps_the_words_out_of_the_whole_file(studio, asked, tmp_path):
    marks = MarkFlags(private=True, consent="signed by Alice Liddell")
    made = studio.make(replace(asked, marks=marks, shown="alice-liddell.png"), tmp_path / "clip.mp4")
    content = made.output.read_bytes()
    for word in (b"nods in front", b"Liddell", b"liddell", b"Bright tones"):
        assert word not in content
    assert made.record["consent"] == "given; its text is private"
    assert read_provenance(made.output).state == "untouched"


def test_a_refusal_does_not_quote_a_private_prompt(studio, asked):
    naked = replace(asked, prompt="a naked person nods")
    with pytest.raises(Refused, match="'naked'"):
        studio.check(naked)
    with pytest.raises(Refused, match="words of sex or undress, and every") as refused:
        studio.check(replace(naked, marks=MarkFlags(private=True)))
    assert "naked" not in str(refused.value)


def test_without_the_watermark_the_reason_is_recorded(studio, asked, tmp_path):
    made = studio.make(replace(asked, marks=MarkFlags(no_watermark="a test of codecs")), tmp_path / "clip.mp4")
    assert (made.record["watermark"], made.record["no_watermark_reason"]) == (False, "a test of codecs")
    assert not detect(read_video(made.output)[0]).found


def test_a_cancelled_clip_stops_at_the_step_and_leaves_nothing(studio, asked, tmp_path):
    done = []

    def stop(step):
        done.append(step.number)
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        studio.make(asked, tmp_path / "clip.mp4", on_step=stop)
    assert done == [1]
    assert list(tmp_path.iterdir()) == []
    studio.make(asked, tmp_path / "clip.mp4")  # the studio goes on


def test_what_cannot_be_is_refused_before_the_weights_are_read(alice, tmp_path, monkeypatch):
    studio = Studio(Setup())
    monkeypatch.setattr("lynx_video.pipeline.load.assemble", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "text.png").write_text("not a picture")
    write_picture(tmp_path / "wall.png", np.full((64, 64, 3), 200, np.uint8))
    asked = Request(prompt=PROMPT, portrait=alice)
    for request, error, sentence in (
        (replace(asked, prompt="  "), BadRequest, "prompt is empty"),
        (replace(asked, preset="best"), BadRequest, "unknown preset 'best'"),
        (replace(asked, generation={"num_frames": 6}), BadRequest, "num_frames must be"),
        (replace(asked, generation={"width": 65}), BadRequest, "width must be"),
        (replace(asked, select=SelectFlags(best_of=0)), BadRequest, "best-of"),
        (replace(asked, portrait=tmp_path / "text.png"), BadPicture, "not a picture"),
        (replace(asked, portrait=None, identity=tmp_path / "nobody.safetensors"), BadWeights, "not there"),
        (replace(asked, prompt="the person undresses, nude"), Refused, "prompt"),
    ):
        with pytest.raises(error, match=sentence):
            studio.check(request)
    with pytest.raises(BadRequest, match="face"):
        studio.meet(studio.check(replace(asked, face_index=3)))
    with pytest.raises(NoFace, match="drawn people"):
        studio.meet(studio.check(replace(asked, portrait=tmp_path / "wall.png")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.png", "wall.png"]


def test_a_checker_that_is_asked_for_and_missing_stops_the_request(alice, tmp_path):
    studio = Studio(Setup(safety=SafetyConfig(safety_checker=str(tmp_path / "classifier"))))
    with pytest.raises(BadWeights, match="classifier"):
        studio.check(Request(prompt=PROMPT, portrait=alice))


def test_faces_of_a_picture(studio, alice):
    ((face, warnings),) = studio.faces(alice)
    assert face.size > 0
    assert all(isinstance(one, str) for one in warnings)


def test_a_forecast_and_a_preview(studio, asked, tmp_path):
    assert studio.forecast(asked).facts["peak_bytes"] > 0
    pictures = []
    made = studio.make(asked, tmp_path / "clip.mp4", on_step=lambda step: pictures.append(studio.preview(step)))
    assert all(one.shape == made.clip.frames.shape[1:] and one.dtype == np.uint8 for one in pictures)
    assert np.abs(pictures[-1].astype(int) - made.clip.frames[0]).max() <= 1


def test_frames_that_the_gate_refuses_are_neither_published_nor_previewed(asked, tmp_path):
    class Hard:
        """Lets the portrait through, and nothing that looks like the clip's blue wall."""

        def __call__(self, picture, /):
            return float(picture.shape[0] == 64)

    studio = Studio(Setup())
    order = studio.check(asked)
    studio._guards = (Gate(pictures=Hard()), [])
    order = replace(order, gate=studio._guards[0])
    previews = []
    with pytest.raises(Refused, match="the video was refused"):
        studio.film(
            order, studio.meet(order), tmp_path / "clip.mp4", on_step=lambda step: previews.append(studio.preview(step))
        )
    assert previews == [None, None]
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_private_portrait_is_not_said(studio, tmp_path):
    small = tmp_path / "secret-ada.png"
    picture = np.full((512, 512, 3), 255, np.uint8)
    picture[200:264, 200:264] = portrait(seed=5)[::4, ::4][:64, :64]
    write_picture(small, picture)
    for private in (False, True):
        request = Request(prompt=PROMPT, portrait=small, marks=MarkFlags(private=private))
        cautions = studio.meet(studio.check(request)).cautions
        assert cautions
        assert any("secret-ada" in one for one in cautions) is not private


def test_consent_is_a_text_or_a_file(tmp_path):
    (tmp_path / "letter.txt").write_text("I agree.")
    assert consent_noted("she agreed") == "she agreed"
    noted = consent_noted(str(tmp_path / "letter.txt"))
    assert noted.startswith("letter.txt, sha256 ")
    assert str(tmp_path) not in noted
    assert consent_noted("x" * 5000) == "x" * 5000
    assert consent_noted("Ada, by letter of 3.May") == "Ada, by letter of 3.May"
    for gone in (str(tmp_path / "leter.txt"), "agreed.scan", "letter of Ada.PDF", "her folder/yes, signed.p7s"):
        with pytest.raises(BadRequest, match="there is no such file"):
            consent_noted(gone)
