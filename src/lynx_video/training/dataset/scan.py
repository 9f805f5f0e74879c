"""Looking at an item: can it be read, whose face is in it, how good is it, and which part of it would be learned from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lynx_video.errors import BadRequest, MissingDependency, NoFace
from lynx_video.face.align import REFERENCE_SIZE, arcface_crop
from lynx_video.face.detect import find_faces
from lynx_video.face.embed import embed_crop
from lynx_video.face.quality import GOOD_PIXELS, sharpness, span, yaw_of
from lynx_video.training.dataset.config import Bucket, DatasetConfig
from lynx_video.training.dataset.finding import Evidence, Finding, cut_portrait, thumbnail
from lynx_video.training.dataset.footage import frames_at, is_animated, survey_footage
from lynx_video.training.dataset.framing import View, choose_bucket, choose_window, place
from lynx_video.training.dataset.people import connected_pieces
from lynx_video.training.dataset.source import CLIPS, Dropped, Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.pipeline.models import FaceModels
    from lynx_video.types import Face, Picture


class Frames(NamedTuple):
    """The pictures that are looked at and their seconds (none in a photo); of a clip that becomes an example, bucket and times."""

    pictures: list[Picture]
    times: tuple[float, ...] = ()
    bucket: Bucket | None = None
    window: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The face in one of the pictures. number: which one. vector: float32 [512]."""

    number: int
    face: Face
    span: float
    sharpness: float
    yaw: float
    vector: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """Looks at items whose files lie under `root`. buckets, fps, reference_size: the model's. same_person: as in the config."""

    root: Path
    config: DatasetConfig
    buckets: tuple[Bucket, ...]
    fps: float
    reference_size: int
    same_person: float
    faces: FaceModels

    def __call__(self, item: Item) -> tuple[Finding, Evidence]:
        """What was found. Raises Dropped if the item cannot be used."""
        from lynx_video.pipeline.checkpoint import fingerprint

        file = self.root / item.file
        with _reading(self.root):
            if not file.is_file():
                raise Dropped("unreadable", "a folder, no file" if file.is_dir() else "no such file")
            content = fingerprint([file])
        is_clip = file.suffix.lower() in CLIPS or is_animated(file)
        frames = self._clip(item, file) if is_clip else self._photo(item, file)
        looks = self._look(frames.pictures)
        best, mean = best_look(looks)
        picture = frames.pictures[best.number]
        self._judge(best, picture)
        moment = frames.times[best.number : best.number + 1]
        clip = still = None
        if frames.bucket is not None:
            clip = self._view(frames.bucket, frames.window, picture, [look.face for look in looks])
        stills = [bucket for bucket in self.buckets if bucket.frames == 1]
        if stills and item.caption:
            still = self._view(choose_bucket(stills, picture.shape[0], picture.shape[1]), moment, picture, [best.face])
        portrait, points = cut_portrait(picture, best.face.points, self.reference_size)
        finding = Finding(
            item=item,
            kind="clip" if is_clip else "photo",
            content=content,
            clip=clip,
            still=still,
            moment=moment[0] if moment else 0.0,
            span=best.span,
            sharpness=best.sharpness,
            yaw=best.yaw,
        )
        thumbnails = np.stack([thumbnail(one) for one in frames.pictures])
        return finding, Evidence(best.vector, mean, thumbnails, portrait, points)

    def _clip(self, item: Item, file: Path) -> Frames:
        if not item.caption:
            raise Dropped("no caption", "a clip is learned with its caption, and this one has none")
        with _reading(self.root):
            footage = survey_footage(file)
        moving = [bucket for bucket in self.buckets if bucket.frames > 1]
        # Without a bucket for clips, a clip still has a still to give.
        bucket, window = choose_window(footage, moving or self.buckets, self.fps, item.start, item.stop)
        among = np.linspace(0, len(window) - 1, min(self.config.looks, len(window))).round().astype(int)
        times = tuple(dict.fromkeys(window[number] for number in among))
        with _reading(self.root):
            pictures = list(frames_at(file, times))
        return Frames(pictures, times, bucket, window) if moving else Frames(pictures, times)

    def _photo(self, item: Item, file: Path) -> Frames:
        from lynx_video.media.image import read_picture

        if item.start is not None or item.stop is not None:
            raise Dropped("unreadable", "start and stop belong to clips, and this is a picture")
        with _reading(self.root):
            return Frames([read_picture(file)])

    def _look(self, pictures: Sequence[Picture]) -> list[Look]:
        """The faces, one in each picture that has one. Raises Dropped for none, too few, or those of several people."""
        detector, encoder = self.faces.detector(), self.faces.encoder()
        looks: list[Look] = []
        for number, picture in enumerate(pictures):
            faces = find_faces(picture, detector)
            if len(faces) > 1 and faces[1].size >= self.config.bystander * faces[0].size:
                share = faces[1].size / faces[0].size
                raise Dropped("several people", f"{len(faces)} faces in look {number + 1}, the second {share:.0%} of the first")
            if not faces:
                continue
            points = faces[0].points
            try:
                vector = embed_crop(encoder, arcface_crop(picture, points)).numpy()
            except NoFace:  # a detector may put its points on one spot or outside of the picture
                continue
            looks.append(
                Look(
                    number=number,
                    face=faces[0],
                    span=span(points),
                    sharpness=sharpness(picture, points),
                    yaw=yaw_of(points),
                    vector=vector,
                )
            )
        if not looks:
            raise Dropped("no face", f"none in {len(pictures)} looks" if len(pictures) > 1 else "none was found")
        if len(looks) < self.config.present * len(pictures):
            raise Dropped(
                "face not throughout", f"in {len(looks)} of {len(pictures)} looks, expected {self.config.present:.0%}"
            )
        # Turning the head costs likeness, too, but bit by bit: where looks fall apart into groups there was a cut.
        groups = connected_pieces(np.stack([look.vector for look in looks]), self.same_person / 2)
        if len(groups) > 1:
            raise Dropped("several people", f"the faces in its {len(looks)} looks are of {len(groups)}, one after the other")
        return looks

    def _judge(self, best: Look, picture: Picture) -> None:
        """Raises Dropped for a face that is too small, blurred or turned away."""
        config, shorter = self.config, min(picture.shape[:2])
        if best.span < config.smallest_face * shorter:
            raise Dropped("face too small", f"{best.span:.0f} of {shorter} px, expected {config.smallest_face:.0%}")
        enlarged = GOOD_PIXELS * self.reference_size / REFERENCE_SIZE / best.span
        if enlarged > config.enlargement:
            raise Dropped("face too small", f"{best.span:.0f} px, enlarged {enlarged:.1f} times in the reference crop")
        if best.sharpness < config.sharpness:
            raise Dropped("blurred", f"sharpness {best.sharpness:.4f}, expected {config.sharpness:g} or more")
        if abs(best.yaw) > config.turned:
            raise Dropped("turned away", f"by {abs(best.yaw):.0f} degrees, expected {config.turned:g} or less")

    def _view(self, bucket: Bucket, times: tuple[float, ...], picture: Picture, faces: Sequence[Face]) -> View:
        left, top, right, bottom = np.array([face.box for face in faces]).T
        box = float(left.min()), float(top.min()), float(right.max()), float(bottom.max())
        scaled, corner = place(bucket, picture.shape[0], picture.shape[1], box, self.config.enlargement)
        return View(bucket=bucket, times=times, scaled=scaled, corner=corner)


def best_look(looks: Sequence[Look]) -> tuple[Look, NDArray[np.float32]]:
    """The look that serves best as a reference, and the mean vector of all, float32 [512] of unit length.

    Sharp, from the front, and as the person looks in the other frames, too.
    """
    mean = np.mean([look.vector for look in looks], axis=0)
    mean /= np.linalg.norm(mean)
    return max(looks, key=lambda look: look.sharpness * math.cos(math.radians(look.yaw)) * float(look.vector @ mean)), mean


@contextmanager
def _reading(root: Path) -> Iterator[None]:
    """What cannot be read is dropped, in words that do not tell where on this machine the files are."""
    try:
        yield
    except Dropped:
        raise
    except (BadRequest, MissingDependency, OSError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Dropped("unreadable", " ".join(text.replace(f"{root}/", "").split())) from error
