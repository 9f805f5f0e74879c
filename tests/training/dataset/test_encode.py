"""An example holds what generation would see: the VAE's mean, the prompt's embeddings, and references made as portraits are."""

import dataclasses

import numpy as np
import pytest
import torch

from lynx_video.media.video import read_video
from lynx_video.pipeline.condition import REFERENCE_PROMPT, encode_prompt, reference_latents
from lynx_video.pipeline.decoding import decode
from lynx_video.training.augment import Portrait, augment, steps
from lynx_video.training.dataset.encode import Encoder, Job, encode_frames, load_encoders, pack_example, read_example, trim_text
from lynx_video.training.dataset.source import Dropped
from lynx_video.work import Shelf


@pytest.fixture(scope="module")
def encoders(nano):
    return load_encoders(nano)


@pytest.fixture
def scans(tmp_path, shelve, drawn, look):
    """The work folder of three scanned items of one person: two clips and a photo."""
    shelf = Shelf(folder=tmp_path / "scan")
    shelve("a.mp4", drawn.clips[0][0])
    shelve("b.mp4", drawn.clips[1][0])
    shelve("c.png", drawn.photos[0][0])
    found = {}
    for name in ("a.mp4", "b.mp4", "c.png"):
        finding, evidence = look(name)
        shelf.save(finding.item.key, "", {}, {key: torch.tensor(value) for key, value in evidence._asdict().items()})
        found[name] = finding
    return shelf, found


@pytest.fixture
def job(scans):
    """job("a.mp4", "clip") with the other two as references."""

    def make(name, kind):
        _, found = scans
        others = [finding for other, finding in found.items() if other != name]
        return Job(
            kind=kind,
            item=found[name].item,
            view=getattr(found[name], kind),
            person="ann",
            references=tuple(other.item.key for other in others),
            sources=tuple(other.item.file for other in others),
            contents=tuple(other.content for other in others),
        )

    return make


@pytest.fixture
def encoder(encoders, scans, shelve):
    """encoder("light", "jitter", seed=1): an encoder with these steps."""
    return lambda *names, seed=0: Encoder(encoders, shelve.root, scans[0], steps(names), seed)


def test_a_clip_is_the_vaes_mean_of_its_frames_normalised(shelve, encoders, encoder, job):
    example = encoder()(job("a.mp4", "clip"))
    frames, _ = read_video(shelve.root / "a.mp4")
    pixels = (torch.tensor(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1).contiguous()
    with torch.no_grad():
        raw = encoders.vae.encode(pixels).latent_dist.mean[0]
    mean, std = (torch.tensor(encoders.vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert std.min() > 0
    assert (std - 1).abs().max() > 0.01, "or this test would not see whether they are divided by it"
    assert example.latents.dtype == torch.float16
    assert torch.equal(example.latents, ((raw - mean) / std).to(torch.float16))
    assert (example.frames, example.height, example.width) == (9, 64, 64)
    back = decode(encoders.vae, example.latents[None].float()).numpy()
    assert np.abs(back.astype(int) - frames).mean() < 12


def test_a_still_is_the_best_frame_and_a_photo_itself(shelve, encoders, encoder, job, scans):
    frames, fps = read_video(shelve.root / "a.mp4")
    still = encoder()(job("a.mp4", "still"))
    best = round(scans[1]["a.mp4"].moment * fps)
    assert torch.equal(still.latents, encode_frames(encoders.vae, frames[best : best + 1]))
    assert (still.frames, still.latents.shape[1]) == (1, 1)
    photo = encoder()(job("c.png", "still"))
    assert photo.latents.shape == still.latents.shape
    assert photo.key.endswith("-still")


def test_the_text_ends_with_its_last_token(encoders, encoder, job):
    example = encoder()(job("a.mp4", "clip"))
    whole = encode_prompt(encoders.tokenizer, encoders.text_encoder, "a person nods", 48)[0]
    assert example.text.dtype == torch.bfloat16
    assert len(example.text) == 4  # three words and the end
    assert torch.equal(example.text, whole[:4].to(torch.bfloat16))
    assert not whole[4:].any()


def test_trimming_keeps_zeros_in_between_and_at_least_a_row():
    text = torch.tensor([[0.0, 1], [0, 0], [2, 0], [0, 0]])
    assert torch.equal(trim_text(text), text[:3])
    assert trim_text(torch.zeros(4, 2)).shape == (1, 2)


def test_references_are_of_the_others_sampled_and_their_vectors_as_they_were(encoders, encoder, job, scans):
    asked = job("a.mp4", "clip")
    plain, changed = encoder()(asked), encoder("light", "background", "jitter")(asked)
    assert plain.sources == ("b.mp4", "c.png")
    assert plain.references.shape == (2, 12, 1, 16, 16)
    assert plain.references.dtype == torch.float16
    stored = [scans[0].tensors(key) for key in asked.references]
    for example in (plain, changed):
        assert torch.equal(example.faces, torch.stack([one["vector"] for one in stored]))
    assert not torch.equal(plain.references, changed.references)
    assert not torch.equal(plain.references, encoder(seed=1)(asked).references), "sampled: without steps the seed matters, too"
    # without steps it is the crop of the portrait, sampled and not the mean
    from lynx_video.face.align import reference_crop

    crop = reference_crop(stored[0]["portrait"].numpy(), stored[0]["points"].numpy(), 64)
    mean = reference_latents(encoders.vae, crop, 64, None)[0]
    difference = (plain.references[0].float() - mean).abs()
    assert 0 < difference.mean() < 0.5
    assert torch.equal(plain.latents, changed.latents)


def test_the_steps_are_those_that_were_asked_for(encoders, job, scans, shelve):
    """A step that paints the portrait grey makes every reference a grey crop."""

    def grey(portrait, rng):
        rng.random()
        return Portrait(picture=np.full_like(portrait.picture, 128), points=portrait.points)

    example = Encoder(encoders, shelve.root, scans[0], [grey], 0)(job("a.mp4", "clip"))
    expected = reference_latents(encoders.vae, np.full((64, 64, 3), 128, np.uint8), 64, None)[0]
    inner = np.s_[:, :, 6:10, 6:10]  # the portrait does not fill the crop to its edges
    for reference in example.references:
        assert (reference.float()[inner] - expected[inner]).abs().mean() < 0.5
    untouched = scans[0].tensors(job("a.mp4", "clip").references[0], "portrait")["portrait"].numpy()
    assert augment(Portrait(picture=untouched, points=np.eye(5, 2, dtype=np.float32) * 9), [grey], np.random.default_rng(0))
    assert untouched.std() > 10


def test_everything_depends_on_seed_and_key_alone(encoder, job):
    asked = job("a.mp4", "clip")
    first, again, other = encoder("light")(asked), encoder("light")(asked), encoder("light", seed=1)(asked)
    for name in ("latents", "text", "faces", "references"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.references, other.references)
    assert not torch.equal(first.references, encoder("light")(job("a.mp4", "still")).references)


def test_the_conditions_are_the_empty_and_the_reference_prompt_and_a_grey_crop(encoders, encoder):
    made = encoder().conditions()
    assert made.empty_text.shape == made.reference_text.shape == (48, 64)
    whole = encode_prompt(encoders.tokenizer, encoders.text_encoder, REFERENCE_PROMPT, 48)[0].to(torch.bfloat16)
    assert torch.equal(made.reference_text, whole)
    assert len(trim_text(made.empty_text)) == 1
    assert torch.equal(made.nobody_reference, reference_latents(encoders.vae, None, 64, 0)[0].to(torch.float16))


def test_a_job_is_another_when_anything_it_is_made_of_is(job):
    one = job("a.mp4", "clip")
    changes = [
        {"person": "bob"},
        {"references": one.references[:1]},
        {"contents": ("x", "y", "z")},
        {"item": dataclasses.replace(one.item, caption="other")},
        {"view": dataclasses.replace(one.view, corner=(0, 1))},
    ]
    assert len({one.stamp, *(dataclasses.replace(one, **change).stamp for change in changes)}) == 1 + len(changes)


def test_an_example_comes_back_from_the_work_folder(tmp_path, encoder, job):
    example, shelf = encoder()(job("a.mp4", "clip")), Shelf(folder=tmp_path / "encoded")
    shelf.save(example.key, "s", *pack_example(example))
    back = read_example(shelf, example.key, "s")
    for field in dataclasses.fields(example):
        ours, theirs = getattr(example, field.name), getattr(back, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_file_that_went_away_meanwhile_is_unreadable(shelve, encoder, job):
    for name, kind in (("a.mp4", "clip"), ("c.png", "still")):
        asked = job(name, kind)
        (shelve.root / name).unlink()
        with pytest.raises(Dropped) as caught:
            encoder()(asked)
        assert caught.value.reason == "unreadable"
        assert str(shelve.root) not in str(caught.value)
