"""The passes of a step: as one batch, shared, dropped after a window; the step cache in a whole generation."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest, BadWeights, Cancelled
from lynx_video.pipeline.calibration import calibrate, check_step_cache, known_calibration, made_for, save_calibration
from lynx_video.pipeline.generate import generate, plan
from lynx_video.pipeline.guidance import UNGUIDED, passes, tables
from lynx_video.pipeline.load import survey
from lynx_video.pipeline.memories import texts_of
from lynx_video.pipeline.predict import Conditions, batched


@pytest.fixture
def own(load_golden):
    """Golden components of its own, to be changed."""
    return load_golden("full")


def forwards(components):
    """The batch sizes of the transformer's calls from now on."""
    seen = []
    components.transformer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_one_batch_equals_one_after_the_other(arm, load_golden, sitter, tiny):
    own = load_golden(arm)
    config = tiny(num_inference_steps=3, ref_start=0.4)
    alone = generate(own, sitter(), "A person waves.", config)
    own.runtime = RuntimeConfig(passes="batched")
    seen = forwards(own)
    together = generate(own, sitter(), "A person waves.", config)
    passes_a_step = 3 if arm == "full" else 2
    assert seen[-3:] == [passes_a_step] * 3
    torch.testing.assert_close(together.latents, alone.latents, rtol=0, atol=1e-5)
    assert not torch.equal(together.latents[0, 0, 0, 0, 0], torch.zeros(()))


def test_auto_takes_the_batch_on_a_gpu_and_while_it_is_small():
    table = passes(5, 2)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert batched(Conditions(), table, 320, gpu)
    assert not batched(Conditions(), table, 32_760, gpu)
    assert not batched(Conditions(), table, 320, cpu)
    assert not batched(Conditions(mode="sequential"), table, 320, gpu)
    assert batched(Conditions(mode="batched"), table, 32_760, cpu)
    assert not batched(Conditions(mode="batched"), UNGUIDED, 320, cpu)
    assert not batched(Conditions(lora_passes="prompt"), table, 320, gpu)
    with pytest.raises(BadRequest, match="--lora-passes all"):
        batched(Conditions(mode="batched", lora_passes="prompt"), table, 320, cpu)


def test_guidance_in_a_window():
    table = passes(5, 2)
    assert tables(table, 4, 1.0) == (table,) * 4
    assert tables(table, 4, 0.5) == (table, table, UNGUIDED, UNGUIDED)
    assert tables(table, 10, 0.6)[5:7] == (table, UNGUIDED)
    assert tables(table, 4, 0.0) == (UNGUIDED,) * 4


def test_no_guidance_after_its_window(own, sitter, tiny):
    seen = forwards(own)
    half = generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4, guidance_stop=0.5, ref_scale=0.0))
    assert len(seen) == 3 + 3 + 1 + 1
    assert half.settings["guidance_stop"] == 0.5
    none = generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4, guidance_stop=0.0, ref_scale=0.0))
    plain = generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4, guidance_scale=1.0, ref_scale=0.0))
    assert torch.equal(none.latents, plain.latents)
    with pytest.raises(BadRequest, match="guidance_stop"):
        tiny(guidance_stop=1.5)


def calibrated(own, sitter, config, folder):
    """Have `own` know how it drifts."""
    own.calibration = folder / "step_cache.json"
    found = calibrate(own, sitter(), "A person waves.", config)
    save_calibration(own.calibration, found, made_for(own))
    return found


def blocks_run(own):
    """One entry for each time a block of a pass is computed from now on."""
    ran = []
    own.transformer.blocks[1].ffn.register_forward_hook(lambda *_: ran.append(1))
    return ran


REFERENCE_FORWARDS = 2


def test_calibrated_steps_are_skipped(own, sitter, tiny, tmp_path):
    config = tiny(num_inference_steps=6)
    exact = generate(own, sitter(), "A person waves.", config)
    known = calibrated(own, sitter, tiny(num_inference_steps=6, guidance_stop=0.5, step_cache=0.1), tmp_path)
    assert len(known.sigmas) == 6
    assert min(known.drift) > 0
    cached = replace(config, step_cache=sum(known.drift) / 2)
    ran = blocks_run(own)
    clip = generate(own, sitter(), "A person waves.", cached)
    computed = (len(ran) - REFERENCE_FORWARDS) // 3
    assert 2 <= computed < 6
    assert (clip.settings["steps_computed"], clip.settings["step_cache"]) == (computed, cached.step_cache)
    assert not torch.equal(clip.latents, exact.latents)
    again = generate(own, sitter(), "A person waves.", cached)
    assert torch.equal(again.latents, clip.latents), "nothing of the clip before is left"
    assert own.cache.added == {}
    ran.clear()
    plain = generate(own, sitter(), "A person waves.", config)
    assert torch.equal(plain.latents, exact.latents)
    assert plain.settings["steps_computed"] == 6
    assert len(ran) == 6 * 3 + REFERENCE_FORWARDS


def test_a_clip_that_was_stopped_leaves_nothing(own, sitter, tiny, tmp_path):
    config = tiny(num_inference_steps=6)
    known = calibrated(own, sitter, config, tmp_path)
    cached = replace(config, step_cache=sum(known.drift) / 2)
    whole = generate(own, sitter(), "A person waves.", cached)

    def stop(step):
        if step.number == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        generate(own, sitter(), "A person waves.", cached, on_step=stop)
    assert own.cache.added == {}
    assert torch.equal(generate(own, sitter(), "A person waves.", cached).latents, whole.latents)


def test_measuring_does_not_depend_on_how_passes_are_run(own, sitter, tiny):
    config = tiny(num_inference_steps=4)
    one = calibrate(own, sitter(), "A person waves.", config)
    own.runtime = RuntimeConfig(passes="batched")
    assert calibrate(own, sitter(), "A person waves.", replace(config, guidance_stop=0.5)) == one
    assert own.runtime.passes == "batched"
    assert not own.cache.measure


def test_a_calibration_belongs_to_a_base_and_its_loras(own, sitter, tiny, tmp_path):
    config = tiny(num_inference_steps=4)
    with pytest.raises(BadRequest, match="lynx-video calibrate"):
        generate(own, sitter(), "A person waves.", replace(config, step_cache=0.1))
    calibrated(own, sitter, config, tmp_path)
    assert known_calibration(own) is not None
    for name in ("base_hash", "lora_hash", "arm"):
        assert known_calibration(replace(own, **{name: "another"})) is None
    with pytest.raises(BadRequest, match="has not been measured"):
        check_step_cache(replace(own, base_hash="another"), 0.1)
    own.calibration.write_text("{}")
    with pytest.raises(BadWeights, match="calibrate again"):
        check_step_cache(own, 0.1)
    with pytest.raises(BadRequest, match="from 2 steps on"):
        calibrate(own, sitter(), "A person waves.", tiny(num_inference_steps=1))


def test_nano_ships_what_is_known_of_it():
    for name in ("nano", "nano-lite"):
        assert known_calibration(survey(name)) is not None


def test_a_step_in_which_an_adapter_goes_on_or_off_is_computed(own, sitter, tiny, tmp_path):
    config = tiny(num_inference_steps=8, ref_start=0.5)
    calibrated(own, sitter, config, tmp_path)
    ran = blocks_run(own)
    generate(own, sitter(), "A person waves.", replace(config, step_cache=10.0))
    assert len(ran) - REFERENCE_FORWARDS == 3 * 3  # the first step, the one at half, the last


def test_lora_passes_mean_nothing_without_a_lora(own, sitter, tiny):
    own.runtime = RuntimeConfig(passes="batched", lora_passes="prompt")
    generate(own, sitter(), "A person waves.", tiny())


def test_the_plan_says_the_passes_of_every_step(full, tiny):
    chosen = plan(full, tiny(num_inference_steps=5, guidance_stop=0.4))
    assert [len(table) for table in chosen.tables] == [3, 3, 1, 1, 1]


@pytest.fixture
def with_lora(load_golden, tmp_path):
    """with_lora("prompt") is the golden full model with a LoRA on self-attention and on the text's keys."""

    def make(lora_passes):
        rng = torch.Generator().manual_seed(3)
        tensors = {
            f"transformer.blocks.{block}.{layer}.lora_{part}.weight": torch.randn(shape, generator=rng) * 0.3
            for block in range(4)
            for layer in ("attn1.to_q", "attn2.to_k")
            for part, shape in (("A", (2, 96)), ("B", (96, 2)))
        }
        save_file(tensors, tmp_path / "lora.safetensors")
        runtime = RuntimeConfig(lora_path=(str(tmp_path / "lora.safetensors"),), lora_passes=lora_passes)
        return load_golden("full", runtime=runtime)

    return make


@pytest.mark.parametrize(("lora_passes", "on"), [("all", [True, True, True]), ("prompt", [True, False, False])])
def test_a_lora_is_on_in_its_passes_and_never_for_reference_features(lora_passes, on, with_lora, full, sitter, tiny):
    own = with_lora(lora_passes)
    switch = own.loras._switch
    seen = []
    own.transformer.register_forward_pre_hook(lambda *_: seen.append(switch.on))
    clip = generate(own, sitter(), "A person waves.", tiny(num_inference_steps=1))
    assert seen == [False, False, *on]
    assert clip.settings["loras"] == ["lora.safetensors"]
    assert clip.settings["lora_hash"]
    plain = generate(full, sitter(), "A person waves.", tiny(num_inference_steps=1))
    assert not torch.equal(clip.latents, plain.latents)


@pytest.mark.parametrize("lora_passes", ["all", "prompt"])
def test_text_is_projected_with_the_loras_of_its_passes(lora_passes, with_lora, full, tiny):
    own, config = with_lora(lora_passes), tiny()
    mine, theirs = (texts_of(one, "A person waves.", plan(one, config), config)[0] for one in (own, full))
    assert not torch.equal(mine["prompt"].blocks[0].key, theirs["prompt"].blocks[0].key)
    same = torch.equal(mine["negative"].blocks[0].key, theirs["negative"].blocks[0].key)
    assert same == (lora_passes == "prompt")
