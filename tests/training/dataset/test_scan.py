"""One item each for every reason to drop one, on real files with nano's face models; and what is kept of one that stays."""

import sys

import cv2
import numpy as np
import pytest
import torch
from sources import nobody

from lynx_video.face.align import arcface_crop, reference_crop
from lynx_video.face.detect import find_faces
from lynx_video.face.embed import embed_crop
from lynx_video.media.image import read_picture
from lynx_video.training.dataset.config import Bucket
from lynx_video.training.dataset.finding import Finding, cut_portrait
from lynx_video.training.dataset.scan import Look, best_look
from lynx_video.training.dataset.source import Dropped


def test_a_clip_becomes_a_moving_and_a_still_example(shelve, drawn, look):
    shelve("a.mp4", drawn.clips[0][0])
    finding, evidence = look("a.mp4")
    assert finding.kind == "clip"
    assert finding.clip.bucket == Bucket(9, 64, 64)
    assert len(finding.clip.times) == 9
    assert finding.still.bucket == Bucket(1, 64, 64)
    assert finding.still.times == (finding.moment,)
    assert finding.moment in finding.clip.times
    assert finding.is_target
    assert evidence.thumbnails.shape == (5, 16, 16)
    assert evidence.vector.shape == evidence.mean.shape == (512,)
    np.testing.assert_allclose([np.linalg.norm(evidence.vector), np.linalg.norm(evidence.mean)], 1, atol=1e-5)
    assert evidence.vector @ evidence.mean > 0.9


def test_the_best_look_is_sharp_from_the_front_and_typical():
    def seen(number, sharpness=0.1, yaw=0.0, angle=0.0):
        vector = np.array([np.cos(angle), np.sin(angle)], np.float32)
        return Look(number=number, face=None, span=50, sharpness=sharpness, yaw=yaw, vector=vector)

    plain = [seen(0), seen(1)]
    assert best_look([*plain, seen(2, sharpness=0.12)])[0].number == 2
    assert best_look([*plain, seen(2, sharpness=0.12, yaw=60)])[0].number == 0
    best, mean = best_look([*plain, seen(2, sharpness=0.12, angle=1.4)])
    assert best.number == 0
    np.testing.assert_allclose(np.linalg.norm(mean), 1, atol=1e-6)


def test_a_photo_becomes_a_still_and_without_a_caption_a_reference_only(shelve, drawn, look):
    shelve("a.png", drawn.photos[0][0])
    finding, evidence = look("a.png")
    assert (finding.kind, finding.clip, finding.still.times) == ("photo", None, ())
    assert len(evidence.thumbnails) == 1
    for caption in (None, ""):
        assert not look("a.png", caption=caption)[0].is_target
    assert not look("a.png", buckets=(Bucket(9, 64, 64),))[0].is_target


def test_without_a_bucket_for_clips_a_clip_gives_a_still(shelve, drawn, look):
    shelve("a.mp4", drawn.clips[0][0])
    finding, _ = look("a.mp4", buckets=(Bucket(1, 64, 64),))
    assert finding.clip is None
    assert finding.still is not None


def test_the_vector_and_the_portrait_are_of_one_picture(shelve, drawn, look, nano):
    """A reference crop from the portrait is the crop from the picture, and the vector is what the encoder says of it."""
    shelve("a.png", drawn.photos[0][1])
    picture = read_picture(shelve.root / "a.png")
    _, evidence = look("a.png")
    face = find_faces(picture, nano.faces.detector())[0]
    vector = embed_crop(nano.faces.encoder(), arcface_crop(picture, face.points))
    assert torch.equal(torch.tensor(evidence.vector), vector)
    own, whole = reference_crop(evidence.portrait, evidence.points, 64), reference_crop(picture, face.points, 64)
    assert np.abs(own.astype(int) - whole).mean() < 4  # resampled twice


def test_a_large_portrait_is_shrunk_to_what_its_crop_can_use(nano, drawn):
    picture = cv2.resize(drawn.photos[0][1], (512, 512), interpolation=cv2.INTER_CUBIC)
    points = find_faces(picture, nano.faces.detector())[0].points
    portrait, moved = cut_portrait(picture, points, 64)
    assert max(portrait.shape) <= 64 * 2 * 1.25 + 2
    own, whole = reference_crop(portrait, moved, 64), reference_crop(picture, points, 64)
    shift = [np.abs(np.roll(own, by, 1).astype(int) - whole).mean() for by in (-1, 0, 1)]
    assert shift[1] == min(shift)
    small, same = cut_portrait(drawn.photos[0][1], points / 4, 256)  # nothing to shrink: the very pixels
    assert small.shape == (128, 128, 3)
    assert np.array_equal(small, drawn.photos[0][1])
    assert np.array_equal(same, points / 4)


def test_a_finding_survives_json(shelve, drawn, look):
    import json

    shelve("a.mp4", drawn.clips[0][0])
    shelve("b.png", drawn.photos[0][0])
    for found in (look("a.mp4")[0], look("b.png")[0], look("b.png", caption=None)[0]):
        assert Finding.from_json(json.loads(json.dumps(found.to_json()))) == found


def half(frames, blank):
    """The clip with the frames from `blank` on replaced by nobody."""
    frames = frames.copy()
    frames[blank:] = nobody()
    return frames


def two(first, second):
    return np.concatenate([first, second], axis=2)


def far(picture):
    """The picture small in a large one."""
    canvas = np.full((160, 160, 3), 90, np.uint8)
    canvas[48:112, 48:112] = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    return canvas


FAULTS = {
    "no caption": (lambda d: ("a.mp4", d.clips[0][0]), {"caption": ""}, "a clip is learned with its caption"),
    "no face": (lambda _: ("a.mp4", np.stack([nobody()] * 9)), {}, "none in 5 looks"),
    "face not throughout": (lambda d: ("a.mp4", half(d.clips[0][0], 5)), {}, "in 3 of 5 looks, expected 80%"),
    "several people": (lambda d: ("a.mp4", two(d.clips[0][0], d.clips[0][1])), {}, "2 faces in look 1"),
    "face too small": (lambda d: ("a.png", far(d.photos[0][0])), {"smallest_face": 0.4}, "of 160 px, expected 40%"),
    "blurred": (lambda d: ("a.png", cv2.GaussianBlur(d.photos[0][0], (0, 0), 6)), {}, "expected 0.02 or more"),
    "turned away": (lambda d: ("a.mp4", d.clips[0][0]), {"turned": 0}, "degrees, expected 0 or less"),
    "too short": (lambda d: ("a.mp4", d.clips[0][0][:6]), {}, "0.75 s, and 9 frames at 8 a second take 1.12 s"),
    "picture too small": (lambda d: ("a.png", d.photos[0][0]), {"buckets": (Bucket(1, 320, 320),)}, "128x128 pixels would be"),
    "face outside the bucket": (lambda d: ("a.png", d.photos[0][0]), {"buckets": (Bucket(1, 64, 512),), "enlargement": 9}, ""),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_every_fault_is_dropped_with_its_reason(shelve, drawn, look, reason):
    make, settings, detail = FAULTS[reason]
    name, pixels = make(drawn)
    shelve(name, pixels)
    with pytest.raises(Dropped) as caught:
        look(name, **settings)
    assert caught.value.reason == reason
    assert detail in str(caught.value)


def test_a_slow_clip_is_dropped(shelve, drawn, look):
    shelve("a.mp4", drawn.clips[0][0], fps=4)
    with pytest.raises(Dropped) as caught:
        look("a.mp4")
    assert (caught.value.reason, str(caught.value)) == ("too slow", "4 frames a second, the model has 8")


def test_a_crop_that_would_be_enlarged_too_much_is_a_face_too_small(shelve, drawn, look):
    shelve("a.png", drawn.photos[0][0][::2, ::2])
    look("a.png", enlargement=2)
    with pytest.raises(Dropped, match=r"px, enlarged 1\.\d times in the reference crop") as caught:
        look("a.png", enlargement=1)
    assert caught.value.reason == "face too small"


def test_somebody_small_in_the_background_is_no_second_person(shelve, drawn, look):
    picture = np.full((128, 256, 3), 200, np.uint8)
    picture[:, :128] = drawn.photos[0][0]
    picture[48:, 136:216] = cv2.resize(drawn.photos[0][1], (80, 80), interpolation=cv2.INTER_AREA)
    shelve("a.png", picture)
    look("a.png", bystander=0.9)
    with pytest.raises(Dropped) as caught:
        look("a.png", bystander=0.05)
    assert caught.value.reason == "several people"


def test_a_cut_to_somebody_else_is_several_people(shelve, drawn, look):
    frames = np.concatenate([drawn.clips[0][1][:5], drawn.clips[0][3][5:]])
    shelve("a.mp4", frames)
    with pytest.raises(Dropped, match="the faces in its 5 looks are of 2, one after the other") as caught:
        look("a.mp4")
    assert caught.value.reason == "several people"


def test_the_face_is_kept_inside_throughout_the_clip(shelve, drawn, look, nano):
    """Somebody walks through a wide picture: where all places fit into the bucket it follows them, or else the clip is dropped."""
    clip = drawn.clips[0][0]
    begins, ends = (find_faces(clip[i], nano.faces.detector())[0].box[side] for i, side in ((0, 0), (-1, 2)))
    for step, fits in ((2, True), (8, False)):
        frames = np.full((9, 64, 160, 3), clip[0, 0, 0], np.uint8)
        for number in range(9):
            frames[number, :, 16 + number * step : 80 + number * step] = clip[number]
        shelve(f"{step}.mp4", frames)
        if not fits:
            with pytest.raises(Dropped) as caught:
                look(f"{step}.mp4")
            assert caught.value.reason == "face outside the bucket"
            continue
        left = look(f"{step}.mp4")[0].clip.corner[1]
        assert left <= 16 + begins + 2
        assert left + 64 >= 16 + 8 * step + ends - 2


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "a.webp", "gone.mp4", "gone.png", "folder.mp4"])
def test_what_cannot_be_read_says_why_and_not_where_it_lies(shelve, look, name):
    (shelve.root / "folder.mp4").mkdir()
    for suffix in ("mp4", "png", "webp"):
        (shelve.root / f"a.{suffix}").write_bytes(b"no pictures in here")
    with pytest.raises(Dropped) as caught:
        look(name)
    assert caught.value.reason == "unreadable"
    assert str(shelve.root) not in str(caught.value)


def test_parts_are_of_clips(shelve, drawn, look):
    shelve("a.png", drawn.photos[0][0])
    with pytest.raises(Dropped, match="start and stop belong to clips"):
        look("a.png", start=1.0)


def test_a_missing_reader_drops_the_file_and_names_its_install_line(shelve, look, monkeypatch):
    (shelve.root / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Dropped, match=r"pip install 'lynx-video\[heif\]'"):
        look("a.heic")
