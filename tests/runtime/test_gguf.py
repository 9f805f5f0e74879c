"""GGUF files as a base: files made here as the converters make them, the outputs over them, and what is refused from the header."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from lynx_video.adapters.memory import text_memory
from lynx_video.errors import BadRequest, BadWeights, MissingDependency
from lynx_video.pipeline.models import NANO
from lynx_video.runtime.gguf_file import check_gguf, load_gguf_transformer
from lynx_video.runtime.host import host_memory
from lynx_video.runtime.offload import Offload, offload_, parked, placed
from lynx_video.runtime.quantize import quantize_

OFFICIAL = [  # from diffusers' names to the official ones
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"attn1\.", "self_attn."),
    (r"attn2\.", "cross_attn."),
    (r"to_out\.0", "o"),
    (r"to_([qkv])", r"\1"),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"\.norm2\.", ".norm3."),
    (r"^scale_shift_table", "head.modulation"),
    (r"scale_shift_table", "modulation"),
    (r"^proj_out", "head.head"),
]
GOLDEN = SimpleNamespace(width=96, heads=4, blocks=4)  # as much of a BaseShape as is looked at


def official(name):
    for pattern, replacement in OFFICIAL:
        name = re.sub(pattern, replacement, name)
    return name


def write(file, tensors, *, architecture="wan", prefix=""):
    """A GGUF file of {official name: (array, type)}."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(prefix + name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def convert(model, kind, plain=Kind.F32):
    """As the converters do: matrices in `kind`, the rest in `plain`, what is no matrix of the blocks' size in 32 bits."""
    tensors = {}
    for name, parameter in model.state_dict().items():
        data = parameter.float().numpy()
        small = data.ndim == 2 and "time_embed" not in name and data.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        this = kind if small else plain if data.ndim < 5 else Kind.F32
        tensors[official(name)] = (gguf.quants.quantize(data, this), this)
    return tensors


def forward(model):
    made = torch.Generator().manual_seed(0)
    config = model.config
    latents = torch.randn(1, config.in_channels, 3, 8, 8, generator=made)
    text = torch.randn(1, 24, config.text_dim, generator=made)
    with torch.no_grad():
        return model(latents.to(model.dtype), torch.tensor([500.0]), text.to(model.dtype), return_dict=False)[0].float()


def off(output, exact):
    return ((output - exact).norm() / exact.norm()).item()


@pytest.fixture
def golden_folder(tmp_path, stock_transformer):
    stock_transformer().save_config(tmp_path / "config")
    return tmp_path / "config"


@pytest.mark.parametrize(
    ("kind", "limit"),
    [(Kind.Q8_0, 0.02), (Kind.Q5_1, 0.12), (Kind.Q4_0, 0.25), (Kind.F16, 0.001), (Kind.BF16, 0.008), (Kind.F32, 1e-6)],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_close_to_the_original(kind, limit, prefix, tmp_path, stock_transformer, golden_folder):
    plain = stock_transformer()
    file = write(tmp_path / "model.gguf", convert(plain, kind), prefix=prefix)
    check_gguf(file, GOLDEN, channels=16)
    model = load_gguf_transformer(file, golden_folder, torch.float32)
    assert (model.dtype, model.device.type, model.training) == (torch.float32, "cpu", False)
    error = off(forward(model), forward(plain))
    assert limit / 50 < error < limit or (kind == Kind.F32 and error < limit), error
    half = load_gguf_transformer(file, golden_folder, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert off(forward(half), forward(plain)) < limit + 0.02


def test_everything_in_bfloat16(tmp_path, stock_transformer, golden_folder):
    """Biases and norms too, which as bytes would be read as numbers of another kind."""
    plain = stock_transformer()
    file = write(tmp_path / "model.gguf", convert(plain, Kind.BF16, plain=Kind.BF16))
    model = load_gguf_transformer(file, golden_folder, torch.bfloat16)
    assert {type(parameter) for parameter in model.parameters()} == {torch.nn.Parameter}
    bias = plain.blocks[1].ffn.net[2].bias.bfloat16()
    assert torch.equal(model.blocks[1].ffn.net[2].bias, bias)
    assert off(forward(model), forward(plain)) < 0.02


def test_what_stays_in_float32_is_widened_once(tmp_path, stock_transformer, golden_folder):
    plain = stock_transformer()
    tensors = convert(plain, Kind.Q8_0)
    name = "time_embedding.2.weight"
    tensors[name] = (gguf.quants.quantize(tensors[name][0], Kind.Q8_0), Kind.Q8_0)
    model = load_gguf_transformer(write(tmp_path / "model.gguf", tensors), golden_folder, torch.bfloat16)
    weight = model.condition_embedder.time_embedder.linear_2.weight
    assert (type(weight), weight.dtype) == (torch.nn.Parameter, torch.float32)
    assert 0 < off(weight, plain.condition_embedder.time_embedder.linear_2.weight) < 0.01
    assert off(forward(model), forward(plain)) < 0.04


def test_nano(tmp_path):
    from diffusers import WanTransformer3DModel

    plain = WanTransformer3DModel.from_pretrained(NANO / "base", subfolder="transformer", torch_dtype=torch.float32).eval()
    file = write(tmp_path / "nano.gguf", convert(plain, Kind.Q8_0))
    check_gguf(file, SimpleNamespace(width=192, heads=3, blocks=6), channels=12)
    model = load_gguf_transformer(file, NANO / "base" / "transformer", torch.float32)
    assert 1e-4 < off(forward(model), forward(plain)) < 0.02


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K], ids=lambda kind: kind.name)
def test_k_quants(kind, tmp_path):
    """No converter in Python writes them: blocks of random bits with scales of a weight's size, read by gguf's own code for truth."""
    from diffusers import WanTransformer3DModel

    plain = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=128, ffn_dim=512, num_layers=2, text_dim=256, freq_dim=64, rope_max_seq_len=64
    )
    plain.requires_grad_(False).eval().save_config(tmp_path)
    tensors, made = convert(plain, Kind.Q8_0), np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    state = plain.state_dict()
    for name, parameter in state.items():
        if name.startswith("blocks.") and parameter.ndim == 2:
            rows, columns = parameter.shape
            data = made.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
            for at in {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}[kind]:
                data[..., at : at + 2] = np.array([1e-4], np.float16).view(np.uint8)
            tensors[official(name)] = (data.reshape(rows, -1), kind)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(data.reshape(rows, -1), kind).reshape(rows, columns)))
        elif name.endswith("weight") and parameter.ndim == 2 and "time_embed" not in name:
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(*tensors[official(name)])))
    file = write(tmp_path / "model.gguf", tensors)
    check_gguf(file, SimpleNamespace(width=256, heads=2, blocks=2))
    model = load_gguf_transformer(file, tmp_path, torch.float32)
    assert model.blocks[0].attn1.to_q.weight.quant_type == kind
    assert off(forward(model), forward(plain)) < 2e-3  # scales are 16 bits wide


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_adapters_over_it(arm, tmp_path, golden, golden_folder, attached):
    """And block offload, and parked projections, change nothing."""
    data = golden("full_two_pass" if arm == "full" else arm)
    outputs = {}
    for over_gguf in (False, True):
        adapter = attached(arm)
        if over_gguf:
            file = write(tmp_path / "model.gguf", convert(adapter.transformer, Kind.Q8_0))
            adapter.detach()
            adapter.attach(load_gguf_transformer(file, golden_folder, torch.float32))
        transformer = adapter.transformer
        text = text_memory(transformer, data["prompt_embeds"])
        latents = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        memory = adapter.remember(data["face_embedding"], latents if arm == "full" else None, data["prompt_embeds"])

        def run(text=text, memory=memory, adapter=adapter):
            with torch.no_grad(), adapter.using(memory, text=text):
                noise, token = data["initial_latents"], data["prompt_embeds"][:, :1]
                return adapter.transformer(noise, torch.tensor([999.0]), token, return_dict=False)[0]

        outputs[over_gguf] = run()
        assert not torch.equal(outputs[over_gguf], run(memory=None))
    assert off(outputs[True], outputs[False]) < 0.02
    offload_(transformer, Offload(device="cpu"))
    with placed(transformer, "cpu"):
        assert torch.equal(text_memory(transformer, data["prompt_embeds"]).blocks[1].key, text.blocks[1].key)
    with parked(transformer):
        assert torch.equal(run(), outputs[True])
    assert torch.equal(run(), outputs[True])


def test_in_place_of_the_base_s_own(tmp_path, stock_transformer):
    """The base needs no weights of a transformer then, and everything else is its own."""
    from lynx_video.pipeline.checkpoint import check_base_files, load_base

    base = shutil.copytree(Path(__file__).parents[1] / "golden" / "base", tmp_path / "base")
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    file = write(tmp_path / "model.gguf", convert(stock_transformer(), Kind.Q8_0))
    with pytest.raises(BadWeights, match="transformer: no weights there"):
        check_base_files(str(base))
    check_base_files(str(base), transformer=False)
    loaded = load_base(str(base), torch.float32, "cpu", gguf=file)
    assert off(forward(loaded["transformer"]), forward(stock_transformer())) < 0.02
    with pytest.raises(BadWeights, match=r"gone\.gguf is not there"):
        load_base(str(base), torch.float32, "cpu", gguf=tmp_path / "gone.gguf")
    (base / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BadWeights, match="vae: no weights there"):
        check_base_files(str(base), transformer=False)


def test_it_stays_mapped(tmp_path):
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        plain = WanTransformer3DModel(
            num_attention_heads=8, attention_head_dim=128, ffn_dim=8192, num_layers=6, text_dim=256, freq_dim=64
        )
    plain.save_config(tmp_path)
    kind, tensors = Kind.Q8_0, {}
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for name, parameter in plain.state_dict().items():
        shape, this = parameter.shape, Kind.F32
        if parameter.ndim == 2 and "time_embed" not in name:
            shape, this = (shape[0], shape[1] // block * size), kind
        tensors[official(name)] = (np.zeros(shape, np.float32 if this == Kind.F32 else np.uint8), this)
    file = write(tmp_path / "model.gguf", tensors)
    del tensors
    before = host_memory()
    model = load_gguf_transformer(file, tmp_path, torch.bfloat16)
    assert file.stat().st_size > 150e6
    for parameter in model.parameters():
        assert not torch.Tensor.as_subclass(parameter, torch.Tensor).any()  # every page is read
    assert host_memory().anonymous - before.anonymous < 60e6


def test_quantized_once(tmp_path, stock_transformer, golden_folder):
    file = write(tmp_path / "model.gguf", convert(stock_transformer(), Kind.Q8_0))
    with pytest.raises(BadRequest, match="quantized already"):
        quantize_(load_gguf_transformer(file, golden_folder, torch.float32), "int8")


def refused(file, *words, base=GOLDEN, channels=None, error=BadWeights):
    with pytest.raises(error) as caught:
        check_gguf(file, base, channels)
    for word in (file.name, *words):
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_refused_from_the_header(tmp_path, stock_transformer, monkeypatch):
    tensors = convert(stock_transformer(), Kind.Q8_0)
    file = write(tmp_path / "good.gguf", tensors)
    monkeypatch.setattr(torch, "from_numpy", lambda _: pytest.fail("a weight is read"))
    refused(file, "4 blocks of width 96", "40 of width 5120", base=SimpleNamespace(width=5120, heads=40, blocks=40))
    refused(file, "4 blocks", "the base has 3", base=SimpleNamespace(width=96, heads=4, blocks=3))
    refused(file, "16 channels", "of 36", channels=36)
    refused(tmp_path / "gone.gguf", "is not there")
    refused(write(tmp_path / "flux.gguf", tensors, architecture="flux"), "of flux", "expected a Wan")
    check_gguf(write(tmp_path / "pig.gguf", tensors, architecture="pig"), GOLDEN)
    other = {"double_blocks.0.img_attn.proj.weight": (np.zeros((4, 4), np.float32), Kind.F32)}
    refused(write(tmp_path / "other.gguf", other, architecture="pig"), "no Wan transformer in it")
    image = {**tensors, "blocks.0.cross_attn.k_img.weight": (np.zeros((96, 96), np.float32), Kind.F32)}
    refused(write(tmp_path / "i2v.gguf", image), "image-to-video")
    odd = {**tensors, "blocks.1.self_attn.v.weight": (np.zeros((96, 96 // 256 * 54 + 54), np.uint8), Kind.TQ1_0)}
    refused(write(tmp_path / "odd.gguf", odd), "TQ1_0", "Q8_0")
    for size in (0, 3, 40, 5000, file.stat().st_size - 100_000):
        cut = tmp_path / f"cut{size}.gguf"
        cut.write_bytes(file.read_bytes()[:size])
        refused(cut, "no whole GGUF file")
    text = tmp_path / "text.gguf"
    text.write_text(json.dumps({"a": 1}) * 100)
    refused(text, "no whole GGUF file")


def test_weights_that_do_not_fit_after_all(tmp_path, stock_transformer, golden_folder):
    tensors = convert(stock_transformer(), Kind.Q8_0)
    lacking = {name: value for name, value in tensors.items() if name != "blocks.2.ffn.0.bias"}
    with pytest.raises(BadWeights, match=r"lacking\.gguf lacks weights"):
        load_gguf_transformer(write(tmp_path / "lacking.gguf", lacking), golden_folder, torch.float32)
    config = json.loads((golden_folder / "config.json").read_text())
    (golden_folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 64}))
    with pytest.raises(BadWeights, match=r"model\.gguf does not fit the base \("):
        load_gguf_transformer(write(tmp_path / "model.gguf", tensors), golden_folder, torch.float32)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"needs gguf, which is not installed: pip install 'lynx-video\[gguf\]'"):
        check_gguf(tmp_path / "model.gguf", GOLDEN)
