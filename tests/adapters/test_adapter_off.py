"""Off is off: whatever switches a term off, the output equals the untouched stock transformer bit for bit."""

import copy

import pytest
import torch

from lynx_video.adapters.attach import OFF, Influence
from lynx_video.adapters.memory import Memory, text_memory
from lynx_video.adapters.projection import KeysValues
from lynx_video.errors import BadRequest

DTYPES = (torch.float32, torch.bfloat16)
PARTS = ("identity", "reference")
WAYS_OFF = {
    "scale 0": Influence(scale=0.0),
    "before the window": Influence(start=0.5).at(0.49),
    "at the end of the window": Influence(stop=0.5).at(0.5),
    "empty window": Influence(start=0.5, stop=0.5).at(0.5),
    "no blocks": Influence(blocks=frozenset()),
}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def video(golden, dtype):
    """Latents of two different clips, timesteps and text for the transformer."""
    data = golden("full_two_pass")
    latents = torch.cat([data["initial_latents"], data["last_step_input_latents"]])
    text = torch.cat([data["prompt_embeds"], data["negative_prompt_embeds"]])
    return latents.to(dtype), torch.tensor([999.0, 400.0]), text.to(dtype)


@pytest.fixture
def adapter(attached, dtype):
    return attached("full", dtype)


@pytest.fixture
def plain(stock_transformer, dtype, video):
    transformer = stock_transformer(dtype)
    assert all(type(p).__name__ == "WanAttnProcessor" for p in transformer.attn_processors.values())
    return forward(transformer, video)


@pytest.fixture
def memory(adapter, golden, dtype):
    data = golden("full_three_pass")
    found = Memory(
        identity=adapter.identity_memory(data["face_embedding"][None]),
        reference=adapter.reference_memory([data[f"ref_buffer.cond.{i}"].to(dtype) for i in range(4)]),
    )
    return found.to("cpu", dtype)


@torch.no_grad()
def forward(transformer, video):
    return transformer(*video, return_dict=False)[0]


def poisoned(memory, part, blocks):
    """The memory with NaN in one part of some blocks: where it is read, the output is NaN too."""
    pairs = {
        i: KeysValues(*(torch.full_like(t, torch.nan) for t in pair)) if i in blocks else pair
        for i, pair in getattr(memory, part).items()
    }
    return Memory(**{p: pairs if p == part else getattr(memory, p) for p in PARTS})


def test_nobody_in_scope(adapter, video, plain):
    assert torch.equal(forward(adapter.transformer, video), plain)
    for nobody in (None, Memory()):
        with adapter.using(nobody):
            assert torch.equal(forward(adapter.transformer, video), plain)


def test_somebody_in_scope_is_seen(adapter, video, plain, memory):
    for part in PARTS:
        with adapter.using(Memory(**{part: getattr(memory, part)})):
            assert not torch.equal(forward(adapter.transformer, video), plain)


@pytest.mark.parametrize("way", WAYS_OFF)
@pytest.mark.parametrize("part", PARTS)
def test_one_part_off(part, way, adapter, video, plain, memory):
    alone = Memory(**{part: getattr(memory, part)})
    for one in (alone, poisoned(alone, part, range(4))):
        with adapter.using(one, **{part: WAYS_OFF[way]}):
            assert torch.equal(forward(adapter.transformer, video), plain)


@pytest.mark.parametrize("part", PARTS)
def test_one_part_off_leaves_the_other_alone(part, adapter, video, memory):
    other = PARTS[1 - PARTS.index(part)]
    with adapter.using(Memory(**{other: getattr(memory, other)})):
        expected = forward(adapter.transformer, video)
    with adapter.using(memory, **{part: OFF}):
        assert torch.equal(forward(adapter.transformer, video), expected)


@pytest.mark.parametrize("part", PARTS)
def test_blocks_left_out_are_out_and_the_others_in(part, adapter, video, memory):
    chosen = Influence(blocks=frozenset({1, 3}))
    with adapter.using(memory, **{part: chosen}):
        expected = forward(adapter.transformer, video)
    with adapter.using(poisoned(memory, part, {0, 2}), **{part: chosen}):
        assert torch.equal(forward(adapter.transformer, video), expected)
    for block in (1, 3):
        with adapter.using(poisoned(memory, part, {block}), **{part: chosen}):
            assert forward(adapter.transformer, video).isnan().all()


def test_after_detach(adapter, video, plain, memory):
    transformer = adapter.transformer
    with adapter.using(memory):
        assert not torch.equal(forward(transformer, video), plain)
    adapter.detach()
    assert torch.equal(forward(transformer, video), plain)
    assert all(type(p).__name__ == "WanAttnProcessor" for p in transformer.attn_processors.values())
    with pytest.raises(BadRequest, match="not attached"):
        _ = adapter.transformer


def test_text_memory_equals_stock(adapter, video, plain, memory):
    latents, timestep, text = video
    projected = text_memory(adapter.transformer, text)
    one_token = latents, timestep, text[:, :1]
    with adapter.using(None, text=projected):
        assert torch.equal(forward(adapter.transformer, one_token), plain)
    with adapter.using(memory):
        expected = forward(adapter.transformer, video)
    with adapter.using(memory, text=projected):
        assert torch.equal(forward(adapter.transformer, one_token), expected)


def test_fused_projections(adapter, video, stock_transformer, dtype):
    fused = copy.deepcopy(stock_transformer(dtype))
    fused.fuse_qkv_projections()
    expected = forward(fused, video)
    adapter.transformer.fuse_qkv_projections()
    assert torch.equal(forward(adapter.transformer, video), expected)
    with adapter.using(None, text=text_memory(adapter.transformer, video[2])):
        assert torch.equal(forward(adapter.transformer, video), expected)


def test_an_exception_leaves_nothing_in_scope(adapter, video, plain, memory):
    def fail():
        with adapter.using(memory, text=text_memory(adapter.transformer, video[2])):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(forward(adapter.transformer, video), plain)


def test_scopes_nest(adapter, video, plain, memory):
    with adapter.using(memory):
        outer = forward(adapter.transformer, video)
        with adapter.using(None):
            assert torch.equal(forward(adapter.transformer, video), plain)
        assert torch.equal(forward(adapter.transformer, video), outer)
    assert not torch.equal(outer, plain)


def test_a_block_that_does_not_exist(adapter, memory):
    for bad in ({4}, {-1}):
        with (
            pytest.raises(BadRequest, match="the base has blocks 0 to 3"),
            adapter.using(memory, reference=Influence(blocks=frozenset(bad))),
        ):
            pass
    assert all(p.memory is None for p in adapter.transformer.attn_processors.values())


def test_the_state_dict_stays_the_stock_one(adapter, stock_transformer, dtype):
    assert adapter.transformer.state_dict().keys() == stock_transformer(dtype).state_dict().keys()


@pytest.mark.parametrize(
    ("setting", "word"), [({"start": 0.6, "stop": 0.5}, "window"), ({"stop": 1.5}, "window"), ({"scale": 99}, "scale")]
)
def test_influences_that_cannot_be(setting, word):
    with pytest.raises(BadRequest, match=word):
        Influence(**setting)
