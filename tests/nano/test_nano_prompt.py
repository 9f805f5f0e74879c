"""How far a drawn clip does what its prompt says, told by the probes that know what was drawn."""

import pytest
import torch

from lynx_video.nano import faces
from lynx_video.nano.captions import DOES
from lynx_video.nano.prompt import probe
from lynx_video.nano.recipe import data
from lynx_video.pipeline.models import MODELS


@pytest.fixture(scope="module")
def clip():
    """A drawn clip of somebody who moves to the left, in a red shirt before a blue wall."""
    rng = torch.Generator().manual_seed(4)
    who = faces.people(1, rng)
    scene = faces.Scenes(wall=torch.tensor([faces.WALLS.index("blue")]), shirt=torch.tensor([faces.SHIRTS.index("red")]))
    drawn = data.clips(who, rng, motion=torch.tensor([faces.MOTIONS.index("moves to the left")]), scene=scene)
    return drawn.frames[0].permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize(
    ("prompt", "score"),
    [
        ("A person moves to the left, in a red shirt, in front of a blue wall.", 1.0),
        ("someone is moving to the left red shirt blue background", 1.0),
        ("a person moves to the right in a red shirt in front of a blue wall", 2 / 3),
        ("a person nods in a green shirt in front of a white wall", 0.0),
        ("a person in a red shirt", 1.0),
        ("a person smiles", 0.0),
        ("a person by the sea", None),
    ],
)
def test_following(clip, prompt, score):
    follow = MODELS["nano"].follow
    assert follow(clip, prompt) == (None if score is None else pytest.approx(score))


def test_without_a_face_the_motion_is_missed(clip):
    empty = clip.copy()
    empty[:] = empty[:, :1, :1]
    seen = probe(empty, "a person moves to the left in front of a blue wall", MODELS["nano"].faces(None).detector())
    assert seen == {"wall": 1.0, "motion": 0.0, "prompt": 1.0, "following": 0.5, "clean": 1.0, "steady": 1.0}


def test_a_spotted_or_flickering_wall_is_seen(clip):
    detector = MODELS["nano"].faces(None).detector()
    assert probe(clip, "", detector) == {"clean": 1.0, "steady": 1.0}
    spotted, flickering = clip.copy(), clip.copy()
    spotted[:, :5, :3] = 255  # three of the ten columns that both corners have
    flickering[1::2, :5] = 255
    assert probe(spotted, "", detector)["clean"] == pytest.approx(0.7, abs=0.05)
    assert probe(spotted, "", detector)["steady"] == 1.0
    assert probe(flickering, "", detector)["steady"] == 0.0


def test_every_phrase_names_its_motion():
    phrases = [phrase for ways in DOES.values() for phrase in ways if phrase]
    assert len(phrases) == len(set(phrases))
    assert set(DOES) == set(faces.MOTIONS)
