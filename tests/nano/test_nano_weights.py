"""The shipped nano weights do what they are for, on people never seen in training."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lynx_video
from lynx_video import GenerateConfig, generate, load
from lynx_video.face.align import arcface_crop
from lynx_video.face.detect import find_faces
from lynx_video.face.likeness import signed
from lynx_video.nano import faces, probes
from lynx_video.nano.people import portrait
from lynx_video.nano.recipe import data
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.identify import identify

WEIGHTS = Path(lynx_video.__file__).parent / "nano" / "weights"
UNSEEN = 424_242


@pytest.fixture(scope="module")
def nano():
    return load("nano")


@pytest.fixture(scope="module")
def unseen():
    rng = data.generator("evaluation", UNSEEN)
    who = faces.people(14, rng)
    return who, data.clips(who, rng, motion=torch.arange(14) % 7)


def test_all_weights_fit_the_limit():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 24 * 2**20


def test_weights_are_the_real_layouts():
    assert {file.name for file in (WEIGHTS / "lynx_full").glob("*.safetensors")} == {
        "resampler.safetensors",
        "ip_layers.safetensors",
        "ref_layers.safetensors",
    }
    assert {file.name for file in (WEIGHTS / "lynx_lite").glob("*.safetensors")} == {
        "resampler.safetensors",
        "ip_layers.safetensors",
    }


def test_vae_rebuilds_unseen_clips(nano, unseen):
    _, clips = unseen
    video = data.to_signed(clips.frames[:6]).transpose(1, 2)
    mean, std = latent_statistics(nano.vae, "cpu")
    errors = []
    for one in video.split(1):
        with torch.no_grad():
            latents = (nano.vae.encode(one).latent_dist.mean - mean) / std
        rebuilt = decode(nano.vae, latents).float() / 127.5 - 1
        errors.append(((rebuilt.permute(3, 0, 1, 2) - one[0]) / 2).square().mean())
    assert float(-10 * torch.stack(errors).log10().mean()) > 26


def test_detector_and_probes_read_drawn_clips(nano, unseen):
    who, clips = unseen
    right = 0
    for i in range(len(who)):
        frames = clips.frames[i].permute(0, 2, 3, 1).contiguous().numpy()
        found = [find_faces(frame, nano.faces.detector()) for frame in frames]
        assert all(len(some) == 1 for some in found)
        assert probes.wall(frames) == faces.WALLS[int(clips.scene.wall[i])]
        assert probes.shirt(frames) == faces.SHIRTS[int(clips.scene.shirt[i])]
        right += probes.motion(np.stack([some[0].points for some in found]), 64) == faces.MOTIONS[int(clips.motion[i])]
    assert right >= 12


def test_encoder_and_judge_know_people_apart(nano):
    rng = data.generator("evaluation", UNSEEN + 1)
    who = faces.people(24, rng)
    views = []
    for _ in range(2):
        pictures, _, pose = data.stills(who, rng, 128)
        points = ((faces.landmarks(who, pose) + 1) * 64 - 0.5).numpy()
        images = pictures.permute(0, 2, 3, 1).contiguous().numpy()
        views.append(signed(np.stack([arcface_crop(image, spots) for image, spots in zip(images, points, strict=True)])))
    for recogniser in (nano.faces.encoder(), nano.faces.judge()):
        first, second = recogniser(views[0]), recogniser(views[1])
        assert torch.allclose(first.norm(dim=1), torch.ones(24), atol=1e-4)
        assert ((first @ second.T).argmax(1) == torch.arange(24)).float().mean() > 0.9


def test_adapters_carry_the_person_and_the_prompt_still_rules(nano):
    prompt = "a person smiles wearing a red shirt in front of a white wall"
    gains, walls, shirts = [], [], []
    for seed in (51, 52, 53):
        sitter = identify(nano.faces, portrait(seed), reference_size=nano.defaults.reference_size)
        both = generate(nano, sitter.identity, prompt, GenerateConfig(seed=seed))
        none = generate(nano, sitter.identity, prompt, GenerateConfig(seed=seed, ip_scale=0.0, ref_scale=0.0))
        assert both.similarity is not None
        assert both.coverage == 1.0
        gains.append(both.similarity - (none.similarity or 0.0))
        walls.append(probes.wall(both.frames) == "white")
        shirts.append(probes.shirt(both.frames) == "red")
    assert np.mean(gains) > 0.3
    assert sum(walls) >= 2
    assert sum(shirts) >= 2


@pytest.mark.parametrize("off", ["ip_scale", "ref_scale"])
def test_each_adapter_carries_the_person_alone(nano, off):
    prompt, gains = "a person nods wearing a black shirt in front of an orange wall", []
    for seed in (71, 72):
        sitter = identify(nano.faces, portrait(seed), reference_size=nano.defaults.reference_size)
        alone = generate(nano, sitter.identity, prompt, GenerateConfig(seed=seed, num_inference_steps=12, **{off: 0.0}))
        none = generate(
            nano, sitter.identity, prompt, GenerateConfig(seed=seed, num_inference_steps=12, ip_scale=0.0, ref_scale=0.0)
        )
        gains.append((alone.similarity or 0.0) - (none.similarity or 0.0))
    assert np.mean(gains) > 0.3


def test_lite_carries_the_person_too():
    lite = load("nano-lite")
    assert lite.arm == "lite"
    gains = []
    for seed in (61, 62, 63):
        sitter = identify(lite.faces, portrait(seed), reference_size=lite.defaults.reference_size)
        with_it = generate(lite, sitter.identity, "a person nods in front of a blue wall", GenerateConfig(seed=seed))
        without = generate(
            lite, sitter.identity, "a person nods in front of a blue wall", GenerateConfig(seed=seed, ip_scale=0.0)
        )
        gains.append((with_it.similarity or 0.0) - (without.similarity or 0.0))
    assert np.mean(gains) > 0.15
