"""`lynx-video replay`: the same pixels again, or why not."""

import json

import pytest

from lynx_video.media.certificate import load_signer
from lynx_video.media.image import write_picture
from lynx_video.media.provenance import read_provenance, sign
from lynx_video.media.video import read_video, write_video
from lynx_video.nano.people import portrait

QUICK = ("--num-inference-steps", 2, "--num-frames", 5)
PROMPT = "the person nods in front of a blue wall"


@pytest.fixture
def alice(tmp_path):
    write_picture(tmp_path / "alice.png", portrait(seed=5))
    return tmp_path / "alice.png"


@pytest.fixture
def made(lynx, alice, tmp_path):
    """made("--seed", 3, ...) is a clip of Alice."""

    def make(*more, prompt=PROMPT):
        clip = tmp_path / "clip.mp4"
        done = lynx(*("generate", "--subject-image", alice, "--prompt", prompt, *QUICK, "-o", clip, "--quiet", *more))
        assert done.code == 0, done
        return clip

    return make


@pytest.mark.parametrize(
    "how",
    [
        ("--seed", 3),
        ("--preset", "draft"),
        ("--num-frames", 13, "--ip-blocks", "0-1", "--guidance-scale-i", "none"),
        ("--best-of", 2),
    ],
    ids=["plain", "draft", "long", "best of two"],
)
def test_the_same_pixels_again(lynx, made, alice, how):
    clip = made(*how)
    again = lynx("replay", clip, "--subject-image", alice, "--json")
    assert again.code == 0, again
    said = json.loads(again.out)
    assert said["same"]
    assert said["frames_hash"] == read_provenance(clip).record["frames_hash"]
    assert read_provenance(clip.with_name("clip-replay.mp4")).state == "untouched"
    assert lynx("replay", clip, "--subject-image", alice).code == 2, "nothing is overwritten"


def test_a_private_clip_wants_its_words_back(lynx, made, alice):
    clip = made("--private", "--negative-prompt", "dark")
    who = ("replay", clip, "--subject-image", alice)
    assert "--prompt" in lynx(*who).err
    assert "--negative-prompt" in lynx(*who, "--prompt", PROMPT).err
    words = ("--prompt", PROMPT, "--negative-prompt", "dark")
    assert lynx(*who, *words, "--quiet").code == 0
    other = lynx(*who, "--prompt", "the person smiles", "--negative-prompt", "dark", "--overwrite", "--quiet")
    assert other.code == 1
    assert "other frames" in other.err


def test_another_portrait_is_told_from_it(lynx, made, tmp_path):
    clip = made()
    write_picture(tmp_path / "bob.png", portrait(seed=6))
    done = lynx("replay", clip, "--subject-image", tmp_path / "bob.png")
    assert done.code == 2
    assert "another portrait" in done.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alice.png", "bob.png", "clip.mp4"]


def test_frames_that_were_changed_are_not_called_the_same(lynx, made, alice):
    clip = made()
    frames, fps = read_video(clip)
    write_video(clip, frames[::-1], fps, read_provenance(clip).record)
    done = lynx("replay", clip, "--subject-image", alice, "--quiet")
    assert done.code == 1
    assert "unsigned" in done.err


def test_a_record_that_was_put_to_other_frames_and_signed(lynx, made, alice):
    """Whoever has a key can sign anything: the signature is whole, and the frames are not those of the record."""
    clip = made()
    frames, fps = read_video(clip)
    record = read_provenance(clip).record
    write_video(clip, frames[::-1], fps, record)
    sign(clip, record, load_signer(None, None))
    assert read_provenance(clip).state == "untouched"
    done = lynx("replay", clip, "--subject-image", alice, "--quiet")
    assert done.code == 1
    assert "shows other frames than its record tells of" in done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"face_index": "x"}, "face_index is 'x', expected a whole number"),
        ({"machine": "x"}, "machine is 'x', expected an object"),
        ({"prompt": 5}, "prompt is 5, expected a text"),
    ],
    ids=["face", "machine", "prompt"],
)
def test_a_record_of_other_kinds_is_refused(lynx, alice, tmp_path, changes, said):
    record = {"base_hash": "0", "seed": 1, "frames_hash": "0", "num_frames": 5, "prompt": PROMPT, **changes}
    write_video(tmp_path / "odd.mp4", [portrait(seed=1)] * 3, 8, record)
    done = lynx("replay", tmp_path / "odd.mp4", "--subject-image", alice)
    assert done.code == 2
    assert said in done.err


def test_a_foreign_clip_has_no_record(lynx, alice, tmp_path):
    write_video(tmp_path / "foreign.mp4", [portrait(seed=1)] * 3, 8)
    done = lynx("replay", tmp_path / "foreign.mp4", "--subject-image", alice)
    assert done.code == 2
    assert "no record" in done.err
