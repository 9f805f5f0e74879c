"""Drawn training examples: the same number, the same example; what the shards take; and of people nobody else has seen."""

import random
from pathlib import Path

import pytest
import torch

import lynx_video
from lynx_video.errors import BadRequest
from lynx_video.face.embed import load_arcface
from lynx_video.nano import captions, faces, model
from lynx_video.nano.recipe import base, data, drawn
from lynx_video.nano.recipe.drawn import BLOCK, Drawn, conditions, elsewhere
from lynx_video.training.shards import Conditions, Shards, write_shards

WEIGHTS = Path(lynx_video.__file__).parent / "nano" / "weights"
BASE = WEIGHTS / "base"
TENSORS = ("latents", "text", "faces", "references")


def make(seed=0, stills_share=0.25):
    return Drawn(BASE, load_arcface(WEIGHTS / "face" / "encoder.safetensors"), seed, stills_share=stills_share)


@pytest.fixture(scope="module")
def source():
    return make()


@pytest.fixture(scope="module")
def clips(source):
    return list(source.examples(0, 2 * BLOCK, "clip"))


@pytest.fixture(scope="module")
def stills(source):
    return list(source.examples(0, BLOCK, "still"))


def same(a, b):
    words = all(getattr(a, name) == getattr(b, name) for name in a.__slots__ if name not in TENSORS)
    return words and all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


def test_a_number_is_the_same_example_in_every_range_and_every_instance(source, clips):
    again = list(source.examples(BLOCK - 3, 5, "clip"))
    assert all(same(a, b) for a, b in zip(again, clips[BLOCK - 3 : BLOCK + 2], strict=True))
    torch.manual_seed(5)
    random.seed(5)
    anew = list(make().examples(BLOCK + 1, 1, "clip"))
    assert same(anew[0], clips[BLOCK + 1])
    assert list(source.examples(7, 0, "clip")) == []


def test_examples_and_seeds_differ(clips):
    assert len({example.key for example in clips}) == len(clips)
    for name in ("latents", "faces", "references"):
        assert len(torch.stack([getattr(example, name) for example in clips]).flatten(1).unique(dim=0)) == len(clips), name
    other = next(make(seed=1).examples(0, 1, "clip"))
    assert not torch.equal(other.latents, clips[0].latents)
    assert not torch.equal(other.faces, clips[0].faces)


def test_mixed_goes_through_both(source, clips, stills):
    mixed = list(source.examples(0, 40))
    assert [example for example in mixed if example.frames == 1] != []
    assert [example.key for example in mixed if example.frames == 1] == [example.key for example in stills[:10]]
    assert all(same(a, b) for a, b in zip([e for e in mixed if e.frames == 1], stills[:10], strict=True))
    assert all(same(a, b) for a, b in zip([e for e in mixed if e.frames > 1], clips[:30], strict=True))
    later = list(source.examples(17, 6))
    assert all(same(a, b) for a, b in zip(later, mixed[17:23], strict=True))


def test_shapes_and_values(clips, stills):
    channels, side = model.LATENT_CHANNELS, model.SIZE // 4
    for examples, frames, latent_frames in ((clips, model.FRAMES, 5), (stills, 1, 1)):
        for number, example in enumerate(examples):
            assert example.latents.shape == (channels, latent_frames, side, side)
            assert example.references.shape == (2, channels, 1, side, side)
            assert example.latents.dtype == example.references.dtype == torch.float16
            assert (example.frames, example.height, example.width) == (frames, model.SIZE, model.SIZE)
            assert example.faces.shape == (2, 512)
            assert example.faces.dtype == torch.float32
            torch.testing.assert_close(example.faces.norm(dim=-1), torch.ones(2), rtol=0, atol=1e-5)
            assert example.text.dtype == torch.bfloat16
            assert example.text.shape == (len(example.caption.split()) + 1, model.TEXT_WIDTH)
            assert example.text[-1].abs().max() > 0
            assert example.person == f"p{number:06d}"
            assert (example.source, example.sources) == ("drawn", ("drawn", "drawn"))
    everything = torch.stack([example.latents for example in clips]).float()
    assert 0.8 < everything.std() < 1.3  # normalised


def test_what_is_fast_is_what_the_product_computes(source, clips):
    """The latents in bfloat16 are those of the float32 VAE, up to bfloat16; the text is what one caption alone gives."""
    who = faces.people(BLOCK, source._generator(0, "people"))
    rng = source._generator(0, "clip")
    faces.scenes(who, rng)
    motion = torch.multinomial(torch.tensor(base.SHARES), BLOCK, True, generator=rng)
    scene = faces.scenes(who, source._generator(0, "clip"))
    some = slice(0, 4)
    video = data.clips(faces.select(who, some), rng, motion=motion[some], scene=faces.select(scene, some)).frames
    vae = base.load_vae(BASE)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        exact = (vae.encode(data.to_signed(video).transpose(1, 2)).latent_dist.mean - mean) / std
    fast = torch.stack([example.latents for example in clips[some]]).float()
    assert (fast - exact).square().mean().sqrt() < 0.02
    with torch.no_grad():
        alone = source._text([clips[1].caption])[0]
    torch.testing.assert_close(alone, clips[1].text, rtol=0.02, atol=0.02)


def test_faces_are_of_the_person(clips):
    """Both portraits of a person are nearer to each other than to anybody else's."""
    first, second = (torch.stack([example.faces[i] for example in clips]) for i in (0, 1))
    assert ((first @ second.T).argmax(1) == torch.arange(len(clips))).float().mean() > 0.95
    assert all(not torch.equal(example.faces[0], example.faces[1]) for example in clips)


def test_captions_name_scene_and_motion_and_no_trait(clips, stills):
    traits = {
        word
        for table in (faces.STYLES, faces.SHAPES, faces.GLASSES, faces.BEARDS, faces.BROWS)
        for name in table
        for word in name.split()
    }
    traits |= {"skin", "hair", "eyes", "face", "brows", *faces.SKIN, *faces.HAIR, *faces.EYES, *faces.FRAMES}
    traits -= {"a"}
    for example in (*clips, *stills):
        words = example.caption.split()
        coloured = {i for i in range(len(words) - 1) if words[i + 1] in ("shirt", "wall", "background")}
        assert len(coloured) == 2, example.caption
        assert not {word for i, word in enumerate(words) if i not in coloured} & traits, example.caption
        assert "with" not in words
        assert set(words) <= set(captions.WORDS)
    assert len({example.caption for example in clips}) > 0.9 * len(clips)


def test_rare_motions_come_more_often(source):
    drawn_motions = []
    for block in range(60):
        rng = source._generator(block, "clip")
        who = faces.people(BLOCK, source._generator(block, "people"))
        faces.scenes(who, rng)
        drawn_motions.append(torch.multinomial(torch.tensor(base.SHARES), BLOCK, True, generator=rng))
    counts = torch.cat(drawn_motions).bincount(minlength=len(faces.MOTIONS)).float()
    wanted = torch.tensor(base.SHARES) / sum(base.SHARES)
    torch.testing.assert_close(counts / counts.sum(), wanted, rtol=0, atol=0.04)


def test_portraits_are_taken_elsewhere():
    rng = torch.Generator().manual_seed(0)
    who = faces.people(4000, rng)
    scene, taken = faces.scenes(who, rng), faces.scenes(who, rng)

    def matching(a, b):
        return (a.wall == b.wall) & (a.shirt == b.shirt)

    assert matching(scene, taken).any()
    moved = elsewhere(scene, taken)
    assert not matching(moved, taken).any()
    assert torch.equal(moved.wall, scene.wall)
    kept = ~matching(scene, taken)
    assert torch.equal(moved.shirt[kept], scene.shirt[kept])


def test_portraits_use_elsewhere(source, monkeypatch):
    """The scenes of the portraits go through `elsewhere` with the scene of the target, each twice."""
    seen = []
    monkeypatch.setattr(drawn, "elsewhere", lambda scene, taken: seen.append(taken) or elsewhere(scene, taken))
    next(source.examples(0, 1, "still"))
    who = faces.people(BLOCK, source._generator(0, "people"))
    target = faces.scenes(who, source._generator(0, "still"))
    assert torch.equal(seen[0].wall, target.wall.repeat_interleave(2))
    assert torch.equal(seen[0].shirt, target.shirt.repeat_interleave(2))


def test_nobody_here_is_drawn_elsewhere(source):
    """The seeds lie above those of every other purpose; so do, by the numbers of the people themselves, the people."""
    assert max(data.SEEDS.values()) + 10_000_000 < drawn.FIRST
    last = make(seed=drawn.SEEDS - 1)._generator(drawn.SPAN // 3 - 1, "clip").initial_seed()
    assert last < 2**32
    mine = torch.cat([faces.people(BLOCK, source._generator(block, "people")).tint.flatten(1) for block in range(12)])
    others = [faces.people(300, data.generator(purpose, n)).tint.flatten(1) for purpose in data.SEEDS for n in (0, 1, 7)]
    everyone = torch.cat([mine, *others])
    assert len(torch.unique(mine, dim=0)) == len(mine)
    assert len(torch.unique(everyone, dim=0)) == len(mine) + len(torch.unique(torch.cat(others), dim=0))


@pytest.mark.parametrize(
    "request_",
    [
        lambda: make(seed=-1),
        lambda: make(seed=drawn.SEEDS),
        lambda: make(stills_share=1.5),
        lambda: next(make().examples(-1, 4)),
        lambda: next(make().examples(drawn.SPAN * BLOCK, 1)),
    ],
)
def test_what_does_not_exist_is_refused(request_):
    with pytest.raises(BadRequest):
        request_()


def test_conditions_are_what_the_product_uses_and_fit_the_shards(clips, tmp_path):
    from lynx_video import load
    from lynx_video.pipeline.condition import REFERENCE_PROMPT, encode_prompt, reference_latents

    found = conditions(BASE)
    nano = load("nano", dtype="bf16", with_adapter=False)
    for name, prompt in (("empty_text", ""), ("reference_text", REFERENCE_PROMPT)):
        wanted = encode_prompt(nano.tokenizer, nano.text_encoder, prompt, model.TEXT_TOKENS)[0]
        torch.testing.assert_close(found[name], wanted, rtol=0.02, atol=0.02)
        assert torch.equal(found[name] == 0, wanted == 0)
    grey = reference_latents(base.load_vae(BASE), None, model.REFERENCE, None)[0]
    torch.testing.assert_close(found["nobody_reference"].float(), grey, rtol=0, atol=2e-3)
    assert write_shards(tmp_path, clips[:3], Conditions(**found), {"model": "nano"}) == 3
    shards = Shards(tmp_path)
    assert same(shards.read(shards.entries[2]), clips[2])
