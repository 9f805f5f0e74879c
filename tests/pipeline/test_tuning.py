"""The whole model held and run in every way: exact levers change nothing, and what cannot be done is said before a weight is read."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lynx_video import GenerateConfig, RuntimeConfig, generate, load
from lynx_video.cli.main import run
from lynx_video.errors import BadRequest, BadWeights, MissingDependency
from lynx_video.pipeline import checkpoint
from lynx_video.presets import SPEED
from lynx_video.runtime import offload
from lynx_video.runtime.compiling import is_compiled
from lynx_video.runtime.offload import Away, is_offloaded

GOLDEN = Path(__file__).parents[1] / "golden"
EXACT = {
    "offload": "block",
    "attention_backend": "native",
    "passes": "batched",
}


@pytest.fixture
def settings(cases):
    """settings("lite") is the GenerateConfig of that golden case."""

    def make(name, **changes):
        case = cases[name]
        config = GenerateConfig(
            negative_prompt=case["negative_prompt"],
            num_frames=case["num_frames"],
            height=case["height"],
            width=case["width"],
            num_inference_steps=case["num_inference_steps"],
            seed=case["seed"],
            guidance_scale=case["guidance_scale"],
            guidance_scale_i=case.get("guidance_scale_i") or "none",
            ip_scale=case["ip_scale"],
            ref_scale=case.get("ref_scale", 1.0),
        )
        return replace(config, **changes)

    return make


def assert_golden(components, clip, data):
    vae = components.vae
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(clip.latents * std + mean, data["final_latents_denorm"][:1], rtol=0, atol=5e-4)
    frames = data["frames"].short()
    assert (torch.from_numpy(clip.frames).short() - frames).abs().max() <= 1


@pytest.mark.parametrize("case", ["full_three_pass", "full_two_pass", "lite"])
def test_golden_with_every_exact_lever_on(case, load_golden, golden, settings, sitter, cases):
    own = load_golden(case.split("_")[0], runtime=RuntimeConfig(**EXACT), idle_models="offload")
    assert is_offloaded(own.transformer)
    away = []
    own.transformer.register_forward_pre_hook(
        lambda model, args: away.append(isinstance(model.blocks[0].attn2.to_k, Away)) if args[1][0] > 0 else None
    )
    clip = generate(own, sitter(case), cases[case]["prompt"], settings(case))
    assert_golden(own, clip, golden(case))
    assert set(away) == {True}, "the text projections are away while denoising"
    assert not isinstance(own.transformer.blocks[0].attn2.to_k, Away)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch, by torch
@pytest.mark.parametrize("case", ["full_three_pass", "lite"])
def test_golden_compiled_too(case, load_golden, golden, settings, sitter, cases):
    own = load_golden(case.split("_")[0], runtime=RuntimeConfig(compile=True, **EXACT), idle_models="free")
    assert is_compiled(own.transformer)
    assert_golden(own, generate(own, sitter(case), cases[case]["prompt"], settings(case)), golden(case))


def test_levers_that_change_nothing_at_all(full, load_golden, sitter, tiny):
    plain = generate(full, sitter(), "A person waves.", tiny())
    own = load_golden("full", runtime=RuntimeConfig(offload="block"), idle_models="offload")
    assert torch.equal(generate(own, sitter(), "A person waves.", tiny()).latents, plain.latents)
    assert own.text_encoder is not None
    free = load_golden("full", runtime=RuntimeConfig(vram_budget=64), idle_models="keep")
    assert free.layout.exact
    assert torch.equal(generate(free, sitter(), "A person waves.", tiny()).latents, plain.latents)


def test_a_budget_decides():
    model = {"base": GOLDEN / "base", "adapter": GOLDEN / "lynx_full", "dtype": "fp32", "device": "cpu"}
    with pytest.raises(BadRequest, match="at least") as refused:
        load(**model, runtime=RuntimeConfig(vram_budget=0.001))
    assert "\n" not in str(refused.value)
    small = load(**model, runtime=RuntimeConfig(vram_budget=0.2085))
    large = load(**model, runtime=RuntimeConfig(vram_budget=24))
    assert (large.runtime.offload, large.idle_models) == ("none", "keep")
    assert (small.runtime.offload, small.runtime.vae_tiling, small.idle_models) == ("block", True, "offload")
    assert is_offloaded(small.transformer)
    assert small.layout.peak < 0.2085 * 2**30 < large.layout.peak


def test_layers_that_come_one_by_one(load_golden, sitter, tiny, full, monkeypatch):
    """What a small budget asks of text encoder and adapter: each piece visits the device for its call, and the result is the same."""
    plain = generate(full, sitter(), "A person waves.", tiny())
    own = load_golden("full", idle_models="offload")
    own.layout = replace(
        load_golden("full", runtime=RuntimeConfig(vram_budget=64)).layout, text_encoder="block", adapter="block"
    )
    came, here = [], []

    def visit(layer, device):
        assert device == own.device
        came.append(layer)
        here.append(layer)
        return lambda: here.remove(layer)

    monkeypatch.setattr(offload, "_visit", visit)
    monkeypatch.setattr(own.text_encoder, "to", lambda *_: pytest.fail("the text encoder moved as a whole"))
    monkeypatch.setattr(own.adapter, "to", lambda *_: pytest.fail("the adapter moved as a whole"))
    assert torch.equal(generate(own, sitter(), "A person waves.", tiny()).latents, plain.latents)
    for part in (*own.text_encoder.encoder.block, own.adapter.resampler, *own.adapter.identity.values()):
        assert part in came
    assert here == []


@pytest.mark.parametrize("kind", ["int8", "fp8-storage", "nf4"])
def test_adapters_over_a_quantized_base(kind, load_golden, full, sitter, tiny):
    own = load_golden("full", runtime=RuntimeConfig(quantize=kind))
    clip, plain = (generate(one, sitter(), "A person waves.", tiny()) for one in (own, full))
    assert torch.isfinite(clip.latents).all()
    assert not torch.equal(clip.latents, plain.latents)
    assert clip.settings["quantize"] == kind
    assert plain.settings["quantize"] is None
    weights = {p.dtype for p in own.adapter.parameters()}
    assert weights == {torch.float32}, "the identity's terms stay what they were"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"quantize": "fp8"}, BadRequest, "fp8"),
        ({"attention_backend": "flash"}, BadRequest, "CUDA|cuda|GPU"),
        ({"attention_backend": "sage"}, (BadRequest, MissingDependency), "sage"),
        ({"attention_backend": "warp"}, BadRequest, "warp"),
        ({"lora_path": ("nowhere.safetensors",)}, BadWeights, "nowhere.safetensors"),
        ({"gguf": Path("nowhere.gguf")}, BadWeights, "nowhere.gguf"),
        ({"vram_budget": 0.001}, BadRequest, "budget"),
    ],
)
def test_refused_before_a_weight_is_read(asked, error, message, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_transformer", lambda *_, **__: pytest.fail("a weight was read"))
    with pytest.raises(error, match=message) as refused:
        load(base=GOLDEN / "base", adapter=GOLDEN / "lynx_full", device="cpu", runtime=RuntimeConfig(**asked))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram-budget", "0.001"], "budget"),
        (["--quantize", "fp8"], "fp8"),
        (["--attention-backend", "flash3"], "flash3"),
        (["--lora-path", str(GOLDEN / "lynx_full" / "ip_layers.safetensors")], "LoRA"),
        (["--ulysses-degree", "2"], "1 process can't share"),
        (["--preset", "fastest"], "exact"),
        (["--guidance-stop", "2"], "guidance_stop"),
        (["--step-cache", "some"], "off"),
    ],
)
def test_refused_in_one_sentence(arguments, message, tmp_path, capsys):
    portrait = str(GOLDEN / "subject.png")
    code = run(["generate", "--subject-image", portrait, "--prompt", "x", "-o", str(tmp_path / "x.mp4"), *arguments])
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.startswith("error: ") or said.startswith("Usage")
    assert list(tmp_path.iterdir()) == []


def under_torchrun(tmp_path, *arguments):
    """The command as one of seven processes, which never meet the others."""
    environment = os.environ | {"WORLD_SIZE": "7", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "lynx_video", "generate", "--prompt", "x", "--device", "cpu", *arguments]
    portrait = tmp_path / "portrait.png"
    assert run(["demo", "--output-dir", str(tmp_path), "--quiet"]) == 0
    command += ["--subject-image", str(portrait), "-o", str(tmp_path / "x.mp4")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ring-degree", "2"], "7 processes can't share the work by --ring-degree 2"),
        (["--vram-budget", "24"], "with torchrun each process would plan by itself"),
    ],
)
def test_refused_under_torchrun(arguments, message, tmp_path):
    done = under_torchrun(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.mp4").exists()


def test_what_is_named_replaces_what_the_preset_says(tmp_path, capsys):
    """On the command line, over `balanced`: nano, whose calibration ships."""
    assert run(["demo", "--output-dir", str(tmp_path), "--quiet"]) == 0
    command = ["generate", "--subject-image", str(tmp_path / "portrait.png"), "--prompt", "the person nods", "--json"]
    command += ["--preset", "balanced", "--num-inference-steps", "8"]

    def settings(*arguments):
        capsys.readouterr()
        assert run([*command, *arguments, "-o", str(tmp_path / f"{len(arguments)}.mp4")]) == 0
        return json.loads(capsys.readouterr().out)["settings"]

    preset = SPEED["balanced"]().generation
    said = settings()
    assert {name: said[name] for name in preset} == preset
    assert said["steps_computed"] < 8
    said = settings("--step-cache", "off")
    assert (said["step_cache"], said["steps_computed"], said["guidance_stop"]) == ("off", 8, preset["guidance_stop"])


def test_fast_takes_the_eight_bits_there_are(tmp_path, capsys):
    assert run(["demo", "--output-dir", str(tmp_path), "--quiet"]) == 0
    capsys.readouterr()
    command = ["generate", "--subject-image", str(tmp_path / "portrait.png"), "--prompt", "the person nods", "--json"]
    assert run([*command, "--preset", "fast", "--num-inference-steps", "4", "-o", str(tmp_path / "x.mp4")]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["quantize"] == ("fp8" if torch.cuda.is_available() else "int8")


def test_presets_are_values_of_both_configs():
    assert list(SPEED) == ["exact", "balanced", "fast", "draft"]
    for make in SPEED.values():
        preset = make()
        GenerateConfig(**preset.generation)
        RuntimeConfig(**preset.runtime)
    assert SPEED["exact"]().generation == SPEED["exact"]().runtime == {}
