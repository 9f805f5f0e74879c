"""Drawn people: the same from the same seed, with landmarks where they belong, described in words that are known."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from lynx_video.nano import captions, faces, model, people, probes
from lynx_video.nano.recipe import data

SIZE = 128
COUNT = 48
FRAMES = 9


@pytest.fixture(scope="module")
def crowd():
    rng = torch.Generator().manual_seed(1)
    who = faces.people(COUNT, rng)
    return who, faces.scenes(who, rng), faces.poses(COUNT, rng, spread=0.0)


def same(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def at(picture, points):
    """Colours [P, 3] of a picture [3, H, W] at points [P, 2] in frame units."""
    size = picture.shape[-1]
    x, y = (((points + 1) / 2 * size).long().clamp(0, size - 1)).unbind(-1)
    return picture[:, y, x].T


def colour(table, index):
    return torch.tensor(list(table.values()))[index]


def test_the_same_seed_draws_the_same():
    def draw(seed):
        rng = torch.Generator().manual_seed(seed)
        who = faces.people(4, rng)
        scene, pose = faces.scenes(who, rng), faces.poses(4, rng)
        return who, scene, pose, faces.draw(who, scene, pose, 64)

    first, again, other = draw(3), draw(3), draw(4)
    assert all(same(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert torch.equal(first[3], again[3])
    assert not torch.equal(first[3], other[3])
    torch.manual_seed(9)
    assert torch.equal(draw(3)[3], first[3])


def test_pictures_are_in_range_and_show_the_same_at_every_size(crowd):
    who, scene, pose = (faces.select(one, slice(0, 8)) for one in crowd)
    large, small = faces.draw(who, scene, pose, 256), faces.draw(who, scene, pose, 64)
    assert large.shape == (8, 3, 256, 256)
    assert large.min() >= 0
    assert large.max() <= 1
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.01


def test_a_batch_is_its_entries(crowd):
    who, scene, pose = crowd
    together = faces.draw(who, scene, pose, 32)
    for i in (0, 7):
        alone = faces.draw(*(faces.select(one, slice(i, i + 1)) for one in (who, scene, pose)), 32)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


def test_landmarks_lie_on_what_they_name(crowd):
    who, scene, pose = crowd
    pictures, points = faces.draw(who, scene, pose, SIZE), faces.landmarks(who, pose)
    assert points.shape == (COUNT, 5, 2)
    for i in range(COUNT):
        left, right, nose, *mouth = at(pictures[i], points[i])
        assert torch.stack([left, right]).max() < 0.2  # the pupils
        ring = at(pictures[i], points[i, :2] + torch.tensor([0.0, 0.5 * 0.165 * 1.1]))
        iris = (colour(faces.EYES, who.eyes[i]) + who.tint[i, 2]).clamp(0, 1)
        assert (ring - iris).abs().max() < 0.1
        skin = (colour(faces.SKIN, who.skin[i]) + who.tint[i, 0]).clamp(0, 1)
        assert (nose - skin * 0.70).abs().max() < 0.1
        lip = torch.tensor([0.72, 0.26, 0.28])
        for x in mouth:  # a corner is the end of the lips: lip, what is beside it, or a blend of both
            assert (x - lip).abs().max() < 0.7
        between = points[i, 3:].mean(0)
        strip = at(pictures[i], between + torch.stack([torch.zeros(25), torch.linspace(-0.12, 0.12, 25)], -1))
        assert (strip - lip).abs().max(-1).values.min() < 0.1
        assert points[i, 0, 0] < points[i, 1, 0]
        assert points[i, 3, 0] < points[i, 4, 0]
        assert points[i, :2, 1].max() < points[i, 2, 1] < points[i, 3:, 1].min()


def test_boxes_hold_the_landmarks(crowd):
    who, _, _ = crowd
    pose = faces.poses(COUNT, torch.Generator().manual_seed(5))
    box, points = faces.boxes(who, pose), faces.landmarks(who, pose)
    assert (points >= box[:, None, :2]).all()
    assert (points <= box[:, None, 2:]).all()


def test_walls_and_shirts_are_where_the_probes_look(crowd):
    who, scene, pose = crowd
    pictures = (faces.draw(who, scene, pose, 64) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    walls = [probes.wall(picture[None]) == faces.WALLS[scene.wall[i]] for i, picture in enumerate(pictures)]
    shirts = [probes.shirt(picture[None]) == faces.SHIRTS[scene.shirt[i]] for i, picture in enumerate(pictures)]
    assert np.mean(walls) > 0.95  # large hair may reach the corners
    assert all(shirts)


def test_the_wall_is_never_the_colour_of_the_hair(crowd):
    who, scene, _ = crowd
    apart = (colour(faces.COLOURS, scene.wall) - colour(faces.HAIR, who.hair)).abs().sum(-1)
    assert (apart >= 0.45).all()


def test_each_trait_shows():
    """Changing one trait changes the drawing, and by more than rounding."""
    rng = torch.Generator().manual_seed(2)
    who = dataclasses.replace(faces.people(1, rng), style=torch.tensor([1]), glasses=torch.tensor([1]), beard=torch.tensor([2]))
    scene, pose = faces.scenes(who, rng), faces.poses(1, rng, spread=0.0)
    plain = faces.draw(who, scene, pose, SIZE)
    for name, options in (
        ("skin", faces.SKIN),
        ("hair", faces.HAIR),
        ("style", faces.STYLES),
        ("shape", faces.SHAPES),
        ("eyes", faces.EYES),
        ("glasses", faces.GLASSES),
        ("frame", faces.FRAMES),
        ("beard", faces.BEARDS),
        ("brows", faces.BROWS),
    ):
        other = dataclasses.replace(who, **{name: (getattr(who, name) + 1) % len(options)})
        assert (faces.draw(other, scene, pose, SIZE) - plain).abs().max() > 0.05, name


def tracks(motion, amount=1.0, count=6):
    start = faces.poses(count, torch.Generator().manual_seed(8), spread=0.3)
    found = faces.tracks(start, torch.full((count,), faces.MOTIONS.index(motion)), torch.full((count,), amount), FRAMES)
    return start, {f.name: getattr(found, f.name).view(count, FRAMES) for f in dataclasses.fields(found)}


@pytest.mark.parametrize(
    ("motion", "moving"),
    [
        ("stays still", set()),
        ("nods", {"pitch"}),
        ("shakes the head", {"yaw"}),
        ("tilts the head", {"roll"}),
        ("moves to the left", {"x"}),
        ("moves to the right", {"x"}),
        ("smiles", {"smile"}),
    ],
)
def test_tracks_do_what_their_motion_says(motion, moving):
    start, track = tracks(motion)
    for name, values in track.items():
        spread = values.max(1).values - values.min(1).values
        assert bool((spread > 0.2).all()) == (name in moving), name
        if name not in moving:
            assert torch.equal(values, getattr(start, name)[:, None].expand(-1, FRAMES))
    if motion == "moves to the left":
        assert (track["x"].diff(dim=1) < 0).all()
    if motion == "moves to the right":
        assert (track["x"].diff(dim=1) > 0).all()
    if motion == "smiles":
        assert (track["smile"].diff(dim=1) > 0).all()
    if motion == "tilts the head":
        mirrored = tracks(motion, -1.0)[1]["roll"]
        torch.testing.assert_close(track["roll"] - start.roll[:, None], start.roll[:, None] - mirrored)


@pytest.mark.parametrize("motion", faces.MOTIONS)
def test_drawn_motions_are_told_by_the_probe(motion):
    rng = torch.Generator().manual_seed(11)
    who = faces.people(6, rng)
    _, track = tracks(motion)
    told = [
        probes.motion(
            (
                (
                    faces.landmarks(
                        faces.select(who, torch.full((FRAMES,), i)), faces.Poses(**{k: v[i] for k, v in track.items()})
                    )
                    + 1
                )
                * 32
            ).numpy(),
            64,
        )
        for i in range(6)
    ]
    assert told.count(motion) >= 5, told


def test_captions_use_known_words_only(crowd):
    who, scene, _ = crowd
    rng, tokenizer = random.Random(0), model.tokenizer()
    said = set()
    for i in range(COUNT):
        for motion in (None, *range(len(faces.MOTIONS))):
            text = captions.caption(scene, i, motion, captions.describe(who, i, 0.7, rng), rng)
            assert set(text.split()) <= set(captions.WORDS), text
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids
            assert len(tokenizer(text).input_ids) <= model.TEXT_TOKENS
            assert faces.WALLS[int(scene.wall[i])] in text.split()
            said |= set(text.split())
    assert len(said) > 0.8 * len(captions.WORDS)
    assert captions.describe(who, 0, 0.0, rng) == ""


def test_words_are_all_different():
    assert len(set(captions.WORDS)) == len(captions.WORDS)
    assert captions.WORDS[:3] == ("<pad>", "</s>", "<unk>")


def test_tokenizer_round_trip(tmp_path):
    tokenizer = model.tokenizer()
    text = "A person, smiling; NODS in front of a RED wall!"
    ids = tokenizer(text).input_ids
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == 0
    assert tokenizer.decode(ids[:-1]) == "a person smiling nods in front of a red wall"
    assert tokenizer("a zebra").input_ids[1] == tokenizer.unk_token_id
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text).input_ids == ids
    padded = again([text], padding="max_length", max_length=model.TEXT_TOKENS, return_tensors="pt")
    assert padded.input_ids.shape == (1, model.TEXT_TOKENS)
    assert int(padded.attention_mask.sum()) == len(ids)


def test_every_purpose_has_people_of_its_own():
    """Somebody who trains one model is never drawn for another: no two share the continuous traits."""
    drawn = torch.cat([faces.people(200, data.generator(purpose)).tint.flatten(1) for purpose in data.SEEDS])
    shown = torch.cat([faces.people(1, torch.Generator().manual_seed(people.HELD_OUT + i)).tint.flatten(1) for i in range(50)])
    everyone = torch.cat([drawn, shown])
    assert len(torch.unique(everyone, dim=0)) == len(everyone)


def test_portraits_are_all_different_and_repeatable():
    pictures = [people.portrait(seed, 64) for seed in range(12)]
    assert all(picture.shape == (64, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert np.array_equal(people.portrait(3, 64), pictures[3])
    for i, one in enumerate(pictures):
        assert all(np.abs(one.astype(int) - other.astype(int)).mean() > 2 for other in pictures[:i])


def test_toy_models_are_the_real_classes():
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    transformer, vae = model.transformer(), model.vae()
    assert type(transformer) is WanTransformer3DModel
    assert type(vae) is AutoencoderKLWan
    assert type(model.text_encoder()) is UMT5EncoderModel
    assert type(model.scheduler()) is UniPCMultistepScheduler
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, model.FRAMES, model.SIZE, model.SIZE)).latent_dist.mean
        assert latents.shape == (1, model.LATENT_CHANNELS, 5, 16, 16)
        assert vae.decode(latents).sample.shape == (1, 3, model.FRAMES, model.SIZE, model.SIZE)
        text = torch.zeros(1, model.TEXT_TOKENS, model.TEXT_WIDTH)
        assert transformer(latents, torch.zeros(1), text).sample.shape == latents.shape
