"""What a step will take, held against the files of the real adapters, torch's counter of operations and what autograd keeps."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.projection import ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.errors import BadRequest
from lynx_video.training import packing
from lynx_video.training.estimate import GIB, Workload, estimate, table
from lynx_video.training.model import PackedModel
from lynx_video.training.packing import PackedAttention
from lynx_video.training.sample import Pack

MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "manifest_14b.json").read_text())
BASE_14B = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.35.0",
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
FULL_14B = AdapterConfig(
    width=5120,
    heads=40,
    resampler=ResamplerConfig(),
    identity=ProjectionConfig(tokens=5120, width=5120, registers=16),
    identity_blocks=tuple(range(40)),
    reference_blocks=tuple(range(40)),
)
LITE_14B = AdapterConfig(
    width=5120,
    heads=40,
    resampler=ResamplerConfig(output=2048),
    identity=ProjectionConfig(tokens=2048, width=5120, bias=False, own_key_norm=True),
    identity_blocks=tuple(range(0, 40, 2)),
)
CLIP = 32_760  # video tokens of 480x832x81
BLOCKS, WIDTH, TEXT, SIDE = 6, 192, 40, 32
TOKENS = 4 * (SIDE // 2) ** 2


@pytest.fixture(scope="module")
def clip_estimate():
    return estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, processes=128))


@pytest.fixture
def toy(monkeypatch):
    """A packed model of 6 blocks in the precision of training, its pack of one sample of 1024 tokens, and both configs."""
    from diffusers import WanTransformer3DModel

    monkeypatch.setattr(packing, "PLAIN_SCORES", 0)  # always the fused attention, as on CUDA

    def make(recompute, samples=1):
        torch.manual_seed(0)
        base = WanTransformer3DModel(
            num_layers=BLOCKS,
            num_attention_heads=3,
            attention_head_dim=64,
            ffn_dim=512,
            text_dim=64,
            freq_dim=64,
            cross_attn_norm=True,
            rope_max_seq_len=64,
        ).requires_grad_(False)
        for name, parameter in base.named_parameters():
            if not any(part in base._keep_in_fp32_modules for part in name.split(".")):
                parameter.data = parameter.data.bfloat16()
        config = AdapterConfig(
            width=WIDTH,
            heads=3,
            resampler=ResamplerConfig(depth=1, width=64, queries=16, output=WIDTH, inner=64),
            identity=ProjectionConfig(tokens=WIDTH, width=WIDTH, registers=16),
            identity_blocks=tuple(range(BLOCKS)),
            reference_blocks=tuple(range(BLOCKS)),
        )
        adapter = Adapter(config)
        adapter.attach(base, PackedAttention)

        def noise(*shape):
            return [torch.randn(shape).bfloat16() for _ in range(samples)]

        pack = Pack(
            noisy=noise(16, 4, SIDE, SIDE),
            timesteps=torch.linspace(400, 600, samples),
            texts=noise(TEXT, 64),
            faces=list(torch.randn(samples, 512)),
            references=noise(16, 1, SIDE, SIDE),
            reference_texts=noise(TEXT, 64),
            identity_scales=torch.ones(samples),
            reference_scales=torch.ones(samples),
        )
        return PackedModel(adapter, recompute=recompute), pack, dict(base.config), config

    return make


WORK = Workload(sample_tokens=TOKENS, pack_tokens=TOKENS, text_tokens=TEXT, reference_tokens=256)


@pytest.mark.parametrize(("arm", "config"), [("lynx_full", FULL_14B), ("lynx_lite", LITE_14B)])
def test_parameters_are_those_of_the_official_files(arm, config):
    found = estimate(BASE_14B, config, Workload(sample_tokens=CLIP)).trained
    files = {name: sum(math.prod(shape) for shape in tensors.values()) for name, tensors in MANIFEST[arm].items()}
    assert found == {
        "resampler": files["resampler"],
        "identity": files["ip_layers"],
        "reference": files.get("ref_layers", 0),
    }


def test_parameters_of_the_base(clip_estimate):
    assert clip_estimate.frozen == 14_288_491_584  # Wan2.1-T2V-14B
    assert 2 * 14.28e9 < estimate(BASE_14B, FULL_14B, Workload(sample_tokens=1)).memory["frozen base"] < 2 * 14.6e9


def test_arithmetic_of_the_base_is_what_was_worked_out_before(clip_estimate):
    """783 linear, 879 + 16 attention with the text, 1678 together, 7.7 + 1.2 for the adapters: TFLOP, to half a percent."""
    parts = clip_estimate.arithmetic
    assert parts["linear layers"] + parts["attention"] == pytest.approx(1678e12, rel=1e-3)
    assert parts["linear layers"] == pytest.approx(783e12 + 2.1e12, rel=5e-3)
    assert parts["attention"] == pytest.approx(879e12 + 13.7e12, rel=5e-3)
    assert parts["terms of the adapter"] == pytest.approx(8.9e12, rel=5e-3)


def test_arithmetic_of_the_base_is_what_torch_counts(clip_estimate):
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        base = WanTransformer3DModel(**{name: value for name, value in BASE_14B.items() if not name.startswith("_")})
        inputs = torch.empty(1, 16, 21, 60, 104), torch.empty(1), torch.empty(1, 512, 4096)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        base(hidden_states=inputs[0], timestep=inputs[1], encoder_hidden_states=inputs[2])
    ours = clip_estimate.arithmetic["linear layers"] + clip_estimate.arithmetic["attention"]
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-4)


def test_a_step_on_a_clip(clip_estimate):
    """The rule of thumb of three forwards gives 5 PFLOP; the backward of attention costs two and a half forwards, so it is 6.4."""
    parts = clip_estimate.arithmetic
    forward = parts["linear layers"] + parts["attention"] + parts["terms of the adapter"]
    assert 3 * forward == pytest.approx(5e15, rel=0.02)
    assert clip_estimate.total_arithmetic == pytest.approx(6.36e15, rel=0.01)
    assert parts["backward"] == pytest.approx(785e12 + 2.5 * 893e12, rel=0.03)
    stills = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=1560))
    assert stills.workload.samples == 21  # as the paper packs
    assert stills.total_arithmetic < 0.5 * clip_estimate.total_arithmetic


@pytest.mark.parametrize("recompute", [False, True])
def test_arithmetic_of_a_step_is_what_torch_counts(toy, recompute):
    """Forward, recomputing and backward of the model that is trained, to a thousandth; the resampler is what is missing."""
    model, pack, base, adapter = toy(recompute)
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    known = {
        cpu: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
        cpu_backward: lambda out, query, key, value, *_, **__: sdpa_backward_flop_count(out, query, key, value),
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.autocast("cpu", torch.bfloat16):
        model(pack)[0].square().mean().backward()
    found = estimate(base, adapter, replace(WORK, recompute=recompute))
    assert found.total_arithmetic == pytest.approx(counter.get_total_flops(), rel=1e-3)


def kept_bytes(model, pack):
    """Bytes that autograd keeps for the backward, each storage once, parameters and their copies aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.T.shape) for p in model.parameters() if p.ndim == 2}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in shapes:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(pack)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("samples", "levels"), [(1, "pack"), (3, "sample")])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_keeps(toy, recompute, samples, levels):
    """To 5%: rotary tables, logarithms of the softmax and text are left out.

    With a noise level a sample, recomputing holds the modulation and the embedding itself; autograd does not see these.
    """
    model, pack, base, adapter = toy(recompute, samples)
    work = replace(WORK, pack_tokens=samples * TOKENS, recompute=recompute, levels=levels)
    found = estimate(base, adapter, work).memory
    expected = found["kept for the backward"] + (0 if recompute else found["reference features"])
    if levels == "sample":
        expected -= samples * TOKENS * (7 if recompute else 1) * 2 * WIDTH
    assert kept_bytes(model, pack) == pytest.approx(expected, rel=0.05)


def test_reference_features_are_counted_as_they_are(toy):
    model, pack, base, adapter = toy(recompute=False)
    features = model.reference_features(pack)
    size = sum(one.numel() * one.element_size() for one in features)
    assert estimate(base, adapter, WORK).memory["reference features"] == size


def test_memory_of_a_real_state(toy):
    """Adapter, gradients, moments and average as they are after a step of AdamW."""
    model, pack, base, adapter = toy(recompute=False)
    parameters = list(model.adapter.parameters())
    optimizer = torch.optim.AdamW(parameters)
    with torch.autocast("cpu", torch.bfloat16):
        model(pack)[0].square().mean().backward()
    optimizer.step()

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    found = estimate(base, adapter, WORK).memory
    assert found["adapter"] == size(parameters)
    assert found["gradients"] == size(parameter.grad for parameter in parameters)
    assert found["optimizer"] == size(moments)
    assert found["frozen base"] == pytest.approx(size(model.transformer.parameters()), abs=BLOCKS)


def test_state_of_the_adapter_at_14b():
    """67 GB of weights, gradients and moments, to 3%: the resampler was not in that sum."""
    found = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP)).memory
    assert found["adapter"] + found["gradients"] + found["optimizer"] == pytest.approx(67e9, rel=0.03)


def test_what_is_split_and_what_is_not():
    one, eight = (estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, processes=count)).memory for count in (1, 8))
    for name in ("adapter", "gradients", "optimizer", "averaged weights"):
        assert eight[name] == one[name] // 8
    assert (
        one["frozen base"] / 8 < eight["frozen base"] < one["frozen base"] / 8 + 1.1 * GIB
    )  # what lies outside the blocks is whole
    for name in ("kept for the backward", "one block at work", "its copy in bfloat16"):
        assert eight[name] == one[name]
    assert one["blocks gathered from others"] == 0 < eight["blocks gathered from others"] < 4 * GIB


def test_choices_show():
    plain = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP))
    lean = Workload(sample_tokens=CLIP, average=False, moments=1)
    memory = estimate(BASE_14B, FULL_14B, lean).memory
    assert memory["averaged weights"] == 0
    assert memory["optimizer"] == plain.memory["optimizer"] // 2
    single = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, precision="fp32")).memory
    assert single["frozen base"] == pytest.approx(4 * 14.29e9, rel=1e-3)
    assert single["its copy in bfloat16"] == 0
    assert single["kept for the backward"] > 1.5 * plain.memory["kept for the backward"]
    lite = estimate(BASE_14B, LITE_14B, Workload(sample_tokens=CLIP))
    assert lite.memory["reference features"] == lite.arithmetic["references through the base"] == 0
    assert lite.total_memory < 0.6 * plain.total_memory
    twice = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, packs=2))
    assert twice.total_arithmetic == 2 * plain.total_arithmetic
    assert twice.memory == plain.memory
    assert Workload(sample_tokens=50_000).samples == 1


def test_whether_it_fits():
    found = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, processes=8))
    need = found.total_memory
    assert found.fits(80 * GIB).startswith("Fits: about 48.")
    assert found.fits(int(need / 0.95)).startswith("Tight")
    assert "smaller pack or smaller clips" in found.fits(need - 1)
    alone = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP)).fits(80 * GIB)
    assert alone.startswith("Does not fit: about 138.")
    assert "optimizer (31.9 GiB), more processes" in alone
    kept = estimate(BASE_14B, FULL_14B, Workload(sample_tokens=CLIP, processes=64, recompute=False)).fits(80 * GIB)
    assert "recompute" in kept


def test_table(clip_estimate):
    text = table(clip_estimate)
    for words in (
        "4.28 B (resampler 85.9 M, identity 2.1 B, reference 2.1 B)",
        "14.3 B",
        "1 x 1 x 32,760 video tokens on each of 128 processes",
        "optimizer",
        "averaged weights",
        "blocks computed again",
        "6359.1 TFLOP",
    ):
        assert words in text
    assert all(len(line) <= 100 for line in text.splitlines())
    alone = table(estimate(BASE_14B, LITE_14B, Workload(sample_tokens=CLIP, recompute=False)))
    assert "on one process" in alone
    assert "reference" not in alone
    assert "again" not in alone


def test_bad_requests():
    with pytest.raises(BadRequest, match="processes must be 1 or more, got 0"):
        Workload(sample_tokens=1, processes=0)
    with pytest.raises(BadRequest, match="does not describe a Wan transformer"):
        estimate(BASE_14B | {"hidden": 3}, FULL_14B, Workload(sample_tokens=1))
