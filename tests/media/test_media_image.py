"""Reading pictures of every kind as a viewer shows them, refusing what is none, writing them whole."""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lynx_video.errors import BadOutput, BadPicture, MissingDependency
from lynx_video.media.image import file_hash, read_picture, write_picture

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def scene() -> np.ndarray:
    """Left half red, right half blue, the top row of pixels green: every turn and flip of it looks different."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2] = (220, 30, 20)
    picture[:, WIDTH // 2 :] = (20, 40, 210)
    picture[:8] = (10, 200, 30)
    return picture


def test_plain_png_is_exact(tmp_path: Path, scene: np.ndarray) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    assert np.array_equal(picture, scene)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, scene: np.ndarray, orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), turn(scene))


def test_alpha_is_laid_over_white(tmp_path: Path, scene: np.ndarray) -> None:
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[20:30], alpha[30:40] = 0, 128
    Image.fromarray(np.concatenate([scene, alpha], 2)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png").astype(int)
    assert np.array_equal(picture[:20], scene[:20])
    assert (picture[20:30] == 255).all()
    expected = scene[30:40] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(picture[30:40] - expected).max() <= 1


def test_grey_with_alpha_and_bilevel(tmp_path: Path) -> None:
    grey = np.full((40, 40, 2), 100, np.uint8)
    grey[:20, :, 1], grey[20:, :, 1] = 255, 0
    Image.fromarray(grey, "LA").save(tmp_path / "la.png")
    picture = read_picture(tmp_path / "la.png")
    assert (picture[:20] == 100).all()
    assert (picture[20:] == 255).all()
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(read_picture(tmp_path / "1.png")[..., 0], np.eye(40, dtype=np.uint8) * 255)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([250, 0, 0, 0, 0, 250] + [0] * 762)
    image.paste(1, (0, 0, 40, 20))
    image.save(tmp_path / "a.png", transparency=1)
    picture = read_picture(tmp_path / "a.png")
    assert (picture[:20] == 255).all()
    assert (picture[20:] == (250, 0, 0)).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg").astype(int)
    assert picture.shape == (40, 40, 3)
    assert np.abs(picture - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, kind: str) -> None:
    ramp = np.linspace(0, 65535, 40 * 50).reshape(40, 50).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"a.{kind}")
    picture = read_picture(tmp_path / f"a.{kind}")
    assert np.abs(picture[..., 0] - ramp / 257).max() <= 0.51
    assert (picture[..., 0] == picture[..., 2]).all()


def test_thirty_two_bits_and_floats(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 32768, np.int32)).save(tmp_path / "i.tif")
    assert (read_picture(tmp_path / "i.tif") == 128).all()
    Image.fromarray(np.full((40, 40), 2**30, np.int32)).save(tmp_path / "wide.tif")
    assert (read_picture(tmp_path / "wide.tif") == 128).all()
    Image.fromarray(np.full((40, 40), 0.25, np.float32)).save(tmp_path / "f.tif")
    assert (read_picture(tmp_path / "f.tif") == 64).all()
    Image.fromarray(np.full((40, 40), 90.0, np.float32)).save(tmp_path / "unknown.tif")
    with pytest.raises(BadPicture, match=r"unknown\.tif.*'F'"):
        read_picture(tmp_path / "unknown.tif")


def test_webp_and_first_frame_of_animations(tmp_path: Path, scene: np.ndarray) -> None:
    Image.fromarray(scene).save(tmp_path / "still.webp", lossless=True)
    assert np.array_equal(read_picture(tmp_path / "still.webp"), scene)
    for kind in ("gif", "webp"):
        first, second = Image.new("RGB", (40, 40), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
        options = {"lossless": True} if kind == "webp" else {}
        first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second], duration=100, **options)
        assert (read_picture(tmp_path / f"a.{kind}") == (255, 0, 0)).all()


def test_heic(tmp_path: Path, scene: np.ndarray) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_bytes("RGB", (WIDTH, HEIGHT), scene.tobytes()).save(tmp_path / "a.heic", quality=90)
    picture = read_picture(tmp_path / "a.heic").astype(int)
    assert picture.shape == scene.shape
    assert np.abs(picture - scene).mean() < 6


def test_heic_without_the_package_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic") + b"\0" * 100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[heif\]'"):
        read_picture(tmp_path / "a.jpg")


def test_avif_is_not_taken_for_heic(tmp_path: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import features

    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(scene).save(tmp_path / "a.avif", quality=95)
    assert np.abs(read_picture(tmp_path / "a.avif").astype(int) - scene).mean() < 6


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# 64.1, 100 and 400 megapixels: below, inside and above the range in which Pillow warns of a bomb or refuses by itself.
@pytest.mark.parametrize("size", [(8010, 8000), (10_000, 10_000), (20_000, 20_000)])
def test_too_many_megapixels_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    file = tmp_path / "huge.png"
    file.write_bytes(_png_header(*size))
    with pytest.raises(BadPicture, match=r"huge\.png.* 64"):
        read_picture(file)


def test_too_small_names_the_size(tmp_path: Path) -> None:
    Image.new("RGB", (31, 500)).save(tmp_path / "thin.png")
    with pytest.raises(BadPicture, match=r"thin\.png.*31x500.*32"):
        read_picture(tmp_path / "thin.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "just.png")
    assert read_picture(tmp_path / "just.png").shape == (32, 32, 3)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("hello" * 100)
    for name, why in (("none.png", "no such file"), (".", "folder"), ("empty.png", "empty"), ("text.jpg", "not a picture")):
        with pytest.raises(BadPicture, match=why):
            read_picture(tmp_path / name)
    with pytest.raises(BadPicture, match=r"no such file|cannot be read"):  # by the version of Python
        read_picture("a\0b.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "tif"])
def test_cut_files(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{kind}")
    whole = (tmp_path / f"a.{kind}").read_bytes()
    for part in (0.02, 0.5, 0.9):
        (tmp_path / f"cut.{kind}").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BadPicture, match=rf"cut\.{kind}"):
            read_picture(tmp_path / f"cut.{kind}")


def test_broken_exif_does_not_stop_a_whole_picture(tmp_path: Path, scene: np.ndarray) -> None:
    Image.fromarray(scene).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert np.array_equal(read_picture(tmp_path / "a.png"), scene)


def test_write_picture(tmp_path: Path, scene: np.ndarray) -> None:
    write_picture(tmp_path / "new" / "a.png", scene)
    assert np.array_equal(read_picture(tmp_path / "new" / "a.png"), scene)
    write_picture(tmp_path / "new" / "a.JPG", scene)
    assert np.abs(read_picture(tmp_path / "new" / "a.JPG").astype(int) - scene).mean() < 6
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.JPG", "a.png"]
    with pytest.raises(BadOutput, match=r"\.bmp"):
        write_picture(tmp_path / "a.bmp", scene)
    with pytest.raises(ValueError, match="uint8"):
        write_picture(tmp_path / "a.png", scene.astype(np.float32))


def test_a_failed_write_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "a.png", scene)
    before = (tmp_path / "a.png").read_bytes()

    def half(_: Any, file: Path, **_options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    for target in (tmp_path / "a.png", tmp_path / "deep" / "er" / "b.png"):
        with pytest.raises(BadOutput, match="No space left"):
            write_picture(target, scene)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_file_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()
