"""Which bucket, which frames, which part: the face stays inside, and what does not fit is refused with its reason."""

import numpy as np
import pytest

from lynx_video.training.dataset.config import Bucket
from lynx_video.training.dataset.footage import Footage
from lynx_video.training.dataset.framing import View, choose_bucket, choose_window, cut, place
from lynx_video.training.dataset.source import Dropped

WIDE, TALL, SQUARE = Bucket(9, 48, 96), Bucket(9, 96, 48), Bucket(9, 64, 64)


def footage(count, fps=8.0, first=0.0, height=64, width=64):
    times = tuple(first + number / fps for number in range(count))
    return Footage(times=times, fps=fps, height=height, width=width)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 832, WIDE), (832, 480, TALL), (100, 110, SQUARE), (100, 139, SQUARE), (100, 143, WIDE)],
)
def test_the_nearest_aspect_ratio_is_chosen(height, width, expected):
    assert choose_bucket([WIDE, TALL, SQUARE], height, width) == expected


def test_of_equal_ratios_the_longest_and_then_the_largest():
    buckets = [Bucket(9, 64, 64), Bucket(17, 64, 64), Bucket(17, 128, 128)]
    assert choose_bucket(buckets, 100, 100) == Bucket(17, 128, 128)
    assert choose_window(footage(17), buckets[:2], 8.0, None, None)[0] == Bucket(17, 64, 64)
    assert choose_window(footage(16), buckets[:2], 8.0, None, None)[0] == Bucket(9, 64, 64)


def test_a_window_lies_in_the_middle_at_the_rate_of_the_model():
    bucket, times = choose_window(footage(100, fps=24.0, first=5.0), [SQUARE], 8.0, None, None)
    assert bucket == SQUARE
    assert len(times) == 9
    np.testing.assert_allclose(np.diff(times), 1 / 8, atol=1e-9)
    middle = 5.0 + 99 / 24 / 2
    assert abs((times[0] + times[-1]) / 2 - middle) < 1 / 24


def test_a_clip_of_just_enough_frames_is_taken_whole():
    clip = footage(9)
    assert choose_window(clip, [SQUARE], 8.0, None, None)[1] == clip.times


def test_a_window_stays_in_its_part():
    times = choose_window(footage(100, first=1.0), [SQUARE], 8.0, 2.0, 4.0)[1]
    assert times[0] >= 3.0
    assert times[-1] < 5.0


def test_a_slightly_slow_clip_shows_a_frame_twice():
    times = choose_window(footage(30, fps=7.0), [SQUARE], 8.0, None, None)[1]
    assert len(times) == 9
    assert len(set(times)) == 8


@pytest.mark.parametrize(
    ("clip", "part", "reason"),
    [
        (footage(7), (None, None), "too short"),
        (footage(100), (0.0, 0.5), "too short"),
        (footage(20), (50.0, 60.0), "too short"),
        (footage(100, fps=6.0), (None, None), "too slow"),
    ],
)
def test_what_has_no_window_is_dropped(clip, part, reason):
    with pytest.raises(Dropped) as caught:
        choose_window(clip, [SQUARE], 8.0, *part)
    assert caught.value.reason == reason
    assert str(caught.value)


def test_a_cut_is_in_the_middle_and_moves_only_for_the_face():
    assert place(SQUARE, 64, 128, (50, 10, 80, 40), 2) == ((64, 128), (0, 32))
    assert place(SQUARE, 64, 128, (5, 10, 30, 40), 2) == ((64, 128), (0, 5))
    assert place(SQUARE, 64, 128, (100, 10, 125, 40), 2) == ((64, 128), (0, 61))
    assert place(SQUARE, 64, 128, (-20, -5, 30, 40), 2) == ((64, 128), (0, 0))  # what lies outside the picture can't be kept
    assert place(SQUARE, 128, 256, (0, 0, 50, 50), 2) == ((64, 128), (0, 0))


@pytest.mark.parametrize("seed", range(5))
def test_the_face_is_inside_whenever_it_fits(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        height, width = rng.integers(64, 400, 2)
        left, top = rng.uniform(0, width), rng.uniform(0, height)
        box = left, top, min(width, left + rng.uniform(1, 60)), min(height, top + rng.uniform(1, 60))
        scale = max(WIDE.height / height, WIDE.width / width)
        if (box[3] - box[1]) * scale > WIDE.height - 2 or (box[2] - box[0]) * scale > WIDE.width - 2:
            continue
        (rows, columns), (row, column) = place(WIDE, int(height), int(width), box, 10)
        assert 0 <= row <= rows - WIDE.height
        assert 0 <= column <= columns - WIDE.width
        assert row <= box[1] * rows / height + 1e-6
        assert box[3] * rows / height <= row + WIDE.height + 1e-6
        assert column <= box[0] * columns / width + 1e-6
        assert box[2] * columns / width <= column + WIDE.width + 1e-6


def test_a_face_larger_than_the_bucket_is_dropped():
    with pytest.raises(Dropped) as caught:
        place(WIDE, 96, 96, (10, 5, 80, 90), 2)
    assert caught.value.reason == "face outside the bucket"


def test_a_picture_too_small_for_the_bucket_is_dropped():
    place(SQUARE, 32, 32, (5, 5, 20, 20), 2)
    with pytest.raises(Dropped) as caught:
        place(SQUARE, 31, 40, (5, 5, 20, 20), 2)
    assert (caught.value.reason, str(caught.value)) == (
        "picture too small",
        "40x31 pixels would be enlarged 2.1 times for 9x64x64",
    )


def test_a_cut_of_a_picture_that_fits_is_its_pixels():
    picture = np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    part = cut(picture, View(bucket=SQUARE, times=(), scaled=(64, 128), corner=(0, 20)))
    assert np.array_equal(part, picture[:, 20:84])
    half = cut(picture.repeat(2, 0).repeat(2, 1), View(bucket=SQUARE, times=(), scaled=(64, 128), corner=(0, 20)))
    assert np.array_equal(half, part)
