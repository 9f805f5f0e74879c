"""The face encoder against the reference's numbers, at toy size, and with files that are not one."""

import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_video.errors import BadPicture, BadRequest, BadWeights
from lynx_video.face.embed import IRSE, FaceEncoder, IRSEConfig, embed_crop, encoder_hash, load_arcface

GOLDEN = Path(__file__).parents[1] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest_arcface.json").read_text())
TOY = IRSEConfig(widths=(16, 24, 32, 48), units=(2, 2, 2, 2))


def by_rule(name, shape):
    """A tensor of the golden run's weights, made again from its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("bias"):
        return 0.05 * noise
    if len(shape) == 1:
        return 0.5 + 0.1 * noise
    return noise / np.sqrt(np.prod(shape[1:]))


@pytest.fixture(scope="module")
def state():
    """State of a toy encoder, every number different from its initial value."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in IRSE(TOY).state_dict().items()}
    return {name: by_rule(name, shape) for name, shape in shapes.items()}


@pytest.fixture
def crops():
    return torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_names_and_shapes_are_those_of_the_real_file():
    with torch.device("meta"):
        state = IRSE(IRSEConfig()).state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == MANIFEST


def test_embeddings_are_those_of_the_reference(tmp_path):
    path = tmp_path / "recognition_arcface_ir_se50.safetensors"
    save_file({name: by_rule(name, shape) for name, shape in MANIFEST.items()}, path)
    encoder = load_arcface(path)
    path.unlink()  # 175 MB
    golden = load_file(GOLDEN / "arcface.safetensors")
    crops = (golden["crops"].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(encoder(crops), golden["embeddings"], atol=1e-4, rtol=0)
    one = embed_crop(encoder, golden["crops"][1].numpy())
    torch.testing.assert_close(one, golden["embeddings"][1], atol=1e-4, rtol=0)


def test_toy_file_in_every_format(tmp_path, state, crops):
    save_file(state, tmp_path / "toy.safetensors")
    torch.save(OrderedDict(state), tmp_path / "toy.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pth")
    torch.save(
        {name: value.double() if value.is_floating_point() else value for name, value in state.items()}, tmp_path / "d.pth"
    )
    network = IRSE(TOY)
    network.load_state_dict(state)
    expected = network.eval()(crops.flip(1))
    expected = expected / expected.norm(dim=1, keepdim=True)
    for name in ("toy.safetensors", "toy.pth", "old.pth", "parallel.pth", "d.pth"):
        encoder = load_arcface(tmp_path / name, device=torch.device("cpu"))
        assert encoder.network.config == IRSEConfig(widths=(16, 24, 32, 48), units=(2, 2, 2, 2), stem=16)
        embedding = encoder(crops)
        assert embedding.dtype == torch.float32
        assert embedding.shape == (2, 512)
        torch.testing.assert_close(embedding, expected.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        IRSEConfig(widths=(8, 12), units=(1, 3), stem=4, reduction=4),
        IRSEConfig(widths=(32, 8, 40), units=(2, 1, 1), reduction=5),
        IRSEConfig(widths=(20,), units=(1,)),
    ],
)
def test_any_depth_and_width_is_read_from_the_shapes(tmp_path, config, crops):
    network = IRSE(config)
    save_file(network.state_dict(), tmp_path / "any.safetensors")
    encoder = load_arcface(tmp_path / "any.safetensors")
    assert encoder.network.config.widths == config.widths
    assert encoder.network.config.units == config.units
    torch.testing.assert_close(encoder(crops), FaceEncoder(network)(crops), atol=0, rtol=0)


def test_encoder_is_frozen_and_of_unit_length(tmp_path, state, crops):
    save_file(state, tmp_path / "toy.safetensors")
    encoder = load_arcface(tmp_path / "toy.safetensors")
    embedding = encoder(crops.requires_grad_())
    assert not embedding.requires_grad
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.train()
    assert torch.equal(encoder(crops), embedding)
    assert torch.equal(encoder.network.state_dict()["output_layer.4.running_mean"], state["output_layer.4.running_mean"])
    assert not torch.allclose(encoder(crops.flip(1)), embedding, atol=1e-3)  # the order of the channels matters
    assert encoder.device == torch.device("cpu")


def test_network_trains():
    network = IRSE(IRSEConfig(widths=(8, 12), units=(1, 1)))
    network(torch.rand(2, 3, 112, 112)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_embed_crop(tmp_path, state):
    save_file(state, tmp_path / "toy.safetensors")
    encoder = load_arcface(tmp_path / "toy.safetensors")
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    embedding = embed_crop(encoder, crop)
    assert embedding.shape == (512,)
    assert embedding.dtype == torch.float32
    image = (torch.from_numpy(crop).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    torch.testing.assert_close(embedding, encoder(image)[0], atol=1e-6, rtol=0)
    assert torch.equal(embed_crop(encoder, crop[:, ::-1]), embed_crop(encoder, crop[:, ::-1].copy()))  # views are fine
    for bad in (crop[:100], crop.astype(np.float32), crop[..., 0]):
        with pytest.raises(BadPicture, match="112"):
            embed_crop(encoder, bad)
    with pytest.raises(BadPicture, match="112"):
        encoder(torch.zeros(1, 3, 64, 64))


def test_missing_cut_and_foreign_files(tmp_path, state):
    save_file(state, tmp_path / "toy.safetensors")
    torch.save(state, tmp_path / "toy.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"network": Path("x")}, tmp_path / "objects.pth")
    for name in ("toy.safetensors", "toy.pth"):
        whole = (tmp_path / name).read_bytes()
        for part, size in (("half", len(whole) // 2), ("start", 5), ("empty", 0)):
            (tmp_path / f"{part}-{name}").write_bytes(whole[:size])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    bad = [f"{part}-{name}" for part in ("half", "start", "empty") for name in ("toy.safetensors", "toy.pth")]
    for name in [*bad, "text.pth", "text.safetensors", "objects.pth", "other.pth", "list.pth", "nowhere.pth"]:
        with pytest.raises(BadWeights) as caught:
            load_arcface(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadWeights, match="is a folder"):
        load_arcface(tmp_path)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"input_layer.0.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(BadWeights, match=r"trap\.pth"):
        load_arcface(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"body.3.res_layer.4.bias": None}, r"lacks body\.3\.res_layer\.4\.bias;"),
        ({"input_layer.0.weight": None}, r"no input_layer\.0\.weight"),
        ({"body.2.res_layer.1.weight": None}, r"no body\.2\.res_layer\.1\.weight"),
        ({"output_layer.3.weight": None, "output_layer.3.bias": None}, r"lacks output_layer\.3\.weight and 1 more"),
        ({"head.weight": torch.zeros(2)}, r"holds head\.weight"),
        (
            {"output_layer.3.weight": torch.zeros(256, 48 * 49)},
            r"output_layer\.3\.weight \[256, 2352\], expected \[512, 2352\]",
        ),
        ({"output_layer.3.weight": torch.zeros(512, 48 * 64)}, r"output_layer\.3\.weight .*expected"),
        ({"body.2.res_layer.5.fc1.weight": torch.zeros(7, 24, 1, 1)}, r"body\.2\.res_layer\.5\.fc1\.weight"),
        ({"body.0.res_layer.1.weight": torch.zeros(16)}, r"body\.0\.res_layer\.1\.weight \[16\]"),
        ({"body.1.res_layer.2.weight": torch.full((16,), float("nan"))}, r"body\.1\.res_layer\.2\.weight.*finite"),
        ({"body.7.shortcut_layer.0.weight": torch.zeros(48, 48, 1, 1)}, r"holds body\.7\.shortcut_layer\.0\.weight"),
    ],
)
def test_wrong_keys_and_shapes_are_named(tmp_path, state, change, words):
    changed = {name: value for name, value in (state | change).items() if value is not None}
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(BadWeights, match=words) as caught:
        load_arcface(tmp_path / "changed.safetensors")
    assert "changed.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"widths": (16, 24), "units": (2,)},
        {"widths": (), "units": ()},
        {"widths": (16, 24), "units": (2, 0)},
        {"widths": (16, 16), "units": (2, 2)},
        {"stem": 0},
        {"reduction": 0},
        {"dropout": 1.0},
    ],
)
def test_configs_that_cannot_work(fields):
    with pytest.raises(BadRequest, match="IRSEConfig"):
        IRSEConfig(**fields)


def test_an_encoder_is_known_by_its_weights(tmp_path, state):
    save_file(state, tmp_path / "toy.safetensors")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "toy.pth")
    one, same = (load_arcface(tmp_path / name) for name in ("toy.safetensors", "toy.pth"))
    assert one.hash == same.hash == encoder_hash(one)
    assert len(one.hash) == 64
    name = next(name for name, value in state.items() if value.ndim == 4)
    save_file(state | {name: state[name] + 1}, tmp_path / "other.safetensors")
    assert load_arcface(tmp_path / "other.safetensors").hash != one.hash
    assert encoder_hash(lambda crops: crops) == ""
