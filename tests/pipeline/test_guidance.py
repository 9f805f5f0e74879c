"""The table of passes: weights, what is dropped, the formulas, and one call of the transformer a pass."""

import pytest
import torch

from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.guidance import passes

SCALES = [(g, g_i) for g in (0.0, 0.7, 1.0, 1.5, 2.0, 5.0) for g_i in (None, 0.0, 1.0, 2.0, 5.0)]


def combine(table, outs):
    """The velocity of a table where each pass gives a tensor named after what it sees."""
    return sum(one.weight * outs[one.text, one.who] for one in table)


@pytest.fixture
def outs():
    generator = torch.Generator().manual_seed(0)
    seen = [("prompt", "person"), ("negative", "person"), ("negative", "nobody")]
    return {key: torch.randn(2, 3, generator=generator, dtype=torch.float64) for key in seen}


@pytest.mark.parametrize(("g", "g_i"), SCALES)
def test_weights_sum_to_one_and_none_is_zero(g, g_i):
    table = passes(g, g_i)
    assert sum(one.weight for one in table) == pytest.approx(1)
    assert all(one.weight != 0 for one in table)
    assert len({(one.text, one.who) for one in table}) == len(table)


@pytest.mark.parametrize(("g", "g_i"), SCALES)
def test_formulas(g, g_i, outs):
    c, i, u = outs["prompt", "person"], outs["negative", "person"], outs["negative", "nobody"]
    if g <= 1:
        expected = c
    elif g_i is None:
        expected = u + g * (c - u)
    else:
        expected = u + g_i * (i - u) + g * (c - i)
    torch.testing.assert_close(combine(passes(g, g_i), outs), expected)


@pytest.mark.parametrize(
    ("g", "g_i", "names"),
    [
        (5.0, 2.0, ["prompt", "identity", "none"]),
        (5.0, 1.0, ["prompt", "identity"]),
        (5.0, 5.0, ["prompt", "none"]),
        (5.0, None, ["prompt", "none"]),
        (1.0, 2.0, ["prompt"]),
        (0.0, None, ["prompt"]),
    ],
)
def test_passes_of_weight_zero_are_dropped(g, g_i, names):
    assert [one.name for one in passes(g, g_i)] == names


@pytest.mark.parametrize(
    ("g", "g_i", "calls"), [(5.0, 2.0, 3), (5.0, 1.0, 2), (5.0, "none", 2), (1.0, 2.0, 1), (0.5, "none", 1)]
)
def test_one_call_a_pass(g, g_i, calls, full, sitter, tiny):
    counted = []
    hook = full.transformer.register_forward_pre_hook(lambda _, args: counted.append(args[0].shape))
    try:
        generate(full, sitter(), "A person waves.", tiny(guidance_scale=g, guidance_scale_i=g_i, ref_scale=0.0))
    finally:
        hook.remove()
    assert len(counted) == 2 * calls
    assert set(counted) == {(1, 16, 2, 8, 8)}
