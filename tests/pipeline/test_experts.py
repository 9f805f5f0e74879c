"""A base of two experts: who serves which timestep, with memories of its own; and what is refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from lynx_video import generate, load
from lynx_video.adapters.memory import text_memory
from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest, BadWeights, LynxWarning
from lynx_video.pipeline.enrol import enrol
from lynx_video.pipeline.experts import boundary_of

GOLDEN = Path(__file__).parents[1] / "golden"


def make(folder, *, ratio=0.875, change=0.02):
    """The golden base with a second transformer that differs by `change` noise."""
    from diffusers import WanTransformer3DModel

    shutil.copytree(GOLDEN / "base", folder)
    second = WanTransformer3DModel.from_pretrained(GOLDEN / "base", subfolder="transformer")
    second = copy.deepcopy(second)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(change * torch.randn(parameter.shape, generator=rng))
    second.save_pretrained(folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": ratio}))
    return folder


def load_two(base, arm="full"):
    with pytest.warns(LynxWarning, match="experimental"):
        return load(base=base, adapter=GOLDEN / f"lynx_{arm}", dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return make(tmp_path_factory.mktemp("two") / "base")


def test_each_expert_serves_its_timesteps(two, sitter, tiny):
    own = load_two(two)
    seen = []
    for name, adapter in (("high", own.adapter), ("low", own.low_noise)):
        adapter.transformer.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, float(args[1][0]))))
    generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4, guidance_scale=1.0))
    # two reference forwards at timestep 0 by each, then 999, 899 | 749, 499 around 875
    assert seen[:4] == [("high", 0), ("high", 0), ("low", 0), ("low", 0)]
    assert seen[4:] == [("high", 999), ("high", 899), ("low", 749), ("low", 499)]


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_equal_experts_equal_one(arm, tmp_path, sitter, tiny, load_golden):
    """With both experts the same, two of them are one, bit for bit."""
    own = load_two(make(tmp_path / "base", change=0.0), arm)
    one = generate(load_golden(arm), sitter(), "A person waves.", tiny(num_inference_steps=4))
    assert torch.equal(generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4)).latents, one.latents)


def test_the_experts_have_memories_of_their_own(two, sitter):
    from lynx_video.pipeline.memories import remember

    own = load_two(two)
    first, second = remember(own, sitter(), reference_seed=None)
    assert first["person"].identity.keys() == second["person"].identity.keys()
    assert not torch.equal(first["person"].identity[0].key, second["person"].identity[0].key)  # through the block's own norm
    assert torch.equal(first["person"].identity[0].value, second["person"].identity[0].value)  # the same weights
    assert not torch.equal(first["person"].reference[1].value, second["person"].reference[1].value)  # features of its own
    assert own.adapter.identity is own.low_noise.identity
    embeddings = torch.randn(1, 512, 48)
    texts = [text_memory(adapter.transformer, embeddings) for adapter, _ in own.adapters]
    assert not torch.equal(texts[0].blocks[0].key, texts[1].blocks[0].key)


def test_the_first_steps_are_the_first_expert_s(two, sitter, tiny, load_golden):
    own, plain = load_two(two), load_golden("full")
    mine, theirs = [], []
    generate(own, sitter(), "A person waves.", tiny(num_inference_steps=4), on_step=lambda s: mine.append(s.latents))
    generate(plain, sitter(), "A person waves.", tiny(num_inference_steps=4), on_step=lambda s: theirs.append(s.latents))
    assert [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)] == [True, True, False, False]


def test_what_two_experts_refuse(two, sitter, tiny, tmp_path):
    own = load_two(two)
    with pytest.raises(BadRequest, match="--step-cache off"):
        generate(own, sitter(), "A person waves.", tiny(step_cache=0.1))
    with pytest.raises(BadRequest, match="this base has two"):
        enrol(own, sitter())
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(BadWeights):
        load(base=two, adapter=GOLDEN / "lynx_full", device="cpu", runtime=RuntimeConfig(lora_path=(str(tmp_path / "x"),)))


def test_an_identity_file_of_one_expert_is_not_taken(two, sitter, full):
    assert enrol(full, sitter()).base_hash != load_two(two).base_hash


def test_boundary(two, tmp_path):
    assert boundary_of(str(GOLDEN / "base")) == 0
    assert boundary_of(str(two)) == 875
    broken = tmp_path / "base"
    shutil.copytree(two, broken)
    index = broken / "model_index.json"
    said = json.loads(index.read_text())
    for ratio, message in ((None, "no boundary_ratio"), (1.5, "between 0 and 1"), ("x", "between 0 and 1")):
        index.write_text(json.dumps({**said, "boundary_ratio": ratio}))
        with pytest.raises(BadWeights, match=message):
            boundary_of(str(broken))
    index.write_text(json.dumps(said))
    config = broken / "transformer_2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 3}))
    with pytest.raises(BadWeights, match="one adapter can't fit both"):
        boundary_of(str(broken))
    shutil.rmtree(broken / "transformer_2")
    with pytest.raises(BadWeights, match="is not there"):
        boundary_of(str(broken))


def test_a_cut_second_expert_is_found_before_loading(two, tmp_path):
    broken = tmp_path / "base"
    shutil.copytree(two, broken)
    weights = broken / "transformer_2" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadWeights, match="transformer_2"):
        load(base=broken, adapter=GOLDEN / "lynx_full", device="cpu")
