"""The motion probe: what it asks of a motion, that one bad frame does not fool it, and how it does with the shipped detector."""

import numpy as np
import pytest
import torch

from lynx_video import load
from lynx_video.face.detect import find_faces
from lynx_video.nano import faces, model, people, probes
from lynx_video.nano.recipe import data, detector
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.decoding import decode

FRAMES, SIZE = model.FRAMES, model.SIZE
MOVING = [name for name in faces.MOTIONS if name != "stays still"]


@pytest.fixture(scope="module")
def nano():
    return load("nano", with_adapter=False)


def tracks(name, count=6, seed=12, noise=0.0):
    """True points [count, F, 5, 2] in pixels of drawn clips, `noise` pixels off."""
    rng = torch.Generator().manual_seed(seed)
    who = faces.people(count, rng)
    start = faces.poses(count, rng, spread=0.7)
    amount = torch.tensor([1.0, -1.0] * (count // 2))
    pose = faces.tracks(start, torch.full((count,), faces.MOTIONS.index(name)), amount, FRAMES)
    points = faces.landmarks(faces.select(who, torch.arange(count).repeat_interleave(FRAMES)), pose)
    points = (points + 1) * SIZE / 2 + torch.randn(points.shape, generator=rng) * noise
    return points.view(count, FRAMES, 5, 2).numpy()


@pytest.mark.parametrize("name", faces.MOTIONS)
def test_every_drawn_motion_is_told_from_true_and_from_noisy_points(name):
    assert all(probes.motion(track, SIZE) == name for track in tracks(name))
    noisy = tracks(name, count=20, noise=0.5)
    assert sum(probes.motion(track, SIZE) == name for track in noisy) >= 19


@pytest.mark.parametrize("name", MOVING)
def test_scores_are_about_one_where_drawn_and_nothing_elsewhere(name):
    assert set(probes.SIGNS) == set(MOVING)
    for track in tracks(name):
        scores = probes.signs(track, SIZE)
        assert 0.8 < scores.pop(name) < 1.45
        assert max(scores.values()) < 0.1


@pytest.mark.parametrize("name", faces.MOTIONS)
@pytest.mark.parametrize("bad", [0, 4, FRAMES - 1])
def test_one_bad_frame_fools_nobody(name, bad):
    """The mouth's corners, or the whole face, found elsewhere in one frame."""
    for track in tracks(name, noise=0.1):
        for points, shift in ((slice(3, 4), (-9.0, 7.0)), (slice(3, 5), (0.0, -8.0)), (slice(0, 5), (14.0, -10.0))):
            broken = track.copy()
            broken[bad, points] += np.float32(shift)
            assert probes.motion(broken, SIZE) == name, shift


def still_track():
    return tracks("stays still")[0]


def test_half_a_smile_is_none():
    """Corners that only move apart, or only rise, are a grimace; both are a smile, and the other way round is none."""
    t = np.linspace(0, 1, FRAMES, dtype=np.float32)
    wide, high = still_track(), still_track()
    wide[:, 3, 0] -= 3 * t
    wide[:, 4, 0] += 3 * t
    high[:, 3:, 1] -= 4.5 * t[:, None]
    both = wide + high - still_track()
    assert probes.motion(both, SIZE) == "smiles"
    assert probes.motion(wide, SIZE) == probes.motion(high, SIZE) == "stays still"
    assert probes.motion(both[::-1].copy(), SIZE) == "stays still"


def test_swaying_without_turning_is_no_shake():
    wave = np.sin(2 * np.pi * np.linspace(0, 1, FRAMES, dtype=np.float32))
    sways, turns = still_track(), still_track()
    sways[..., 0] += 6 * wave[:, None]
    turns[:, 2, 0] += 1.5 * wave
    assert probes.motion(sways, SIZE) == probes.motion(turns, SIZE) == "stays still"
    assert probes.motion(sways + turns - still_track(), SIZE) == "shakes the head"
    against = sways - turns + still_track()
    assert probes.motion(against, SIZE) == "stays still"


def test_a_tilt_that_wavers_is_no_nod():
    """A face away from the middle that rolls to and fro stays where it is: its height does not change."""
    wave = np.sin(2 * np.pi * np.linspace(0, 1, FRAMES))
    track = still_track() + np.array([12.0, 0.0])
    middle = track[:, :2].mean(1, keepdims=True)
    cos, sin = np.cos(0.15 * wave)[:, None], np.sin(0.15 * wave)[:, None]
    x, y = (track - middle)[..., 0], (track - middle)[..., 1]
    rolled = np.stack([x * cos - y * sin, x * sin + y * cos], -1) + middle
    assert probes.signs(rolled.astype(np.float32), SIZE)["nods"] < 0.1


@torch.no_grad()
def test_the_shipped_detector_follows_clips_through_the_vae(nano):
    """Unseen people, four clips a motion; every face found, points within a pixel, motions told."""
    rng = torch.Generator().manual_seed(6_000_002)
    count = 4 * len(faces.MOTIONS)
    who = faces.people(count, rng)
    drawn = data.clips(who, rng, motion=torch.arange(count) % len(faces.MOTIONS))
    true = (faces.landmarks(faces.select(who, torch.arange(count).repeat_interleave(FRAMES)), drawn.poses) + 1) * SIZE / 2
    true = true.view(count, FRAMES, 5, 2).numpy()
    mean, std = latent_statistics(nano.vae, "cpu")
    right, off = 0, []
    for i in range(count):
        latents = nano.vae.encode(data.to_signed(drawn.frames[i : i + 1]).transpose(1, 2)).latent_dist.mean
        found = [find_faces(frame, nano.faces.detector()) for frame in decode(nano.vae, (latents - mean) / std).numpy()]
        assert all(len(some) == 1 for some in found)
        track = np.stack([some[0].points for some in found])
        off.append(track - true[i])
        right += probes.motion(track, SIZE) == faces.MOTIONS[int(drawn.motion[i])]
    error = np.sqrt(np.square(off).mean((0, 1)))  # [5, 2]
    assert right >= 27
    assert error[:3].max() < 0.5
    assert error[3:].max() < 0.75


@pytest.mark.parametrize(("number", "least"), [(2, 12), (3, 12), (4, 9)])
def test_the_shipped_detector_finds_rows_of_portraits(nano, number, least):
    """2 to 4 drawn portraits laid side by side: small faces over a wide margin, and no more faces than there are."""
    right = 0
    for i in range(12):
        row = np.concatenate([people.portrait(7000 + 10 * i + k) for k in range(number)], 1)
        found = find_faces(row, nano.faces.detector())
        assert len(found) <= number
        right += len(found) == number and {int(one.points[2, 0] // people.SIZE) for one in found} == set(range(number))
    assert right >= least


def test_rows_and_their_targets_agree():
    """In the detector's training rows the eyes lie where the targets say: the pupils are dark."""
    rng = data.generator("detector", 77)
    seen = 0
    for _ in range(60):
        picture, boxes, points = detector._row(rng)
        assert len(boxes) == len(points) <= 4
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        if len(boxes) and boxes[0, 2] - boxes[0, 0] > 3:  # large enough for a whole dark pixel; a row may show nobody
            for x, y in (points[:, :2].reshape(-1, 2) * 8 - 0.5).round().long().tolist():
                if 0 <= x < 128 and 0 <= y < 128:
                    assert picture[:, y, x].max() < 110
                    seen += 1
    assert seen > 10


def test_the_shipped_detector_finds_nobody_where_nobody_is(nano):
    """Blocks and clouds of colour, walls and shirts: the first look may find nothing, and neither may the second."""
    rng = data.generator("detector", 78)
    pictures = [detector._nobody(rng)[0].permute(1, 2, 0).contiguous().numpy() for _ in range(60)]
    assert sum(find_faces(picture, nano.faces.detector()) != [] for picture in pictures) <= 3
