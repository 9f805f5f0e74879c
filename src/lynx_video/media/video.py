"""Videos: uint8 RGB frames [F, H, W, 3] to and from .mp4 (H.264) and animated .webp, with the settings they were made from.

- mp4: libx264, 4:2:0, BT.709 and limited range, tagged as such, index in front: plays in browsers while it loads. The settings
  are JSON in the container's `comment`, the prompt is its `title`.
- webp: lossy, endless loop. The settings are JSON in an XMP packet (`lynx:settings`), which also holds the exact frame rate and
  number of frames: webp counts whole milliseconds and merges equal neighbours.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest

if TYPE_CHECKING:
    from lynx_video.types import Picture, Video

EXTENSIONS = ("mp4", "webp")
QUALITY = 90
_BT709 = 1  # the number of BT.709 among the matrices, primaries and transfer curves of ISO 23091-2
_NAMESPACE = "urn:lynx-video:settings:1"


def check_output(path: str | os.PathLike[str], overwrite: bool, *, extensions: tuple[str, ...] = EXTENSIONS) -> None:
    """Refuse an output that could not be written at the end, before any work; creates nothing.

    Raises:
        BadOutput: unknown extension, a folder, there already (without `overwrite`), a parent that cannot be made or written.
    """
    file = Path(path)
    if file.suffix.lower().lstrip(".") not in extensions:
        known = " or ".join(f".{each}" for each in extensions)
        raise BadOutput(f"{file}: unknown extension {file.suffix!r}; expected {known}.")
    if "\0" in str(file):
        raise BadOutput(f"{str(file)!r}: not a usable path (a null character in it).")
    try:
        if file.is_dir():
            raise BadOutput(f"{file}: a folder is there; name a file.")
        if os.path.lexists(file) and not overwrite:
            raise BadOutput(f"{file}: exists already; use --overwrite or another name.")
        # Resolved without links, or a link that leads nowhere would look like a folder to be made.
        folder = file.parent.resolve()
        while not folder.exists() and folder.parent != folder:
            folder = folder.parent
        if not folder.is_dir():
            raise BadOutput(f"{file}: {folder} is a file, so the folder {file.parent} cannot be created.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadOutput(f"{file}: no permission to write in {folder}.")
        longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if any(len(os.fsencode(part)) > longest for part in file.parts):
            raise BadOutput(f"{file}: a name in this path is longer than {longest} bytes.")
    except (OSError, ValueError) as error:
        if isinstance(error, BadOutput):
            raise
        raise BadOutput(f"{file}: not a usable path ({getattr(error, 'strerror', None) or error}).") from error


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Picture] | Video,
    fps: float,
    metadata: Mapping[str, Any] | None = None,
    quality: int = QUALITY,
) -> None:
    """Write frames as .mp4 or .webp, by the extension; parent folders are created, the file appears whole or not at all.

    frames: uint8 [H, W, 3] RGB each, all of one size; an iterable is consumed once (mp4 keeps one frame at a time).
    fps: frames per second, above 0. metadata: plain JSON values, read back by `read_metadata`.
    quality: 1 to 100. webp takes it as it is; for mp4 90 is CRF 17 and each 2 points less are one CRF more.

    Raises:
        BadOutput: another extension, no frames, an odd side for mp4, or the file cannot be written.
        ValueError: a frame that is not uint8 [H, W, 3] or has another size than the first; fps or quality out of range.
    """
    file = Path(path)
    kind = file.suffix.lower().lstrip(".")
    if kind not in EXTENSIONS:
        raise BadOutput(f"{file}: unknown extension {file.suffix!r}; expected .mp4 or .webp.")
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps must be above 0 and at most 1000, got {fps}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1 to 100, got {quality}")
    settings = dict(metadata or {})
    checked = _checked(frames)
    try:
        first = next(checked)
    except StopIteration:
        raise BadOutput(f"{file}: there are no frames to write.") from None
    height, width = first.shape[:2]
    if kind == "mp4" and (height % 2 or width % 2):
        raise BadOutput(f"{file}: {width}x{height}: an mp4 needs an even width and height; write .webp or choose another size.")
    with draft(file) as temporary:
        try:
            if kind == "mp4":
                _write_mp4(temporary, chain([first], checked), width, height, fps, settings, quality)
            else:
                _write_webp(temporary, [first, *checked], fps, settings, quality)
        except OSError as error:
            raise BadOutput(f"{file}: cannot be written ({error.strerror or error}).") from error


def read_video(path: str | os.PathLike[str], most: int | None = None, most_bytes: int | None = None) -> tuple[Video, float]:
    """All frames of a video, or the first so many, uint8 [F, H, W, 3] RGB, and its frames per second.

    most_bytes: no more frames of an mp4 than have so many bytes, but one.

    Raises:
        BadRequest: no such file, or not a video that can be read.
    """
    file = _existing(path)
    if _is_webp(file):
        whole, fps = _read_webp(file)
        return whole[:most], fps
    import av
    import numpy as np

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise BadRequest(f"{file}: has no video stream.")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            # Untagged files are taken for BT.601, as the decoders of small videos take them.
            frames: list[Picture] = []
            for frame in islice(container.decode(stream), most):
                space = "ITU709" if frame.colorspace == _BT709 else "ITU601"
                frames.append(frame.to_ndarray(format="rgb24", src_colorspace=space))
                if most_bytes is not None and (len(frames) + 1) * frames[-1].nbytes > most_bytes:
                    break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"{file}: not a video that can be read ({getattr(error, 'strerror', None) or error}).") from error
    if not frames or not rate:
        raise BadRequest(f"{file}: the video has no frames.")
    if len({frame.shape for frame in frames}) > 1:
        raise BadRequest(f"{file}: the frames are of several sizes, which clips are not.")
    return np.stack(frames), float(rate)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that `write_video` stored in a file; empty if it carries none.

    Raises:
        BadRequest: no such file, or not a video that can be read.
    """
    file = _existing(path)
    if _is_webp(file):
        settings = _xmp(file).get("settings", {})
        return settings if isinstance(settings, dict) else {}
    import av

    try:
        with av.open(str(file)) as container:
            comment = container.metadata.get("comment", "")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BadRequest(f"{file}: not a video that can be read ({getattr(error, 'strerror', None) or error}).") from error
    return _settings(comment)


def _checked(frames: Iterable[Picture]) -> Iterator[Picture]:
    """The frames, each found to be uint8 [H, W, 3] of the first one's size."""
    expected: tuple[int, ...] | None = None
    for number, frame in enumerate(frames):
        if frame.ndim != 3 or frame.shape[2] != 3 or str(frame.dtype) != "uint8" or 0 in frame.shape:
            raise ValueError(f"frame {number}: expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
        expected = expected or frame.shape
        if frame.shape != expected:
            raise ValueError(f"frame {number}: {list(frame.shape)} differs from the first frame's {list(expected)}")
        yield frame


def _write_mp4(
    file: Path, frames: Iterable[Picture], width: int, height: int, fps: float, settings: dict[str, Any], quality: int
) -> None:
    import av
    import numpy as np

    with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = json.dumps(settings)
        if settings.get("prompt"):
            container.metadata["title"] = str(settings["prompt"]).replace("\x00", "")[:200]
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        crf = min(51.0, max(0.0, 17 + (QUALITY - quality) / 2))
        # x264's macroblock tree rounds otherwise from process to process; without it the same frames are the same file.
        stream.options = {"crf": f"{crf:g}", "preset": "medium", "x264-params": "mbtree=0"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = 1  # limited, as every player expects of 4:2:0
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_webp(file: Path, frames: list[Picture], fps: float, settings: dict[str, Any], quality: int) -> None:
    from PIL import Image

    # Whole milliseconds, rounded on the running time so that 16 fps stays 16 fps over the clip.
    starts = [round(index * 1000 / fps) for index in range(len(frames) + 1)]
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(
        file,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=[max(1, end - start) for start, end in pairwise(starts)],
        loop=0,
        quality=quality,
        method=4,
        xmp=_packet({"settings": settings, "fps": fps, "frames": len(frames)}),
    )


def _read_webp(file: Path) -> tuple[Video, float]:
    import numpy as np
    from PIL import Image, ImageSequence

    facts = _xmp(file)
    frames: list[Picture] = []
    lengths: list[int] = []
    try:
        with Image.open(file) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()  # the duration in `info` is that of the frame decoded last
                frames.append(np.array(frame.convert("RGB"), dtype=np.uint8))
                lengths.append(int(frame.info.get("duration", 0)))
    except (OSError, ValueError, EOFError) as error:
        raise BadRequest(f"{file}: not a video that can be read ({error}).") from error
    fps, count = facts.get("fps"), facts.get("frames")
    if isinstance(fps, (int, float)) and fps > 0 and isinstance(count, int) and count >= len(frames):
        # Equal neighbours were merged into one long frame; its start and end tell how many there were.
        marks = [round(sum(lengths[:index]) * fps / 1000) for index in range(len(frames))] + [count]
        repeated = [frame for frame, (start, end) in zip(frames, pairwise(marks), strict=True) for _ in range(end - start)]
        return np.stack(repeated), float(fps)
    total = sum(lengths)
    return np.stack(frames), len(frames) * 1000 / total if total else 1.0


def _packet(facts: dict[str, Any]) -> bytes:
    """An XMP packet with `facts` as JSON; json.dumps leaves only ASCII without control characters, which XML allows."""
    text = escape(json.dumps(facts))
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:lynx="{_NAMESPACE}"><lynx:settings>{text}</lynx:settings></rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _xmp(file: Path) -> dict[str, Any]:
    """What `_packet` stored in a webp file; empty if there is no such packet."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            packet = image.info.get("xmp", b"")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadRequest(f"{file}: not a video that can be read ({error}).") from error
    try:
        text = ElementTree.fromstring(packet).findtext(f".//{{{_NAMESPACE}}}settings") if packet else None
    except ElementTree.ParseError:
        return {}
    return _settings(text or "")


def _settings(text: str) -> dict[str, Any]:
    """A JSON object, or nothing: the comment of a foreign file is free text."""
    try:
        settings = json.loads(text)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _existing(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.is_file():
        raise BadRequest(f"{file}: {'a folder, not a video' if file.is_dir() else 'no such file'}.")
    return file


def _is_webp(file: Path) -> bool:
    with file.open("rb") as stream:
        header = stream.read(12)
    return header[:4] == b"RIFF" and header[8:] == b"WEBP"
