"""Pictures: any file Pillow can read as uint8 RGB [H, W, 3], and PNG or JPEG files from such arrays.

A picture leaves here the way a viewer shows it: turned by its EXIF orientation, alpha over white, 16 bits scaled to 8, the
first frame of an animation. Colour profiles are not applied: the face encoders were trained on plain decoded pixels.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadPicture, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from lynx_video.types import Picture

SHORTEST_SIDE = 32
"""Pixels. Below this there is no face to find."""
MOST_PIXELS = 64_000_000
"""Larger pictures are refused from their header, before a byte is decoded."""

# What Pillow's decoders raise on damaged files, beside its own DecompressionBombError.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error, MemoryError)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})


def read_picture(path: str | PathLike[str]) -> Picture:
    """The picture in a file, uint8 [H, W, 3] RGB.

    Raises:
        BadPicture: no such file, a folder, empty, not a picture, damaged, cut off, a side under 32 pixels, over 64 megapixels.
        MissingDependency: a HEIC file, and pillow-heif is not installed.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = Path(path)
    header = _header(file)
    if _is_heic(header):
        _register_heif(file)
    # Pillow warns of large pictures and odd metadata; what matters of it is refused below in our own words.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: PillowImage = Image.open(file)
        except Image.DecompressionBombError as error:
            raise BadPicture(f"{file}: more than {MOST_PIXELS // 10**6} megapixels; give a smaller picture.") from error
        except UnidentifiedImageError as error:
            raise BadPicture(f"{file}: not a picture that can be read (JPEG, PNG, WebP, TIFF, HEIC, ...).") from error
        except _DAMAGE as error:
            raise BadPicture(f"{file}: not a picture that can be read ({_line(error)}).") from error
        with image:
            _check_size(file, image.width, image.height)
            try:
                image.load()
            except (*_DAMAGE, Image.DecompressionBombError) as error:
                raise BadPicture(f"{file}: the picture is damaged or cut off ({_line(error)}).") from error
            try:
                upright = ImageOps.exif_transpose(image)
            except _DAMAGE:
                # A broken EXIF block says nothing about orientation; the pixels are whole.
                upright = image
            try:
                return _rgb(upright)
            except _DAMAGE as error:
                raise BadPicture(
                    f"{file}: pixels of kind {image.mode!r} cannot be turned into RGB ({_line(error)})."
                ) from error


def write_picture(path: str | PathLike[str], image: Picture) -> None:
    """Write uint8 [H, W, 3] RGB as PNG or JPEG (quality 95), by the extension; parent folders are created.

    Raises:
        BadOutput: another extension, or the file cannot be written.
        ValueError: not a uint8 [H, W, 3] array.
    """
    from PIL import Image

    file = Path(path)
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(file.suffix.lower())
    if kind is None:
        raise BadOutput(f"{file}: unknown extension {file.suffix!r}; a picture is written as .png or .jpg.")
    if image.ndim != 3 or image.shape[2] != 3 or str(image.dtype) != "uint8" or 0 in image.shape:
        raise ValueError(f"expected a uint8 [H, W, 3] picture, got {image.dtype} {list(image.shape)}")
    with draft(file) as temporary:
        try:
            Image.fromarray(image).save(temporary, format=kind, quality=95)
        except OSError as error:
            raise BadOutput(f"{file}: cannot be written ({error.strerror or error}).") from error


def file_hash(path: str | PathLike[str]) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pixels_hash(picture: Picture) -> str:
    """sha256 of the pixels, uint8 [H, W, 3], 64 hex digits: what stands for a file's hash where there is no file."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _header(file: Path) -> bytes:
    """The first bytes of a file that is there, is a file and is not empty."""
    try:
        if file.is_dir():
            raise BadPicture(f"{file}: a folder, not a picture.")
        if not file.exists():
            raise BadPicture(f"{file}: no such file.")
        if not file.is_file():
            raise BadPicture(f"{file}: not a regular file.")
        with file.open("rb") as stream:
            header = stream.read(64)
    except BadPicture:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise BadPicture(f"{file}: cannot be read ({_line(error)}).") from error
    if not header:
        raise BadPicture(f"{file}: the file is empty.")
    return header


def _check_size(file: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise BadPicture(
            f"{file}: {width}x{height} is {width * height / 1e6:.0f} megapixels; at most {MOST_PIXELS // 10**6} are read."
        )
    if min(width, height) < SHORTEST_SIDE:
        raise BadPicture(f"{file}: {width}x{height} pixels; the shorter side must be at least {SHORTEST_SIDE}.")


def _is_heic(header: bytes) -> bool:
    """Whether an ISO media header names a HEIC brand. AVIF shares container and brand `mif1`; Pillow reads it itself."""
    if header[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(header[:4], "big"), len(header))
    brands = {header[8:12], *(header[at : at + 4] for at in range(16, size - 3, 4))}
    return not brands & {b"avif", b"avis"} and bool(brands & _HEIC_BRANDS)


def _register_heif(file: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise MissingDependency(f"{file}: reading HEIC needs pillow-heif: pip install 'lynx-video[heif]'") from error
    register_heif_opener()


def _rgb(image: PillowImage) -> Picture:
    """Any Pillow mode as uint8 [H, W, 3]."""
    import numpy as np
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_grey8(image)[:, :, None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered)
        return np.array(flat.convert("RGB"), dtype=np.uint8)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _grey8(image: PillowImage) -> Picture:
    """Grey of more than 8 bits as uint8 [H, W], scaled: Pillow's own conversion clips everything above 255 to white."""
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("float pixels outside 0 to 1")
        top = 1.0
    elif image.mode == "I" and values.max() > 65535:
        top = 2.0**31 - 1
    else:
        top = 65535.0
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)


def _line(error: BaseException) -> str:
    """An error in one line, without the path that Pillow and the system repeat."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:160] or type(error).__name__
