"""What loading a base takes of host memory: what is stored as it is wanted is mapped, what is cast is never there twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
SHARD = 400_000_000
MB = 1_000_000

MEASURE = """
import json, sys, torch
from lynx_video.pipeline.checkpoint import load_base
from lynx_video.runtime.host import host_memory, peak_host_memory

small, *bases = sys.argv[1:]
load_base(small, torch.bfloat16, "cpu")  # a small one first: imports, and what allocators keep
for base in bases:
    before = host_memory()
    with peak_host_memory(every=0.002) as loading:
        transformer = load_base(base, torch.bfloat16, "cpu")["transformer"]
    with peak_host_memory(every=0.002) as reading:
        total = sum(int(p.view(-1)[:: 1024 // p.element_size()].count_nonzero()) for p in transformer.parameters())
    peaks = {name: {"anonymous": peak.anonymous - before.anonymous, "mapped": peak.mapped - before.mapped,
                    "total": peak.total - before.total} for name, peak in (("loading", loading), ("reading", reading))}
    dtypes = sorted({str(p.dtype) for p in transformer.parameters()})
    print(json.dumps({**peaks, "ever": host_memory().peak - before.total, "nonzero": total, "dtypes": dtypes}))
    del transformer
"""


def make_base(folder, blocks, stored):
    """A base whose transformer is sharded as diffusers does it, all zeros: files with holes, made at once. Bytes of its weights."""
    from diffusers import WanTransformer3DModel

    for part in ("tokenizer", "scheduler", "vae", "text_encoder"):
        shutil.copytree(GOLDEN / "base" / part, folder / part)
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=16, attention_head_dim=128, ffn_dim=8192, num_layers=blocks, text_dim=4096
        )
    model.save_config(folder / "transformer")
    shards, size = [{}], 0
    for name, parameter in model.state_dict().items():
        if size > SHARD:
            shards.append({})
            size = 0
        bytes_each = 2 if stored == "BF16" else 4
        end = size + parameter.numel() * bytes_each
        shards[-1][name] = {"dtype": stored, "shape": list(parameter.shape), "data_offsets": [size, end]}
        size = end
    names, total = {}, 0
    for number, header in enumerate(shards, 1):
        file = folder / "transformer" / f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        data = max(entry["data_offsets"][1] for entry in header.values())
        with file.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            handle.truncate(8 + len(text) + data)
        names |= dict.fromkeys(header, file.name)
        total += data
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}))
    return total


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Bytes of the weights of two bases of 2 GB, in bfloat16 and in float32, and what one process took to load each as bfloat16."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say how much memory is mapped")
    folder = tmp_path_factory.mktemp("bases")
    sizes = [make_base(folder / "BF16", 14, "BF16"), make_base(folder / "F32", 7, "F32")]
    assert min(sizes) > 1900 * MB
    bases = [GOLDEN / "base", folder / "BF16", folder / "F32"]
    process = subprocess.run([sys.executable, "-c", MEASURE, *map(str, bases)], capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert process.returncode == 0, process.stderr
    return list(zip(sizes, map(json.loads, process.stdout.splitlines()[-2:]), strict=True))


@pytest.mark.slow
def test_a_base_in_its_own_dtype_is_mapped(loaded):
    size, found = loaded[0]
    for phase in ("loading", "reading"):
        assert found[phase]["anonymous"] < 300 * MB, found
        assert found[phase]["total"] < 1.15 * size, found
    assert found["ever"] < 1.15 * size, found
    assert found["reading"]["mapped"] > 0.9 * size, found  # all of it was read, so this could have failed
    assert (found["nonzero"], found["dtypes"]) == (0, ["torch.bfloat16", "torch.float32"])


@pytest.mark.slow
def test_a_base_that_is_cast_is_there_once(loaded):
    """Of float32 files the cast weights stay, and one shard at a time is mapped."""
    size, found = loaded[1]
    assert 0.45 * size < found["loading"]["anonymous"] < 0.5 * size + 300 * MB, found
    assert found["loading"]["mapped"] < 2 * SHARD, found
    assert found["loading"]["total"] < 0.5 * size + 2 * SHARD, found
    assert found["reading"]["mapped"] < 100 * MB, found  # no file is left mapped
    assert (found["nonzero"], found["dtypes"]) == (0, ["torch.bfloat16", "torch.float32"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_as_from_pretrained_bit_for_bit(stored, sharded, dtype, tmp_path):
    from diffusers import WanTransformer3DModel

    from lynx_video.pipeline.checkpoint import load_transformer

    made = WanTransformer3DModel.from_pretrained(GOLDEN / "base", subfolder="transformer", torch_dtype=torch.float32)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(stored)
    made.save_pretrained(tmp_path / "transformer", max_shard_size="300KB" if sharded else "1GB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 3 or not sharded
    theirs = WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer", torch_dtype=dtype)
    ours = load_transformer(str(tmp_path), dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        other = dict((*ours.named_parameters(), *ours.named_buffers()))[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        assert torch.equal(tensor, other), name
    assert (ours.dtype, ours.training) == (dtype, False)
    assert dict(ours.config) == {**theirs.config, "_name_or_path": ours.config.get("_name_or_path")}
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_that_is_not_there(dtype, tmp_path):
    """The same sentence whether it would have been mapped or cast."""
    from safetensors.torch import load_file, save_file

    from lynx_video.errors import BadWeights
    from lynx_video.pipeline.checkpoint import load_base

    base = shutil.copytree(GOLDEN / "base", tmp_path / "base")
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.attn2.to_k.bias"]
    save_file(tensors, file)
    with pytest.raises(BadWeights, match=r"lacks blocks\.1\.attn2\.to_k\.bias; download the base again"):
        load_base(str(base), dtype, "cpu")
