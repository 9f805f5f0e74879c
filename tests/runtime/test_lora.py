"""LoRAs in every layout: on, the result is that of changed weights; off, the stock one bit for bit; what does not fit is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from lynx_video.adapters.memory import reference_features, text_memory
from lynx_video.adapters.weights import BaseShape
from lynx_video.errors import BadRequest, BadWeights
from lynx_video.runtime.compiling import compile_
from lynx_video.runtime.lora import LowRank, check_lora, load_loras_
from lynx_video.runtime.offload import Offload, offload_, placed
from lynx_video.runtime.quantize import quantize_

SHAPE = BaseShape(width=96, heads=4, blocks=4)
RANK, TOLERANCE = 3, 1e-5
# a block's linear layers, in the names of diffusers and in Wan's own
LINEARS = {
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v", "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v", "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2",
}  # fmt: skip
OUTSIDE = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
BLOCK_LAYERS = {f"blocks.{b}.{ours}": f"blocks.{b}.{wans}" for b in range(4) for ours, wans in LINEARS.items()}
ALL_LAYERS = BLOCK_LAYERS | OUTSIDE
# layout -> how a layer is spelled, and its two halves
LAYOUTS = {
    "lightx2v": (lambda _, wans: f"diffusion_model.{wans}", ".lora_down.weight", ".lora_up.weight"),
    "causvid": (lambda _, wans: f"diffusion_model.{wans}", ".lora_A.weight", ".lora_B.weight"),
    "bare": (lambda _, wans: wans, ".lora_A.weight", ".lora_B.weight"),
    "musubi": (lambda _, wans: f"lora_unet_{wans.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"),
    "diffusers": (lambda ours, _: f"transformer.{ours}", ".lora_A.weight", ".lora_B.weight"),
    "peft": (lambda ours, _: f"base_model.model.{ours}", ".lora_A.default.weight", ".lora_B.default.weight"),
}


@pytest.fixture
def transformer(stock_transformer):
    return copy.deepcopy(stock_transformer())


@pytest.fixture(scope="module")
def inputs():
    rng = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 16, 2, 8, 8, generator=rng), torch.randn(1, 7, 48, generator=rng)
    return latents, torch.tensor([700.0]), text


def run(transformer, inputs):
    with torch.no_grad():
        return transformer(*inputs, return_dict=False)[0]


def halves(transformer, layers, seed=0):
    """layer -> (down, up), large enough to be seen."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        linear = transformer.get_submodule(layer)
        down = torch.randn(RANK, linear.in_features, generator=rng) * 0.2
        found[layer] = down, torch.randn(linear.out_features, RANK, generator=rng) * 0.1
    return found


def spelled(pairs, layout, alpha=None):
    name, down, up = LAYOUTS[layout]
    tensors = {}
    for layer, (a, b) in pairs.items():
        stem = name(layer, ALL_LAYERS[layer])
        tensors |= {stem + down: a, stem + up: b}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def write(path, tensors, metadata=None):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def changed(transformer, pairs, scale=1.0):
    """A copy with up @ down added to the weights themselves."""
    other = copy.deepcopy(transformer)
    for layer, (down, up) in pairs.items():
        other.get_submodule(layer).weight.data += scale * up @ down
    return other


def load(transformer, *specs):
    return load_loras_(transformer, [check_lora(str(spec), SHAPE) for spec in specs])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_adds_the_product_and_off_is_stock(layout, transformer, inputs, tmp_path):
    pairs = halves(transformer, ALL_LAYERS)
    stock, expected = run(transformer, inputs), run(changed(transformer, pairs), inputs)
    assert (expected - stock).abs().max() > 0.1, "a difference that is seen"
    loras = load(transformer, write(tmp_path / "lora.safetensors", spelled(pairs, layout)))
    assert torch.equal(run(transformer, inputs), stock)
    with loras.on():
        torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
        with loras.off():
            assert torch.equal(run(transformer, inputs), stock)
    assert torch.equal(run(transformer, inputs), stock)


def test_every_layer_counts(transformer, inputs, tmp_path):
    """One layer at a time, so that no two are mixed up."""
    stock = run(transformer, inputs)
    for layer in ("blocks.2.attn1.to_k", "blocks.3.attn2.to_out.0", "blocks.0.ffn.net.2", *OUTSIDE):
        pairs = halves(transformer, [layer], seed=3)
        expected = run(changed(transformer, pairs), inputs)
        assert not torch.equal(expected, stock)
        loras = load(transformer, write(tmp_path / "one.safetensors", spelled(pairs, "causvid")))
        with loras.on():
            torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
        loras.remove_()


def test_alpha_over_rank_is_the_scale(transformer, inputs, tmp_path):
    pairs = halves(transformer, BLOCK_LAYERS)
    write(tmp_path / "key.safetensors", spelled(pairs, "musubi", alpha=1.5))
    config = {"transformer.r": RANK, "transformer.lora_alpha": 1.5}
    write(tmp_path / "stated.safetensors", spelled(pairs, "diffusers"), {"lora_adapter_metadata": json.dumps(config)})
    expected = run(changed(transformer, pairs, 1.5 / RANK), inputs)
    for name in ("key", "stated"):
        loras = load(transformer, tmp_path / f"{name}.safetensors")
        with loras.on():
            torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
        loras.remove_()


def test_a_bias_of_the_second_product_shares_its_scale(transformer, inputs, tmp_path):
    """What PEFT trains with `lora_bias`."""
    pairs, bias = halves(transformer, ["blocks.0.attn1.to_q"]), torch.randn(96, generator=torch.Generator().manual_seed(2))
    tensors = spelled(pairs, "diffusers", alpha=1.5) | {"transformer.blocks.0.attn1.to_q.lora_B.bias": bias}
    reference = changed(transformer, pairs, 1.5 / RANK)
    reference.blocks[0].attn1.to_q.bias.data += 1.5 / RANK * bias
    loras = load(transformer, write(tmp_path / "a.safetensors", tensors))
    with loras.on():
        torch.testing.assert_close(run(transformer, inputs), run(reference, inputs), atol=TOLERANCE, rtol=TOLERANCE)


def test_stated_alphas_by_pattern_and_root_of_rank(transformer, tmp_path):
    config = {"lora_alpha": 6, "use_rslora": True, "alpha_pattern": {"attn1.to_q": 2}}
    stated = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    tensors = spelled(halves(transformer, ["blocks.0.attn1.to_q", "blocks.0.attn1.to_k"]), "diffusers")
    file = check_lora(str(write(tmp_path / "a.safetensors", tensors, stated)), SHAPE)
    assert file.default_alpha["blocks.0.attn1.to_q"] == pytest.approx(2 * RANK**0.5)
    assert file.default_alpha["blocks.0.attn1.to_k"] == pytest.approx(6 * RANK**0.5)


def test_two_loras_and_their_scales_add_up(transformer, inputs, tmp_path):
    first, second = halves(transformer, BLOCK_LAYERS, 1), halves(transformer, ["blocks.1.attn1.to_q", "proj_out"], 2)
    rng = torch.Generator().manual_seed(4)
    biases, norms = torch.randn(2, 96, generator=rng), torch.randn(2, 96, generator=rng)
    more = [{"blocks.2.ffn.2.diff_b": bias, "blocks.2.norm3.diff": norm} for bias, norm in zip(biases, norms, strict=True)]
    one = write(tmp_path / "one.safetensors", spelled(first, "lightx2v", alpha=6.0) | more[0])
    two = write(tmp_path / "two.safetensors", spelled(second, "diffusers") | more[1])
    reference = changed(changed(transformer, first, 0.25 * 6.0 / RANK), second, -0.5)
    reference.blocks[2].ffn.net[2].bias.data += 0.25 * biases[0] - 0.5 * biases[1]
    reference.blocks[2].norm2.weight.data += 0.25 * norms[0] - 0.5 * norms[1]
    expected = run(reference, inputs)
    loras = load(transformer, f"{one}:0.25", f"{two}:-0.5")
    assert [(file.path, file.scale) for file in loras.files] == [(one, 0.25), (two, -0.5)]
    with loras.on():
        torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert len([m for m in transformer.modules() if isinstance(m, LowRank)]) == len(first) + 1


def test_whole_differences_are_added(transformer, inputs, tmp_path):
    """What other loaders drop: biases, norms, modulation, the patch embedding and whole weights."""
    rng = torch.Generator().manual_seed(5)
    wans = {  # key -> the parameter it belongs to
        "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias",
        "blocks.1.ffn.0.diff_b": "blocks.1.ffn.net.0.proj.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight",
        "blocks.2.cross_attn.norm_k.diff": "blocks.2.attn2.norm_k.weight",
        "blocks.2.norm3.diff": "blocks.2.norm2.weight",
        "blocks.2.norm3.diff_b": "blocks.2.norm2.bias",
        "blocks.3.diff_m": "blocks.3.scale_shift_table",
        "head.diff_m": "scale_shift_table",
        "head.head.diff": "proj_out.weight",
        "head.head.diff_b": "proj_out.bias",
        "text_embedding.0.diff": "condition_embedder.text_embedder.linear_1.weight",
        "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
    }
    stock, tensors = run(transformer, inputs), {}
    state = {name: value.clone() for name, value in transformer.state_dict().items()}
    everything = copy.deepcopy(transformer)
    for key, name in wans.items():
        difference = torch.randn(transformer.get_parameter(name).shape, generator=rng) * 0.1
        alone = copy.deepcopy(transformer)
        for other in (alone, everything):
            other.get_parameter(name).data += 0.5 * difference
        expected = run(alone, inputs)
        assert not torch.equal(expected, stock)
        tensors[f"diffusion_model.{key}"] = difference
        loras = load(transformer, f"{write(tmp_path / 'one.safetensors', {f'diffusion_model.{key}': difference})}:0.5")
        with loras.on():
            torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
        loras.remove_()
    tensors["diffusion_model.blocks.0.norm3.diff"] = torch.zeros(96)  # as most are
    loras = load(transformer, f"{write(tmp_path / 'all.safetensors', tensors)}:0.5")
    assert "weight_with_lora" not in transformer.blocks[0].norm2._parameters
    with loras.on():
        torch.testing.assert_close(run(transformer, inputs), run(everything, inputs), atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(run(transformer, inputs), stock)
    loras.remove_()
    after = transformer.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_same_as_diffusers_and_peft(stock_transformer, inputs, tmp_path):
    """The same file through diffusers' converter and PEFT."""
    pytest.importorskip("peft")
    from diffusers.loaders.lora_conversion_utils import (
        _convert_musubi_wan_lora_to_diffusers,
        _convert_non_diffusers_wan_lora_to_diffusers,
    )

    for layout, convert in (
        ("lightx2v", _convert_non_diffusers_wan_lora_to_diffusers),
        ("causvid", _convert_non_diffusers_wan_lora_to_diffusers),
        ("musubi", _convert_musubi_wan_lora_to_diffusers),
    ):
        ours, theirs = copy.deepcopy(stock_transformer()), copy.deepcopy(stock_transformer())
        layers = BLOCK_LAYERS if layout == "musubi" else ALL_LAYERS
        tensors = spelled(halves(ours, layers), layout, alpha=1.5 if layout == "musubi" else None)
        if layout == "lightx2v":
            biases = {f"diffusion_model.{wans}.diff_b": layer for layer, wans in BLOCK_LAYERS.items()}
            tensors |= {key: torch.randn(ours.get_submodule(layer).out_features) * 0.1 for key, layer in biases.items()}
        path = write(tmp_path / f"{layout}.safetensors", tensors)
        loras = load(ours, path)
        theirs.load_lora_adapter(convert(dict(tensors)), adapter_name="one", prefix="transformer")
        with loras.on():
            torch.testing.assert_close(run(ours, inputs), run(theirs, inputs), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_peft_file_of_diffusers_own_making(transformer, stock_transformer, inputs, tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig

    theirs = copy.deepcopy(stock_transformer())
    torch.manual_seed(0)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_k", "net.2"], init_lora_weights=False))
    theirs.save_lora_adapter(tmp_path)
    loras = load(transformer, tmp_path)
    stock = run(transformer, inputs)
    with loras.on():
        torch.testing.assert_close(run(transformer, inputs), run(theirs, inputs), atol=TOLERANCE, rtol=TOLERANCE)
        assert not torch.equal(run(transformer, inputs), stock)


def test_the_scope_ends_with_an_error(transformer, inputs, tmp_path):
    loras = load(transformer, write(tmp_path / "a.safetensors", spelled(halves(transformer, BLOCK_LAYERS), "bare")))
    stock = run(transformer, inputs)
    with pytest.raises(KeyError), loras.on():
        raise KeyError
    assert torch.equal(run(transformer, inputs), stock)
    with pytest.raises(BadRequest, match="LoRAs already"):
        load(transformer, tmp_path / "a.safetensors")


def test_memories_are_with_or_without(attached, inputs, tmp_path):
    """Off unless asked for: reference features and the negative text are the stock ones, the prompt's keys carry the LoRA."""
    adapter = attached("full")
    transformer = adapter.transformer
    latents, text = inputs[0][:, :, :1], inputs[2]
    features, plain = reference_features(transformer, latents, text), text_memory(transformer, text)
    pairs = halves(transformer, ALL_LAYERS)
    tensors = spelled(pairs, "causvid") | {"diffusion_model.blocks.1.cross_attn.norm_k.diff": torch.full((96,), 0.5)}
    reference = changed(transformer, pairs)
    reference.blocks[1].attn2.norm_k.weight.data += 0.5
    loras = load(transformer, write(tmp_path / "a.safetensors", tensors))
    again = reference_features(transformer, latents, text)
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    negative = text_memory(transformer, text)
    with loras.enabled(True):
        prompt = text_memory(transformer, text)
    wanted = text_memory(reference, text)
    for i in range(4):
        assert torch.equal(negative.blocks[i].key, plain.blocks[i].key)
        assert torch.equal(negative.blocks[i].value, plain.blocks[i].value)
        for name in ("key", "value"):
            torch.testing.assert_close(getattr(prompt.blocks[i], name), getattr(wanted.blocks[i], name), atol=1e-5, rtol=1e-5)
    assert not torch.equal(prompt.blocks[1].key, plain.blocks[1].key)


def test_on_and_off_are_two_graphs(transformer, inputs, tmp_path):
    """Compiled whole, a block has one graph with and one without; turning it over and over makes no more."""
    tensors = spelled(halves(transformer, BLOCK_LAYERS), "causvid")
    tensors |= {"diffusion_model.blocks.0.norm3.diff": torch.ones(96), "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 96)}
    loras = load(transformer, write(tmp_path / "a.safetensors", tensors))
    with loras.on():
        expected = run(transformer, inputs)
    stock, graphs = run(transformer, inputs), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_(transformer, backend=backend)
    counts = []
    for _ in range(3):
        assert torch.equal(run(transformer, inputs), stock)
        with loras.on():
            torch.testing.assert_close(run(transformer, inputs), expected, atol=TOLERANCE, rtol=TOLERANCE)
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[1:] == counts[:1] * 2
    assert counts[0] == 2


def test_offloaded_blocks_take_theirs_along(transformer, inputs, tmp_path):
    """The same hooks as on a GPU; and the prompt's keys, whose layers visit the device for them."""
    tensors = spelled(halves(transformer, ALL_LAYERS), "causvid") | {"diffusion_model.blocks.0.norm3.diff": torch.ones(96)}
    loras = load(transformer, write(tmp_path / "a.safetensors", tensors))
    with loras.on():
        expected, text = run(transformer, inputs), text_memory(transformer, inputs[2])
    stock = run(transformer, inputs)
    offload_(transformer, Offload(device="cpu"))
    for _ in range(2):
        assert torch.equal(run(transformer, inputs), stock)
        with loras.on():
            assert torch.equal(run(transformer, inputs), expected)
            with placed(transformer, "cpu"):
                again = text_memory(transformer, inputs[2])
    assert all(torch.equal(again.blocks[i].key, text.blocks[i].key) for i in range(4))


def gguf_(transformer):
    """The blocks' linear layers as those that diffusers makes of a GGUF file."""
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    for layer in BLOCK_LAYERS:
        linear = transformer.get_submodule(layer)
        new = GGUFLinear(linear.in_features, linear.out_features, bias=True, compute_dtype=linear.weight.dtype)
        data = gguf.quants.quantize(linear.weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
        new.weight = GGUFParameter(torch.from_numpy(data), quant_type=gguf.GGMLQuantizationType.Q8_0)
        new.bias = linear.bias
        transformer.set_submodule(layer, new)


@pytest.mark.parametrize("kind", ["fp8-storage", "int8", "nf4", "gguf"])
def test_quantised_layers_take_them_too(kind, stock_transformer, inputs, tmp_path):
    """On, each layer gives its own quantised product plus the difference; off, what it gave before."""
    if package := {"int8": "torchao", "nf4": "bitsandbytes"}.get(kind):
        pytest.importorskip(package)
    transformer = copy.deepcopy(stock_transformer(torch.bfloat16))
    gguf_(transformer) if kind == "gguf" else quantize_(transformer, kind)
    pairs = halves(transformer, BLOCK_LAYERS)
    path = write(tmp_path / "a.safetensors", spelled(pairs, "lightx2v"))
    inputs = tuple(one.bfloat16() for one in inputs)
    before = run(transformer, inputs)

    def adding(down, up):
        return lambda _, args, out: out + args[0] @ down.bfloat16().t() @ up.bfloat16().t()

    hooks = [transformer.get_submodule(layer).register_forward_hook(adding(*both)) for layer, both in pairs.items()]
    expected = run(transformer, inputs)
    for hook in hooks:
        hook.remove()
    assert (expected - before).abs().max() > 0.1
    loras = load(transformer, path)
    assert torch.equal(run(transformer, inputs), before)
    with loras.on():
        drawn = run(transformer, inputs)
    difference = (drawn - expected).float()
    assert difference.square().mean().sqrt() < 0.05 * (expected - before).float().square().mean().sqrt()
    assert torch.equal(run(transformer, inputs), before)


class NoSync(TorchDispatchMode):
    """Fails where a value is read back to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero), func
        return func(*args, **(kwargs or {}))


def test_turning_waits_for_nothing(transformer, inputs, tmp_path):
    loras = load(transformer, write(tmp_path / "a.safetensors", spelled(halves(transformer, BLOCK_LAYERS), "bare")))
    with NoSync():
        for on in (True, False, True):
            with loras.enabled(on):
                run(transformer, inputs)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 1536)}, "lacks the other half"),
        (
            {
                "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 192),
                "diffusion_model.blocks.0.self_attn.q.lora_B.weight": torch.zeros(192, 4),
            },
            r"lora_A.weight has shape \[4, 192\]: the LoRA is made for a base of width 192, this base has width 96",
        ),
        ({"diffusion_model.time_projection.1.diff_b": torch.zeros(6 * 192)}, "base of width 192"),
        (
            {
                "transformer.blocks.4.attn1.to_q.lora_A.weight": torch.zeros(4, 96),
                "transformer.blocks.4.attn1.to_q.lora_B.weight": torch.zeros(96, 4),
            },
            "is for block 4, this base has 4 blocks",
        ),
        (
            {
                "blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 96),
                "blocks.0.self_attn.q.lora_B.weight": torch.zeros(96, 5),
            },
            "differ in rank",
        ),
        ({"diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.zeros(96)}, "image-to-video"),
        ({"diffusion_model.blocks.0.self_attn.q.lokr_w1": torch.zeros(4, 4)}, "not supported"),
        ({"transformer.single_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 96)}, "belongs to no layer of a text-to-video"),
        ({"patch_embedding.lora_A.weight": torch.zeros(4, 96)}, "no linear layer"),
        ({"blocks.0.attn1.to_q.weight": torch.zeros(96, 96)}, "is no LoRA"),
        ({}, "holds no LoRA"),
        (
            {
                "blocks.0.ffn.0.alpha": torch.zeros(2),
                "blocks.0.ffn.0.lora_down.weight": torch.zeros(4, 96),
                "blocks.0.ffn.0.lora_up.weight": torch.zeros(192, 4),
            },
            "expected one number",
        ),
        ({"blocks.0.ffn.0.diff_b": torch.zeros(2, 96)}, "expected 1 dimensions"),
        ({"blocks.0.ffn.0.diff_b": torch.zeros(192), "diffusion_model.blocks.0.ffn.0.diff_b": torch.zeros(192)}, "keep one"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_header(tensors, match, tmp_path):
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(BadWeights, match=match) as error:
        check_lora(str(path), SHAPE)
    assert str(path) in str(error.value)


def test_sizes_the_header_check_cannot_know_are_refused_on_loading(transformer, tmp_path):
    """The width of the feed-forward layer and of norms is known only of the loaded base; nothing is changed by then."""
    for key, shape, match in (
        ("blocks.0.ffn.0.diff_b", (200,), "does not fit the layer of 96 to 192"),
        ("blocks.0.norm3.diff", (90,), r"has shape \[90\], this base has \[96\]"),
    ):
        good = spelled(halves(transformer, ["blocks.0.attn1.to_q"]), "bare")
        path = write(tmp_path / "bad.safetensors", good | {key: torch.ones(shape)})
        with pytest.raises(BadWeights, match=match):
            load(transformer, path)
        assert not any(isinstance(module, LowRank) for module in transformer.modules())


def test_specs(tmp_path):
    tensors = {"blocks.0.ffn.0.diff_b": torch.zeros(192)}
    (tmp_path / "folder").mkdir()
    plain, colon = write(tmp_path / "a.safetensors", tensors), write(tmp_path / "a.safetensors:0.5", tensors)
    inside = write(tmp_path / "folder" / "c.safetensors", tensors)
    for spec, path, scale in (
        (plain, plain, 1.0),
        (f"{plain}:0.7", plain, 0.7),
        (f"{plain}:-2", plain, -2.0),
        (colon, colon, 1.0),
        (f"{colon}:3", colon, 3.0),
    ):
        file = check_lora(str(spec), SHAPE)
        assert (file.path, file.scale) == (path, scale)
    for scale in ("much", "nan", "11", ""):
        with pytest.raises(BadRequest, match="must be a number from -10 to 10"):
            check_lora(f"{plain}:{scale}", SHAPE)
    for spec in ("nowhere.safetensors", "nowhere.safetensors:0.5", r"C:\loras\x.safetensors"):
        with pytest.raises(BadWeights, match="is not there"):
            check_lora(spec, SHAPE)
    assert check_lora(f"{tmp_path / 'folder'}:2", SHAPE).path == inside
    write(tmp_path / "folder" / "d.safetensors", tensors)
    with pytest.raises(BadWeights, match="holds 2 safetensors files"):
        check_lora(str(tmp_path / "folder"), SHAPE)


def test_a_cut_file_and_a_dora_are_refused(transformer, tmp_path):
    tensors = spelled(halves(transformer, ["blocks.0.attn1.to_q"]), "diffusers")
    path = write(tmp_path / "a.safetensors", tensors)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadWeights, match="not a complete safetensors file"):
        check_lora(str(path), SHAPE)
    for metadata, match in (('{"transformer.use_dora": true}', "DoRA"), ("{", "metadata can't be read")):
        write(path, tensors, {"lora_adapter_metadata": metadata})
        with pytest.raises(BadWeights, match=match):
            check_lora(str(path), SHAPE)
