"""Reading clips in passing gives the frames that reading all of them gives, and says what is wrong with a file."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from lynx_video.errors import BadData
from lynx_video.media.video import read_video, write_video
from lynx_video.training.dataset import footage
from lynx_video.training.dataset.footage import frames_at, is_animated, survey_footage

FPS = 8.0


def counting(count, side=64):
    """Frames that differ: a bar that moves on."""
    frames = np.full((count, side, side, 3), 40, np.uint8)
    for number in range(count):
        frames[number, :, (number * 3) % side : (number * 3) % side + 6] = 220
    return frames


def write_webm(file, frames, fps):
    with av.open(str(file), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=int(fps))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write(file, frames, fps=FPS):
    (write_webm if file.suffix == ".webm" else write_video)(file, frames, fps)
    return file


@pytest.mark.parametrize("suffix", ["mp4", "webm", "webp"])
def test_a_survey_tells_when_frames_are_shown(tmp_path, suffix):
    found = survey_footage(write(tmp_path / f"a.{suffix}", counting(12)))
    assert (found.height, found.width, found.fps) == (64, 64, FPS)
    np.testing.assert_allclose(found.times, np.arange(12) / FPS, atol=1e-3)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "webp"])
@pytest.mark.parametrize("count", [12, 100])  # the longer one is reached by a jump
def test_frames_in_passing_are_those_of_the_whole_clip(tmp_path, suffix, count):
    file = write(tmp_path / f"a.{suffix}", counting(count))
    everything, _ = read_video(file)
    times = survey_footage(file).times
    for chosen in ([0, count // 2, count - 1], [count - 5, count - 4], [count - 1]):
        frames = list(frames_at(file, [times[number] for number in chosen]))
        assert np.array_equal(np.stack(frames), everything[chosen])


def test_a_time_wanted_twice_is_a_frame_given_twice(tmp_path):
    file = write(tmp_path / "a.mp4", counting(9))
    times = survey_footage(file).times
    one, same, other = frames_at(file, [times[2], times[2], times[3]])
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_jump_that_lands_too_late_is_taken_back(tmp_path, monkeypatch):
    file = write(tmp_path / "a.mp4", counting(100))
    times = survey_footage(file).times
    expected = next(frames_at(file, [times[40]]))
    real = av.open

    class Late:
        """A container without a good index: it jumps one key frame too far."""

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def seek(self, offset, *, stream, backward):
            self.container.seek(offset and int(8 / stream.time_base), stream=stream, backward=backward)

    monkeypatch.setattr(av, "open", lambda *arguments: Late(real(*arguments)))
    assert np.array_equal(next(frames_at(file, [times[40]])), expected)


def test_a_sideways_frame_is_turned_upright():
    sideways = np.zeros((4, 6, 3), np.uint8)
    sideways[0, :] = 255  # its upper edge, which the display matrix turns to the left
    frame = SimpleNamespace(to_ndarray=lambda **_: sideways, colorspace=1, rotation=90)
    upright = footage._upright(frame)
    assert upright.shape == (6, 4, 3)
    assert upright[:, 0].min() == 255
    frame.rotation = -90
    assert footage._upright(frame)[:, -1].min() == 255


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_file_that_breaks_off_is_named_so(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
    file = write(tmp_path / f"a.{suffix}", frames)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadData, match=r"cut short|not a video|breaks off"):
        survey_footage(file)


def test_what_is_no_video_is_refused_in_words(tmp_path):
    file = tmp_path / "a.mp4"
    for content in (b"", b"not a video at all" * 100):
        file.write_bytes(content)
        with pytest.raises(BadData, match="not a video that can be read"):
            survey_footage(file)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(BadData, match="no video stream"):
        survey_footage(tmp_path / "sound.mp4")


def test_damage_in_the_middle_is_found_by_whoever_decodes_it(tmp_path):
    rng = np.random.default_rng(0)
    file = write(tmp_path / "a.mp4", rng.integers(0, 255, (24, 64, 64, 3), dtype=np.uint8))
    times = survey_footage(file).times
    with pytest.raises(BadData, match="there is no frame at 99"):
        list(frames_at(file, [*times, 99.0]))


def test_only_an_animated_webp_is_a_clip(tmp_path):
    from PIL import Image

    write_video(tmp_path / "moving.webp", counting(3), FPS)
    Image.fromarray(counting(1)[0]).save(tmp_path / "still.webp")
    (tmp_path / "broken.webp").write_bytes(b"RIFF")
    found = {name: is_animated(tmp_path / f"{name}.webp") for name in ("moving", "still", "broken")}
    assert found == {"moving": True, "still": False, "broken": False}
    assert not is_animated(tmp_path / "a.png")
