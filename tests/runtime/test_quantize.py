"""Quantization: how far each kind is from exact, what it touches and what not, and what is refused before a weight is read."""

import copy
import sys

import pytest
import torch
from torch import nn

from lynx_video.adapters.memory import text_memory
from lynx_video.errors import BadRequest, MissingDependency
from lynx_video.pipeline.models import NANO
from lynx_video.runtime.quantize import KINDS, Float8Linear, block_linears, check_quantization, quantize_, quantized_bytes

HERE = ("fp8-storage", "int8", "nf4")  # what a CPU can run
# the most that an output may be off, as a share of its norm; measured 0.041, 0.032, 0.009, 0.107 and 0.037, 0.026, 0.007, 0.245
OFF = {
    "nano": {"fp8": 0.06, "fp8-storage": 0.05, "int8": 0.02, "nf4": 0.16},
    "golden": {"fp8": 0.06, "fp8-storage": 0.05, "int8": 0.02, "nf4": 0.35},
}


@pytest.fixture
def fp8_anywhere(monkeypatch):
    """torch multiplies float8 on a CPU too, slowly, for bfloat16: with the checks lifted, the arithmetic of fp8 can be seen here."""
    import torchao.quantization.quant_api

    monkeypatch.setattr("lynx_video.runtime.quantize._check_fp8", lambda *_: None)
    monkeypatch.setattr(torchao.quantization.quant_api, "_check_hardware_support", lambda *_: None)


@pytest.fixture(scope="module")
def bases(stock_transformer):
    """A transformer of width 192 with trained weights, and one of width 96 with random ones, in a dtype."""
    from diffusers import WanTransformer3DModel

    def make(name, dtype):
        if name == "golden":
            return copy.deepcopy(stock_transformer(dtype))
        return WanTransformer3DModel.from_pretrained(NANO / "base", subfolder="transformer", torch_dtype=dtype).eval()

    return make


@pytest.fixture
def fresh_compiler():
    """What earlier tests compiled counts for nothing."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def forward(model):
    """Its output for one fixed input."""
    made = torch.Generator().manual_seed(0)
    config = model.config
    latents = torch.randn(1, config.in_channels, 3, 8, 8, generator=made)
    text = torch.randn(1, 24, config.text_dim, generator=made)
    with torch.no_grad():
        return model(latents.to(model.dtype), torch.tensor([500.0]), text.to(model.dtype), return_dict=False)[0].float()


def off(output, exact):
    return ((output - exact).norm() / exact.norm()).item()


@pytest.mark.usefixtures("fp8_anywhere")
@pytest.mark.parametrize("base", ["nano", "golden"])
@pytest.mark.parametrize("kind", KINDS)
def test_how_far_a_kind_is_from_exact(kind, base, bases):
    exact = forward(bases(base, torch.float32))
    errors = {}
    for dtype in (torch.float32, torch.bfloat16) if kind != "fp8" else (torch.bfloat16,):
        model = bases(base, dtype)
        plain = forward(model)
        quantize_(model, kind)
        changed = forward(model)
        assert not torch.equal(plain, changed)
        assert (model.dtype, model.device.type) == (dtype, "cpu")
        errors[dtype] = off(changed, exact)
    limit = OFF[base][kind]
    assert limit / 10 < errors.get(torch.float32, limit / 2) < limit, errors
    assert errors[torch.bfloat16] < limit + 0.01, errors


@pytest.mark.usefixtures("fp8_anywhere")
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_linear_layers_of_the_blocks(kind, bases):
    model = bases("golden", torch.bfloat16)
    before = copy.deepcopy(model)
    quantize_(model, kind)
    quantized = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _same(module, before.get_submodule(name))
    }
    attention = [f"{attn}.{part}" for attn in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
    expected = {f"blocks.{i}.{layer}" for i in range(4) for layer in (*attention, "ffn.net.0.proj", "ffn.net.2")}
    assert quantized == expected
    for name, parameter in before.named_parameters():
        if name.rpartition(".")[0] not in quantized or name.endswith("bias"):
            assert torch.equal(model.get_parameter(name), parameter), name
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for block in model.blocks for parameter in block.parameters())


def _same(layer, plain):
    return type(layer) is type(plain) and type(layer.weight) is type(plain.weight)


@pytest.mark.usefixtures("fp8_anywhere")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_adapters_over_a_quantized_base(arm, kind, attached, golden):
    """Text, identity and reference memories, and a forward with all of them, end near the unquantized base's."""
    data = golden(f"{arm}_two_pass" if arm == "full" else arm)
    outputs = {}
    for quantized in (False, True):
        adapter = attached(arm, torch.bfloat16)
        transformer = adapter.transformer
        adapter_before = copy.deepcopy(adapter.state_dict())
        if quantized:
            quantize_(transformer, kind)
        text = text_memory(transformer, data["prompt_embeds"])
        latents = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        memory = adapter.remember(data["face_embedding"], latents if arm == "full" else None, data["prompt_embeds"])
        assert {pair.key.dtype for pair in memory.identity.values()} == {torch.bfloat16}
        noise = data["initial_latents"].to(torch.bfloat16)
        for who in (memory, None):
            with torch.no_grad(), adapter.using(who, text=text):
                out = transformer(noise, torch.tensor([999.0]), text.embeddings[:, :1], return_dict=False)[0].float()
            outputs[quantized, who is not None] = out
        after = adapter.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in adapter_before.items())
    for with_memory in (False, True):
        assert off(outputs[True, with_memory], outputs[False, with_memory]) < OFF["golden"][kind] + 0.02
    meant = outputs[False, True] - outputs[False, False]
    got = outputs[True, True] - outputs[True, False]
    assert nn.functional.cosine_similarity(got.flatten(), meant.flatten(), dim=0) > 0.9


@pytest.mark.usefixtures("fp8_anywhere")
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_a_weight(kind, bases):
    for base in ("nano", "golden"):
        model = bases(base, torch.bfloat16)
        quantize_(model, kind)
        block = model.blocks[0]
        layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
        shapes = [(layer.out_features, layer.in_features) for layer in layers]
        assert shapes == list(block_linears(model.config))
        for layer, shape in zip(layers, shapes, strict=True):
            assert _bytes(layer) == quantized_bytes(kind, *shape)
    assert quantized_bytes("none", 3, 5, itemsize=4) == 60
    with pytest.raises(BadRequest, match="unknown quantization 'int3'"):
        quantized_bytes("int3", 1, 1)


def _bytes(layer):
    weight = layer.weight
    if hasattr(weight, "__tensor_flatten__"):
        return sum(getattr(weight, name).nbytes for name in weight.__tensor_flatten__()[0])
    state = getattr(weight, "quant_state", None)
    more = [state.absmax, state.state2.absmax] if state is not None else list(layer.buffers())
    return weight.nbytes + sum(tensor.nbytes for tensor in more)


@pytest.mark.parametrize("size", [1.0, 0.02, 1e-4])
def test_stored_in_float8_whatever_their_size(size):
    """Weights as small as a trained model's keep four significant bits; cast without a scale they would not."""
    plain = nn.Linear(256, 64)
    with torch.no_grad():
        plain.weight.normal_(std=size, generator=torch.Generator().manual_seed(0))
        plain.weight[3] = 0
    stored = Float8Linear(plain)
    assert stored.weight.dtype == torch.float8_e4m3fn
    held = stored.weight.float() * stored.scale.float()
    assert off(held, plain.weight.detach()) < 0.03
    if size <= 0.02:
        assert off(plain.weight.detach().to(torch.float8_e4m3fn).float(), plain.weight.detach()) > 0.03
    x = torch.randn(2, 7, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(stored(x), nn.functional.linear(x, held, plain.bias))
    assert torch.equal(held.bfloat16().float(), held)  # what is stored is a bfloat16 too
    assert stored.scale.log2().frac().abs().max() == 0


@pytest.mark.usefixtures("fresh_compiler")
def test_whole_graphs(bases):
    """A block of each kind is one graph."""
    for kind in HERE:
        model = bases("golden", torch.float32)
        quantize_(model, kind)
        exact = forward(model)
        for block in model.blocks:
            block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
        assert torch.equal(forward(model), exact)


def test_the_compiler_s_settings_are_left_alone(bases):
    import torch._inductor.config as inductor

    with inductor.patch(coordinate_descent_tuning=False, force_fuse_int_mm_with_mul=False):
        quantize_(bases("golden", torch.float32), "int8")
        assert not inductor.coordinate_descent_tuning
        assert not inductor.force_fuse_int_mm_with_mul


def test_once_only(bases):
    model = bases("golden", torch.float32)
    quantize_(model, "fp8-storage")
    with pytest.raises(BadRequest, match="quantized already"):
        quantize_(model, "fp8-storage")


def test_what_a_cpu_refuses():
    for kind in HERE:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check_quantization(kind, "cpu", dtype)
    with pytest.raises(BadRequest, match=r"fp8 computes on NVIDIA GPUs, not on cpu; fp8-storage and int8"):
        check_quantization("fp8", "cpu", torch.bfloat16)
    with pytest.raises(BadRequest, match=f"unknown quantization 'int3'; the kinds are {', '.join(KINDS)}"):
        check_quantization("int3", "cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("capability", "dtype", "words"),
    [((8, 6), torch.bfloat16, "RTX 40 or H100 on, this is GeForce"), ((8, 9), torch.float16, "needs bf16")],
)
def test_what_a_gpu_refuses(capability, dtype, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce RTX 3090")
    with pytest.raises(BadRequest, match=words):
        check_quantization("fp8", "cuda", dtype)


@pytest.mark.parametrize(("kind", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_package_that_is_not_there(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingDependency, match=rf"needs {package}, which is not installed: pip install 'lynx-video\[quantize\]'"
    ):
        check_quantization(kind, "cpu", torch.bfloat16)


def test_a_device_that_cannot_after_all(monkeypatch):
    def fails(*_):
        raise NotImplementedError("no float8 on this device.\nTrace: 1\n2")

    monkeypatch.setattr(torch.Tensor, "to", fails)
    with pytest.raises(
        BadRequest, match=r"fp8-storage can't run on cpu here \(no float8 on this device\); choose another or none"
    ):
        check_quantization("fp8-storage", "cpu", torch.bfloat16)
