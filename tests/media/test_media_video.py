"""Writing and reading clips: what comes back, what browsers need, what is refused, and nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from lynx_video.errors import BadOutput, BadRequest
from lynx_video.media.video import check_output, read_metadata, read_video, write_video

SETTINGS = {"prompt": 'a "person" <smiles> & 日本\x01', "seed": 42, "scales": [1.0, 0.5], "none": None, "deep": {"a": True}}


def clip(frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    """A blue square walking over smooth orange, so that colours and motion can be told apart after compression."""
    rows = np.linspace(0, 60, height)[None, :, None, None]
    video = np.broadcast_to(np.array([190, 90, 40]) + rows, (frames, height, width, 3)).copy()
    for index in range(frames):
        video[index, height // 4 : height // 2, 4 + 3 * index : 20 + 3 * index] = (30, 60, 220)
    return video.clip(0, 255).astype(np.uint8)


def test_an_mp4_is_written_without_what_rounds_otherwise_in_other_processes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(), 16)
    assert b"mbtree=0" in (tmp_path / "a.mp4").read_bytes()  # x264 notes its settings in the stream


@pytest.mark.parametrize("kind", ["mp4", "webp"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_round_trip(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    video = clip(9, *size)
    write_video(tmp_path / f"a.{kind}", video, 16, SETTINGS)
    back, fps = read_video(tmp_path / f"a.{kind}")
    assert back.shape == video.shape
    assert back.dtype == np.uint8
    assert fps == 16
    difference = np.abs(back.astype(int) - video)
    assert difference.mean() < 3
    # Away from edges, where 4:2:0 smears colour, the colours themselves hold: a wrong matrix would be 10 levels off.
    height = size[0]
    assert np.abs(back[:, -6:, -6:].astype(int) - video[:, -6:, -6:]).max() <= 6
    assert np.abs(back[0, height // 4 + 5 : height // 2 - 5, 9:15].astype(int) - (30, 60, 220)).max() <= 6
    assert read_metadata(tmp_path / f"a.{kind}") == SETTINGS


def test_mp4_plays_in_browsers(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", iter(clip()), 24, SETTINGS)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert stream.average_rate == 24
        assert container.metadata["title"].startswith('a "person"')
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("fps", [12, 16, 24, 30000 / 1001])
def test_webp_keeps_rate_and_equal_neighbours(tmp_path: Path, fps: float) -> None:
    video = clip(13)
    video[4:7], video[12] = video[3], video[11]
    write_video(tmp_path / "a.webp", video, fps)
    back, rate = read_video(tmp_path / "a.webp")
    assert rate == fps
    assert back.shape == video.shape
    assert np.abs(back.astype(int) - video).reshape(13, -1).mean(1).max() < 3
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0


def test_all_frames_equal(tmp_path: Path) -> None:
    still = np.repeat(clip(1), 5, axis=0)
    for kind in ("mp4", "webp"):
        write_video(tmp_path / f"a.{kind}", still, 16)
        assert read_video(tmp_path / f"a.{kind}")[0].shape == still.shape


def test_one_frame_and_quality(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    for kind in ("mp4", "webp"):
        write_video(tmp_path / f"one.{kind}", noise[:1], 16)
        assert read_video(tmp_path / f"one.{kind}")[0].shape == (1, 64, 64, 3)
        write_video(tmp_path / f"low.{kind}", noise, 16, quality=20)
        write_video(tmp_path / f"high.{kind}", noise, 16, quality=95)
        assert (tmp_path / f"low.{kind}").stat().st_size * 1.5 < (tmp_path / f"high.{kind}").stat().st_size


def test_foreign_files(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(
        tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (40, 40), "red")], duration=50
    )
    video, fps = read_video(tmp_path / "a.webp")
    assert (video.shape, fps) == ((2, 40, 40, 3), 20)
    assert read_metadata(tmp_path / "a.webp") == {}
    with av.open(str(tmp_path / "b.mp4"), "w") as container:
        container.metadata["comment"] = "made on holiday"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(clip(1)[0], format="rgb24")))
        container.mux(stream.encode(None))
    assert read_metadata(tmp_path / "b.mp4") == {}
    assert np.abs(read_video(tmp_path / "b.mp4")[0][0].astype(int) - clip(1)[0]).mean() < 8


def test_unreadable_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    for name in ("none.mp4", "text.mp4", "cut.webp", "."):
        for read in (read_video, read_metadata):
            with pytest.raises(BadRequest) as caught:
                read(tmp_path / name)
            assert name in str(caught.value) or str(tmp_path) in str(caught.value)


def test_no_more_frames_than_have_so_many_bytes(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip(9), 8)
    one = 64 * 64 * 3
    for most_bytes, count in ((1, 1), (one, 1), (3 * one, 3), (4 * one - 1, 3), (100 * one, 9)):
        assert len(read_video(tmp_path / "clip.mp4", None, most_bytes)[0]) == count
    assert len(read_video(tmp_path / "clip.mp4", 2, 3 * one)[0]) == 2


def test_a_video_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    parts = []
    for side in (64, 128):
        write_video(tmp_path / f"{side}.mp4", np.zeros((3, side, side, 3), np.uint8), 8)
        with av.open(str(tmp_path / f"{side}.mp4")) as source, av.open(str(tmp_path / f"{side}.ts"), "w") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        parts.append((tmp_path / f"{side}.ts").read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    with pytest.raises(BadRequest, match="of several sizes"):
        read_video(tmp_path / "both.ts")


@pytest.mark.parametrize("kind", ["mp4", "webp"])
def test_failures_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    class StopError(Exception):
        pass

    def breaking() -> Iterator[Any]:
        yield from clip(3)
        raise StopError

    for target in (tmp_path / f"a.{kind}", tmp_path / "new" / "folder" / f"a.{kind}"):
        with pytest.raises(StopError):
            write_video(target, breaking(), 16)
        with pytest.raises(ValueError, match="frame 1"):
            write_video(target, [clip(1)[0], clip(1, 64, 32)[0]], 16)
        with pytest.raises(ValueError, match="frame 0"):
            write_video(target, clip(1).astype(np.float32), 16)
        with pytest.raises(BadOutput, match="no frames"):
            write_video(target, [], 16)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(2), 16)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="frame 1"):
        write_video(tmp_path / "a.mp4", [clip(1)[0], clip(1, 32, 32)[0]], 16)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_what_write_video_refuses(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match=r"65x64.*even"):
        write_video(tmp_path / "a.mp4", clip(1, 64, 65), 16)
    write_video(tmp_path / "a.webp", clip(1, 64, 65), 16)
    assert read_video(tmp_path / "a.webp")[0].shape == (1, 64, 65, 3)
    with pytest.raises(BadOutput, match=r"\.gif.*\.mp4 or \.webp"):
        write_video(tmp_path / "a.gif", clip(1), 16)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fps"):
            write_video(tmp_path / "b.mp4", clip(1), fps)
    with pytest.raises(ValueError, match="quality"):
        write_video(tmp_path / "b.mp4", clip(1), 16, quality=0)
    assert [each.name for each in tmp_path.iterdir()] == ["a.webp"]


def test_check_output(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for name, overwrite, why in (
        ("a.avi", False, r"'\.avi'.*\.mp4 or \.webp"),
        ("a", False, "''"),
        ("old.mp4", False, "--overwrite"),
        ("link.mp4", False, "--overwrite"),
        ("folder.mp4", True, "a folder"),
        ("old.mp4/deeper/a.mp4", False, "is a file"),
        ("x" * 300 + ".mp4", False, "usable|longer"),
        ("new/" + "x" * 300 + ".mp4", False, "usable|longer"),
        ("a\0b.mp4", False, "usable"),
    ):
        with pytest.raises(BadOutput, match=why):
            check_output(tmp_path / name, overwrite)
    for name, overwrite in (("old.mp4", True), ("new.MP4", False), ("deep/er/a.webp", False)):
        check_output(tmp_path / name, overwrite)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.mp4", "link.mp4", "old.mp4"]
    check_output(tmp_path / "a.png", False, extensions=("png", "jpg"))


def test_check_output_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by file modes: tests may run as root, who may write anywhere.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    with pytest.raises(BadOutput, match="no permission"):
        check_output(tmp_path / "deep" / "a.mp4", False)
