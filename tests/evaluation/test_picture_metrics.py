"""Motion, flicker and sharpness: against known shifts and by hand, and of drawn clips, in order and shuffled."""

import cv2
import numpy as np
import pytest
import torch

from lynx_video.errors import BadRequest
from lynx_video.evaluation.metrics import picture as metrics
from lynx_video.nano import faces, model
from lynx_video.nano.recipe import data

MOVING = [name for name in faces.MOTIONS if name != "stays still"]


def texture(blur):
    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0, 255, cv2.NORM_MINMAX)


def sliding(step, count=5, blur=3.0):
    """A window of 256 px that goes to the right over a texture."""
    return np.stack([texture(blur)[20:276, 20 + step * i : 276 + step * i] for i in range(count)])


@pytest.fixture(scope="module")
def drawn():
    """Four clips of each motion, by its name."""
    rng = torch.Generator().manual_seed(5)
    motion = torch.arange(len(faces.MOTIONS)).repeat_interleave(4)
    frames = data.clips(faces.people(len(motion), rng), rng, motion=motion).frames.permute(0, 1, 3, 4, 2).contiguous().numpy()
    return {name: frames[4 * i : 4 * i + 4] for i, name in enumerate(faces.MOTIONS)}


# --- motion


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_motion_of_a_known_shift(step):
    clip = sliding(step)
    assert metrics.motion_amount(clip, 10).value == pytest.approx(step * 10 / 256, rel=0.03)
    assert metrics.motion_amount(clip, 10).n == 4
    assert metrics.motion_amount(clip, 20).value == pytest.approx(2 * metrics.motion_amount(clip, 10).value)
    assert metrics.motion_amount(clip[::-1], 10).value == pytest.approx(step * 10 / 256, rel=0.03)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (512, 512)])
def test_motion_does_not_depend_on_the_size_of_the_clip(height, width):
    clip = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in sliding(4)])
    assert metrics.motion_amount(clip, 16).value == pytest.approx(4 * 16 / 256, rel=0.08)


def test_motion_counts_heights_in_wide_and_tall_frames():
    assert metrics.motion_amount(sliding(2, blur=1)[:, :128], 10).value == pytest.approx(2 * 10 / 128, rel=0.04)
    assert metrics.motion_amount(sliding(4)[:, :, :128], 10).value == pytest.approx(4 * 10 / 256, rel=0.04)


def test_what_stays_moves_nowhere_and_what_moves_does(drawn):
    for clip in drawn["stays still"]:
        assert metrics.motion_amount(clip, model.FPS).value < 1e-5
    for name in MOVING:
        for clip in drawn[name]:
            amount = metrics.motion_amount(clip, model.FPS)
            assert amount.value > (5e-5 if name == "smiles" else 0.03)  # a smile moves a few pixels only
            assert amount.n == model.FRAMES - 1


def test_a_clip_too_short_for_motion_or_flicker():
    clip = sliding(1, 2)
    assert metrics.motion_amount(clip[:1], 8) == metrics.Score(value=None, n=0, reason="a single frame has no motion")
    assert (
        metrics.motion_amount(clip[:0], 8).reason
        == metrics.flicker(clip[:0]).reason
        == metrics.sharpness(clip[:0]).reason
        == "no frames"
    )
    assert metrics.flicker(clip) == metrics.Score(value=None, n=0, reason="fewer than three frames")
    assert metrics.motion_amount(clip, 8).n == 1
    assert metrics.sharpness(clip[:1]).n == 1


@pytest.mark.parametrize("fps", [0, -8, float("nan"), float("inf")])
def test_a_rate_that_is_none(fps):
    with pytest.raises(BadRequest, match="frames per second"):
        metrics.motion_amount(sliding(1, 2), fps)


# --- flicker


def test_flicker_by_hand():
    clip = np.zeros((5, 4, 6, 3), np.uint8)
    clip[2] = 255  # a flash of one frame: 1 there, one half beside it
    assert metrics.flicker(clip).value == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert metrics.flicker(clip).n == 3
    clip[2] = 0
    clip[1:4, :2, :, 0] = 30  # in half the rows, in one colour: at both ends of the plateau half of 30
    assert metrics.flicker(clip).value == pytest.approx(2 * 15 / 255 / 3 / 6)
    ramp = np.broadcast_to((np.arange(6, dtype=np.uint8) * 50)[:, None, None, None], (6, 4, 6, 3))
    assert metrics.flicker(ramp).value == 0  # light that grows steadily does not flicker
    assert metrics.flicker(ramp[::-1]).value == 0


@pytest.mark.parametrize("name", MOVING)
def test_shuffled_frames_raise_flicker(drawn, name):
    """Always where neighbours were apart, and on average over all orders.

    Not under every order: a drawn nod and shake pass each place twice, and an order that joins those frames can flicker less.
    """
    rng = np.random.default_rng(0)
    for clip in drawn[name]:
        honest = metrics.flicker(clip).value
        assert metrics.flicker(clip[[4, 0, 7, 2, 8, 1, 6, 3, 5]]).value > 1.3 * honest
        assert np.mean([metrics.flicker(clip[rng.permutation(model.FRAMES)]).value for _ in range(20)]) > 1.1 * honest


def test_a_still_clip_does_not_flicker_and_noise_does(drawn):
    for clip in drawn["stays still"]:
        assert metrics.flicker(clip).value == 0
        noise = np.random.default_rng(0).integers(-9, 10, clip.shape)
        assert metrics.flicker((clip + noise).clip(0, 255).astype(np.uint8)).value > 0.01


# --- sharpness


def test_sharpness_falls_with_every_blur_and_with_enlarging():
    clip = sliding(3, 3, blur=1)
    noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
    assert metrics.sharpness(noise).value == pytest.approx(20, rel=0.1)
    values = [metrics.sharpness(np.stack([cv2.GaussianBlur(frame, (0, 0), s) for frame in noise])).value for s in (0.5, 1, 2)]
    assert values == sorted(values, reverse=True)
    large = np.stack([cv2.resize(frame, (512, 512), interpolation=cv2.INTER_CUBIC) for frame in clip])
    assert metrics.sharpness(large).value < 0.5 * metrics.sharpness(clip).value
    assert metrics.sharpness((clip * 0.5).astype(np.uint8)).value == pytest.approx(metrics.sharpness(clip).value, rel=0.1)


def test_sharpness_is_a_mean_over_frames_and_a_flat_one_has_none():
    clip = sliding(3, 2)
    both = np.concatenate([clip[:1], np.full_like(clip[:1], 90)])
    assert metrics.sharpness(both).value == pytest.approx(metrics.sharpness(clip[:1]).value / 2)
    assert metrics.sharpness(both).n == 2


# --- all


def test_twice_the_same_and_opencv_as_it_was(drawn):
    clip, threads = drawn["nods"][0], cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        first = [metrics.motion_amount(clip, 8), metrics.flicker(clip), metrics.sharpness(clip)]
        assert cv2.getNumThreads() == 2
        with metrics.one_thread():
            assert cv2.getNumThreads() == 1
            assert first == [metrics.motion_amount(clip, 8), metrics.flicker(clip), metrics.sharpness(clip)]
        with pytest.raises(KeyError), metrics.one_thread():
            raise KeyError
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)


def test_frames_of_any_layout_in_memory(drawn):
    clip = drawn["nods"][0]
    other = np.asfortranarray(clip)
    assert metrics.motion_amount(other, 8) == metrics.motion_amount(clip, 8)
    assert metrics.flicker(other) == metrics.flicker(clip)
    assert metrics.sharpness(other) == metrics.sharpness(clip)
