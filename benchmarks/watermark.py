"""Is the invisible mark found after what clips go through, is it found where it is not, and what does it do to the picture?

    python benchmarks/watermark.py [--clips 100] [--large-frames 9] [--frames CACHE.npz] [--output benchmarks/results/NAME]

Nano clips of people never seen in training, made with the product's settings, each marked and unmarked; and larger clips (480x832):
moving photographs of scikit-image, drawn people, nano clips scaled up with noise. Every clip is first written as the product writes it
and read again; what the tables name happens to that. Rates have 95% Wilson intervals. Nothing here was used to choose the mark's
constants: those came from other seeds, but from the same photographs. Writes NAME.md and NAME.json.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from lynx_video import GenerateConfig, __version__, generate, load
from lynx_video.draft import draft
from lynx_video.evaluation.statistics import paired
from lynx_video.face.likeness import likeness
from lynx_video.media import watermark
from lynx_video.media.video import read_video, write_video
from lynx_video.nano import captions, faces
from lynx_video.nano.recipe import data
from lynx_video.pipeline.identify import identify

Clip = NDArray[np.uint8]
SEED = 8_000
FPS = 16.0
HEIGHT, WIDTH = 480, 832
PHOTOS = (
    "astronaut.png coffee.png chelsea.png motorcycle_left.png rocket.jpg camera.png brick.png grass.png gravel.png retina.jpg"
)
OTHER_KEYS = 2000


@dataclass(kw_only=True)
class Row:
    """What became of the clips under one treatment."""

    marked: list[float] = field(default_factory=list)
    unmarked: list[float] = field(default_factory=list)
    kbits: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)


def main() -> None:
    """Make the clips, treat them, detect, report."""
    parser = argparse.ArgumentParser(description="Measure the invisible mark.")
    parser.add_argument("--clips", type=int, default=100, help="nano clips")
    parser.add_argument("--large-frames", type=int, default=9, help="frames of a larger clip")
    parser.add_argument(
        "--frames", type=Path, default=None, help="where nano's clips are kept, and taken from if they are there"
    )
    parser.add_argument("--output", type=Path, default=None, help="write NAME.md and NAME.json")
    request = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    began = time.monotonic()
    components = load("nano")
    clips, portraits = _nano_clips(components, request.clips, request.frames)
    _say(began, f"{len(clips)} nano clips")
    marked = [watermark.mark(clip) for clip in clips]
    results: dict[str, Any] = {"nano": _treat(clips, marked, SMALL, began), "picture": _picture(clips, marked)}
    results["likeness"] = _likeness(components, clips, marked, portraits)
    _say(began, "likeness")
    large = list(_large_clips(clips, request.large_frames))
    large_marked = [watermark.mark(clip) for clip in large]
    results["large"] = _treat(large, large_marked, LARGE, began)
    results["large_picture"] = _picture(large, large_marked)
    results["unmarked"] = _unmarked(clips)
    results["other_keys"] = _other_keys([*clips[:20], *large[::4]])
    results["speed"] = _speed()
    results["seconds"] = time.monotonic() - began
    about = {
        "version": __version__,
        "machine": f"{platform.machine()}, 1 thread",
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "av": av.__version__,
        "threshold": watermark.THRESHOLD,
        "clips": len(clips),
        "size": f"{len(clips[0])} frames of {clips[0].shape[2]}x{clips[0].shape[1]}",
        "large": f"{len(large)} clips of {request.large_frames} frames, {WIDTH}x{HEIGHT}",
    }
    text = _report(results, about)
    print(text)
    if request.output is not None:
        plain = json.dumps({"about": about, **results}, indent=1, default=asdict) + "\n"
        for ending, content in ((".md", text), (".json", plain)):
            with draft(request.output.with_name(request.output.name + ending)) as file:
                file.write_text(content, encoding="utf-8")


# ---------------------------------------------------------------- clips


def _nano_clips(components: Any, count: int, kept: Path | None) -> tuple[list[Clip], list[Clip]]:
    if kept is not None and kept.is_file():
        stored = np.load(kept)
        if len(stored["clips"]) == count:
            return list(stored["clips"]), list(stored["portraits"])
    rng, words = data.generator("evaluation", SEED), random.Random(SEED)
    who = faces.people(count, rng)
    drawn = faces.draw(who, faces.scenes(who, rng), faces.poses(count, rng, spread=0.5), 256).permute(0, 2, 3, 1)
    real = data.clips(who, rng)
    clips, portraits = [], []
    for i in range(count):
        picture = (drawn[i] * 255).round().to(torch.uint8).contiguous().numpy()
        sitter = identify(components.faces, picture, reference_size=components.defaults.reference_size).identity
        prompt = captions.caption(real.scene, i, int(real.motion[i]), "", words)
        clips.append(generate(components, sitter, prompt, GenerateConfig(seed=SEED + i)).frames)
        portraits.append(sitter.aligned)
    if kept is not None:
        with draft(kept) as file:
            np.savez_compressed(file, clips=np.stack(clips), portraits=np.stack(portraits))
    return clips, portraits


def _large_clips(clips: list[Clip], frames: int) -> Iterator[Clip]:
    """Photographs under a moving camera, drawn people, nano clips scaled up; camera noise on the first and the last."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    for number, name in enumerate(PHOTOS.split()):
        photo = cv2.imread(str(folder / name), cv2.IMREAD_COLOR_RGB)
        assert photo is not None
        for second in range(2):
            yield _moving(photo, frames, np.random.default_rng(SEED + 2 * number + second))
    rng = data.generator("evaluation", SEED + 1)
    who = faces.people(10, rng)
    poses = faces.tracks(faces.poses(10, rng, spread=0.7), torch.arange(10) % len(faces.MOTIONS), torch.ones(10), frames)
    scenes = faces.scenes(who, rng)
    margin = (WIDTH - HEIGHT) // 2
    for i in range(10):
        alone = slice(i, i + 1)
        pictures = []
        for at in range(i * frames, (i + 1) * frames):
            pose = faces.select(poses, slice(at, at + 1))
            square = faces.draw(faces.select(who, alone), faces.select(scenes, alone), pose, WIDTH)
            pictures.append((square[0, :, margin:-margin] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        yield np.stack(pictures)
    noise = np.random.default_rng(SEED)
    for clip in clips[:10]:
        large = [cv2.resize(frame, (WIDTH, WIDTH), interpolation=cv2.INTER_CUBIC)[margin:-margin] for frame in clip[:frames]]
        yield _whole(np.stack(large) + noise.normal(0, 2, (len(large), HEIGHT, WIDTH, 3)))


def _moving(photo: Clip, frames: int, rng: np.random.Generator) -> Clip:
    height, width = photo.shape[:2]
    start, end = rng.random(2), rng.random(2)
    pictures = []
    for at in np.linspace(0, 1, frames):
        across = min(width, height * WIDTH / HEIGHT) * (0.95 - 0.15 * at)
        down = across * HEIGHT / WIDTH
        x, y = ((1 - at) * start + at * end) * (width - across, height - down)
        turn = np.array([[across / WIDTH, 0, x], [0, down / HEIGHT, y]], np.float32)
        picture = cv2.warpAffine(
            photo, turn, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
        )
        pictures.append(_whole(picture + rng.normal(0, 2, picture.shape)))
    return np.stack(pictures)


# ---------------------------------------------------------------- treatments

Treatment = Callable[[Clip], tuple[Clip, float | None]]


def _stored(clip: Clip, ending: str = "mp4") -> tuple[Clip, float | None]:
    """As the product writes and reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"clip.{ending}"
        write_video(file, clip, FPS)
        return read_video(file)[0], file.stat().st_size * 8 / 1000 * FPS / len(clip)


def _encoded(clip: Clip, crf: int, codec: str = "libx264", **options: str) -> tuple[Clip, float | None]:
    """Encoded and decoded again, and the kbit/s of the stream alone."""
    buffer, size = io.BytesIO(), 0
    with av.open(buffer, "w", format="mp4" if codec == "libx264" else "webm") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(FPS))
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.options = {"crf": str(crf), **options}
        context = stream.codec_context
        context.colorspace, context.color_range, context.thread_count = 1, 1, 1
        for picture in (*clip, None):
            frame = None if picture is None else av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if frame is not None:
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            for packet in stream.encode(frame):
                size += packet.size
                container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        frames = [
            one.to_ndarray(format="rgb24", src_colorspace="ITU709") for one in container.decode(container.streams.video[0])
        ]
    return np.stack(frames), size * 8 / 1000 * FPS / len(clip)


def _scaled(clip: Clip, down: float, across: float) -> Clip:
    height, width = (max(2, round(size * factor / 2) * 2) for size, factor in zip(clip.shape[1:3], (down, across), strict=True))
    how = cv2.INTER_AREA if down * across < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in clip])


def _reencode(crf: int) -> Treatment:
    return lambda clip: _encoded(clip, crf)


def _scale(crf: int, down: float, across: float | None = None) -> Treatment:
    return lambda clip: _encoded(_scaled(clip, down, across or down), crf)


def _vp9(clip: Clip) -> tuple[Clip, float | None]:
    return _encoded(clip, 33, "libvpx-vp9", b="0", **{"cpu-used": "4"})


ENDS: dict[str, Treatment] = {
    "straight": lambda clip: (clip, None),
    "H.264, CRF 18": _reencode(18),
    "H.264, CRF 23": _reencode(23),
    "H.264, CRF 28": _reencode(28),
    "H.264, CRF 33": _reencode(33),
    "scaled 0.5, CRF 18": _scale(18, 0.5),
    "scaled 0.5, CRF 23": _scale(23, 0.5),
}
SMALL: dict[str, Treatment] = {
    **ENDS,
    "scaled 0.75, CRF 23": _scale(23, 0.75),
    "scaled 1.37, CRF 23": _scale(23, 1.37),
    "scaled 1.5, CRF 23": _scale(23, 1.5),
    "scaled 2, CRF 28": _scale(28, 2),
    "1.5 wide, 1 high, CRF 23": _scale(23, 1, 1.5),
    "every second frame, CRF 23": lambda clip: _encoded(clip[::2], 23),
    "first half, CRF 23": lambda clip: _encoded(clip[: len(clip) // 2], 23),
    "every frame twice, CRF 23": lambda clip: _encoded(clip.repeat(2, 0), 23),
    "VP9, CRF 33": _vp9,
    "webp, quality 90": lambda clip: _stored(clip, "webp"),
}
LARGE: dict[str, Treatment] = {
    **ENDS,
    "scaled 0.25, CRF 23": _scale(23, 0.25),
    "scaled 1.37, CRF 28": _scale(28, 1.37),
    "every second frame, CRF 28": lambda clip: _encoded(clip[::2], 28),
}


def _treat(plain: list[Clip], marked: list[Clip], treatments: dict[str, Treatment], began: float) -> dict[str, Row]:
    stored = [(_stored(one)[0], _stored(other)[0]) for one, other in zip(plain, marked, strict=True)]
    rows = {}
    for name, treatment in treatments.items():
        row = rows[name] = Row()
        for one, other in stored:
            row.unmarked.append(watermark.detect(treatment(one)[0]).score)
            treated, kbits = treatment(other)
            row.marked.append(watermark.detect(treated).score)
            if kbits is not None:
                row.kbits.append(kbits)
            if treated.shape == other.shape:
                row.psnr.append(_psnr(treated, other))
        _say(began, name)
    return rows


# ---------------------------------------------------------------- measures


def _picture(plain: list[Clip], marked: list[Clip]) -> dict[str, float]:
    from skimage.metrics import structural_similarity

    psnr = [_psnr(one, other) for one, other in zip(marked, plain, strict=True)]
    ssim = [
        np.mean([structural_similarity(a, b, channel_axis=2) for a, b in zip(one, other, strict=True)])
        for one, other in zip(marked, plain, strict=True)
    ]
    change = [np.subtract(one, other, dtype=np.int16).astype(np.float32) for one, other in zip(marked, plain, strict=True)]
    steps = [np.diff(one, axis=0).std() / one.std() for one in change if len(one) > 1]
    return {
        "psnr": float(np.mean(psnr)),
        "lowest_psnr": float(np.min(psnr)),
        "ssim": float(np.mean(ssim)),
        "lowest_ssim": float(np.min(ssim)),
        "change_between_frames": float(np.mean(steps)),
    }


def _likeness(components: Any, plain: list[Clip], marked: list[Clip], portraits: list[Clip]) -> dict[str, Any]:
    detector, judge = components.faces.detector(), components.faces.judge()
    values = [
        [likeness(clip, portrait, detector, judge) for clip, portrait in zip(some, portraits, strict=True)]
        for some in (plain, marked)
    ]
    similarity = [[one.similarity for one in some] for some in values]
    difference = paired(similarity[0], similarity[1], [str(i) for i in range(len(plain))])
    known = [[one for one in some if one is not None] for some in similarity]
    return {
        "plain": float(np.mean(known[0])),
        "marked": float(np.mean(known[1])),
        "difference": difference.to_json(),
        "coverage": [float(np.mean([one.coverage for one in some])) for some in values],
        "judge": components.faces.judge_name,
    }


def _unmarked(clips: list[Clip]) -> dict[str, list[float]]:
    """Scores of what never had a mark, as it is: no codec has smoothed it."""
    rng = np.random.default_rng(SEED)
    people = faces.people(200, data.generator("evaluation", SEED + 2))
    drawn = data.clips(people, data.generator("evaluation", SEED + 3)).frames.permute(0, 1, 3, 4, 2).numpy()
    families: dict[str, Iterable[Clip]] = {
        "nano": clips,
        "one frame of nano, nine times": (clip[:1].repeat(9, 0) for clip in clips),
        "drawn": drawn,
        "noise": (rng.integers(0, 256, (3, *_size(rng), 3), dtype=np.uint8) for _ in range(100)),
        "blurred noise": (_blurred(rng) for _ in range(100)),
        "one colour": (np.full((3, *_size(rng), 3), rng.integers(0, 256, 3), np.uint8) for _ in range(100)),
        "gradients": (_gradient(rng) for _ in range(200)),
    }
    return {name: [watermark.detect(clip).score for clip in family] for name, family in families.items()}


def _size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = rng.integers(32, 300, 2)
    return int(height), int(width)


def _blurred(rng: np.random.Generator) -> Clip:
    height, width = _size(rng)
    soft = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)), (0, 0), float(rng.uniform(1, 12)))
    return _whole(128 + 40 * soft / soft.std())[None].repeat(3, 0)


def _gradient(rng: np.random.Generator) -> Clip:
    height, width = _size(rng)
    rows, columns = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * rows + np.sin(angle) * columns
    return _whole(rng.uniform(40, 200, 3) + slope[..., None] * rng.uniform(-90, 90, 3))[None].repeat(3, 0)


def _other_keys(clips: list[Clip]) -> dict[str, float]:
    """What unmarked clips score with keys that are not ours: should be a normal distribution of variance 1."""
    keys = np.random.default_rng(SEED).choice(np.array([-1, 1], np.float32), (OTHER_KEYS, watermark.WIDE, watermark.WIDE))
    scores = np.concatenate([band for clip in clips for band in watermark.correlations(clip, keys).values()])
    return {
        "clips": len(clips),
        "scores": len(scores),
        "mean": float(scores.mean()),
        "deviation": float(scores.std()),
        "above_3": float((scores > 3).mean()),
        "highest": float(scores.max()),
    }


def _speed() -> dict[str, float]:
    clip = np.random.default_rng(0).integers(0, 256, (81, HEIGHT, WIDTH, 3), dtype=np.uint8)
    clip = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip])
    found = {}
    for name, verb in (("mark", watermark.mark), ("detect", watermark.detect)):
        began = time.process_time()
        verb(clip)
        found[f"{name}_seconds"] = time.process_time() - began
        tracemalloc.start()
        verb(clip)
        found[f"{name}_megabytes"] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    found["clip_megabytes"] = clip.nbytes / 1e6
    return found


# ---------------------------------------------------------------- report


def _report(results: dict[str, Any], about: dict[str, Any]) -> str:
    picture, large, like = results["picture"], results["large_picture"], results["likeness"]
    difference, keys, speed = like["difference"], results["other_keys"], results["speed"]
    lines = [
        "`python benchmarks/watermark.py`",
        "",
        f"{about['machine']}; lynx-video {about['version']}, Python {about['python']}, OpenCV {about['opencv']}, PyAV {about['av']}; "
        f"threshold {about['threshold']}; {results['seconds']:.0f} s in all.",
        "",
        f"### Nano: {about['clips']} clips of unseen people, {about['size']}",
        "",
        *_table(results["nano"]),
        "",
        f"Mark against none: PSNR {picture['psnr']:.2f} dB (lowest {picture['lowest_psnr']:.2f}), SSIM {picture['ssim']:.4f} (lowest "
        f"{picture['lowest_ssim']:.4f}); the mark changes from frame to frame by {picture['change_between_frames']:.2f} of itself.",
        "",
        f"Likeness to the portrait ({like['judge']}): {like['plain']:.4f} without, {like['marked']:.4f} with the mark; difference "
        f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}] (95%, bootstrap over people).",
        "",
        f"### Larger: {about['large']}",
        "",
        *_table(results["large"]),
        "",
        f"Mark against none: PSNR {large['psnr']:.2f} dB (lowest {large['lowest_psnr']:.2f}), SSIM {large['ssim']:.4f} (lowest "
        f"{large['lowest_ssim']:.4f}); the mark changes from frame to frame by {large['change_between_frames']:.2f} of itself.",
        "",
        "### What never had a mark",
        "",
        "| | found | 95% | mean score | deviation | highest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, scores in results["unmarked"].items():
        lines.append(f"| {name} | {_rate(scores)} | {np.mean(scores):.2f} | {np.std(scores):.2f} | {max(scores):.2f} |")
    lines += [
        "",
        f"With {OTHER_KEYS:,} other keys, {keys['clips']} unmarked clips, both bands ({keys['scores']:,} scores): "
        f"mean {keys['mean']:.3f}, deviation {keys['deviation']:.3f}, "
        f"above 3: {keys['above_3']:.5f} (normal: {0.5 * math.erfc(3 / 2**0.5):.5f}), "
        f"highest {keys['highest']:.2f}.",
        "",
        "### Time and memory, 81 frames of 832x480, one thread",
        "",
        f"mark {speed['mark_seconds']:.2f} s and {speed['mark_megabytes']:.0f} MB beside the clip, "
        f"the marked clip of {speed['clip_megabytes']:.0f} MB among them, "
        f"detect {speed['detect_seconds']:.2f} s and {speed['detect_megabytes']:.0f} MB.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, Row]) -> list[str]:
    lines = [
        "| the product's mp4, then | kbit/s | PSNR | mark found | 95% | mean score | lowest | false alarms | 95% | highest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        kbits = f"{np.mean(row.kbits):.0f}" if row.kbits else ""
        psnr = f"{np.mean(row.psnr):.1f}" if row.psnr and row.kbits else ""
        lines.append(
            f"| {name} | {kbits} | {psnr} | {_rate(row.marked)} | {np.mean(row.marked):.1f} | {min(row.marked):.1f} | "
            f"{_rate(row.unmarked)} | {max(row.unmarked):.1f} |"
        )
    return lines


def _rate(scores: list[float]) -> str:
    found, count = sum(score >= watermark.THRESHOLD for score in scores), len(scores)
    low, high = _wilson(found, count)
    return f"{found} of {count} | {low:.3f} to {high:.3f}"


def _wilson(found: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    share, weight = found / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def _psnr(one: Clip, other: Clip) -> float:
    error = float(np.mean(np.square(np.subtract(one, other, dtype=np.float32))))
    return 10 * math.log10(255**2 / max(error, 1e-9))


def _whole(picture: NDArray[Any]) -> Clip:
    return np.rint(picture).clip(0, 255).astype(np.uint8)


def _say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:.0f} s: {what}", flush=True)


if __name__ == "__main__":
    main()
