"""The loop: its noise, its timesteps, its callback, and what is in scope when."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lynx_video import GenerateConfig
from lynx_video.adapters.attach import Influence
from lynx_video.adapters.memory import text_memory
from lynx_video.errors import BadRequest, Cancelled
from lynx_video.flow import interpolate, velocity
from lynx_video.pipeline.denoise import denoise, initial_noise
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.guidance import passes, tables
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps

# diffusers' DPM scheduler turns a tensor into an array in a way that numpy 2 deprecates
NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def run(components, golden, *, steps=4, g=5.0, memories=None, on_step=None, mode="sequential", **influences):
    data, adapter = golden("full_three_pass"), components.adapter
    texts = {
        name: text_memory(components.transformer, data[key])
        for name, key in (("prompt", "prompt_embeds"), ("negative", "negative_prompt_embeds"))
    }
    if memories is None:
        faces = {"person": data["face_embedding"], "nobody": torch.zeros(512)}
        memories = {who: adapter.remember(face, None, None) for who, face in faces.items()}
    scheduler = make_scheduler(components.scheduler, GenerateConfig())
    timesteps = set_timesteps(scheduler, steps, "cpu")
    noise = initial_noise((1, 16, 2, 8, 8), 42)
    expert = Expert(adapter=adapter, texts=texts, memories=memories)
    conditions = Conditions(mode=mode, **influences)
    return denoise([expert], scheduler, noise, timesteps, tables(passes(g, None), steps, 1.0), conditions, on_step=on_step)


@pytest.mark.parametrize("case", ["full_three_pass", "full_two_pass", "lite"])
def test_noise_equals_the_reference_s(case, golden, cases):
    theirs = golden(case)["initial_latents"][:1]
    assert torch.equal(initial_noise(theirs.shape, cases[case]["seed"]), theirs)
    torch.manual_seed(1)
    assert torch.equal(initial_noise(theirs.shape, cases[case]["seed"]), theirs)
    assert not torch.equal(initial_noise(theirs.shape, cases[case]["seed"] + 1), theirs)


def test_timesteps_of_the_reference_s_grid(full, golden):
    assert full.scheduler.config.flow_shift == 3.0
    assert set_timesteps(make_scheduler(full.scheduler, GenerateConfig()), 4, "cpu").tolist() == [999, 899, 749, 499]
    for case, steps in (("full_three_pass", 4), ("full_two_pass", 3)):
        ours = set_timesteps(make_scheduler(full.scheduler, GenerateConfig()), steps, "cpu")
        assert torch.equal(ours, golden(case)["timesteps"])


def test_flow_shift(full):
    plain = set_timesteps(make_scheduler(full.scheduler, GenerateConfig(flow_shift=1.0)), 4, "cpu").tolist()
    assert plain == [999, 749, 499, 249]
    high = set_timesteps(make_scheduler(full.scheduler, GenerateConfig(flow_shift=8.0)), 4, "cpu").tolist()
    assert all(a >= b for a, b in zip(high, [999, 899, 749, 499], strict=True))
    assert full.scheduler.config.flow_shift == 3.0


@NUMPY
@pytest.mark.parametrize("kind", ["unipc", "euler", "dpm"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_schedulers(kind, steps, full, sitter, tiny):
    """Every scheduler goes from about 1 to 0 in as many steps as asked for, and its clip is finite."""
    config = tiny(scheduler=kind, num_inference_steps=steps, ref_scale=0.0)
    scheduler = make_scheduler(full.scheduler, config)
    timesteps = set_timesteps(scheduler, steps, "cpu")
    assert len(timesteps) == steps
    assert 990 <= float(timesteps[0]) <= 1000
    assert all(a > b for a, b in pairwise(timesteps))
    assert float(scheduler.sigmas[-1]) == 0
    assert torch.isfinite(generate(full, sitter(), "A person waves.", config).latents).all()


@NUMPY
@pytest.mark.parametrize("kind", ["unipc", "euler", "dpm"])
def test_schedulers_follow_a_straight_path_to_its_end(kind, full, tiny):
    """Where the velocity is the same everywhere, every scheduler arrives at the clean sample."""
    scheduler = make_scheduler(full.scheduler, tiny(scheduler=kind))
    timesteps = set_timesteps(scheduler, 6, "cpu")
    clean, noise = torch.randn(2, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = interpolate(clean, noise, scheduler.sigmas[0])
    for t in timesteps:
        x = scheduler.step(velocity(clean, noise), t, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, rtol=0, atol=1e-4)


def test_callback(full, golden):
    steps = []
    out = run(full, golden, on_step=steps.append)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert {step.total for step in steps} == {4}
    assert torch.equal(steps[-1].latents, out)
    assert all(not torch.equal(a.latents, b.latents) for a, b in pairwise(steps))
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)


def test_cancelled_in_the_callback(full, sitter, tiny):
    seen = []

    def stop(step):
        seen.append(step.number)
        if step.number == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        generate(full, sitter(), "A person waves.", tiny(num_inference_steps=5), on_step=stop)
    assert seen == [1, 2]
    assert all(p.memory is None and p.text is None for p in full.transformer.attn_processors.values())


def test_window_of_steps(full, golden):
    """On in the second half only: the first half is the base alone, the second is not."""
    alone, windowed, on = [], [], []
    run(full, golden, memories={}, on_step=lambda step: alone.append(step.latents))
    run(full, golden, on_step=lambda step: windowed.append(step.latents), identity=Influence(start=0.5))
    run(full, golden, on_step=lambda step: on.append(step.latents))
    assert [torch.equal(a, b) for a, b in zip(alone, windowed, strict=True)] == [True, True, False, False]
    windowed.clear()
    run(full, golden, on_step=lambda step: windowed.append(step.latents), identity=Influence(stop=0.5))
    assert [torch.equal(a, b) for a, b in zip(on, windowed, strict=True)] == [True, True, False, False]
    assert torch.equal(run(full, golden, identity=Influence(start=1.0)), alone[-1])


def test_a_scheduler_of_another_kind_stays_what_it_is(full, sitter, tiny):
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    own = FlowMatchEulerDiscreteScheduler(shift=7.0)
    fresh = make_scheduler(own, GenerateConfig())
    assert type(fresh) is FlowMatchEulerDiscreteScheduler
    assert fresh is not own
    assert fresh.config.shift == 7.0
    assert make_scheduler(own, GenerateConfig(flow_shift=2.0)).config.shift == 2.0
    assert make_scheduler(own, GenerateConfig(scheduler="euler")).config.shift == 7.0
    with pytest.raises(BadRequest, match="DDIMScheduler has no shift"):
        make_scheduler(DDIMScheduler(), GenerateConfig(flow_shift=2.0))
    clip = generate(replace(full, scheduler=own), sitter(), "A person waves.", tiny())
    assert (clip.settings["scheduler"], clip.settings["flow_shift"]) == ("FlowMatchEulerDiscreteScheduler", 7.0)
