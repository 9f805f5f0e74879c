"""Sides: models of their own modules on shared weights, and what each of them holds."""

import pytest
import torch

from lynx_video.bench import turn
from lynx_video.bench.made import draw_scene
from lynx_video.bench.side import Side, hold, twin_of
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest

CONFIG = GenerateConfig(num_inference_steps=2)


def held(made, others=(), **runtime):
    components, blueprint = made("full")
    side = Side(name="", config=CONFIG, runtime=RuntimeConfig(**runtime))
    return hold(components, blueprint, side, draw_scene(components), {str(i): one for i, one in enumerate(others)})


def pointers(module):
    return {one.data_ptr() for one in module.parameters()}


def test_a_twin_shares_its_weights_and_nothing_else(made):
    components = made("full")[0]
    twin = twin_of(components)
    assert twin.adapter.transformer is twin.transformer is not components.transformer
    assert pointers(twin.transformer) == pointers(components.transformer)
    assert pointers(twin.adapter) == pointers(components.adapter)
    assert twin.vae is components.vae
    block, other = twin.transformer.blocks[0], components.transformer.blocks[0]
    assert block.attn1.processor is not other.attn1.processor


def test_one_apart_has_copies(made):
    components = made("full")[0]
    twin = twin_of(components, apart=True)
    for name in ("transformer", "adapter", "vae", "text_encoder"):
        mine, theirs = getattr(twin, name), getattr(components, name)
        assert not pointers(mine) & pointers(theirs)
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("runtime", [{"quantize": "int8"}, {"quantize": "fp8-storage"}, {"offload": "block"}], ids=str)
def test_a_side_leaves_the_others_as_they_are(made, way, runtime):
    before = turn.predict(way("ours"))
    one = held(made, **runtime)
    changed = turn.predict(one.way)
    assert one.same == ("offload" in runtime)
    assert (turn.difference(changed, before) > 1e-4) == ("quantize" in runtime)
    assert turn.difference(turn.predict(way("ours")), before) == 0


def test_a_compiled_side_takes_the_quantized_weights_of_its_twin(made):
    first = held(made, quantize="int8")
    second = held(made, [first], quantize="int8", compile=True)
    weights = [one.way.components.transformer.blocks[2].ffn.net[2].weight for one in (first, second)]
    assert weights[0] is weights[1]
    assert not second.same
    assert second.runtime.quantize == "int8"
    # without a twin, or with one held in another way, it has its own
    for others in ([], [held(made, quantize="fp8-storage")]):
        alone = held(made, others, quantize="int8", compile=True).way.components.transformer.blocks[2].ffn.net[2].weight
        assert alone is not weights[0]


def test_a_budget_says_what_it_decided_and_what_that_takes(made):
    wide, narrow = held(made, vram_budget=1.0), held(made, vram_budget=0.02)
    assert wide.layout == "everything stays on the device"
    assert "blocks in host memory" in narrow.layout
    assert 0 < max(narrow.estimate.values()) <= 0.02 * 2**30 < max(wide.estimate.values())
    assert turn.difference(turn.predict(narrow.way), turn.predict(wide.way)) == 0
    with pytest.raises(BadRequest, match="too little"):
        held(made, vram_budget=0.001)


def test_resting_counts_every_tensor_once(made):
    components = made("full")[0]
    parts = (components.transformer, components.adapter, components.vae, components.text_encoder)
    tensors = {one.data_ptr(): one.nbytes for part in parts for one in (*part.parameters(), *part.buffers())}
    exact = held(made).resting()
    assert exact == pytest.approx(sum(tensors.values()), rel=0.01)
    blocks = sum(one.weight.nbytes for one in components.transformer.blocks.modules() if isinstance(one, torch.nn.Linear))
    for kind in ("int8", "fp8-storage"):  # a byte in place of four, and scales
        assert exact - held(made, quantize=kind).resting() == pytest.approx(0.75 * blocks, rel=0.03)
    assert exact - held(made, quantize="nf4").resting() == pytest.approx(0.867 * blocks, rel=0.03)
