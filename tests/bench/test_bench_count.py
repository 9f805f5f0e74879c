"""Counts: operations against the arithmetic, planted waits, and what is dispatched."""

import pytest
import torch

from lynx_video.bench import turn
from lynx_video.bench.count import count_flops, count_forward
from lynx_video.bench.profile import KINDS, REST, kind_of, profile_block
from lynx_video.bench.side import Held, Side
from lynx_video.config import RuntimeConfig
from lynx_video.pipeline.workload import describe
from lynx_video.runtime.compiling import compile_
from lynx_video.runtime.flops import forward

CPU = torch.device("cpu")


def ready(way):
    turn.remember(way)
    return way


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_a_forward_is_its_arithmetic(way, made, arm):
    described = describe(made(arm)[1])
    terms = forward(described.shape, 320, described.terms)
    ours, plain = ready(way("ours", arm)), ready(way("plain", arm))
    assert ours.tokens == 320
    counts = count_forward(ours.forward, ours.components.transformer, CPU)
    assert counts.flops.total == pytest.approx(sum(terms.values()), rel=1e-3)
    assert counts.flops.attention == sum(number for name, number in terms.items() if "attention" in name)
    assert not counts.syncs
    more = count_forward(plain.forward, plain.components.transformer, CPU)
    assert more.flops.attention == counts.flops.attention
    assert more.flops.total > 1.01 * counts.flops.total
    assert more.kernels > counts.kernels > 100


def test_counting_together_is_counting_apart(way):
    """What is counted in one run is what each count finds alone."""
    ours = ready(way("ours"))
    counts = count_forward(ours.forward, ours.components.transformer, CPU)
    assert counts.flops == count_flops(ours.forward)
    assert count_forward(ours.forward, ours.components.transformer, CPU) == counts


def test_a_wait_is_found_with_its_line(way):
    ours = ready(way("ours"))
    right = ours.forward

    def waits():
        return right().sum().item()

    counts = count_forward(waits, ours.components.transformer, CPU)
    assert len(counts.syncs) == 1
    assert "test_bench_count.py" in counts.syncs[0]


def test_views_are_no_operations(way):
    transformer = way("ours").components.transformer
    a, b = torch.ones(4, 6), torch.ones(6, 5)

    def run():
        product = (a @ b).t().contiguous()[1:].detach()
        return product + 1, torch.empty(3)

    counts = count_forward(run, transformer, CPU)
    assert counts.kernels == 3  # the product, its copy the other way round, the sum
    assert counts.flops.total == 2 * 4 * 6 * 5


def test_compiled_code_hides_its_operations_and_not_its_work(way):
    ours = ready(way("ours"))
    counts = count_forward(ours.forward, ours.components.transformer, CPU)
    compile_(ours.components.transformer, backend="eager")
    ours.forward()
    compiled = count_forward(ours.forward, ours.components.transformer, CPU)
    assert compiled.kernels is None
    assert compiled.flops == counts.flops


def test_a_profile_of_one_block(way):
    ours = ready(way("ours"))
    runs = []
    blocks = ours.components.transformer.blocks
    hook = blocks[1].register_forward_hook(lambda *_: runs.append(1))
    profile = profile_block(Held(side=Side(name=""), way=ours, runtime=RuntimeConfig()))
    hook.remove()
    assert len(runs) > 2  # it is looked at in its place in a forward, with what is in scope there
    calls = {one.name: one.calls for one in profile.operations}
    attention = [one for one in profile.operations if one.kind == "attention"]
    assert sum(one.calls for one in attention if "scaled_dot_product" in one.name and one.microseconds > 0) >= 4
    assert calls["aten::addmm"] == 8
    assert profile.total == pytest.approx(sum(profile.kinds.values()))
    spent = [one.microseconds for one in profile.operations]
    assert spent == sorted(spent, reverse=True)
    assert not blocks[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies"),
        ("void at::native::CatArrayBatchedCopy<at::native::OpaqueType<2u>>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_red_fused__to_copy_add_mul_native_layer_norm_0", REST),
        ("triton_poi_fused_gelu_view_3", REST),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", REST),
        ("aten::native_layer_norm", REST),
        ("aten::mul", REST),
    ],
)
def test_kinds_of_kernels_by_their_names(name, kind):
    assert kind in (*KINDS, REST)
    assert kind_of(name) == kind
