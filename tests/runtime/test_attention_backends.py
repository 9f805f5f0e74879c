"""Attention kernels by name: what is chosen, what is refused and how, and what reaches the processors."""

import copy
import importlib.metadata
import importlib.util
import sys

import pytest
import torch

from lynx_video.adapters.attention import Attention
from lynx_video.errors import BadRequest, LynxError, MissingDependency
from lynx_video.runtime import attention
from lynx_video.runtime.attention import BACKENDS, SHORT, can_share_tokens, choose_backend, is_exact, set_backend_

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def gpu(monkeypatch):
    """gpu((9, 0), "flash_attn_interface") stands for a machine with such a GPU and only these packages."""

    def make(capability, *packages, versions=(), flash=True, cudnn=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: cudnn)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)
        known = dict(versions)

        def version(name):
            if name not in known:
                raise importlib.metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        return torch.device("cuda")

    return make


@pytest.fixture
def inputs(golden):
    data = golden("full_two_pass")
    return data["initial_latents"], torch.tensor([999.0]), data["prompt_embeds"]


def forward(transformer, inputs):
    with torch.no_grad():
        return transformer(*inputs, return_dict=False)[0]


def test_every_name_of_diffusers_is_known():
    from diffusers.models.attention_dispatch import AttentionBackendName

    theirs = {one.value for one in AttentionBackendName}
    assert theirs <= BACKENDS.keys()
    assert {one.diffusers for one in BACKENDS.values()} <= theirs
    assert set(SHORT) == {"auto", *BACKENDS} - (theirs - {"native", "flash", "flex", "sage", "xformers"})


def test_importing_it_imports_no_diffusers():
    import subprocess

    code = "import sys, lynx_video.runtime.attention, lynx_video.runtime.compiling, lynx_video.runtime.syncs; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('diffusers' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_auto_on_a_cpu_is_native(dtype):
    assert choose_backend("auto", "cpu", dtype, 128) == "native"
    assert choose_backend("native", torch.device("cpu"), dtype, 24) == "native"


FA3 = "flash_attn_interface"


@pytest.mark.parametrize(
    ("capability", "packages", "dtype", "width", "expected"),
    [
        ((9, 0), (FA3,), BF16, 128, "flash3"),
        ((9, 0), (FA3,), torch.float16, 128, "flash3"),
        ((9, 0), (FA3,), FP32, 128, "native"),
        ((9, 0), ("sageattention",), BF16, 128, "cudnn"),  # approximate kernels are never chosen
        ((9, 0), (), BF16, 256, "flash"),  # too wide for cuDNN
        ((9, 0), (), BF16, 512, "native"),
        ((10, 0), (FA3,), BF16, 128, "cudnn"),
        ((12, 0), (FA3,), BF16, 128, "flash"),
        ((8, 9), (FA3,), BF16, 128, "flash"),
        ((7, 5), (FA3,), torch.float16, 128, "native"),
    ],
)
def test_auto_takes_the_fastest_exact_one(capability, packages, dtype, width, expected, gpu, monkeypatch):
    monkeypatch.setattr(attention, "_load", lambda _: None)
    device = gpu(capability, *packages)
    chosen = choose_backend("auto", device, dtype, width)
    assert chosen == expected
    assert is_exact(chosen)
    assert can_share_tokens(chosen)


def test_auto_passes_over_a_kernel_that_is_there_and_broken(gpu):
    """FlashAttention 3 as a package that torch cannot activate: the next one, not an error."""
    assert choose_backend("auto", gpu((9, 0), FA3), BF16, 128) == "cudnn"


def test_auto_goes_on_without_what_torch_was_built_without(gpu):
    assert choose_backend("auto", gpu((9, 0), cudnn=False), BF16, 128) == "flash"
    assert choose_backend("auto", gpu((9, 0), cudnn=False, flash=False), BF16, 128) == "native"


def test_auto_on_rocm_is_native(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert choose_backend("auto", gpu((9, 4), FA3), BF16, 128) == "native"


def test_auto_without_torch_s_own_way_to_flash3(gpu, monkeypatch):
    monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    assert choose_backend("auto", gpu((9, 0), FA3), BF16, 128) == "cudnn"
    with pytest.raises(BadRequest, match="newer torch"):
        choose_backend("flash3", gpu((9, 0), FA3), BF16, 128)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("flahs3", BadRequest, "unknown attention backend 'flahs3'.*auto, native, cudnn, flash, flash3, flex, sage, xformers"),
        ("cudnn", BadRequest, "cudnn runs on cuda, the model is on cpu"),
        ("flash", BadRequest, "flash runs on cuda"),
        ("flash3", BadRequest, "flash3 runs on cuda"),
        ("flex", BadRequest, "flex runs on cuda"),
        ("sage", BadRequest, "sage runs on cuda"),
        ("xformers", BadRequest, "xformers runs on cuda"),
        ("_native_flash", BadRequest, "_native_flash runs on cuda"),
        ("_native_npu", BadRequest, "_native_npu runs on npu"),
    ],
)
def test_refused_on_a_cpu(name, error, words):
    with pytest.raises(error, match=words) as refusal:
        choose_backend(name, "cpu", BF16, 128)
    assert str(refusal.value).count(". ") == 0, "one sentence"


@pytest.mark.parametrize(
    ("name", "install"),
    [
        ("flash3", "flash_attn_interface, which is not installed: pip install .*subdirectory=hopper"),
        ("sage", "sageattention 2.1.1 or newer, which is not installed: pip install .*SageAttention"),
        ("xformers", "xformers 0.0.29 or newer, which is not installed: pip install xformers"),
        ("flash_varlen", "flash_attn 2.6.3 or newer.*: pip install flash-attn"),
        ("flash_hub", "kernels 0.12.3 or newer.*: pip install 'kernels"),
    ],
)
def test_a_package_that_is_missing(name, install, gpu):
    with pytest.raises(MissingDependency, match=install):
        choose_backend(name, gpu((9, 0)), BF16, 128)


@pytest.mark.parametrize(("version", "good"), [("1.0.6", False), ("2.1.1", True), ("2.2.0+cu128", True), ("3.0", True)])
def test_a_package_that_is_too_old(version, good, gpu):
    device = gpu((9, 0), "sageattention", versions={"sageattention": version})
    if good:
        assert choose_backend("sage", device, BF16, 128) == "sage"
    else:
        with pytest.raises(MissingDependency, match=r"2\.1\.1 or newer"):
            choose_backend("sage", device, BF16, 128)


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "width", "words"),
    [
        ("cudnn", (9, 0), FP32, 128, "takes bfloat16 and float16, the model is in float32"),
        ("flash", (8, 0), torch.float64, 128, "the model is in float64"),
        ("flash", (8, 0), BF16, 320, "heads up to 256 wide, this model's are 320"),
        ("cudnn", (9, 0), BF16, 100, "heads up to 128 wide, in steps of 8, this model's are 100"),
        ("flash", (7, 5), BF16, 128, "compute capability 8.0, this one has 7.5"),
        ("flash3", (8, 0), BF16, 128, "compute capability 9.0, this one has 8.0"),
        ("flash3", (10, 0), BF16, 128, "made for Hopper"),
    ],
)
def test_what_a_kernel_cannot_take(name, capability, dtype, width, words, gpu):
    with pytest.raises(BadRequest, match=words):
        choose_backend(name, gpu(capability, FA3), dtype, width)


def test_what_must_or_must_not_be_compiled(gpu):
    device = gpu((9, 0), "flash_attn", versions={"flash-attn": "2.8.3"})
    assert choose_backend("flex", device, FP32, 128, compiled=True) == "flex"
    with pytest.raises(BadRequest, match="flex needs --compile"):
        choose_backend("flex", device, FP32, 128)
    assert choose_backend("flash_varlen", device, BF16, 128) == "flash_varlen"
    with pytest.raises(BadRequest, match="cannot be compiled"):
        choose_backend("flash_varlen", device, BF16, 128, compiled=True)


def test_which_are_exact():
    assert {name for name in BACKENDS if not is_exact(name)} == {name for name in BACKENDS if "sage" in name}
    assert is_exact("auto")
    with pytest.raises(BadRequest, match="unknown"):
        is_exact("exact")


def test_which_can_share_tokens():
    shared = {name for name in SHORT if can_share_tokens(name)}
    assert shared == {"auto", "native", "cudnn", "flash", "flash3", "sage"}


@pytest.mark.parametrize("name", ["auto", "native", "_native_math"])
def test_it_reaches_every_attention(name, stock_transformer, inputs):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    transformer = copy.deepcopy(stock_transformer())
    transformer.blocks[0].attn1.set_processor(Attention())
    expected, before = forward(transformer, inputs), _AttentionBackendRegistry.get_active_backend()
    set_backend_(transformer, name)
    wanted = "native" if name == "auto" else name
    assert {one._attention_backend.value for one in transformer.attn_processors.values()} == {wanted}
    assert _AttentionBackendRegistry.get_active_backend() == before, "other models in the process keep theirs"
    if wanted == "native":
        assert torch.equal(forward(transformer, inputs), expected)
    else:
        assert not torch.equal(forward(transformer, inputs), expected)
        torch.testing.assert_close(forward(transformer, inputs), expected, rtol=0, atol=1e-5)


def test_adapters_keep_it(attached, inputs):
    adapter = attached("full")
    transformer = adapter.transformer
    set_backend_(transformer, "_native_math")
    adapter.detach()
    adapter.attach(transformer)
    assert {one._attention_backend.value for one in transformer.attn_processors.values()} == {"_native_math"}
    forward(transformer, inputs)


def test_flash3_goes_through_torch(stock_transformer, gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", asked.append)
    transformer = copy.deepcopy(stock_transformer(BF16))
    set_backend_(transformer, "flash3", gpu((9, 0), FA3))
    assert asked == ["FA3"]
    assert {one._attention_backend.value for one in transformer.attn_processors.values()} == {"_native_flash"}


def test_a_package_that_is_there_and_broken(stock_transformer, gpu):
    """torch's own activation imports it, which fails here."""
    with pytest.raises(MissingDependency, match=r"flash3 cannot be loaded .*flash_attn_interface.*say native"):
        set_backend_(copy.deepcopy(stock_transformer(BF16)), "flash3", gpu((9, 0), FA3))


def test_refused_ones_change_nothing(stock_transformer):
    transformer = copy.deepcopy(stock_transformer())
    for name in ("cudnn", "nothing"):
        with pytest.raises(LynxError):
            set_backend_(transformer, name)
    assert {one._attention_backend for one in transformer.attn_processors.values()} == {None}


def test_a_transformer_that_shares_tokens(stock_transformer):
    transformer = copy.deepcopy(stock_transformer())
    for one in transformer.attn_processors.values():
        one._parallel_config = object()
    with pytest.raises(BadRequest, match="cannot share the tokens"):
        set_backend_(transformer, "_native_math")
    set_backend_(transformer, "native")
