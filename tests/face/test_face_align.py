"""Both crops against the reference's, and points that cannot be aligned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from lynx_video.errors import BadPicture, NoFace
from lynx_video.face.align import arcface_crop, arcface_template, reference_crop, reference_template, similarity

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("full_three_pass", "full_two_pass", "lite")
POINTS = np.array([[198, 104], [246, 106], [224, 130], [202, 150], [243, 151]], dtype=np.float32)


@pytest.fixture(scope="module")
def subject():
    with Image.open(GOLDEN / "subject.png") as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("case", CASES)
def test_crops_are_those_of_the_reference(case, subject):
    golden = load_file(GOLDEN / f"{case}.safetensors")
    assert np.array_equal(arcface_crop(subject, golden["landmarks"]), golden["arcface_crop"])
    if "ref_image" in golden:  # lite has no reference term
        crop = reference_crop(subject, golden["landmarks"])
        difference = np.abs(crop.astype(int) - golden["ref_image"].astype(int))
        assert difference.max() <= 2
        assert (difference.max(axis=2) > 0).mean() <= 1e-3
    else:
        assert case == "lite"


def test_reference_crop_of_another_size_shows_the_same_part(subject):
    large, small = reference_crop(subject, POINTS), reference_crop(subject, POINTS, 64)
    assert small.shape == (64, 64, 3)
    np.testing.assert_array_equal(reference_template(64), reference_template() / 4)
    every_fourth = large[::4, ::4]
    assert np.abs(small.astype(int) - every_fourth.astype(int)).max() <= 12  # the same places, to interpolation


def test_border_is_black():
    white = np.full((100, 100, 3), 255, dtype=np.uint8)
    crop = reference_crop(white, arcface_template() - 30)
    assert crop[0, 0].tolist() == [0, 0, 0]
    assert set(np.unique(crop)) >= {0, 255}


@pytest.mark.parametrize("degrees", [0, 37, 90, 180, -120])
def test_similarity_undoes_a_known_one(degrees):
    angle, scale, shift = np.radians(degrees), 2.5, np.array([40.0, -7.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = arcface_template() @ turn.T * scale + shift
    matrix = similarity(points, arcface_template())
    np.testing.assert_allclose(matrix[:, :2], turn.T / scale, atol=1e-5)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], arcface_template(), atol=1e-3)


def test_similarity_is_the_best_one_and_never_mirrors():
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = generator.normal(0, 30, (5, 2)).astype(np.float32)
        target = arcface_template()
        # In the plane the best similarity is a regression in complex numbers, which cannot mirror.
        z, w = (points.astype(float) @ [1, 1j]), (target.astype(float) @ [1, 1j])
        factor = np.vdot(z - z.mean(), w - w.mean()) / np.vdot(z - z.mean(), z - z.mean())
        matrix = similarity(points, target)
        np.testing.assert_allclose(matrix[:, 0], [factor.real, factor.imag], rtol=1e-3, atol=1e-5)
        assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize(
    ("points", "word"),
    [
        (np.full((5, 2), 50.0), "one spot"),
        (np.where(np.eye(5, 2) > 0, np.nan, POINTS), "finite"),
        (np.where(np.eye(5, 2) > 0, np.inf, POINTS), "finite"),
        (POINTS[:4], "five points"),
        (POINTS - 1000, "outside the picture"),
        ([["a", "b"]] * 5, "numbers"),
    ],
)
@pytest.mark.parametrize("cut", [arcface_crop, reference_crop])
def test_points_that_cannot_be_aligned(cut, points, word, subject):
    with pytest.raises(NoFace, match=word):
        cut(subject, points)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((0, 9, 3), np.uint8),
        "p.png",
    ],
)
def test_what_is_no_picture(image):
    with pytest.raises(BadPicture, match="uint8"):
        arcface_crop(image, POINTS)


def test_size_of_the_reference_crop(subject):
    with pytest.raises(BadPicture, match="at least 1"):
        reference_crop(subject, POINTS, 0)
