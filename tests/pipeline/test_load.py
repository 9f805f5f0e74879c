"""Loading: what is refused before a weight is read, and what is loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lynx_video import load
from lynx_video.errors import BadRequest, BadWeights, LynxError
from lynx_video.pipeline.load import assemble, survey

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def bare_base(tmp_path):
    """A base of configurations alone: whoever reads its weights fails."""
    for part in ("transformer", "vae", "text_encoder", "scheduler"):
        (tmp_path / "base" / part).mkdir(parents=True)
        for file in (GOLDEN / "base" / part).glob("*.json"):
            shutil.copy(file, tmp_path / "base" / part)
    return tmp_path / "base"


@pytest.fixture
def spoiled(tmp_path):
    """spoiled(part, file, bytes or None) is a copy of the golden base with one file cut or removed."""

    def make(name, keep):
        base = shutil.copytree(GOLDEN / "base", tmp_path / "spoiled")
        file = base / name
        content = file.read_bytes()[:keep] if keep is not None else None
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        return base, file

    return make


def configure(base, part, **changes):
    file = base / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(error, *words, **arguments):
    with pytest.raises(error) as caught:
        load(**({"device": "cpu", "adapter": GOLDEN / "lynx_full"} | arguments))
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "sdxl"}, ("unknown model", "nano", "lynx-lite")),
        ({"dtype": "fp8"}, ("unknown torch dtype", "bf16, fp16, fp32")),
        ({"dtype": torch.float64}, ("torch.float64", "bfloat16")),
        ({"device": "gpu"}, ("unknown device 'gpu'",)),
        ({"device": "cuda:99"}, ("cuda:99", "not available")),
        ({"device": "meta"}, ("meta", "not available")),
    ],
)
def test_names_that_do_not_exist(arguments, words):
    refused(BadRequest, *words, **({"base": "nowhere/at/all"} | arguments))


def test_nano_s_parts_go_together():
    """Nano's adapter fits no other base; another adapter is fine if it was made for nano."""
    refused(BadWeights, "made for a base of width 96, this base has width 192")
    refused(BadRequest, "give an adapter with the base", base=GOLDEN / "base", adapter=None)


def test_a_wrong_adapter_is_refused_before_weights_are_read(bare_base, tmp_path):
    refused(BadWeights, "is not there", base=bare_base, adapter=tmp_path / "gone")
    configure(bare_base, "transformer", attention_head_dim=32)
    refused(BadWeights, "ip_layers.safetensors", "width 96", "width 128", base=bare_base)
    configure(bare_base, "transformer", attention_head_dim=24, num_layers=6)
    refused(BadWeights, "ip_layers.safetensors", "this base has 6 blocks", base=bare_base)
    mixed = [GOLDEN / "lynx_lite" / "resampler.safetensors", GOLDEN / "lynx_full" / "ip_layers.safetensors"]
    configure(bare_base, "transformer", num_layers=4)
    refused(BadWeights, "ip_layers.safetensors", "mixed", base=bare_base, adapter=mixed)
    refused(BadWeights, "text_encoder", "no weights there", base=bare_base)  # and only then are the weights missed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, ("FluxTransformer2DModel", "WanTransformer3DModel")),
        ({"image_dim": 1280}, ("image-to-video",)),
        ({"added_kv_proj_dim": 96}, ("image-to-video",)),
        ({"num_layers": None}, ("config.json",)),
        ({"num_attention_heads": "many"}, ("config.json",)),
    ],
)
def test_a_base_that_is_no_text_to_video_wan(changes, words, bare_base):
    configure(bare_base, "transformer", **changes)
    refused(BadWeights, str(bare_base), *words, base=bare_base)


def test_a_base_that_is_none(bare_base, tmp_path):
    refused(BadWeights, str(tmp_path / "gone"), "lynx-video download base", base=tmp_path / "gone")
    (bare_base / "transformer" / "config.json").write_text("{")
    refused(BadWeights, "config.json", "JSON", base=bare_base)
    (bare_base / "transformer" / "config.json").write_text("[]")
    refused(BadWeights, "config.json", base=bare_base)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("transformer/diffusion_pytorch_model.safetensors", 1000),
        ("transformer/diffusion_pytorch_model.safetensors", None),
        ("vae/diffusion_pytorch_model.safetensors", -1),
        ("vae/config.json", None),
        ("text_encoder/model.safetensors", 3),
        ("text_encoder/config.json", None),
        ("tokenizer/tokenizer.json", None),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_a_base_with_a_missing_or_cut_file(name, keep, spoiled):
    base, file = spoiled(name, keep)
    refused(BadWeights, str(file.parent), base=base)


def test_weights_of_another_shape_than_the_config_says(tmp_path):
    base = shutil.copytree(GOLDEN / "base", tmp_path / "base")
    configure(base, "transformer", ffn_dim=64)
    refused(BadWeights, str(base / "transformer"), base=base)


def test_what_is_loaded(full, lite):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    assert type(full.transformer) is WanTransformer3DModel
    assert type(full.vae) is AutoencoderKLWan
    assert type(full.scheduler) is UniPCMultistepScheduler
    assert full.adapter.transformer is full.transformer
    assert (full.arm, lite.arm) == ("full", "lite")
    assert (full.grid, full.temporal_factor, full.blocks, full.channels) == (16, 4, 4, 16)
    assert full.base_hash == lite.base_hash
    assert full.adapter_hash != lite.adapter_hash
    assert not any(module.training for module in (full.transformer, full.vae, full.text_encoder, full.adapter))


def test_a_dtype_by_name(load_golden):
    loaded = load_golden("lite", dtype="bf16")
    assert loaded.dtype == torch.bfloat16
    assert loaded.transformer.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.adapter.parameters()} == {torch.bfloat16}


def test_the_vae_stays_out_of_half_precision(load_golden):
    loaded = load_golden("lite", dtype="fp16")
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.float16, torch.float32)


def test_defaults_beside_the_adapter(tmp_path):
    adapter = shutil.copytree(GOLDEN / "lynx_full", tmp_path / "adapter")
    (adapter / "lynx.json").write_text(json.dumps({"num_frames": 9, "reference_size": 64, "other": 1}))
    loaded = load(base=GOLDEN / "base", adapter=adapter, device="cpu", dtype="fp32")
    assert (loaded.defaults.num_frames, loaded.defaults.reference_size, loaded.defaults.width) == (9, 64, 832)
    (adapter / "lynx.json").write_text("{")
    refused(BadWeights, "lynx.json", base=GOLDEN / "base", adapter=adapter)


def test_hashes_tell_files_apart(tmp_path):
    from lynx_video.pipeline.checkpoint import fingerprint

    files = [tmp_path / name for name in "abc"]
    files[0].write_bytes(b"")
    files[1].write_bytes(b"x" * 70_000)
    files[2].write_bytes(b"x" * 69_999 + b"y")
    assert len({fingerprint([file]) for file in files}) == 3
    assert fingerprint(files[:1]) == fingerprint(files[:1])


@pytest.mark.parametrize("part", ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_small_files_are_missed_before_weights_are_read(part, spoiled, monkeypatch):
    from lynx_video.pipeline import load as module

    base, file = spoiled(part, None)
    monkeypatch.setattr(module, "load_base", lambda *_, **__: pytest.fail("weights are read"))
    refused(BadWeights, str(file.parent), "lynx-video download base", base=base)


def test_small_parts_come_first():
    from lynx_video.pipeline.checkpoint import load_base

    parts = list(load_base(str(GOLDEN / "base"), torch.float32, "cpu"))
    assert set(parts[:2]) == {"tokenizer", "scheduler"}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), MemoryError),
        (OSError("cut"), BadWeights),
    ],
)
def test_a_lack_of_memory_is_no_damaged_file(raised, expected, monkeypatch):
    from diffusers import WanTransformer3DModel

    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", fails)
    with pytest.raises(expected):
        load(base=GOLDEN / "base", adapter=GOLDEN / "lynx_full", device="cpu")


def test_a_full_device_is_no_damaged_adapter(monkeypatch):
    from lynx_video.adapters.weights import BaseShape, inspect, load_adapter

    files = inspect([GOLDEN / "lynx_full"], BaseShape(width=96, heads=4, blocks=4))

    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.Tensor, "to", fails)
    with pytest.raises(torch.OutOfMemoryError):
        load_adapter(files, dtype=torch.float32)


def test_the_hub_s_fault_is_not_the_request_s(monkeypatch):
    from transformers import AutoTokenizer

    from lynx_video.pipeline.checkpoint import load_base

    def fails(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(LynxError, match="tokenizer of the base some/base") as caught:
        load_base("some/base", torch.float32, "cpu")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("idle", "others"), [("keep", "meta"), ("offload", "cpu"), ("free", "cpu")])
def test_idle_models_stay_in_host_memory(idle, others):
    """The meta device stands for the GPU."""
    blueprint = replace(survey(base=GOLDEN / "base", adapter=GOLDEN / "lynx_full", device="cpu"), device="meta")
    loaded = assemble(blueprint, idle_models=idle)
    devices = {
        name: next(getattr(loaded, name).parameters()).device.type for name in ("transformer", "text_encoder", "vae", "adapter")
    }
    assert devices == {"transformer": "meta", "text_encoder": others, "vae": others, "adapter": others}
    assert loaded.idle_models == idle
    with pytest.raises(BadRequest, match="idle_models"):
        assemble(blueprint, idle_models="burn")
