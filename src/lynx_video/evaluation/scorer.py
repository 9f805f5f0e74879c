"""Scoring: every metric of every clip, on all cores or a cluster, each clip once; the same numbers in any order and on any number.

Faces: the largest of a frame counts, found and aligned to the 112 px ArcFace crop as `face` does it for portraits. A clip is scored
by itself, in one thread, so that no other clip can change its numbers.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lynx_video.errors import BadPicture, BadRequest, BadWeights, MissingDependency, NoFace
from lynx_video.evaluation.config import ScoreConfig
from lynx_video.evaluation.entry import GONE, REFERENCE, UNSCORED, Entry, Record
from lynx_video.evaluation.metrics import face as of_faces
from lynx_video.evaluation.metrics import picture as of_pictures
from lynx_video.evaluation.metrics.score import NO_FACE, Score
from lynx_video.pool import Pool, Progress
from lynx_video.work import Made, Shelf, attempt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.face.likeness import Found, Recogniser
    from lynx_video.pipeline.models import FaceModels
    from lynx_video.types import Picture, Video

    Floats = NDArray[np.float64]

VERSION = 3
"""Of the metrics and probes: with another one all clips are scored anew."""
OF_REFERENCE = ("similarity", "worst_tenth", "kept", "copying")
"""Metrics that compare with the reference photo, by recogniser."""
UNREAD = "the clip cannot be read"
RULE = "the largest face of a frame counts, cut to the 112 px ArcFace crop by its five points"
Probe = Callable[["Video", str], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognisers:
    """Who compares faces, by name. conditioned: the one that conditions the model, "" if it is not among them."""

    models: Mapping[str, Recogniser]
    conditioned: str = ""

    def hashes(self) -> dict[str, str]:
        """What each is known by."""
        return {name: known_by(model) for name, model in self.models.items()}


def open_recognisers(faces: FaceModels, extra: Sequence[str] = ()) -> tuple[Recognisers, list[str]]:
    """The extra ones (`PATH` or `NAME=PATH`), the model's judges, last its encoder where its weights are there; and cautions.

    Raises BadRequest where nobody but the encoder could compare faces, or two have one name; BadWeights for an extra file that is
    no recogniser.
    """
    from lynx_video.face.recogniser import load_recogniser

    found: dict[str, Recogniser] = {}
    for text in extra:
        one = load_recogniser(text)
        if one.name in (*found, *faces.judges, faces.encoder_name):
            raise BadRequest(
                f"two recognisers are called {one.name!r}; name one of them otherwise: --recogniser NAME={one.path}."
            )
        found[one.name] = one
    found |= {name: judge() for name, judge in faces.judges.items()}
    if not found:
        raise BadRequest(
            "no recogniser is at hand but the one the model is conditioned on, which would flatter it: "
            "`lynx-video download face` gets one, --recogniser FILE names one."
        )
    cautions, conditioned = [], ""
    try:
        found[faces.encoder_name] = faces.encoder()
        conditioned = faces.encoder_name
    except (BadWeights, MissingDependency) as error:
        if len(found) < 2:
            cautions.append(f"only one recogniser scores; a second opinion needs --recogniser FILE ({error})")
    return Recognisers(models=found, conditioned=conditioned), cautions


def known_by(model: object) -> str:
    """The sha256 that a detector or recogniser is known by; "" if it has none."""
    from lynx_video.media.image import file_hash

    if text := getattr(model, "hash", ""):
        return str(text)
    path = getattr(model, "path", None)
    return file_hash(path) if path is not None and Path(path).is_file() else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photo's face: the aligned crop, the pixels it shows, and its vector by recogniser."""

    crop: Picture
    span: float
    vectors: dict[str, Floats]


@dataclass(kw_only=True, slots=True)
class Scorer:
    """Scores clips one by one. probe: what else can be told exactly of a clip; clip_model: see `metrics.text`."""

    faces: FaceModels
    recognisers: Recognisers
    config: ScoreConfig = field(default_factory=ScoreConfig)
    probe: Probe | None = None
    clip_model: Callable[[Video, str], Score] | None = None
    photos: dict[Path, Photo | str] = field(default_factory=dict)
    "by file; the reason where there is none"

    def __call__(self, entry: Entry) -> Record:
        """All the numbers of a clip. What is wrong with it is in the record, never an error."""
        from lynx_video.face.likeness import largest_faces
        from lynx_video.media.image import file_hash
        from lynx_video.media.video import read_video

        record = blank(entry)
        # what a clip lacks that cannot be read; where the photo is at fault, too, it says nothing of likeness
        photo = self._photo(entry.reference)
        compared = [f"{metric}/{name}" for name in self.recognisers.models for metric in OF_REFERENCE]
        record = replace(
            record,
            missing={"coverage": UNREAD, **dict.fromkeys(compared, photo if isinstance(photo, str) else UNREAD)},
        )
        if not entry.clip.is_file():
            return replace(record, failure=GONE)
        record = replace(record, sha256=file_hash(entry.clip))
        try:
            frames, fps = read_video(entry.clip)
        except BadRequest as error:
            return replace(record, failure=f"does not decode: {one_line(error, entry.clip)}")
        looked = self._chosen(frames)
        found = largest_faces(looked, self.faces.detector())
        scores, curves = self._of_faces(entry, found, looked)
        scores |= {
            "motion_amount": of_pictures.motion_amount(frames, fps),
            "flicker": of_pictures.flicker(frames),
            "sharpness": of_pictures.sharpness(frames),
        }
        if self.probe is not None:
            told = self.probe(frames, entry.prompt)
            scores |= {f"probe/{name}": Score(value=float(value), n=len(frames)) for name, value in told.items()}
        if self.clip_model is not None:
            scores["clip_score"] = self.clip_model(frames, entry.prompt)
        return replace(
            record,
            frames=len(frames),
            fps=float(fps),
            height=frames.shape[1],
            width=frames.shape[2],
            failure="" if any(found) else NO_FACE,
            scores={name: score.value for name, score in scores.items()},
            counts={name: score.n for name, score in scores.items()},
            missing={name: score.reason for name, score in scores.items() if score.value is None},
            per_frame=curves,
        )

    def _chosen(self, frames: Video) -> Video:
        count = self.config.frames
        if count is None or count >= len(frames):
            return frames
        chosen: Video = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
        return chosen

    def _of_faces(
        self, entry: Entry, found: Sequence[Found | None], looked: Video
    ) -> tuple[dict[str, Score], dict[str, list[float | None]]]:
        from lynx_video.face.quality import span

        there = [one for one in found if one is not None]
        crops = np.stack([one.crop for one in there]) if there else np.zeros((0, 112, 112, 3), np.uint8)
        points = [one.face.points for one in there]
        height, width = looked.shape[1:3]
        scores = {
            "coverage": of_faces.coverage(found),
            "frontal": of_faces.frontal(points),
            "yaw_spread": of_faces.yaw_spread(points),
            "pitch_spread": of_faces.pitch_spread(points),
            "face_size": of_faces.face_size([one.face for one in there], height, width),
        }
        reference = self._photo(entry.reference)
        others = [photo for photo in map(self._photo, entry.others) if isinstance(photo, Photo)]
        curves: dict[str, list[float | None]] = {}
        for name, recogniser in self.recognisers.models.items():
            vectors = _vectors(recogniser, crops)
            scores[f"consistency/{name}"] = of_faces.consistency(vectors)
            if isinstance(reference, str):
                nothing = Score(value=None, n=0, reason=reference)
                scores |= {f"{metric}/{name}": nothing for metric in OF_REFERENCE}
                continue
            own = reference.vectors[name]
            scores[f"similarity/{name}"] = of_faces.similarity(vectors, own)
            scores[f"worst_tenth/{name}"] = of_faces.worst_tenth(vectors, own)
            scores[f"kept/{name}"] = of_faces.kept(vectors, own, len(found))
            elsewhere = np.stack([photo.vectors[name] for photo in others]) if others else np.zeros((0, len(own)))
            scores[f"copying/{name}"] = of_faces.copying(vectors, own, elsewhere)
            cosines = iter(of_faces.cosines(vectors, own).tolist() if there else [])
            curves[name] = [round(next(cosines), 5) if one is not None else None for one in found]
        if isinstance(reference, str):
            scores["pasted"] = Score(value=None, n=0, reason=reference)
        else:
            scores["pasted"] = of_faces.pasted(crops, [span(one) for one in points], reference.crop, reference.span)
        return scores, curves

    def _photo(self, file: Path) -> Photo | str:
        if file not in self.photos:
            self.photos[file] = self._look(file)
        return self.photos[file]

    def _look(self, file: Path) -> Photo | str:
        from lynx_video.face.align import arcface_crop
        from lynx_video.face.detect import choose_face, find_faces
        from lynx_video.face.quality import span
        from lynx_video.media.image import read_picture

        try:
            picture = read_picture(file)
            points = choose_face(find_faces(picture, self.faces.detector())).points
            crop = arcface_crop(picture, points)
        except NoFace:
            return f"{REFERENCE}: no face was found in it"
        except BadPicture as error:
            return f"{REFERENCE}: {one_line(error, file)}"
        models = self.recognisers.models
        return Photo(crop=crop, span=span(points), vectors={name: _vectors(one, crop[None])[0] for name, one in models.items()})


def _vectors(recogniser: Recogniser, crops: NDArray[np.uint8]) -> Floats:
    from lynx_video.face.likeness import signed

    if not len(crops):
        return np.zeros((0, 1))
    # crop by crop: what a face is worth must not depend on how many others the clip has
    return np.concatenate([recogniser(signed(crop[None])).double().numpy() for crop in crops])


def one_line(error: BaseException, file: Path | None = None) -> str:
    """An error in a few words, without the file it is about."""
    text = " ".join(str(error).split())
    return (text.removeprefix(f"{file}: ") if file is not None else text).rstrip(".")[:300]


def blank(entry: Entry) -> Record:
    """The record of a clip of which nothing is known yet; paths as the entry has them."""
    return Record(**_names(entry))


def _names(entry: Entry) -> dict[str, Any]:
    """What a record says of its clip that is not measured."""
    names = {name: getattr(entry, name) for name in ("key", "subject", "prompt", "prompt_id", "seed")}
    return {**names, "clip": str(entry.clip), "reference": str(entry.reference)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreWork:
    """Jobs are (key on the shelf, stamp, entry). faces, extra, probe, config: what a `Scorer` is made of, pickled."""

    faces: Callable[[], FaceModels]
    extra: tuple[str, ...]
    probe: Probe | None
    config: ScoreConfig
    shelf: Shelf

    def open(self) -> Callable[[tuple[str, str, Entry]], None]:
        """Load the face models."""
        faces = self.faces()
        scorer = Scorer(faces=faces, recognisers=open_recognisers(faces, self.extra)[0], config=self.config, probe=self.probe)
        if self.config.clip_model is not None:
            from lynx_video.evaluation.metrics.text import ClipScorer

            scorer.clip_model = clip_model = ClipScorer(self.config.clip_model)
            clip_model.load()

        def do(job: tuple[str, str, Entry]) -> None:
            key, stamp, entry = job

            def lost(error: Exception | None) -> Made:
                if isinstance(error, MissingDependency):  # the next clip would fare no better
                    raise error
                what = "its worker died each time it was tried" if error is None else f"{type(error).__name__}: {error}"
                return replace(blank(entry), failure=f"{UNSCORED}: {' '.join(what.split())[:300]}").to_json(), {}

            def make() -> Made:
                try:
                    return scorer(entry).to_json(), {}
                except MemoryError:  # a clip too long for this machine is the trouble of that clip
                    return lost(MemoryError("out of memory"))

            attempt(self.shelf, key, stamp, make, lost, entry.key)

        return do


def score_clips(
    entries: Sequence[Entry],
    shelf_folder: Path,
    *,
    faces: Callable[[], FaceModels],
    pool: Pool,
    extra: Sequence[str] = (),
    probe: Probe | None = None,
    config: ScoreConfig | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[list[Record], dict[str, Any]]:
    """The records of all entries, in their order, those that are in `shelf_folder` already taken from there; and what scored them.

    faces: opens the face models, in every worker. extra: recognisers as `open_recognisers` takes them. Raises as it does.
    """
    from lynx_video.evaluation.metrics.text import ClipScorer

    config = config or ScoreConfig()
    opened = faces()
    recognisers, cautions = open_recognisers(opened, extra)
    detector = opened.detector()
    judged_by = {
        "metrics_version": VERSION,
        "faces": RULE,
        "detector": {"name": detector.name, "sha256": known_by(detector)},
        "recognisers": recognisers.hashes(),
        "conditioned": recognisers.conditioned,
        "probe": probe is not None,
        "frames": config.frames,
        "clip_model": config.clip_model
        and {"name": Path(config.clip_model).name, "sha256": ClipScorer(config.clip_model).hash},
    }
    signature = json.dumps(judged_by, sort_keys=True)
    shelf = Shelf(folder=shelf_folder.absolute(), run=uuid.uuid4().hex)
    hashes: dict[Path, str] = {}
    jobs = [(_digest(entry.key)[:24], _digest(_stamp(entry, signature, hashes)), entry) for entry in entries]
    waiting = []
    for job in jobs:
        value = shelf.value(job[0], job[1])
        if value is not None and str(value.get("failure", "")).startswith(UNSCORED):  # tried again
            shelf.drop(job[0])
            value = None
        if value is None:
            waiting.append(job)
    work = ScoreWork(faces=faces, extra=tuple(extra), probe=probe, config=config, shelf=shelf)
    pool.run("scoring", work, waiting, progress)
    records = []
    for key, stamp, entry in jobs:
        value = shelf.value(key, stamp)
        assert value is not None, "the pool has done all jobs or raised"
        record = Record.from_json(value, entry.key)
        if record.sha256 and record.sha256 != hashes[entry.clip]:
            shelf.drop(key)
            raise BadRequest(f"{entry.clip} changed while it was scored; give the same command again.")
        records.append(replace(record, **_names(entry)))
    return records, {**judged_by, "cautions": cautions, "scored_now": len(waiting)}


def _stamp(entry: Entry, signature: str, hashes: dict[Path, str]) -> str:
    """All that a record depends on; `hashes` remembers what was read."""
    from lynx_video.media.image import file_hash

    def content(file: Path) -> str:
        if file not in hashes:
            hashes[file] = file_hash(file) if file.is_file() else ""
        return hashes[file]

    files = [content(entry.clip), content(entry.reference), *(content(other) for other in entry.others)]
    return json.dumps([signature, files, entry.prompt])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
