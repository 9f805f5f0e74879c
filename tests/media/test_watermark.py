"""The invisible mark: there after what clips go through, not there where it was not put, and not to be seen."""

import numpy as np
import pytest

from lynx_video.errors import BadRequest
from lynx_video.media.video import read_video, write_video
from lynx_video.media.watermark import THRESHOLD, detect, mark
from lynx_video.nano.people import portrait


def moving(seed, frames=9, side=64):
    """A drawn person in front of a camera that moves, uint8 [frames, side, side, 3]."""
    import cv2

    picture = portrait(seed=seed)
    views = [picture[4 + i : 240 + i, 8 + i : 244 + i] for i in range(frames)]
    return np.stack([cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA) for view in views])


@pytest.fixture(scope="module", params=[64, 208], ids=lambda side: f"{side}px")
def clip(request):
    return moving(3, side=request.param)


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_it_is_found_and_not_seen(clip):
    marked = mark(clip)
    assert marked.dtype == np.uint8
    assert marked.shape == clip.shape
    assert psnr(marked, clip) > 41
    assert detect(marked).found
    assert detect(marked).score > THRESHOLD
    assert not detect(clip).found
    # The signs are the same in every frame, the strength follows the texture: it does not flicker.
    difference = marked.astype(int) - clip
    assert np.abs(np.diff(difference, axis=0)).mean() < np.abs(difference).mean() / 4


def test_the_same_frames_give_the_same_bits_and_are_not_changed(clip):
    before = clip.copy()
    assert np.array_equal(mark(clip), mark(clip))
    assert np.array_equal(clip, before)


@pytest.mark.parametrize("quality", [90, 78, 68])  # CRF 17, 23, 28
def test_it_survives_h264(clip, quality, tmp_path):
    write_video(tmp_path / "clip.mp4", mark(clip), 8, quality=quality)
    assert detect(read_video(tmp_path / "clip.mp4")[0]).found
    write_video(tmp_path / "plain.mp4", clip, 8, quality=quality)
    assert not detect(read_video(tmp_path / "plain.mp4")[0]).found


def test_it_survives_webp(clip, tmp_path):
    write_video(tmp_path / "clip.webp", mark(clip), 8)
    assert detect(read_video(tmp_path / "clip.webp")[0]).found


@pytest.mark.parametrize(("down", "across"), [(0.75, 0.75), (1.5, 1.5), (2.0, 2.0), (1.37, 0.9)])
def test_it_survives_scaling(clip, down, across):
    import cv2

    height, width = round(clip.shape[1] * down), round(clip.shape[2] * across)
    way = cv2.INTER_AREA if down < 1 else cv2.INTER_CUBIC
    assert detect(np.stack([cv2.resize(frame, (width, height), interpolation=way) for frame in mark(clip)])).found


def test_cut_and_repeated_frames_do_not_matter(clip):
    marked = mark(clip)
    assert detect(marked[::2]).found
    assert detect(marked[3:5]).found
    assert detect(np.repeat(marked, 2, axis=0)).found


def test_it_is_not_found_where_it_is_not():
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (5, 64, 64, 3))
    others = [moving(seed) for seed in range(10, 30)]
    others += [np.full((5, 64, 64, 3), level, np.uint8) for level in (0, 77, 255)]
    others += [rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8) for _ in range(20)]
    others += [ramp, ramp.transpose(0, 2, 1, 3)]
    assert [detect(one).found for one in others] == [False] * len(others)


def test_a_turned_picture_is_none_of_ours(clip):
    assert not detect(mark(clip)[:, ::-1, ::-1]).found


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (3, 16, 200, 3), (2, 33, 47, 3)])
def test_small_and_odd_clips_are_taken(shape):
    clip = np.random.default_rng(1).integers(90, 110, shape, dtype=np.uint8)
    assert mark(clip).shape == shape
    assert isinstance(detect(mark(clip)).score, float)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 64, 64, 3)),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((4, 64, 64, 4), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
    ids=["floats", "one picture", "alpha", "none"],
)
def test_another_array_is_refused(frames):
    for verb in (mark, detect):
        with pytest.raises((BadRequest, ValueError), match="uint8"):
            verb(frames)
