"""Portraits from strangers: taken whole as they came, or refused with nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import stat
import struct
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Form, UploadFile
from PIL import Image, ImageFile

from lynx_video.errors import BadPicture, BadRequest, LynxError
from lynx_video.server.body_limit import BodyLimit
from lynx_video.server.uploads import (
    BLOCK_BYTES,
    NoRoom,
    TooLarge,
    TooSlow,
    UnknownKind,
    Upload,
    UploadLimits,
    blocks_of,
    read_data_url,
    read_upload,
    safe_name,
)

SCENE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def encoded(kind: str, picture: np.ndarray = SCENE, **options: Any) -> bytes:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format=kind, **options)
    return out.getvalue()


async def blocks(data: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def take(data: bytes, folder: Path, limits: UploadLimits | None = None, size: int = 1000, **options: Any) -> Upload:
    return asyncio.run(read_upload(blocks(data, size), folder, limits, **options))


def refused(
    data: bytes, folder: Path, kind: type[LynxError], says: str, limits: UploadLimits | None = None, **options: Any
) -> None:
    """The upload is refused so, and leaves nothing."""
    with pytest.raises(kind, match=says) as caught:
        take(data, folder, limits, **options)
    assert type(caught.value) is kind
    assert str(folder) not in str(caught.value)
    assert not list(folder.rglob("*"))


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header says so, with hardly a pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    inner = b"".join(chunk(*one) for one in more) or chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + inner + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "media_type", "suffix"),
    [
        ("JPEG", "image/jpeg", ".jpg"),
        ("PNG", "image/png", ".png"),
        ("WEBP", "image/webp", ".webp"),
        ("HEIF", "image/heic", ".heic"),
    ],
)
def test_a_picture_of_each_kind_is_kept_bit_for_bit(tmp_path: Path, kind: str, media_type: str, suffix: str) -> None:
    data = encoded(kind)
    upload = take(data, tmp_path / "new", name="holiday.txt", size=7)
    assert upload.path.parent == tmp_path / "new"
    assert upload.path.suffix == suffix
    assert upload.path.read_bytes() == data
    assert upload.sha256 == hashlib.sha256(data).hexdigest()
    assert (upload.size, upload.media_type, upload.name) == (len(data), media_type, "holiday.txt")
    assert (upload.width, upload.height) == (64, 48)
    assert stat.S_IMODE(upload.path.stat().st_mode) == 0o600
    assert [one.name for one in upload.path.parent.iterdir()] == [upload.path.name]


def test_names_on_the_disk_are_ours(tmp_path: Path) -> None:
    first, second = (take(encoded("PNG"), tmp_path, name="../../etc/passwd") for _ in range(2))
    assert first.path != second.path
    assert {one.parent for one in tmp_path.rglob("*.png")} == {tmp_path}
    assert first.name == "passwd"
    assert take(encoded("PNG"), tmp_path, stem="video_1").path == tmp_path / "video_1.png"
    with pytest.raises(ValueError, match="plain name"):
        take(encoded("PNG"), tmp_path, stem="../x")


def test_more_than_one_block_to_write(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (900, 900, 3), np.uint8)
    data = encoded("PNG", noise)
    assert len(data) > 2 * BLOCK_BYTES
    upload = take(data, tmp_path, size=65_536)
    assert upload.path.read_bytes() == data
    assert upload.sha256 == hashlib.sha256(data).hexdigest()


def test_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upload = take(encoded("JPEG", exif=exif), tmp_path)
    assert (upload.width, upload.height) == (48, 64)


@pytest.mark.parametrize(
    "data",
    [
        b"Dear Sir or Madam,\n" * 20,
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0" * 50,
        encoded("GIF"),
        encoded("TIFF"),
        encoded("BMP"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"x" * 100,
        b"RIFF\x24\0\0\0WAVEfmt ",
        struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"avif", 0, b"mif1", b"avif") + b"\0" * 100,
        struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"avif") + b"\0" * 100,
        struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"isom", 0, b"isom", b"avc1") + b"\0" * 100,
        b"\x89PN",
    ],
    ids=["text", "svg", "gif header", "gif", "tiff", "bmp", "eps", "wave", "avif", "avif as mif1", "mp4", "three bytes"],
)
def test_other_kinds_are_refused_whatever_they_are_called(tmp_path: Path, data: bytes) -> None:
    refused(data, tmp_path / "new", UnknownKind, r"^me\.png: not a picture of a kind", name="me.png")


def test_an_empty_upload(tmp_path: Path) -> None:
    refused(b"", tmp_path / "new", BadPicture, r"^portrait: the file is empty")


@pytest.mark.parametrize("fails", [0, 1, 2], ids=["never", "file", "folder"])
def test_it_is_on_the_disk_before_anybody_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    kept: list[Path] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        kept.append(Path(f"/proc/self/fd/{handle}").readlink())
        if len(kept) == fails:
            raise OSError(5, "Input/output error")
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    if fails:
        refused(encoded("PNG"), tmp_path, NoRoom, r"cannot be stored here just now \(Input/output error\)")
    else:
        path = take(encoded("PNG"), tmp_path, stem="x").path
        assert [kept[0].parent, kept[1]] == [path.parent, path.parent]
        assert kept[0].name.startswith(".x.")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_cut_pictures(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(kind, lossless=True) if kind == "WEBP" else encoded(kind)
    refused(
        data[: max(16, int(len(data) * share))], tmp_path / "new", BadPicture, r"^me\.jpg: .*(damaged|cut off)", name="me.jpg"
    )


def test_a_header_of_one_kind_with_a_body_of_another(tmp_path: Path) -> None:
    refused(b"\xff\xd8\xff" + encoded("PNG"), tmp_path / "new", BadPicture, "damaged or cut off")
    refused(b"\x89PNG\r\n\x1a\n" + encoded("GIF"), tmp_path / "new", BadPicture, "damaged or cut off")


def test_no_other_decoder_sees_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has some fifty, and asks each whose turn comes."""
    asked = []

    class Greedy(ImageFile.ImageFile):
        def _open(self) -> None:
            asked.append(self.filename)
            raise SyntaxError

    Image.init()
    monkeypatch.setitem(Image.OPEN, "GREEDY", (Greedy, None))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "GREEDY"])
    (tmp_path / "x").write_bytes(encoded("PNG")[:40])
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "x")
    assert len(asked) == 1, "this is how it would be"
    refused(encoded("PNG")[:40], tmp_path / "new", BadPicture, "damaged or cut off")
    assert len(asked) == 1


def test_bytes_are_counted_while_they_arrive(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield encoded("PNG")
        while True:
            sent += 65_536
            yield b"\0" * 65_536

    with pytest.raises(TooLarge, match=r"^portrait: larger than the 3 MiB that are taken"):
        asyncio.run(read_upload(endless(), tmp_path / "new", UploadLimits(most_bytes=3 * 2**20)))
    assert sent <= 3 * 2**20 + 65_536
    assert not list(tmp_path.iterdir())


def test_the_limit_of_bytes_is_exact(tmp_path: Path) -> None:
    data = encoded("PNG")
    assert take(data, tmp_path / "a", UploadLimits(most_bytes=len(data))).size == len(data)
    refused(data, tmp_path / "b", TooLarge, f"{len(data) - 1} bytes", UploadLimits(most_bytes=len(data) - 1))


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_001), (7072, 7072), (60_000, 60_000)])
def test_pixel_bombs_are_refused_by_their_header(tmp_path: Path, width: int, height: int) -> None:
    start = time.perf_counter()
    refused(png(width, height), tmp_path / "new", TooLarge, "megapixels")
    assert time.perf_counter() - start < 10


def test_the_limit_of_pixels_is_the_operators(tmp_path: Path) -> None:
    limits = UploadLimits(most_pixels=48 * 64)
    assert take(encoded("PNG"), tmp_path / "a", limits).width == 64
    refused(encoded("PNG"), tmp_path / "b", TooLarge, r"64x48 is 0\.0 megapixels", UploadLimits(most_pixels=48 * 64 - 1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (31, 500), (500, 31)])
def test_too_small_to_hold_a_face(tmp_path: Path, width: int, height: int) -> None:
    refused(encoded("PNG", SCENE[:1, :1].repeat(height, 0).repeat(width, 1)), tmp_path / "new", BadPicture, "at least 32")


def test_a_text_chunk_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    bomb = zlib.compress(b"\0" * (80 * 2**20))
    data = png(64, 48, (b"zTXt", b"Comment\0\0" + bomb), (b"IDAT", zlib.compress((b"\0" + b"\0" * 192) * 48)))
    refused(data, tmp_path / "new", BadPicture, "damaged or cut off")


def test_a_jpeg_of_thousands_of_passes(tmp_path: Path) -> None:
    progressive = encoded("JPEG", progressive=True)
    assert take(progressive, tmp_path / "a").media_type == "image/jpeg"
    last = progressive.rindex(b"\xff\xda")
    scan = progressive[last:-2]
    refused(progressive[:-2] + scan * 200 + b"\xff\xd9", tmp_path / "b", BadPicture, "JPEG of 2[01][0-9] passes", size=1)


@pytest.mark.parametrize("first", [0, 30, 3000])
def test_a_client_that_leaves_leaves_nothing(tmp_path: Path, first: int) -> None:
    async def leaving() -> AsyncIterator[bytes]:
        if first:
            yield encoded("PNG")[:first]
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        asyncio.run(read_upload(leaving(), tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def test_a_task_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield encoded("PNG")[:3000]
        await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(read_upload(stuck(), tmp_path / "new"))
        end = time.monotonic() + 20
        while not list(tmp_path.rglob("*.png")):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not list(tmp_path.iterdir())


def test_a_drip_of_bytes_ends_in_time(tmp_path: Path) -> None:
    async def drip() -> AsyncIterator[bytes]:
        data = encoded("PNG")
        for at in range(len(data)):
            yield data[at : at + 1]
            await asyncio.sleep(0.01)

    with pytest.raises(TooSlow, match=r"not all there after 0\.2 s"):
        asyncio.run(read_upload(drip(), tmp_path / "new", UploadLimits(most_seconds=0.2)))
    assert not list(tmp_path.iterdir())


def test_decoding_is_not_on_the_senders_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyio import CapacityLimiter

    from lynx_video.server import uploads

    read = uploads.read_picture
    monkeypatch.setattr(uploads, "read_picture", lambda path: (time.sleep(1.7), read(path))[1])

    async def two() -> list[Upload]:
        limits, one = UploadLimits(most_seconds=1.5), CapacityLimiter(1)
        return await asyncio.gather(
            *(read_upload(blocks(encoded("PNG"), 999), tmp_path, limits, limiter=one) for _ in range(2))
        )

    assert [one.width for one in asyncio.run(two())] == [64, 64]


def test_the_loop_goes_on_while_a_picture_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyio import CapacityLimiter

    from lynx_video.server import uploads

    read, now, most = uploads.read_picture, 0, 0

    def slow(path: Path) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.2)
        now -= 1
        return read(path)

    monkeypatch.setattr(uploads, "read_picture", slow)

    async def several() -> int:
        limiter, ticks = CapacityLimiter(1), 0
        task = asyncio.gather(*(read_upload(blocks(encoded("PNG"), 999), tmp_path, limiter=limiter) for _ in range(3)))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        await task
        return ticks

    assert asyncio.run(several()) > 5
    assert most == 1


def test_a_full_disk_is_ours_to_mend(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    folder = tmp_path / "new"
    folder.mkdir()
    real = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return real(Path("/dev/full") if "a" in mode else self, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", full)
        refused(encoded("PNG"), folder, NoRoom, "cannot be stored here just now")
    (tmp_path / "file").write_text("")
    with pytest.raises(NoRoom, match="cannot be stored here just now") as caught:
        take(encoded("PNG"), tmp_path / "file" / "new")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_data_urls(tmp_path: Path, kind: str) -> None:
    data = encoded(kind.upper())
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    upload = asyncio.run(read_data_url(url, tmp_path, name="inline"))
    assert upload.path.read_bytes() == data
    assert upload.media_type == f"image/{kind}"


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("", BadPicture, "expected data:image/png;base64"),
        ("https://example.com/me.png", BadPicture, "expected data:image/png;base64"),
        ("data:image/png,%89PNG", BadPicture, "expected data:image/png;base64"),
        ("data:image/png;base64", BadPicture, "expected data:image/png;base64"),
        ("data:image/png;base64,***", BadPicture, "not base64"),
        ("data:image/png;base64,iVBORw0KGg", BadPicture, "not base64"),
        ("data:image/png;base64,é", BadPicture, "not base64"),
        ("data:image/png;base64,", BadPicture, "empty"),
        ("data:image/png;base64," + base64.b64encode(b"Dear Sir" * 20).decode(), UnknownKind, "not a picture of a kind"),
        ("data:text/plain;base64," + base64.b64encode(encoded("GIF")).decode(), UnknownKind, "not a picture of a kind"),
        ("data:image/png;base64," + "A" * 20_000, TooLarge, "larger than the 9000 bytes"),
    ],
)
def test_data_urls_that_are_none(tmp_path: Path, url: str, kind: type[LynxError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        asyncio.run(read_data_url(url, tmp_path / "new", UploadLimits(most_bytes=9000)))
    assert type(caught.value) is kind
    assert not list(tmp_path.iterdir())


def test_a_long_data_url_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(TooLarge):
        asyncio.run(read_data_url("data:image/png;base64," + "A" * 13_000, tmp_path, UploadLimits(most_bytes=9000)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("me.png", "me.png"),
        ("Zoë und 東京 (1).jpg", "Zoë und 東京 (1).jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\photo.jpg", "photo.jpg"),
        ("a\r\nSet-Cookie: x.png", "a__Set-Cookie: x.png"),
        ("gpj.\u202etxt.exe", "gpj._txt.exe"),
        ("\x1b[31mred.png", "_[31mred.png"),
        ("a\0b.png", "a_b.png"),
        ("", "portrait"),
        ("..", "portrait"),
        ("/", "portrait"),
        ("\0\n", "portrait"),
        ("e\u0301.png", "é.png"),
        ("\ud800.png", "_.png"),
    ],
)
def test_safe_names(name: str, shown: str) -> None:
    assert safe_name(name) == shown
    safe_name(name).encode()


def test_long_names_keep_their_suffix() -> None:
    assert len(safe_name("x" * 300 + ".jpeg")) == 100
    assert safe_name("x" * 300 + ".jpeg").endswith("x….jpeg")
    assert len(safe_name("x" * 10_000_000)) == 100
    assert len(safe_name("x." + "y" * 300)) == 100


@pytest.mark.parametrize("wrong", [{"most_bytes": 0}, {"most_pixels": 64_000_001}, {"most_seconds": 0}])
def test_limits_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        UploadLimits(**wrong)


def limited_app() -> Any:
    app = FastAPI()

    def answer(_: int, says: str) -> bytes:
        return json.dumps({"error": {"message": says}}).encode()

    app.add_middleware(BodyLimit, most_bytes=20_000, most_seconds=60.0, answer=answer)

    @app.post("/form")
    async def form(file: UploadFile, text: str = Form("")) -> dict[str, int]:
        return {"size": sum([len(block) async for block in blocks_of(file)]), "text": len(text)}

    @app.post("/json")
    async def body(value: dict[str, str]) -> dict[str, int]:
        return {"size": len(value["data"])}

    @app.post("/deaf")
    async def deaf() -> dict[str, str]:
        return {"heard": "nothing"}

    return app


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
@pytest.mark.parametrize("path", ["/form", "/json"])
def test_bodies_that_are_too_long(path: str, announced: bool) -> None:
    sent = 0

    async def ask(size: int) -> httpx.Response:
        if path == "/form":
            plain = httpx.Request("POST", "http://test" + path, files={"file": ("a", b"x" * size)}, data={"text": "y" * 10})
        else:
            plain = httpx.Request("POST", "http://test" + path, json={"data": "x" * size})
        data = plain.read()

        async def content() -> AsyncIterator[bytes]:
            nonlocal sent
            for at in range(0, len(data), 5000):
                sent += 1
                yield data[at : at + 5000]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(limited_app()), base_url="http://test") as client:
            headers = {"content-type": plain.headers["content-type"]}
            return await client.post(path, content=data if announced else content(), headers=headers)

    assert asyncio.run(ask(15_000)).json()["size"] == 15_000
    sent = 0
    answer = asyncio.run(ask(1_000_000))
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].startswith("the request is larger than the 20000 bytes that are taken")
    assert sent <= 5, "no more is read than it takes to know"


def test_an_announced_body_is_not_waited_for() -> None:
    said: list[Any] = []

    async def never() -> Any:
        pytest.fail("it was read")

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/json", "headers": [(b"content-length", b"20001")]}
    asyncio.run(limited_app()(scope, never, send))
    assert said[0]["status"] == 413


def test_a_body_nobody_reads_is_no_fault() -> None:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limited_app()), base_url="http://test") as client:
            return await client.post("/deaf", content=blocks(b"x" * 50_000, 5000))

    assert asyncio.run(ask()).status_code == 200
