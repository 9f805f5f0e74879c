"""Each warning on the reference's portrait, made worse in one way at a time."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from lynx_video.errors import NoFace
from lynx_video.face.align import arcface_template
from lynx_video.face.quality import face_warnings, outside_share, pitch_of, roll_of, sharpness, span, touched_edges, yaw_of
from lynx_video.nano import faces
from lynx_video.types import Face

POINTS = np.array([[198, 104], [246, 106], [224, 130], [202, 150], [243, 151]], dtype=np.float32)


@pytest.fixture(scope="module")
def subject():
    with Image.open(Path(__file__).parents[1] / "golden" / "subject.png") as image:
        return np.asarray(image.convert("RGB"))


def face(points=POINTS, box=(170, 60, 275, 180), score=0.9):
    return Face(box=box, points=np.asarray(points, np.float32), score=score)


def test_good_portrait_has_none(subject):
    assert face_warnings(subject, face()) == []


def test_small(subject):
    small = cv2.resize(subject, (256, 256), interpolation=cv2.INTER_AREA)
    warnings = face_warnings(small, face(POINTS / 2, box=(85, 30, 137, 90)))
    assert len(warnings) == 1
    assert "small" in warnings[0]
    assert "spans 69 pixels" in warnings[0]
    assert span(POINTS) == pytest.approx(138.4, abs=0.1)
    assert span(arcface_template()) == pytest.approx(112, abs=1e-3)


def test_blurred(subject):
    blurred = cv2.GaussianBlur(subject, (0, 0), 4)
    warnings = face_warnings(blurred, face())
    assert len(warnings) == 1
    assert "blurred: sharpness 0.0" in warnings[0]
    values = [sharpness(cv2.GaussianBlur(subject, (0, 0), sigma), POINTS) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert sharpness(np.full_like(subject, 90), POINTS) == 0


def test_sharpness_does_not_depend_on_light_or_size(subject):
    reference = sharpness(subject, POINTS)
    assert reference == pytest.approx(0.3, abs=0.03)
    assert sharpness((subject * 0.3).astype(np.uint8), POINTS) == pytest.approx(reference, rel=0.1)
    double = cv2.resize(subject, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    assert sharpness(double, POINTS * 2) > 0.5 * reference


def turned(yaw, roll=0.0, pitch=0.0, nose=5.0):
    """The five points of a simple head (mm) that nods by pitch, then turns by yaw and tilts by roll, seen from far away, in pixels."""
    head = np.array([[-31.5, -35, 0], [31.5, -35, 0], [0, nose, 26.5], [-25, 35, 0], [25, 35, 0]], dtype=float)
    yaw, roll, pitch = np.radians([yaw, roll, pitch])
    head = head @ np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    head = head @ np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]).T
    flat = head[:, :2] @ np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]).T
    return (flat * 1.5 + 256).astype(np.float32)


@pytest.mark.parametrize("yaw", [-70, -40, -20, 0, 15, 45, 60])
@pytest.mark.parametrize("roll", [-50, 0, 30])
def test_angles_of_a_turned_head(yaw, roll):
    assert yaw_of(turned(yaw, roll)) == pytest.approx(yaw, abs=2)


@pytest.mark.parametrize("pitch", [-45, -30, -10, 0, 20, 45])
@pytest.mark.parametrize("roll", [-50, 0, 30])
def test_pitch_of_a_nodding_head(pitch, roll):
    """With the nose where the ArcFace template has it; positive is down: the nose tip comes nearer to the mouth."""
    points = turned(0, roll, pitch, nose=-0.35)
    assert pitch_of(points) == pytest.approx(pitch, abs=2)
    assert pitch_of(points * 3 + 40) == pytest.approx(pitch_of(points), abs=1e-3)


def test_pitch_sign_order_and_neighbours():
    down, up = turned(0, pitch=25), turned(0, pitch=-25)
    assert down[2, 1] - down[:2, 1].mean() > up[2, 1] - up[:2, 1].mean()  # the nose tip leaves the eyes
    for nose in (-3.0, 0.0, 5.0):  # noses differ: the change is told, the same way, and the zero is off by some 10 degrees
        values = [pitch_of(turned(0, pitch=angle, nose=nose)) for angle in range(-60, 61, 5)]
        assert values == sorted(values)
        assert values[-1] - values[0] == pytest.approx(120, abs=12)
        assert abs(pitch_of(turned(0, nose=nose))) < 13
    assert pitch_of(turned(30, pitch=20)) == pytest.approx(pitch_of(turned(0, pitch=20)), abs=6)
    assert pitch_of(arcface_template()) == pytest.approx(0, abs=0.5)
    assert abs(pitch_of(POINTS)) < 12
    assert -90 <= pitch_of(turned(0, pitch=90)) <= 90  # eyes and mouth on one spot: nothing is divided by nothing
    with pytest.raises(NoFace):
        pitch_of(np.full((5, 2), 9))


def drawn(**poses):
    """The five points of one drawn head in several poses, [N, 5, 2] pixels of a 64 px frame."""
    count = len(next(iter(poses.values())))
    still = {name: torch.zeros(count) for name in ("yaw", "pitch", "roll", "x", "y", "smile")} | {"scale": torch.ones(count)}
    pose = faces.Poses(**(still | {name: torch.tensor(values) for name, values in poses.items()}))
    who = faces.select(faces.people(1, torch.Generator().manual_seed(0)), torch.zeros(count, dtype=torch.long))
    return ((faces.landmarks(who, pose) + 1) * 32).numpy()


def test_what_the_points_of_drawn_heads_tell():
    """A turn moves the nose between the eyes, less than in a real head. A nod moves all five points alike: none is seen in them."""
    turns = [yaw_of(points) for points in drawn(yaw=[-0.9, -0.4, 0.0, 0.4, 0.9])]
    assert turns == sorted(turns)
    assert turns[2] == pytest.approx(0, abs=0.1)
    assert 5 < turns[4] < 20
    nods = [pitch_of(points) for points in drawn(pitch=[-0.9, 0.0, 0.9], roll=[0.2, 0.0, -0.1])]
    assert nods == pytest.approx([nods[0]] * 3, abs=0.05)
    assert abs(nods[0]) < 5
    smiles = [pitch_of(points) for points in drawn(smile=[-0.4, 0.0, 0.6, 1.2])]
    assert smiles == sorted(smiles)  # the corners of the mouth rise towards the nose, as in a nod


@pytest.mark.parametrize("roll", [-80, -30, 0, 20, 90])
def test_roll_of_a_tilted_head(roll):
    assert roll_of(turned(0, roll)) == pytest.approx(roll, abs=0.5)


@pytest.mark.parametrize(("yaw", "side"), [(50, "right"), (-50, "left")])
def test_turned_away(subject, yaw, side):
    noise = np.random.default_rng(0).integers(0, 256, subject.shape, dtype=np.uint8)
    warnings = [text for text in face_warnings(noise, face(turned(yaw))) if "turned" in text]
    assert len(warnings) == 1
    assert f"{abs(yaw_of(turned(yaw))):.0f} degrees to the viewer's {side}" in warnings[0]
    assert not any("turned" in text or "tilted" in text for text in face_warnings(noise, face(turned(20, 20))))


def test_tilted(subject):
    warnings = face_warnings(subject, face(turned(0, 60)))
    assert any("tilted by 60 degrees" in text for text in warnings)


def test_profile_does_not_divide_by_nothing():
    assert abs(yaw_of(turned(90))) == pytest.approx(90, abs=1)


def test_touching_the_edge(subject):
    cut = subject[70:, 180:]
    warnings = face_warnings(cut, face(POINTS - [180, 70], box=(-5, 0.5, 90, 110)))
    assert len(warnings) == 1
    assert "touches the left and top edge" in warnings[0]
    share = outside_share(cut, POINTS - [180, 70])
    assert f"{100 * share:.0f}% of the reference crop" in warnings[0]
    assert 0.2 < share < 0.6
    assert outside_share(subject, POINTS) == 0
    assert touched_edges(subject, face(box=(5, 5, 511.5, 600))) == ["right", "bottom"]


def test_low_score(subject):
    warnings = face_warnings(subject, face(score=0.52))
    assert len(warnings) == 1
    assert "score 0.52" in warnings[0]


def test_points_that_are_no_face(subject):
    with pytest.raises(NoFace):
        face_warnings(subject, face(np.full((5, 2), 9)))
