"""Where a new adapter starts: zero, clone, random; and the resampler from an InstantID checkpoint."""

import pytest
import torch
from safetensors.torch import save_file

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.resampler import Resampler, ResamplerConfig
from lynx_video.errors import BadWeights
from lynx_video.training.initialise import INSTANTID_PREFIX, adapter_config, initialise_, load_instantid_


@pytest.fixture
def start(golden_base, stock_transformer, small):
    """start(**changes) is a new adapter on the golden base, initialised."""
    import copy

    def make(**changes):
        adapter = Adapter(adapter_config(golden_base.shape, small(**changes)))
        adapter.attach(copy.deepcopy(stock_transformer()))
        initialise_(adapter, small(**changes))
        return adapter

    return make


def test_zero_is_the_stock_transformer(start, stock_transformer):
    """With zero values, and biases of zero, both terms add nothing."""
    adapter = start(initial="zero")
    generator = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(1, 16, 2, 8, 8, generator=generator), torch.randn(1, 7, 48, generator=generator)
    memory = adapter.remember(torch.randn(512, generator=generator), noisy[:, :, :1], text)
    with torch.no_grad(), adapter.using(memory):
        ours = adapter.transformer(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
        stock = stock_transformer()(noisy, torch.tensor([500.0]), text, return_dict=False)[0]
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-6)


def test_clone_copies_the_blocks_own(start):
    adapter = start(initial="clone", initial_value=0.25)
    for blocks, attention in ((adapter.identity, "attn2"), (adapter.reference, "attn1")):
        for i, projection in blocks.items():
            own = getattr(adapter.transformer.blocks[int(i)], attention)
            assert torch.equal(projection.to_k.weight, own.to_k.weight)
            assert torch.equal(projection.to_v.weight, own.to_v.weight * 0.25)
            assert torch.equal(projection.to_v.bias, own.to_v.bias * 0.25)


def test_random_is_seeded(start):
    one, two, other = start(initial="random"), start(initial="random"), start(initial="random", seed=1)
    for (name, a), b, c in zip(one.named_parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c), name
    key = one.identity["0"].to_k.weight.detach()
    assert float(key.std()) == pytest.approx(key.shape[1] ** -0.5, rel=0.1)


def test_lite_cannot_clone_and_starts_random(start):
    adapter = start(arm="lite")
    assert list(adapter.identity) == ["0", "2"]
    assert not adapter.reference
    assert adapter.identity["0"].to_v.weight.any()


@pytest.fixture
def checkpoint(tmp_path):
    """A made InstantID file, ip-adapter.bin: the resampler under image_proj, keys of other layers beside it."""
    torch.manual_seed(0)
    source = Resampler(ResamplerConfig(depth=2, width=64, inner=64, queries=4, output=32))
    state = {"image_proj": dict(source.state_dict()), "ip_adapter": {"1.to_k_ip.weight": torch.ones(2, 2)}}
    torch.save(state, tmp_path / "ip-adapter.bin")
    return tmp_path / "ip-adapter.bin", source


def target(**changes):
    return Resampler(ResamplerConfig(**({"depth": 2, "width": 64, "inner": 64, "queries": 4, "output": 32} | changes)))


def test_instantid_fits(checkpoint):
    file, source = checkpoint
    resampler = target()
    assert load_instantid_(resampler, file) == []
    face = torch.randn(2, 512)
    assert torch.equal(resampler(face), source(face))


def test_instantid_of_another_output_keeps_the_last_layer(checkpoint):
    file, source = checkpoint
    resampler = target(output=48)
    assert load_instantid_(resampler, file) == ["proj_out.weight", "proj_out.bias", "norm_out.weight", "norm_out.bias"]
    assert torch.equal(resampler.latents, source.latents)


def test_instantid_as_safetensors(checkpoint, tmp_path):
    _, source = checkpoint
    save_file({INSTANTID_PREFIX + name: value for name, value in source.state_dict().items()}, tmp_path / "r.safetensors")
    resampler = target()
    load_instantid_(resampler, tmp_path / "r.safetensors")
    assert torch.equal(resampler.proj_in.weight, source.proj_in.weight)


def test_bad_checkpoints_are_named(checkpoint, tmp_path):
    file, source = checkpoint
    with pytest.raises(BadWeights, match=r"latents has shape \[1, 4, 64\].*--resampler-width"):
        load_instantid_(target(width=32, inner=32), file)
    with pytest.raises(BadWeights, match=r"layers\.2.* is missing"):
        load_instantid_(target(depth=3), file)
    with pytest.raises(BadWeights, match=r"layers\.1.* is unexpected"):
        load_instantid_(target(depth=1), file)
    with pytest.raises(BadWeights, match="is not there"):
        load_instantid_(target(), tmp_path / "none.bin")
    (tmp_path / "cut.bin").write_bytes(file.read_bytes()[:200])
    with pytest.raises(BadWeights, match="can't be read"):
        load_instantid_(target(), tmp_path / "cut.bin")
    torch.save({"other": source.state_dict()}, tmp_path / "other.bin")
    with pytest.raises(BadWeights, match=r"no key that starts with 'image_proj\."):
        load_instantid_(target(), tmp_path / "other.bin")
