"""The metrics of faces: by hand on small numbers, and on drawn clips with faults planted in them."""

import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lynx_video.errors import MissingDependency
from lynx_video.evaluation.metrics import face as metrics
from lynx_video.face.align import arcface_template
from lynx_video.face.likeness import largest_faces, signed
from lynx_video.face.quality import pitch_of, span, yaw_of
from lynx_video.media.video import read_video, write_video
from lynx_video.nano import faces, model, people
from lynx_video.nano.recipe import data
from lynx_video.pipeline.models import MODELS
from lynx_video.types import Face

PEOPLE, TAKES = 6, 3
NOBODY = np.empty((0, 3))
PER_FRAME = (
    "similarity",
    "worst_tenth",
    "kept",
    "consistency",
    "copying",
    "pasted",
    "frontal",
    "yaw_spread",
    "pitch_spread",
    "face_size",
)


def angle(*degrees):
    """Vectors of length 2 at those angles from the first axis."""
    turned = np.radians(degrees)
    return 2 * np.stack([np.cos(turned), np.sin(turned), 0 * turned], 1)


def cosine(*degrees):
    return float(np.mean(np.cos(np.radians(degrees))))


# --- by hand


def test_similarity_and_its_kin_by_hand():
    vectors, reference = angle(0, 60, 90, 120), angle(0)[0] * 3
    found = metrics.similarity(vectors, reference)
    assert found.value == pytest.approx(cosine(0, 60, 90, 120))
    assert (found.n, found.reason) == (4, "")
    assert metrics.worst_tenth(vectors, reference).value == pytest.approx(-0.5)
    assert metrics.kept(vectors, reference, 16).value == pytest.approx(cosine(0, 60, 90, 120) / 4)
    assert metrics.kept(vectors, reference, 16).n == 16
    assert metrics.consistency(angle(30, 30, 90)).value == pytest.approx(cosine(0, 60))
    assert metrics.consistency(angle(30, 30, 90)).n == 2
    copied = metrics.copying(vectors, reference, angle(90, 180))
    assert copied.value == pytest.approx(cosine(0, 60, 90, 120) - (cosine(90, 30, 0, 30) + cosine(180, 120, 90, 60)) / 2)


@pytest.mark.parametrize(("count", "tenth"), [(1, 1), (9, 1), (19, 1), (20, 2), (81, 8)])
def test_the_worst_tenth_is_a_tenth(count, tenth):
    degrees = np.random.default_rng(0).permutation(np.linspace(0, 90, count))
    worst = metrics.worst_tenth(angle(*degrees), angle(0)[0])
    assert worst.value == pytest.approx(cosine(*np.sort(degrees)[-tenth:]))
    assert worst.n == count


@pytest.mark.parametrize("width", [3, 128, 512])
def test_no_order_and_no_batch_changes_a_bit(width):
    rng = np.random.default_rng(width)
    vectors, others = (rng.normal(size=(n, width)).astype(np.float32) for n in (81, 7))
    order = rng.permutation(81)
    alone = np.concatenate([metrics.cosines(vector[None], others[0]) for vector in vectors])
    np.testing.assert_array_equal(metrics.cosines(vectors, others[0]), alone)
    np.testing.assert_array_equal(metrics.cosines(np.asfortranarray(vectors), others[0]), alone)
    mixed = vectors[order]
    assert metrics.similarity(mixed, others[0]) == metrics.similarity(vectors, others[0])
    assert metrics.worst_tenth(mixed, others[0]) == metrics.worst_tenth(vectors, others[0])
    assert metrics.copying(mixed, others[0], others[1:][::-1]) == metrics.copying(vectors, others[0], others[1:])
    assert metrics.consistency(np.concatenate([vectors[:1], vectors[1:][::-1]])) == metrics.consistency(vectors)


def test_without_a_face_there_is_no_value_but_coverage():
    nothing = {
        "similarity": metrics.similarity(NOBODY, np.ones(3)),
        "worst_tenth": metrics.worst_tenth(NOBODY, np.ones(3)),
        "kept": metrics.kept(NOBODY, np.ones(3), 9),
        "consistency": metrics.consistency(NOBODY),
        "copying": metrics.copying(NOBODY, np.ones(3), np.ones((2, 3))),
        "pasted": metrics.pasted(np.empty((0, 112, 112, 3), np.uint8), [], np.zeros((112, 112, 3), np.uint8), 100.0),
        "frontal": metrics.frontal([]),
        "yaw_spread": metrics.yaw_spread([]),
        "pitch_spread": metrics.pitch_spread([]),
        "face_size": metrics.face_size([], 64, 64),
    }
    assert tuple(nothing) == PER_FRAME
    assert {score.value for score in nothing.values()} == {None}
    assert {score.reason for score in nothing.values()} == {"no frame has a face"}
    assert metrics.coverage([None] * 9).value == 0
    assert metrics.coverage([None] * 9).n == 9
    assert metrics.coverage([]).value is None


def test_what_one_face_or_no_other_photo_cannot_tell():
    assert metrics.copying(angle(0), angle(0)[0], NOBODY).reason == "there are no other photos of the person"
    for score in (
        metrics.consistency(angle(0)),
        metrics.yaw_spread([arcface_template()]),
        metrics.pitch_spread([arcface_template()]),
    ):
        assert (score.value, score.reason) == (None, "only one frame has a face")


def test_head_shots_by_hand():
    template = arcface_template()
    points = [
        template + np.array([[0, 0]] * 2 + [[x, y]] + [[0, 0]] * 2, np.float32) for x, y in ((0, 0), (9, 0), (-9, 4), (2, -5))
    ]
    yaws = [yaw_of(one) for one in points]
    assert sum(abs(yaw) < 15 for yaw in yaws) == 2
    assert metrics.frontal(points).value == 0.5
    assert metrics.yaw_spread(points).value == pytest.approx(np.std(yaws))
    assert metrics.pitch_spread(points).value == pytest.approx(np.std([pitch_of(one) for one in points]))
    assert metrics.yaw_spread(points[:1] * 4).value == 0
    boxes = [(0, 0, 32, 16), (-20, 48, 32, 80), (70, 70, 80, 80)]  # the second half outside of the frame, the third wholly
    size = metrics.face_size([Face(box=box, points=template, score=1.0) for box in boxes], 64, 64)
    assert size.value == pytest.approx((32 * 16 + 32 * 16 + 0) / 3 / 64**2)
    assert size.n == 3


def test_pasted_pixels_at_any_size_and_place():
    """A photo's crop against itself, sharp, coarse, moved by a little, and against its mirror image and noise."""
    rng = np.random.default_rng(0)
    crop = cv2.resize(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8), (112, 112), interpolation=cv2.INTER_CUBIC)
    coarse = cv2.resize(cv2.resize(crop, (40, 40), interpolation=cv2.INTER_AREA), (112, 112), interpolation=cv2.INTER_LINEAR)
    moved = cv2.warpAffine(crop, np.array([[1, 0, 2.5], [0, 1, -1.5]]), (112, 112), borderMode=cv2.BORDER_REFLECT_101)

    def score(mine, size, photo=crop, photo_size=300.0):
        return metrics.pasted(mine[None], [size], photo, photo_size).value

    assert score(crop, 300.0) == 1
    assert score(coarse, 40.0) > 0.98
    assert score(crop, 300.0, coarse, 40.0) > 0.98  # nor does it matter which of the two is the coarse one
    assert score(coarse, 300.0) < score(coarse, 40.0) - 0.03  # that it is coarse is told by the span alone
    assert score(moved, 300.0) > 0.95
    assert score(np.ascontiguousarray(crop[:, ::-1]), 300.0) < 0.5
    assert score(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8), 300.0) < 0.2
    assert -1 <= score(np.full((112, 112, 3), 90, np.uint8), 300.0) < 0.3  # flat: nothing to lay over
    tiny = cv2.resize(cv2.resize(crop, (2, 2), interpolation=cv2.INTER_AREA), (112, 112), interpolation=cv2.INTER_LINEAR)
    assert score(tiny, 2.0) > 0.98  # a face of two pixels is compared on seven
    both = metrics.pasted(np.stack([crop, coarse]), [300.0, 40.0], crop, 300.0)
    assert both.value == pytest.approx((1 + score(coarse, 40.0)) / 2)
    assert both.n == 2


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lynx-video\[evaluate\]'"):
        metrics.pasted(np.empty((0, 112, 112, 3), np.uint8), [], np.zeros((112, 112, 3), np.uint8), 100.0)


# --- planted


def pictures(drawn):
    return drawn.permute(0, 2, 3, 1).contiguous().numpy()


class World:
    """Drawn people: a passport portrait each, four other photos, three honest clips; and who is seen in what."""

    def __init__(self):
        nano = MODELS["nano"].faces(Path())
        self.detector, self.judge = nano.detector(), nano.judges["nano judge"]()
        rng = torch.Generator().manual_seed(people.HELD_OUT + 4321)
        self.who = faces.people(PEOPLE, rng)
        frontal = faces.draw(self.who, faces.scenes(self.who, rng), faces.poses(PEOPLE, rng, spread=0.0), 256)
        self.portraits = pictures((frontal * 255).round().to(torch.uint8))
        self.references = [found for found in largest_faces(self.portraits, self.detector) if found]
        others = [pictures(data.stills(self.who, rng, 256)[0]) for _ in range(4)]
        self.others = [self.vectors(np.stack([photo[i] for photo in others])) for i in range(PEOPLE)]
        takes = [data.clips(self.who, rng).frames for _ in range(TAKES)]
        self.clips = [[pictures(take[i]) for take in takes] for i in range(PEOPLE)]
        self.reference_vectors = self.vectors(self.portraits)

    def found(self, frames):
        return [one for one in largest_faces(frames, self.detector) if one]

    def vectors(self, frames):
        return self.judge(signed(np.stack([one.crop for one in self.found(frames)]))).numpy()

    def similarity(self, frames, i):
        return metrics.similarity(self.vectors(frames), self.reference_vectors[i]).value

    def copying(self, frames, i):
        return metrics.copying(self.vectors(frames), self.reference_vectors[i], self.others[i]).value

    def pasted(self, frames, i):
        found, photo = self.found(frames), self.references[i]
        crops, spans = np.stack([one.crop for one in found]), [span(one.face.points) for one in found]
        return metrics.pasted(crops, spans, photo.crop, span(photo.face.points)).value

    def frozen(self, i):
        small = cv2.resize(self.portraits[i], (model.SIZE, model.SIZE), interpolation=cv2.INTER_AREA)
        return np.stack([small] * 3)


@pytest.fixture(scope="module")
def world():
    return World()


def through_a_file(frames, tmp_path):
    write_video(tmp_path / "clip.mp4", frames, model.FPS)
    return read_video(tmp_path / "clip.mp4")[0]


def test_a_clip_of_another_person_scores_as_another_person(world):
    strangers = [float(world.reference_vectors[i] @ world.reference_vectors[j]) for i in range(PEOPLE) for j in range(i)]
    crossed = []
    for i in range(PEOPLE):
        own = [world.similarity(clip, i) for clip in world.clips[i]]
        foreign = [world.similarity(world.clips[j][0], i) for j in range(PEOPLE) if j != i]
        crossed += foreign
        assert min(own) > 0.7
        assert max(foreign) < min(own) - 0.2
    assert np.mean(crossed) == pytest.approx(np.mean(strangers), abs=0.1)
    assert max(crossed) < max(strangers) + 0.15


def test_a_frozen_photo_is_caught_by_its_pixels(world, tmp_path):
    """Above every honest clip of anybody; and, where both went through a file, above every honest clip of the person."""
    frozen = [world.pasted(world.frozen(i), i) for i in range(PEOPLE)]
    honest = np.array([[world.pasted(clip, i) for clip in world.clips[i]] for i in range(PEOPLE)])
    assert min(frozen) > 0.98
    assert honest.max() < 0.96
    assert honest.mean() < 0.8
    for i in range(PEOPLE):
        filmed = [world.pasted(through_a_file(clip, tmp_path), i) for clip in world.clips[i]]
        assert world.pasted(through_a_file(world.frozen(i), tmp_path), i) > max(*filmed, 0.9)


def test_a_frozen_photo_is_caught_by_its_face(world, tmp_path):
    """The judge of drawn faces is nearly sure of any photo of a person, so that the excess is small; it is there for everyone."""
    for i in range(PEOPLE):
        honest = np.mean([world.copying(clip, i) for clip in world.clips[i]])
        assert world.copying(world.frozen(i), i) > max(honest, 0.0) + 0.002
        assert world.copying(through_a_file(world.frozen(i), tmp_path), i) > max(honest, 0.0) + 0.002


def test_a_photo_of_the_person_that_is_not_the_reference_is_not_copied(world):
    still = data.stills(world.who, torch.Generator().manual_seed(3), 256)[0]
    for i in range(PEOPLE):
        assert world.pasted(pictures(still)[i : i + 1], i) < 0.9


def test_a_face_that_leaves_half_the_frames(world):
    """Eight frames: in four the head is drawn out of the picture, or there is nothing but the wall."""
    start = faces.Poses(**{name: torch.zeros(8) for name in ("yaw", "pitch", "roll", "x", "y", "smile")}, scale=torch.ones(8))
    start.x[4:] = 5.0
    for i in range(PEOPLE):
        same = torch.full((8,), i)
        who = faces.select(world.who, same)
        scene = faces.Scenes(wall=torch.full((8,), 6), shirt=torch.full((8,), 2))
        left = pictures((faces.draw(who, scene, start, model.SIZE) * 255).round().to(torch.uint8))
        wall = world.clips[i][0][:8].copy()
        wall[1::2] = wall[1::2, :1, :1]
        for frames, whole in ((left, left[:4]), (wall, wall[::2])):
            found = largest_faces(frames, world.detector)
            assert metrics.coverage(found).value == 0.5
            assert metrics.coverage(found).n == 8
            mine, reference = world.vectors(frames), world.reference_vectors[i]
            assert metrics.similarity(mine, reference) == metrics.similarity(world.vectors(whole), reference)
            assert metrics.similarity(mine, reference).n == 4
            assert metrics.kept(mine, reference, 8).value == metrics.similarity(mine, reference).value / 2


def test_a_clip_that_turns_into_somebody_else_is_not_consistent(world):
    for i in range(PEOPLE):
        swapped = np.concatenate([world.clips[i][0][:4], world.clips[i - 1][0][4:]])
        honest = metrics.consistency(world.vectors(world.clips[i][0])).value
        assert honest > 0.7
        assert metrics.consistency(world.vectors(swapped)).value < honest - 0.2


def test_turns_and_sizes_of_drawn_heads(world):
    who = faces.select(world.who, slice(0, 1))
    count = 9
    same = torch.zeros(count, dtype=torch.long)

    def filmed(**poses):
        still = {name: torch.zeros(count) for name in ("yaw", "pitch", "roll", "x", "y", "smile")} | {
            "scale": torch.ones(count)
        }
        scene = faces.Scenes(wall=same + 6, shirt=same + 2)
        drawn = faces.draw(faces.select(who, same), scene, faces.Poses(**(still | poses)), 128)
        found = world.found(pictures((drawn * 255).round().to(torch.uint8)))
        assert len(found) == count
        return [one.face.points for one in found], [one.face for one in found]

    still, frame = filmed()
    turning, _ = filmed(yaw=torch.linspace(-0.9, 0.9, count))
    _, small = filmed(scale=torch.full((count,), 0.7))
    assert metrics.yaw_spread(still).value < 0.5 < 3 < metrics.yaw_spread(turning).value
    assert metrics.frontal(still).value == 1
    ratio = metrics.face_size(small, 128, 128).value / metrics.face_size(frame, 128, 128).value
    assert math.sqrt(ratio) == pytest.approx(0.7, abs=0.05)
