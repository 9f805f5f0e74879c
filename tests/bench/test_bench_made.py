"""Models with random weights: the same every time, of the sizes they say, and known to the planner."""

import json
from pathlib import Path

import pytest
import torch

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.weights import official_parameters
from lynx_video.bench.made import Source, check_source, draw_scene, make
from lynx_video.bench.size import SIZES
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.forecast import forecast
from lynx_video.pipeline.released import adapter_config

MANIFEST = Path(__file__).parents[1] / "golden" / "manifest_14b.json"
NANO = Source(size="nano", device="cpu")


def parameters(components):
    parts = (components.transformer, components.adapter, components.vae, components.text_encoder)
    return [parameter for part in parts for parameter in part.parameters()]


def test_the_same_source_is_the_same_model_and_nothing_else_changes(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, other = (make(NANO, tmp_path / name)[0] for name in ("one", "other"))
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_default_dtype() == torch.float32
    pairs = list(zip(parameters(one), parameters(other), strict=True))
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert not any(mine.requires_grad for mine, _ in pairs)
    first, again = draw_scene(one).identity, draw_scene(other).identity
    assert torch.equal(first.embedding, again.embedding)
    assert (first.crop == again.crop).all()
    assert first.embedding.norm() == pytest.approx(1)


def test_half_precision_keeps_what_a_loaded_model_keeps(tmp_path):
    components = make(Source(size="nano", device="cpu", dtype="bf16"), tmp_path)[0]
    kept = {name for name, one in components.transformer.named_parameters() if one.dtype == torch.float32}
    assert any("scale_shift_table" in name for name in kept)
    assert any("time_embedder" in name for name in kept)
    assert components.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert components.adapter.resampler.latents.dtype == components.vae.dtype == torch.bfloat16


@pytest.mark.parametrize("arm", ["full", "lite"])
@pytest.mark.parametrize("name", ["nano", "mid"])
def test_the_planner_knows_it(name, arm, tmp_path):
    """Its forecast rests on the configurations that were written: as many weights as there are."""
    components, blueprint = make(Source(size=name, arm=arm, device="cpu"), tmp_path)
    sizes = forecast(blueprint, GenerateConfig(), RuntimeConfig()).sizes
    assert sizes.vae == sum(4 * one.numel() for one in components.vae.parameters())
    assert sizes.adapter == sum(4 * one.numel() for one in components.adapter.parameters())
    linears = sum(rows * columns for rows, columns in (*sizes.linears, *sizes.text_linears))
    base = 4 * sizes.blocks * linears + sizes.blocks * sizes.block_rest + sizes.outside
    assert base == sum(4 * one.numel() for one in components.transformer.parameters())


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_14b_is_the_official_size(arm):
    size = SIZES["14b"]
    with torch.device("meta"):
        transformer = size.transformer()
        config = size.adapter(arm, 5120, 40, len(transformer.blocks))
        adapter = Adapter(config)
    assert sum(one.numel() for one in transformer.parameters()) == pytest.approx(14.3e9, rel=0.005)
    assert config == adapter_config(arm)
    official = {
        f"{file}.{name}": tuple(shape)
        for file, tensors in json.loads(MANIFEST.read_text())[f"lynx_{arm}"].items()
        for name, shape in tensors.items()
    }
    assert {name: tuple(one.shape) for name, one in official_parameters(adapter).items()} == official


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would be made")
def test_what_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(BadRequest, match=r"14B shapes is made on a CUDA GPU.*--size mid"):
        check_source(Source(size="14b"))
    with pytest.raises(BadRequest, match="unknown size 'large'; the sizes are nano, mid, 14b"):
        check_source(Source(size="large"))
    with pytest.raises(BadRequest, match="device 'cuda' is not available"):
        make(Source(size="nano", device="cuda"), tmp_path)
