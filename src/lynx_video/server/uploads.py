"""Portraits that strangers send: read from a stream of bytes into a file under our own name, within limits, or not at all.

    kind     by the first bytes (JPEG, PNG, WebP, HEIC); neither the name nor the Content-Type is believed
    bytes    counted while they arrive; Content-Length is not believed
    pixels   from the picture's header, before one is decoded
    whole    decoded once, in a thread, so that a cut or damaged picture is refused now and not by a worker later

The bytes are kept as they came, EXIF included: the hash in a clip's record is that of the file which the sender has, so that it can
be recognised, and the clip replayed, by it. The place and camera in the EXIF stay in this file, which only the service's user can
read, which no route gives out, and of which nothing but pixels goes into clips and identities.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
import uuid
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadPicture, BadRequest, LynxError
from lynx_video.media.image import MOST_PIXELS, read_picture
from lynx_video.server.folder import sync

if TYPE_CHECKING:
    from anyio import CapacityLimiter

HEAD_BYTES = 64
BLOCK_BYTES = 1 << 20
MOST_SCANS = 100
"""Passes of a progressive JPEG. Encoders make about ten; each costs time for the whole picture, however few its bytes."""
LONGEST_NAME = 100

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp", "image/heic": ".heic"}
_FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/heic": "HEIF"}
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"})


class TooLarge(BadPicture):
    """An upload of more bytes or pixels than are taken."""

    status: ClassVar[int] = 413


class UnknownKind(BadPicture):
    """An upload that is no picture of a kind that is taken."""

    status: ClassVar[int] = 415


class TooSlow(BadRequest):
    """An upload that did not arrive in time."""

    status: ClassVar[int] = 408


class NoRoom(LynxError):
    """An upload that the disk has no room for, or that cannot be written: the server's trouble, not the sender's."""

    status: ClassVar[int] = 507


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadLimits:
    """What is taken of one portrait."""

    most_bytes: int = 25 * 2**20
    "bytes of the file"
    most_pixels: int = 50_000_000
    "width x height, read from the header"
    most_seconds: float = 120.0
    "time for the bytes to arrive"

    def __post_init__(self) -> None:
        for name, value, most in (
            ("most_bytes", self.most_bytes, 2**32),
            ("most_pixels", self.most_pixels, MOST_PIXELS),
            ("most_seconds", self.most_seconds, 86_400),
        ):
            if not 0 < value <= most:
                raise BadRequest(f"{name} of an upload must be above 0 and at most {most}, got {value!r}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A portrait that was taken: where it lies, and what the sender called it (only for showing)."""

    path: Path
    name: str
    sha256: str
    size: int
    media_type: str
    width: int
    height: int


class Stream(Protocol):
    """Blocks of bytes as they arrive."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class FileLike(Protocol):
    """What Starlette's UploadFile offers of a part of a form."""

    async def read(self, size: int = -1) -> bytes: ...


async def read_upload(
    stream: Stream,
    folder: Path,
    limits: UploadLimits | None = None,
    *,
    name: str = "",
    stem: str = "",
    limiter: CapacityLimiter | None = None,
) -> Upload:
    """Write a portrait from `stream` into `folder`, as a name of ours with the suffix of its kind; nothing is left if it is refused.

    Args:
        name: what the sender calls the file; made safe, and only shown.
        stem: our name of the file without its suffix; a random one by default. Never the sender's.
        limiter: how many pictures are decoded at a time (each takes up to about 12 bytes a pixel).

    Raises:
        BadPicture: empty, damaged, cut off, too small. TooLarge (413), UnknownKind (415). All name the picture as the sender does.
        TooSlow: not all there after `limits.most_seconds` (408).
        NoRoom: the disk is full or the folder cannot be written (507).
    """
    from anyio import fail_after

    if stem != Path(stem).name:
        raise ValueError(f"a stem is a plain name of ours, got {stem!r}")
    limits = limits or UploadLimits()
    shown = safe_name(name)
    try:
        with fail_after(limits.most_seconds) as clock:
            blocks = aiter(stream)
            first = await _first(blocks)
            kind = _kind(first, shown)
            path = folder / f"{stem or uuid.uuid4().hex}{_SUFFIXES[kind]}"
            with draft(path) as temporary:
                size, digest, scans = await _store(first, blocks, temporary, limits, shown)
                clock.deadline = float("inf")  # from here on it is our own time
                if kind == "image/jpeg" and scans > MOST_SCANS:
                    raise BadPicture(
                        f"{shown}: a JPEG of {scans} passes; at most {MOST_SCANS} are read. Save it again as plain JPEG."
                    )
                height, width = await _in_thread(lambda: _decode(temporary, kind, limits, shown), limiter)
                await _in_thread(lambda: _keep(temporary, shown), None)
    except TimeoutError as error:
        raise TooSlow(
            f"{shown}: not all there after {limits.most_seconds:g} s; send it again, or a smaller picture."
        ) from error
    except BadOutput as error:
        raise NoRoom(f"{shown}: cannot be stored here just now; try again later.") from error
    try:
        await _in_thread(lambda: _keep(folder, shown), None)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Upload(path=path, name=shown, sha256=digest, size=size, media_type=kind, width=width, height=height)


async def read_data_url(
    url: str,
    folder: Path,
    limits: UploadLimits | None = None,
    *,
    name: str = "",
    stem: str = "",
    limiter: CapacityLimiter | None = None,
) -> Upload:
    """As `read_upload`, from a `data:image/...;base64,...` address; too long a one is refused before it is decoded.

    Raises:
        BadPicture: not such an address, or not base64; and what `read_upload` raises.
    """
    limits = limits or UploadLimits()
    shown = safe_name(name)
    head, comma, _ = url[:256].partition(",")
    if not comma or not re.fullmatch(r"data:[\w.+/;=-]*;base64", head, re.ASCII | re.IGNORECASE):
        raise BadPicture(f"{shown}: expected data:image/png;base64,... (or jpeg, webp), got {url[:40]!r}.")
    text = url[len(head) + 1 :]
    if len(text) > (limits.most_bytes + 2) // 3 * 4:
        raise _too_large(shown, limits)
    try:
        data = await _in_thread(lambda: base64.b64decode(text, validate=True), limiter)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"{shown}: the data: address is not base64 ({error}).") from error
    return await read_upload(_once(data), folder, limits, name=name, stem=stem, limiter=limiter)


async def blocks_of(file: FileLike) -> AsyncIterator[bytes]:
    """The bytes of a part of a form (Starlette's UploadFile), block by block."""
    while block := await file.read(BLOCK_BYTES):
        yield block


def safe_name(name: str) -> str:
    """A client's file name for showing it: the last part of its path, printable, short; `portrait` if nothing is left."""
    last = unicodedata.normalize("NFC", name[-4096:]).replace("\\", "/").rpartition("/")[2]
    # Categories C: control, direction marks, surrogates, unassigned. Z but for the space: line and paragraph separators.
    plain = "".join(one if one == " " or unicodedata.category(one)[0] not in "CZ" else "_" for one in last)
    plain = plain.strip(" ._") and plain.strip()
    if len(plain) > LONGEST_NAME:
        stem, dot, suffix = plain.rpartition(".")
        tail = dot + suffix if stem and len(suffix) <= 10 else ""
        plain = plain[: LONGEST_NAME - len(tail) - 1] + "…" + tail
    return plain or "portrait"


async def _first(blocks: AsyncIterator[bytes]) -> bytes:
    """At least the bytes that tell the kind, if there are as many."""
    first = b""
    while len(first) < HEAD_BYTES:
        try:
            first += await anext(blocks)
        except StopAsyncIteration:
            break
    return first


def _kind(first: bytes, shown: str) -> str:
    """The media type by the first bytes. Raises UnknownKind, BadPicture if there are none."""
    if not first:
        raise BadPicture(f"{shown}: the file is empty.")
    if first.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "image/webp"
    if first[4:8] == b"ftyp" and first[8:12] in _HEIC_BRANDS and b"avif" not in first[:HEAD_BYTES]:
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise UnknownKind(f"{shown}: HEIC cannot be read here; send JPEG, PNG or WebP.") from error
        register_heif_opener()
        return "image/heic"
    raise UnknownKind(f"{shown}: not a picture of a kind that is taken; send JPEG, PNG, WebP or HEIC.")


async def _store(
    first: bytes, blocks: AsyncIterator[bytes], path: Path, limits: UploadLimits, shown: str
) -> tuple[int, str, int]:
    """Write the blocks to `path`; bytes, sha256 and JPEG scans of the whole."""
    size, scans, digest = len(first), 0, hashlib.sha256()
    pending = bytearray(first)

    def write(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    async def flush() -> None:
        nonlocal scans
        data = bytes(pending)
        pending.clear()
        digest.update(data)
        scans += data.count(b"\xff\xda")
        try:
            await _in_thread(lambda: write(data), None)
        except OSError as error:
            raise _no_room(shown, error) from error

    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise _no_room(shown, error) from error
    while size <= limits.most_bytes:
        if len(pending) >= BLOCK_BYTES:
            await flush()
        try:
            block = await anext(blocks)
        except StopAsyncIteration:
            await flush()
            return size, digest.hexdigest(), scans
        size += len(block)
        pending += block
    raise _too_large(shown, limits)


def _decode(path: Path, kind: str, limits: UploadLimits, shown: str) -> tuple[int, int]:
    """Height and width of a picture that is whole, as a viewer shows it."""
    from PIL import Image

    # Only the decoder of the kind is asked, so that no other of Pillow's many sees a stranger's bytes.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=(_FORMATS[kind],)) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise TooLarge(f"{shown}: more than {limits.most_pixels / 1e6:g} megapixels; send a smaller picture.") from error
        except Exception as error:  # a decoder on hostile bytes: whatever it raises means the same
            raise BadPicture(f"{shown}: the picture is damaged or cut off; save it again and send that.") from error
    if width * height > limits.most_pixels:
        raise TooLarge(
            f"{shown}: {width}x{height} is {width * height / 1e6:.1f} megapixels; at most {limits.most_pixels / 1e6:g} are taken."
        )
    try:
        picture = read_picture(path)
    except BadPicture as error:
        raise BadPicture(str(error).replace(str(path), shown)) from None
    return int(picture.shape[0]), int(picture.shape[1])


def _keep(path: Path, shown: str) -> None:
    try:
        sync(path)
    except OSError as error:
        raise _no_room(shown, error) from error


async def _in_thread(work: Callable[[], Any], limiter: CapacityLimiter | None) -> Any:
    from anyio.to_thread import run_sync

    return await run_sync(work, limiter=limiter)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _too_large(shown: str, limits: UploadLimits) -> TooLarge:
    return TooLarge(f"{shown}: larger than the {megabytes(limits.most_bytes)} that are taken; send a smaller picture.")


def _no_room(shown: str, error: OSError) -> NoRoom:
    return NoRoom(f"{shown}: cannot be stored here just now ({error.strerror or error}); try again later.")


def megabytes(size: int) -> str:
    """Bytes as messages name them."""
    return f"{size / 2**20:.3g} MiB" if size >= 2**20 else f"{size} bytes"
