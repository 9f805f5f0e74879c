"""Previews: what a step guesses the clean latents to be, for every scheduler, and the picture made of it."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from lynx_video import GenerateConfig, load
from lynx_video.flow import interpolate, velocity
from lynx_video.nano.people import portrait
from lynx_video.pipeline.decoding import decode
from lynx_video.pipeline.denoise import Step, _sigmas, initial_noise
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.preview import preview
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps

NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "the person stays still wearing a red shirt in front of a blue wall"


@pytest.fixture(scope="module")
def nano():
    return load("nano", device="cpu")


@NUMPY
@pytest.mark.parametrize("kind", ["unipc", "euler", "dpm"])
def test_on_a_straight_path_every_step_knows_the_end(kind, full, tiny):
    scheduler = make_scheduler(full.scheduler, tiny(scheduler=kind))
    timesteps = set_timesteps(scheduler, 6, "cpu")
    sigmas = _sigmas(scheduler, timesteps)
    clean, noise = torch.randn(2, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = interpolate(clean, noise, scheduler.sigmas[0])
    for t, sigma in zip(timesteps, sigmas, strict=True):
        after = scheduler.step(velocity(clean, noise), t, x, return_dict=False)[0]
        step = Step(number=1, total=6, latents=after, seconds=0.0, before=x, velocity=velocity(clean, noise), sigma=sigma)
        torch.testing.assert_close(step.clean, clean, rtol=0, atol=1e-4)
        x = after


@NUMPY
@pytest.mark.parametrize("kind", ["unipc", "euler", "dpm"])
def test_the_last_step_s_guess_is_the_end(kind, full, sitter, tiny):
    steps = []
    clip = generate(full, sitter(), "A person waves.", tiny(scheduler=kind, num_inference_steps=4), on_step=steps.append)
    torch.testing.assert_close(steps[-1].clean, clip.latents, rtol=0, atol=1e-4)
    assert not torch.allclose(steps[0].clean, clip.latents, rtol=0, atol=1e-2)
    assert torch.equal(steps[0].before, clip.initial_latents)
    assert all(step.sigma.ndim == 0 for step in steps)
    assert torch.equal(steps[1].before, steps[0].latents)


def test_a_scheduler_that_keeps_no_sigmas():
    timesteps = torch.tensor([999.0, 500.0])
    assert [float(one) for one in _sigmas(object(), timesteps)] == pytest.approx([0.999, 0.5])


def test_a_step_without_a_prediction_shows_where_it_is():
    latents = torch.randn(1, 2, 1, 2, 2)
    assert torch.equal(Step(number=1, total=2, latents=latents, seconds=0.0).clean, latents)


def test_nothing_outlives_its_step(full, sitter, tiny):
    """A callback that keeps nothing leaves nothing: the guess is neither made nor are its parts held through the next forward."""
    alive, seen = [], []
    hook = full.transformer.register_forward_pre_hook(lambda *_: seen.append([one() is not None for one in alive]))
    try:
        generate(
            full,
            sitter(),
            "A person waves.",
            tiny(num_inference_steps=3, ref_scale=0.0),
            on_step=lambda step: alive.append(weakref.ref(step.velocity)),
        )
    finally:
        hook.remove()
    assert [len(one) for one in seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert not any(any(one) for one in seen)


def test_a_preview_is_near_the_clip_long_before_its_end(nano):
    pictures, noisy = [], []

    def on_step(step):
        pictures.append(preview(nano, step))
        noisy.append(decode(nano.vae, step.latents[:, :, :1])[0].numpy())

    config = GenerateConfig(seed=3, num_inference_steps=6, num_frames=5)
    clip = generate(nano, portrait(3), PROMPT, config, on_step=on_step)
    final = clip.frames[0].astype(float)
    assert all(one.shape == final.shape and one.dtype == np.uint8 for one in pictures)
    assert np.abs(pictures[-1] - final).max() <= 1
    off = [float(np.square(one - final).mean()) for one in pictures]
    off_noisy = [float(np.square(one - final).mean()) for one in noisy]
    assert all(mine < theirs for mine, theirs in zip(off[:4], off_noisy[:4], strict=True))
    assert off[1] < off_noisy[1] / 3
    assert off[-1] < off[2] < off[0]
    plain = generate(nano, portrait(3), PROMPT, config)
    assert torch.equal(plain.latents, clip.latents), "looking changes nothing"


def test_a_preview_of_windows(nano):
    last = []
    config = GenerateConfig(num_inference_steps=2, num_frames=13, guidance_scale=1.0)
    with pytest.warns(UserWarning, match="made of"):
        clip = generate(nano, portrait(3), PROMPT, config, on_step=lambda step: last.append(preview(nano, step)))
    assert np.abs(last[-1] - clip.frames[0].astype(int)).max() <= 1


def test_a_vae_in_host_memory_comes_and_leaves(load_golden, monkeypatch):
    """Where it lies with the rest it stays."""
    own, moved = load_golden("full"), []
    monkeypatch.setattr(own.vae, "to", lambda device: moved.append(str(device)) or own.vae)
    step = Step(number=1, total=1, latents=initial_noise((1, 16, 2, 8, 8), 0), seconds=0.0)
    here = preview(own, step)
    assert moved == []
    away = preview(replace(own, device=torch.device("meta")), step)
    assert moved == ["meta", "cpu"]
    assert np.array_equal(here, away)
    assert np.array_equal(here, decode(own.vae, step.latents)[0].numpy())
