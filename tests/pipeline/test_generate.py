"""Whole generations: the reference's, from noise to frames, and what can be asked for."""

import copy
import json

import numpy as np
import pytest
import torch

from lynx_video import GenerateConfig, LynxPipeline
from lynx_video.errors import BadRequest, LynxError
from lynx_video.pipeline.condition import latent_statistics
from lynx_video.pipeline.generate import generate, plan

PROMPT = "A person waves."


@pytest.mark.parametrize("case", ["full_three_pass", "full_two_pass", "lite"])
def test_golden(case, golden, cases, sitter, request):
    components = request.getfixturevalue(case.split("_")[0])
    data, settings = golden(case), cases[case]
    config = GenerateConfig(
        seed=settings["seed"],
        num_frames=settings["num_frames"],
        height=settings["height"],
        width=settings["width"],
        num_inference_steps=settings["num_inference_steps"],
        guidance_scale=settings["guidance_scale"],
        guidance_scale_i=settings.get("guidance_scale_i") or "none",
        ip_scale=settings["ip_scale"],
        ref_scale=settings.get("ref_scale", 1.0),
        negative_prompt=settings["negative_prompt"],
    )
    clip = generate(components, sitter(case), settings["prompt"], config)
    mean, std = latent_statistics(components.vae, "cpu")
    assert torch.equal(clip.initial_latents, data["initial_latents"][:1])
    torch.testing.assert_close(clip.latents * std + mean, data["final_latents_denorm"][:1], rtol=0, atol=5e-4)
    assert clip.frames.shape == data["frames"].shape
    assert np.abs(clip.frames.astype(int) - data["frames"].numpy().astype(int)).max() <= 1


def test_the_clip_says_how_it_was_made(full, sitter, tiny):
    clip = generate(full, sitter(), PROMPT, tiny(seed=5, fps=12.0, ip_blocks=frozenset({0, 2})))
    assert clip.frames.shape == (5, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert (clip.fps, clip.seed) == (12.0, 5)
    assert clip.latents.dtype == clip.initial_latents.dtype == torch.float32
    assert clip.latents.shape == clip.initial_latents.shape == (1, 16, 2, 8, 8)
    settings = clip.settings
    assert (settings["prompt"], settings["seed"], settings["num_frames"], settings["arm"]) == (PROMPT, 5, 5, "full")
    assert settings["guidance_scale_i"] == 2.0
    assert settings["ip_blocks"] == [0, 2]
    assert len(settings["base_hash"]) == len(settings["adapter_hash"]) == len(settings["portrait_hash"]) == 64
    assert (settings["reference_latent"], settings["scheduler"], settings["flow_shift"]) == ("sample", "unipc", 3.0)
    assert [settings[name] for name in ("portrait", "face_index", "face_record", "identity_file")] == [None] * 4
    assert json.loads(json.dumps(settings)) == settings
    facts = {"portrait": "a.png", "face_index": 1, "face_record": "a.json", "seed": 9}
    told = generate(full, sitter(), PROMPT, tiny(seed=5, reference_latent="mean", flow_shift=5), facts=facts).settings
    assert (told["portrait"], told["face_index"], told["face_record"], told["seed"]) == ("a.png", 1, "a.json", 5)
    assert (told["reference_latent"], told["flow_shift"]) == ("mean", 5.0)
    euler = generate(full, sitter(), PROMPT, tiny(scheduler="euler")).settings
    assert (euler["scheduler"], euler["flow_shift"]) == ("euler", 3.0)


def test_same_seed_same_clip(full, sitter, tiny):
    first, again, other = (generate(full, sitter(), PROMPT, tiny(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.latents, again.latents)
    assert np.array_equal(first.frames, again.frames)
    assert not torch.equal(first.latents, other.latents)


def test_what_is_asked_for_matters(full, sitter, tiny):
    """Each setting that should change the clip does."""
    plain = generate(full, sitter(), PROMPT, tiny()).latents
    changes = (
        {"negative_prompt": "other"},
        {"guidance_scale": 3.0},
        {"guidance_scale_i": 3.0},
        {"ip_scale": 0.5},
        {"ref_scale": 0.5},
        {"ip_start": 0.5},
        {"ref_stop": 0.5},
        {"ip_blocks": frozenset({1})},
        {"ref_blocks": frozenset({1})},
        {"reference_latent": "mean"},
        {"flow_shift": 5.0},
        {"scheduler": "euler"},
    )
    for change in changes:
        assert not torch.equal(generate(full, sitter(), PROMPT, tiny(**change)).latents, plain), change
    assert not torch.equal(generate(full, sitter(), "A person nods.", tiny()).latents, plain)
    assert torch.equal(generate(full, sitter(), PROMPT, tiny(reference_latent="sample")).latents, plain)


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_is_near(dtype, near, load_golden, full, sitter, tiny):
    half = generate(load_golden("full", dtype=dtype), sitter(), PROMPT, tiny())
    plain = generate(full, sitter(), PROMPT, tiny())
    assert torch.equal(half.initial_latents, plain.initial_latents)
    assert half.latents.dtype == torch.float32
    assert 0 < (half.latents - plain.latents).norm() / plain.latents.norm() < near
    assert half.settings["torch_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ({"num_frames": 80}, ("4k \\+ 1", "77 or 81")),
        ({"num_frames": 2}, ("4k \\+ 1", "1 or 5")),
        ({"height": 90}, ("multiple of 16", "80 or 96")),
        ({"height": 1}, ("multiple of 16", "are 16\\.")),
        ({"width": 833}, ("multiple of 16", "832 or 848")),
    ],
)
def test_sizes_off_the_grid(setting, nearest, full, sitter, tiny):
    for words in nearest:
        with pytest.raises(BadRequest, match=words) as caught:
            generate(full, sitter(), PROMPT, tiny(**setting))
        assert next(iter(setting)) in str(caught.value)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_sizes_on_the_grid(frames, full, sitter, tiny):
    clip = generate(full, sitter(), PROMPT, tiny(num_frames=frames, height=32, width=48, num_inference_steps=1))
    assert clip.frames.shape == (frames, 32, 48, 3)


@pytest.mark.parametrize("prompt", ["", "  \n", "\u3000\u00a0"])
def test_an_empty_prompt(prompt, full, sitter, tiny):
    with pytest.raises(BadRequest, match="prompt is empty"):
        generate(full, sitter(), prompt, tiny())


def test_no_guidance_needs_no_negative_prompt(full, sitter, tiny):
    plain, other = (generate(full, sitter(), PROMPT, tiny(guidance_scale=1.0, negative_prompt=text)) for text in ("a", "b"))
    assert torch.equal(plain.latents, other.latents)
    assert len(plan(full, tiny(guidance_scale=0.0)).tables[0]) == 1


def test_defaults_of_the_arms(full, lite):
    ours, theirs = plan(full, GenerateConfig()), plan(lite, GenerateConfig())
    assert (ours.num_frames, ours.fps, ours.height, ours.width, ours.steps) == (81, 16.0, 480, 832, 50)
    assert (ours.guidance_scale, ours.guidance_scale_i) == (5.0, 2.0)
    assert (theirs.num_frames, theirs.fps, theirs.guidance_scale, theirs.guidance_scale_i) == (121, 24.0, 5.0, None)
    assert ours.latent_shape == (1, 16, 21, 60, 104)
    assert plan(full, GenerateConfig(guidance_scale_i="none")).guidance_scale_i is None


@pytest.mark.parametrize("flag", ["ip_blocks", "ref_blocks"])
def test_blocks_that_do_not_exist(flag, full, sitter, tiny):
    with pytest.raises(BadRequest, match="block 7 does not exist"):
        generate(full, sitter(), PROMPT, tiny(**{flag: frozenset({0, 7})}))


@pytest.mark.parametrize(
    "setting",
    [
        {"seed": -1},
        {"seed": 1.5},
        {"seed": True},
        {"num_inference_steps": 0},
        {"num_inference_steps": -3},
        {"guidance_scale": float("nan")},
        {"guidance_scale_i": -1.0},
        {"flow_shift": 0},
        {"scheduler": "ddim"},
        {"reference_latent": "median"},
        {"idle_models": "burn"},
        {"fps": 0},
    ],
)
def test_settings_that_cannot_be(setting):
    with pytest.raises(BadRequest, match=next(iter(setting))):
        GenerateConfig(**setting)


def test_idle_models(load_golden, full, sitter, tiny):
    plain = generate(full, sitter(), PROMPT, tiny())
    loaded = load_golden("full")
    for _ in range(2):
        assert torch.equal(generate(loaded, sitter(), PROMPT, tiny(idle_models="offload")).latents, plain.latents)
    assert torch.equal(generate(loaded, sitter(), PROMPT, tiny(idle_models="free")).latents, plain.latents)
    assert loaded.text_encoder is None
    with pytest.raises(LynxError, match="text encoder was freed") as caught:
        generate(loaded, sitter(), PROMPT, tiny())
    assert caught.value.exit_code == 1


def test_an_identity_without_its_crop(full, sitter, tiny):
    from dataclasses import replace

    bare = replace(sitter(), crop=None)
    with pytest.raises(BadRequest, match="needs the reference crop"):
        generate(full, bare, PROMPT, tiny())
    plain = generate(full, sitter(), PROMPT, tiny(ref_scale=0.0))
    assert torch.equal(generate(full, bare, PROMPT, tiny(ref_scale=0.0)).latents, plain.latents)
    with pytest.raises(BadRequest, match="64 px"):
        generate(full, replace(sitter(), crop=np.zeros((64, 64, 3), np.uint8)), PROMPT, tiny())


def test_what_was_loaded_stays_as_it_was(full, sitter, tiny):
    before = copy.deepcopy(full.transformer.state_dict())
    generate(full, sitter(), PROMPT, tiny())
    assert all(torch.equal(tensor, before[key]) for key, tensor in full.transformer.state_dict().items())
    assert not any(t.requires_grad for m in (full.transformer, full.vae, full.adapter) for t in m.parameters())


def test_in_the_shape_of_diffusers(full, sitter, tiny):
    steps = []
    pipe = LynxPipeline(full)
    clip = pipe(
        sitter(),
        PROMPT,
        callback_on_step_end=steps.append,
        num_frames=5,
        height=64,
        width=64,
        num_inference_steps=2,
        negative_prompt="static",
    )
    assert torch.equal(clip.latents, generate(full, sitter(), PROMPT, tiny()).latents)
    assert len(steps) == 2
    assert pipe.transformer is full.transformer


@pytest.mark.parametrize(
    ("name", "words"), [("num_frame", "did you mean num_frames?"), ("zzz", "the settings are negative_prompt")]
)
def test_a_setting_that_does_not_exist(name, words, full, sitter):
    with pytest.raises(BadRequest) as caught:
        LynxPipeline(full)(sitter(), PROMPT, **{name: 5})
    assert repr(name) in str(caught.value)
    assert words in str(caught.value)


@pytest.fixture
def moves(load_golden, monkeypatch):
    """Components of their own, and the list of (name, device) of their moves by `.to`."""
    loaded, moved = load_golden("full"), []
    for name in ("text_encoder", "vae", "adapter"):
        module = getattr(loaded, name)
        monkeypatch.setattr(module, "to", lambda device, name=name, module=module: moved.append((name, str(device))) or module)
    return loaded, moved


def test_the_freed_text_encoder_is_not_moved_to_host_memory_first(moves, full, sitter, tiny):
    loaded, moved = moves
    clip = generate(loaded, sitter(), PROMPT, tiny(idle_models="free", ref_scale=0.0))
    assert loaded.text_encoder is None
    assert moved == [("adapter", "cpu"), ("vae", "cpu")]
    assert torch.equal(clip.latents, generate(full, sitter(), PROMPT, tiny(ref_scale=0.0)).latents)


def test_as_loaded_so_generated(moves, sitter, tiny):
    loaded, moved = moves
    loaded.idle_models = "offload"
    clip = generate(loaded, sitter(), PROMPT, tiny())
    assert clip.settings["idle_models"] == "offload"
    assert moved == [(name, "cpu") for name in ("text_encoder", "vae", "adapter", "text_encoder", "vae")]
