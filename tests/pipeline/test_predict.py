"""The passes of a step: as one batch, shared, dropped after a window; the step cache in a whole generation."""

from dataclasses import replace

import pytest
import torch

from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest, LynxWarning
from lynx_video.pipeline.calibration import known_calibration
from lynx_video.pipeline.generate import generate, plan
from lynx_video.pipeline.guidance import UNGUIDED, passes, tables
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


def test_the_first_clip_measures_and_the_next_ones_skip(own, sitter, tiny, tmp_path):
    own.calibration = tmp_path / "step_cache.json"
    config = tiny(num_inference_steps=6)
    exact = generate(own, sitter(), "A person waves.", config)
    with pytest.warns(LynxWarning, match="measures it"):
        first = generate(own, sitter(), "A person waves.", replace(config, step_cache=0.5))
    assert torch.equal(first.latents, exact.latents)
    known = known_calibration(own.calibration)
    assert len(known.sigmas) == 6
    assert min(known.drift) > 0
    blocks = []
    own.transformer.blocks[1].ffn.register_forward_hook(lambda *_: blocks.append(1))
    cached = generate(own, sitter(), "A person waves.", replace(config, step_cache=sum(known.drift) / 2))
    reference_forwards = 2
    computed = (len(blocks) - reference_forwards) // 3
    assert 2 <= computed < 6
    assert not torch.equal(cached.latents, exact.latents)
    assert cached.settings["step_cache"] == sum(known.drift) / 2
    blocks.clear()
    again = generate(own, sitter(), "A person waves.", replace(config, step_cache=sum(known.drift) / 2))
    assert torch.equal(again.latents, cached.latents), "nothing of the clip before is left"
    assert own.cache.added == {}
    blocks.clear()
    assert torch.equal(generate(own, sitter(), "A person waves.", config).latents, exact.latents)
    assert len(blocks) == 6 * 3 + reference_forwards


def test_a_step_in_which_an_adapter_goes_on_or_off_is_computed(own, sitter, tiny, tmp_path):
    own.calibration = tmp_path / "step_cache.json"
    config = tiny(num_inference_steps=8, step_cache=10.0, ref_start=0.5)
    with pytest.warns(LynxWarning, match="measures it"):
        generate(own, sitter(), "A person waves.", config)
    blocks = []
    own.transformer.blocks[1].ffn.register_forward_hook(lambda *_: blocks.append(1))
    generate(own, sitter(), "A person waves.", config)
    assert len(blocks) - 2 == 3 * 3  # the first step, the one at half, the last


def test_the_plan_says_the_passes_of_every_step(full, tiny):
    chosen = plan(full, tiny(num_inference_steps=5, guidance_stop=0.4))
    assert [len(table) for table in chosen.tables] == [3, 3, 1, 1, 1]
