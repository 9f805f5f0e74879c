"""Reference pictures made different: what changes, what stays, and that the same generator repeats it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from lynx_video.errors import BadPicture, BadRequest, NoFace
from lynx_video.face.align import arcface_template, reference_crop, similarity
from lynx_video.media.image import read_picture
from lynx_video.nano.people import portrait as drawn
from lynx_video.training.augment import (
    DEFAULT_STEPS,
    Background,
    CropJitter,
    Flip,
    GrabCutMatte,
    Light,
    Portrait,
    Restyle,
    augment,
    steps,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NANO_POINTS = np.array([[96, 126], [160, 126], [128, 157], [101, 184], [155, 184]], np.float32)  # where nano's faces are drawn
ALWAYS = {
    "light": Light(probability=1),
    "background": Background(probability=1),
    "flip": Flip(probability=1),
    "jitter": CropJitter(),
}


@pytest.fixture(scope="module")
def subject(golden):
    return Portrait(
        picture=read_picture(GOLDEN / "subject.png"), points=golden("full_three_pass")["landmarks"].numpy().astype(np.float32)
    )


@pytest.fixture(scope="module")
def person():
    return Portrait(picture=drawn(6), points=NANO_POINTS)


def same(one, other):
    return np.array_equal(one.picture, other.picture) and np.array_equal(one.points, other.points)


@pytest.mark.parametrize("name", ALWAYS)
def test_repeats_changes_and_spares_its_input(subject, name):
    step, picture, points = ALWAYS[name], subject.picture.copy(), subject.points.copy()
    cv2.setRNGSeed(7)
    first = step(subject, np.random.default_rng(3))
    cv2.setRNGSeed(8)  # OpenCV's own generator has no say
    again = step(subject, np.random.default_rng(3))
    other = step(subject, np.random.default_rng(4))
    assert same(first, again)
    assert not same(first, subject)
    assert name == "flip" or not same(first, other)
    assert np.array_equal(subject.picture, picture)
    assert np.array_equal(subject.points, points)
    assert first.picture.dtype == np.uint8
    assert first.picture.shape == picture.shape
    assert first.points.dtype == np.float32


@pytest.mark.parametrize("kind", [Light, Background, Flip, CropJitter])
def test_probability(person, kind):
    rng = np.random.default_rng(0)
    assert all(same(kind(probability=0.0)(person, rng), person) for _ in range(20))
    changed = sum(not same(kind(probability=0.5)(person, rng), person) for _ in range(60))
    assert 15 < changed < 45


def test_light_without_strength_is_no_change(subject):
    still = Light(probability=1, exposure=0, gamma=0, white_balance=0, gradient=0)
    assert same(still(subject, np.random.default_rng(0)), subject)


def test_light_changes_what_its_name_says(subject):
    """Grey patches tell the four strengths apart; a clip in the mean would hide a wrong sign."""
    grey = Portrait(picture=np.full((64, 96, 3), 90, np.uint8), points=NANO_POINTS * 0.25 + 8)
    warm = []
    off = {"probability": 1.0, "exposure": 0.0, "gamma": 0.0, "white_balance": 0.0, "gradient": 0.0}
    for seed in range(20):
        flat = Light(**off | {"exposure": 1.0})(grey, np.random.default_rng(seed)).picture
        assert np.ptp(flat) == 0
        assert 90 * 2 ** (-1 / 2.2) - 1 <= flat[0, 0, 0] <= 90 * 2 ** (1 / 2.2) + 1
        tinted = Light(**off | {"white_balance": 0.3})(grey, np.random.default_rng(seed)).picture.astype(float)
        assert np.ptp(tinted.reshape(-1, 3), axis=0).max() == 0
        stops = 2.2 * np.log2(tinted[0, 0] / 90)
        assert abs(stops @ [0.2126, 0.7152, 0.0722]) < 0.03  # another colour, not another brightness
        warm.append(stops[0] - stops[2])
        sided = Light(**off | {"gradient": 1.0})(grey, np.random.default_rng(seed)).picture.astype(int)
        assert np.ptp(sided, axis=2).max() == 0
        corners = sided[[0, 0, -1, -1], [0, -1, 0, -1], 0]
        assert corners.max() - corners.min() <= 90 * (2 ** (0.5 / 2.2) - 2 ** (-0.5 / 2.2)) + 1
    assert np.ptp(sided) > 5
    assert min(warm) < -0.2
    assert max(warm) > 0.2
    dark, bright = (Light(**off | {"gamma": 0.25})(subject, np.random.default_rng(seed)).picture for seed in (0, 1))
    assert not np.array_equal(dark, bright)
    for one in (dark, bright):
        assert (one[subject.picture == 0] == 0).all()
        assert (one[subject.picture == 255] == 255).all()


def test_matte_of_a_photograph(subject):
    matte = GrabCutMatte()(subject)
    assert matte.shape == (512, 512)
    assert matte.dtype == np.float32
    assert matte.min() >= 0
    assert matte.max() <= 1
    assert (matte[90:160, 200:245] > 0.99).all()  # the face
    assert matte[45:60, 200:240].mean() > 0.9  # her hair
    assert matte[260:400, 180:260].mean() > 0.98  # the suit
    assert matte[:200, :90].max() < 0.01  # the flag
    assert matte[:250, 400:].max() < 0.01  # the shuttle


def test_matte_of_drawings():
    """Hair of every kind stays with the head, and the wall does not, not even as a rim around it."""
    for seed in range(12):
        picture = drawn(seed)
        matte = GrabCutMatte()(Portrait(picture=picture, points=NANO_POINTS))[:200]
        wall = (np.abs(picture.astype(int) - picture[3, 3]).max(axis=2) <= 8)[:200]
        rim = wall & (cv2.distanceTransform(wall.astype(np.uint8), cv2.DIST_L2, 3) <= 2)
        assert matte[wall].mean() < 0.005
        assert matte[rim].mean() < 0.15
        assert matte[~wall].mean() > 0.96


def test_matte_where_nothing_can_be_told(subject):
    tight = Portrait(picture=subject.picture[80:170, 190:250].copy(), points=subject.points - np.array([190, 80], np.float32))
    assert (GrabCutMatte()(tight) == 1).all()
    rng = np.random.default_rng(0)
    assert same(Background(probability=1)(tight, rng), tight)
    # hair up to the edges is taken for background: what is found is too little to be trusted
    close = Portrait(picture=subject.picture[10:170, 160:290].copy(), points=subject.points - np.array([160, 10], np.float32))
    assert GrabCutMatte(trust=0)(close).mean() < 0.8
    assert (GrabCutMatte()(close) == 1).all()


@pytest.mark.parametrize("kind", ["flat", "gradient", "noise"])
def test_background(subject, kind):
    matte = GrabCutMatte()(subject)
    changed = Background(probability=1, kinds=(kind,))(subject, np.random.default_rng(5)).picture
    assert np.array_equal(changed[matte == 1], subject.picture[matte == 1])
    behind = changed[matte == 0].astype(float)
    assert np.abs(behind - subject.picture[matte == 0]).mean() > 20
    deviation = behind.std(axis=0).max()
    assert deviation == 0 if kind == "flat" else deviation > 5


def test_background_takes_any_matte(subject):
    left = np.zeros((512, 512), np.float32)
    left[:, :256] = 1
    changed = Background(probability=1, matte=lambda _: left)(subject, np.random.default_rng(0)).picture
    assert np.array_equal(changed[:, :256], subject.picture[:, :256])
    assert not np.array_equal(changed[:, 256:], subject.picture[:, 256:])
    with pytest.raises(BadRequest, match=r"matte must be \[512, 512\]"):
        Background(probability=1, matte=lambda _: left[:, :100])(subject, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.03, 0.97])
def test_background_leaves_what_has_none_or_nobody(subject, share):
    matte = np.zeros((512, 512), np.float32)
    matte[: round(512 * share)] = 1
    assert same(Background(probability=1, matte=lambda _: matte)(subject, np.random.default_rng(0)), subject)


def test_flip_is_a_mirror_in_pixels_and_points(subject):
    flip, rng = Flip(probability=1), np.random.default_rng(0)
    once = flip(subject, rng)
    assert once.points[0, 0] < once.points[1, 0]  # the left eye is still the one on the left
    assert once.points[3, 0] < once.points[4, 0]
    assert same(flip(once, rng), subject)
    # what lies under a point goes where the point goes
    for (x, y), (u, v) in zip(subject.points[[0, 1, 2, 3, 4]], once.points[[1, 0, 2, 4, 3]], strict=True):
        assert np.array_equal(subject.picture[int(y), int(x)], once.picture[int(v), int(u)])


def test_jitter_moves_the_crop_within_its_limits(subject):
    plain = similarity(subject.points, arcface_template())
    turns, spreads, moves = [], [], []
    for seed in range(200):
        changed = CropJitter()(subject, np.random.default_rng(seed))
        assert changed.picture is subject.picture
        matrix = similarity(changed.points, arcface_template())
        ratio = complex(matrix[0, 0], matrix[1, 0]) / complex(plain[0, 0], plain[1, 0])
        turns.append(np.degrees(np.angle(ratio)))
        spreads.append(1 / abs(ratio))
        moves.append(changed.points.mean(axis=0) - subject.points.mean(axis=0))
    height = np.linalg.norm(subject.points[:2].mean(axis=0) - subject.points[3:].mean(axis=0))
    assert 5 < np.abs(turns).max() <= 6.01
    assert 1.08 < max(spreads) <= 1.1001
    assert 1 / 1.1001 <= min(spreads) < 1 / 1.08
    assert 0.07 * height < np.abs(moves).max() <= 0.0801 * height
    assert abs(np.mean(turns)) < 1
    crop = reference_crop(changed.picture, changed.points)
    assert not np.array_equal(crop, reference_crop(subject.picture, subject.points))


def test_restyle(subject):
    """A real style: the lower half of the face stretched with OpenCV, as a crude open mouth; it may write to what it is given."""
    seeds = []

    def stretch(picture, points, seed):
        seeds.append(seed)
        matrix = np.array([[1, 0, 0], [0, 1.05, -0.05 * points[2, 1]]], np.float64)
        picture[:] = cv2.warpAffine(picture, matrix, picture.shape[1::-1])
        points[:, 1] = points[:, 1] * 1.05 - 0.05 * points[2, 1]
        return picture, points

    before = subject.picture.copy()
    first = Restyle(style=stretch)(subject, np.random.default_rng(1))
    again = Restyle(style=stretch)(subject, np.random.default_rng(1))
    assert np.array_equal(subject.picture, before)
    assert same(first, again)
    assert seeds[0] == seeds[1]
    assert first.points[3, 1] > subject.points[3, 1]
    with pytest.raises(BadPicture):
        Restyle(style=lambda picture, points, _: (picture / 255.0, points))(subject, np.random.default_rng(1))
    with pytest.raises(NoFace):
        Restyle(style=lambda picture, points, _: (picture, points[:4]))(subject, np.random.default_rng(1))


def test_steps_by_name(person):
    assert [type(step) for step in steps(["flip", "jitter", "light", "background"])] == [Flip, CropJitter, Light, Background]
    assert "flip" not in DEFAULT_STEPS
    with pytest.raises(BadRequest, match=r"'sepia'.*light, background, jitter, flip"):
        steps(["light", "sepia"])
    one, two = (augment(person, steps(DEFAULT_STEPS), np.random.default_rng(9)) for _ in range(2))
    assert same(one, two)
    assert same(augment(person, [], np.random.default_rng(9)), person)
    chained = CropJitter()(Flip(probability=1)(person, rng := np.random.default_rng(9)), rng)
    assert same(augment(person, [Flip(probability=1), CropJitter()], np.random.default_rng(9)), chained)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Light(probability=1.5), "Light: probability must be between 0 and 1, got 1.5"),
        (lambda: Light(gradient=-1), "Light: gradient"),
        (lambda: CropJitter(turn=90), "CropJitter: turn must be between 0 and 45"),
        (lambda: Flip(probability=float("nan")), "Flip: probability"),
        (lambda: Background(kinds=("beach",)), "flat, gradient and noise, got beach"),
        (lambda: Background(kinds=()), "got none"),
    ],
)
def test_refuses_what_cannot_work(make, says):
    with pytest.raises(BadRequest, match=says):
        make()


def test_refuses_portraits_that_are_none(person):
    with pytest.raises(BadPicture):
        augment(Portrait(picture=person.picture[:, :, 0], points=person.points), [], np.random.default_rng(0))
    with pytest.raises(NoFace):
        augment(Portrait(picture=person.picture, points=person.points * np.nan), [], np.random.default_rng(0))
