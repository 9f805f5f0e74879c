"""Adapter files: official and repacked, written and read, and every way in which they are refused."""

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.weights import BaseShape, inspect, load_adapter, official_parameters, save_adapter
from lynx_video.errors import BadRequest, BadWeights

GOLDEN = Path(__file__).parents[1] / "golden"
BASE = BaseShape(width=96, heads=4, blocks=4)
ARMS = ("full", "lite")


@pytest.fixture
def folder(tmp_path):
    """folder("full") is a copy of that golden adapter, to be spoiled."""
    return lambda arm: Path(shutil.copytree(GOLDEN / f"lynx_{arm}", tmp_path / f"lynx_{arm}"))


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(paths, *words, base=BASE, parts=None):
    with pytest.raises(BadWeights) as caught:
        inspect(paths, base, parts)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize("arm", ARMS)
def test_save_and_load(arm, attached, tmp_path):
    adapter = attached(arm)
    for parameter in adapter.parameters():
        parameter.data.add_(0.25)
    save_adapter(adapter, tmp_path / "new" / "folder")
    names = {"resampler.safetensors", "ip_layers.safetensors"} | ({"ref_layers.safetensors"} if arm == "full" else set())
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == names
    files = inspect([tmp_path / "new" / "folder"], BASE)
    assert files.arm == arm
    assert same(official_parameters(load_adapter(files, dtype=torch.float32)), official_parameters(adapter))


def test_nothing_is_left_of_a_save_that_fails(attached, tmp_path, monkeypatch):
    import safetensors.torch

    def fails(_, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="No space"):
        save_adapter(attached("lite"), tmp_path / "adapter")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("arm", ARMS)
def test_loaded_adapters_are_frozen_and_in_the_asked_dtype(arm):
    adapter = load_adapter(inspect([GOLDEN / f"lynx_{arm}"], BASE), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.bfloat16}
    assert not adapter.training
    assert not any(parameter.requires_grad for parameter in adapter.parameters())


@pytest.mark.parametrize("arm", ARMS)
def test_files_by_name_and_folder_with_other_things(arm, folder):
    files = sorted(folder(arm).glob("*.safetensors"))
    assert inspect(files, BASE).arm == arm
    save_file({"text_model.weight": torch.zeros(1)}, files[0].parent / "other.safetensors")
    assert inspect([files[0].parent], BASE).files == tuple(files)
    refused([*files, files[0].parent / "other.safetensors"], "other.safetensors", "text_model.weight")


def test_parts():
    full = inspect([GOLDEN / "lynx_full"], BASE, frozenset({"identity"}))
    assert full.config.reference_blocks == ()
    assert {file.name for file in full.files} == {"resampler.safetensors", "ip_layers.safetensors"}
    reference = inspect([GOLDEN / "lynx_full" / "ref_layers.safetensors"], BASE)
    assert reference.config.resampler is None
    assert reference.config.reference_blocks == (0, 1, 2, 3)


@pytest.mark.parametrize("one_file", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_repacked_names(arm, one_file, tmp_path):
    step = 2 if arm == "lite" else 1
    repacked = {}
    for part, place in (("ip_layers", "cross_attn.ip_adapter"), ("ref_layers", "self_attn.ref_adapter")):
        file = GOLDEN / f"lynx_{arm}" / f"{part}.safetensors"
        for key, tensor in (load_file(file) if file.exists() else {}).items():
            entry, name = key.split(".", 1)
            repacked.setdefault(part, {})[f"blocks.{int(entry) * step}.{place}.{name}"] = tensor
    if one_file:
        repacked = {"all": {key: tensor for tensors in repacked.values() for key, tensor in tensors.items()}}
    shutil.copy(GOLDEN / f"lynx_{arm}" / "resampler.safetensors", tmp_path / "resampler_fp32.safetensors")
    for name, tensors in repacked.items():
        save_file(tensors, tmp_path / f"Wan_lynx_{name}.safetensors")
    files = inspect([tmp_path], BASE)
    official = load_adapter(inspect([GOLDEN / f"lynx_{arm}"], BASE), dtype=torch.float32)
    assert files.arm == arm
    assert same(official_parameters(load_adapter(files, dtype=torch.float32)), official_parameters(official))


def test_repacked_lite_on_the_wrong_blocks(tmp_path):
    shutil.copy(GOLDEN / "lynx_lite" / "resampler.safetensors", tmp_path)
    tensors = load_file(GOLDEN / "lynx_lite" / "ip_layers.safetensors")
    save_file(
        {f"blocks.{key[0]}.cross_attn.ip_adapter.{key[2:]}": t for key, t in tensors.items()}, tmp_path / "ip.safetensors"
    )
    refused([tmp_path], "ip.safetensors", "'blocks.2.cross_attn.ip_adapter.to_k_ip.weight' is missing")


@pytest.mark.parametrize("arm", ARMS)
def test_the_real_layout_from_headers_alone(arm, tmp_path):
    """Files of 14B size whose data is a hole: only their headers can be read in this time."""
    manifest = json.loads((GOLDEN / "manifest_14b.json").read_text())[f"lynx_{arm}"]
    for name, keys in manifest.items():
        header, end = {}, 0
        for key, shape in keys.items():
            size = 4 * torch.Size(shape).numel()
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    found = inspect([tmp_path], BaseShape(width=5120, heads=40, blocks=40))
    assert found.arm == arm
    assert found.config.resampler.depth == 4
    assert found.config.resampler.inner // found.config.resampler.head_width == 20
    assert found.config.identity_blocks == tuple(range(0, 40, 1 if arm == "full" else 2))
    refused([tmp_path], "width 5120", "this base has width 1536", base=BaseShape(width=1536, heads=12, blocks=30))


@pytest.mark.parametrize(
    ("arm", "file"),
    [("full", "resampler"), ("full", "ip_layers"), ("full", "ref_layers"), ("lite", "resampler"), ("lite", "ip_layers")],
)
def test_a_missing_file(arm, file, folder):
    where = folder(arm)
    (where / f"{file}.safetensors").unlink()
    refused([where], str(where), f"{file}.safetensors is missing", "lynx-video download")


@pytest.mark.parametrize(
    ("arm", "file", "key"),
    [
        ("full", "resampler", "latents"),
        ("full", "resampler", "layers.1.0.to_kv.weight"),
        ("full", "ip_layers", "2.registers"),
        ("full", "ip_layers", "3.to_v_ip.bias"),
        ("full", "ip_layers", "0.to_k_ip.weight"),
        ("full", "ref_layers", "1.to_k_ref.weight"),
        ("lite", "resampler", "norm_out.bias"),
        ("lite", "ip_layers", "1.to_v_ip.weight"),
    ],
)
def test_a_missing_key(arm, file, key, folder):
    where = folder(arm)
    change(where / f"{file}.safetensors", lambda tensors: tensors.pop(key))
    refused([where], str(where / f"{file}.safetensors"), f"'{key}' is missing")


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("resampler", "layers.0.0.to_q.bias"),
        ("resampler", "epoch"),
        ("ip_layers", "0.to_k_ip.scale"),
        ("ip_layers", "4.to_k_ip.bias"),
        ("ref_layers", "0.registers"),
    ],
)
def test_an_unexpected_key(file, key, folder):
    where = folder("full")
    change(where / f"{file}.safetensors", lambda tensors: tensors.update({key: torch.zeros(1)}))
    refused([where], str(where / f"{file}.safetensors"), key)


@pytest.mark.parametrize(
    ("arm", "file", "key"),
    [
        ("full", "resampler", "layers.0.1.1.weight"),
        ("full", "resampler", "proj_in.weight"),
        ("full", "ip_layers", "1.registers"),
        ("full", "ip_layers", "2.to_k_ip.weight"),
        ("full", "ref_layers", "3.to_v_ref.bias"),
        ("lite", "ip_layers", "1.to_k_ip.weight"),
    ],
)
def test_a_wrong_shape(arm, file, key, folder):
    where = folder(arm)

    def spoil(tensors):
        tensors[key] = torch.cat([tensors[key]] * 2, -1)

    change(where / f"{file}.safetensors", spoil)
    refused([where], str(where / f"{file}.safetensors"), key)


def test_a_wrong_number_of_dimensions(folder):
    where = folder("full")
    change(where / "resampler.safetensors", lambda tensors: tensors.update(latents=tensors["latents"][0].clone()))
    refused([where], "latents", "expected 3 dimensions")


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
@pytest.mark.parametrize("file", ["resampler", "ip_layers", "ref_layers"])
def test_a_cut_file(file, keep, folder):
    path = folder("full") / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused([path.parent], str(path), "not a complete safetensors file")


def test_not_safetensors(folder):
    path = folder("full") / "resampler.safetensors"
    path.write_text("<html>404</html>" * 100)
    refused([path.parent], str(path), "not a complete safetensors file")


def test_an_empty_or_absent_folder(tmp_path):
    refused([tmp_path], str(tmp_path), "no adapter weights found", "resampler.safetensors")
    refused([tmp_path / "gone"], str(tmp_path / "gone"), "is not there")


def test_arms_mixed(folder):
    full, lite = folder("full"), folder("lite")
    shutil.copy(lite / "resampler.safetensors", full)
    refused([full], str(full / "ip_layers.safetensors"), "to_k_ip.weight", "mixed")
    shutil.copy(GOLDEN / "lynx_full" / "resampler.safetensors", lite)
    refused([lite], str(lite / "ip_layers.safetensors"), "to_k_ip.weight", "mixed")


@pytest.mark.parametrize("arm", ARMS)
def test_made_for_another_base(arm):
    wider = BaseShape(width=120, heads=5, blocks=4)
    deeper = BaseShape(width=96, heads=4, blocks=6)
    shallower = BaseShape(width=96, heads=4, blocks=2)
    refused([GOLDEN / f"lynx_{arm}"], "ip_layers.safetensors", "to_k_ip.weight", "width 96", "width 120", base=wider)
    for other in (deeper, shallower):
        refused([GOLDEN / f"lynx_{arm}"], "ip_layers.safetensors", f"this base has {other.blocks} blocks", base=other)


def test_the_same_key_twice(folder):
    where = folder("full")
    shutil.copy(where / "ref_layers.safetensors", where / "z_copy.safetensors")
    refused([where], "z_copy.safetensors", "ref_layers.safetensors", "to_k_ref")
    refused([where / "ip_layers.safetensors", where], "ip_layers.safetensors", "is also in")


def test_a_file_that_was_cut_after_the_check(folder):
    where = folder("lite")
    files = inspect([where], BASE)
    path = where / "ip_layers.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BadWeights, match=re.escape(str(path))):
        load_adapter(files, dtype=torch.float32)


def test_attaching_to_another_transformer(attached, stock_transformer):
    from diffusers import WanTransformer3DModel

    adapter = attached("full")
    with pytest.raises(BadRequest, match="attached already"):
        adapter.attach(stock_transformer())
    adapter.detach()
    small = dict(stock_transformer().config)
    for change, word in (
        ({"attention_head_dim": 32}, "width 96"),
        ({"num_layers": 2}, "2 blocks"),
        ({"num_attention_heads": 8, "attention_head_dim": 12}, "4 heads"),
        ({"added_kv_proj_dim": 96}, "image-to-video"),
    ):
        with pytest.raises(BadRequest, match=word):
            adapter.attach(WanTransformer3DModel.from_config(small | change))
    assert Adapter(AdapterConfig(width=96, heads=4)).config.reference_blocks == ()
