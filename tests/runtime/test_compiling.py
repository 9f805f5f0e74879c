"""Compiled blocks: one graph a path for all blocks, steps, passes and scales; equal results; what would be slow or silent refused."""

import copy
from itertools import product

import pytest
import torch

from lynx_video.adapters.attach import OFF, Influence
from lynx_video.adapters.attention import Attention
from lynx_video.adapters.memory import Memory, text_memory
from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest, LynxError
from lynx_video.pipeline.denoise import denoise, initial_noise
from lynx_video.pipeline.guidance import passes, tables
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps
from lynx_video.runtime import compiling
from lynx_video.runtime.compiling import compile_, count_compilations, is_compiled, uncompile_

SHARE = {"full": 1, "lite": 2}
"graphs of a forward with everything on: lite has a memory in every second block"


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Scene:
    """An adapter on its transformer, and what a generation puts in scope."""

    def __init__(self, adapter, data, dtype=torch.float32):
        self.adapter, self.transformer, self.data = adapter, adapter.transformer, data
        self.latents = data["initial_latents"].to(dtype)
        self.texts = {
            name: text_memory(self.transformer, data[key].to(dtype))
            for name, key in (("prompt", "prompt_embeds"), ("negative", "negative_prompt_embeds"))
        }
        self.memories = {}
        for who, share in (("person", 1), ("nobody", 0)):
            features = [share * data[f"ref_buffer.cond.{i}"].to(dtype) for i in range(4)]
            with torch.no_grad():
                identity = adapter.identity_memory(share * data["face_embedding"][None])
                reference = adapter.reference_memory(features) if adapter.config.reference_blocks else {}
            self.memories[who] = Memory(identity=identity, reference=reference).to("cpu", dtype)

    @torch.no_grad()
    def forward(self, text="prompt", who="person", t=999.0, **influences):
        text = self.texts[text]
        with self.adapter.using(self.memories.get(who), text=text, **influences):
            return self.transformer(self.latents, torch.tensor([t]), text.embeddings[:, :1], return_dict=False)[0]

    def all_ways(self):
        """Every pass, each at another step, at two scales, with each term on and off."""
        influences = (Influence(), Influence(scale=0.7), OFF)
        seen = (("prompt", "person", 999.0), ("negative", "person", 500.0), ("negative", "nobody", 5.0))
        for (text, who, t), identity, reference in product(seen, influences, influences):
            yield {"text": text, "who": who, "t": t, "identity": identity, "reference": reference}


def clip(frames):
    """Latents of so many frames, 4 tokens each."""
    return torch.randn(1, 16, frames, 4, 4, generator=torch.Generator().manual_seed(frames))


@pytest.fixture
def scene(attached, golden):
    return lambda arm="full", dtype=torch.float32: Scene(attached(arm, dtype), golden("full_three_pass"), dtype)


@pytest.mark.parametrize("arm", SHARE)
def test_one_graph_serves_all_blocks_steps_passes_and_scales(arm, scene):
    one = scene(arm)
    ways = [way for way in one.all_ways() if OFF not in way.values()]
    expected = [one.forward(**way) for way in ways]
    compile_(one.transformer, backend="eager")
    with count_compilations() as count:
        assert torch.equal(one.forward(**ways[0]), expected[0])
        assert count.graphs == SHARE[arm], count
        for way, plain in zip(ways, expected, strict=True):
            assert torch.equal(one.forward(**way), plain)
    assert (count.graphs, count.again, count.breaks) == (SHARE[arm], SHARE[arm] - 1, 0), count
    assert not torch.equal(expected[0], expected[-1])


@pytest.mark.parametrize(
    ("arm", "dtype", "paths"), [("full", torch.float32, 4), ("full", torch.bfloat16, 4), ("lite", torch.float32, 2)]
)
def test_each_side_of_a_window_is_compiled_once(arm, dtype, paths, scene):
    one = scene(arm, dtype)
    ways = list(one.all_ways())
    expected = [one.forward(**way) for way in ways]
    compile_(one.transformer, backend="eager")
    with count_compilations() as first:
        for way, plain in zip(ways, expected, strict=True):
            assert torch.equal(one.forward(**way), plain)
    assert (first.graphs, first.breaks) == (paths, 0), first
    with count_compilations() as second:
        for way in reversed(ways):
            one.forward(**way)
        one.forward(who=None)
    assert second.graphs == 0, second


@pytest.mark.parametrize(("mode", "graphs"), [("sequential", 2), ("batched", 3)])
def test_a_whole_loop(mode, graphs, scene, full):
    """A window of the identity and one of guidance. Batched: the three on and off, then the last one alone, off."""
    one = scene()
    influences = {"identity": Influence(scale=0.8, stop=0.5), "reference": Influence(scale=0.9)}

    def loop():
        scheduler = make_scheduler(full.scheduler, GenerateConfig())
        expert = Expert(adapter=one.adapter, texts=one.texts, memories=one.memories)
        steps = tables(passes(5.0, 2.0), 8, 0.75)
        conditions = Conditions(mode=mode, **influences)
        return denoise(
            [expert], scheduler, initial_noise(one.latents.shape, 3), set_timesteps(scheduler, 8, "cpu"), steps, conditions
        )

    expected = loop()
    compile_(one.transformer, backend="eager")
    with count_compilations() as count:
        assert torch.equal(loop(), expected)
    assert (count.graphs, count.breaks) == (graphs, 0), count
    with count_compilations() as count:
        assert torch.equal(loop(), expected)
    assert count.graphs == 0, count


def test_taking_an_identity_compiles_nothing(scene):
    """The reference's features are taken by hooks inside the blocks, each block's its own."""
    one = scene()
    still, text = one.data["initial_latents"][:, :, :1], one.data["prompt_embeds"]
    expected = one.adapter.remember(one.data["face_embedding"], still, text).tensors()
    compile_(one.transformer, backend="eager")
    with count_compilations() as count:
        found = one.adapter.remember(one.data["face_embedding"], still, text).tensors()
    assert count.graphs == 0, count
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_scale_that_is_a_number_is_counted(scene):
    """What this file asserts can fail."""
    one = scene()
    compile_(one.transformer, backend="eager")
    with count_compilations() as count, torch.no_grad():
        for scale in (0.5, 0.6, 0.7):
            with one.adapter.using(one.memories["person"], text=one.texts["prompt"]):
                for processor in one.transformer.attn_processors.values():
                    processor.scale = scale
                one.transformer(one.latents, torch.tensor([5.0]), one.texts["prompt"].embeddings[:, :1])
    assert (count.graphs, count.again) == (3, 2)
    assert any("scale" in reason for reason in count.reasons)
    assert "3 graphs (2 again), 0 breaks" in repr(count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_in_a_tensor_is_the_number(dtype, scene):
    """Bit for bit: it is not rounded to bfloat16 on its way."""
    one = scene(dtype=dtype)
    found = one.forward(identity=Influence(scale=0.7), reference=Influence(scale=-1.3))
    with torch.no_grad(), one.adapter.using(one.memories["person"], text=one.texts["prompt"]):
        for block in one.transformer.blocks:
            block.attn2.processor.scale, block.attn1.processor.scale = 0.7, -1.3
        inputs = one.latents, torch.tensor([999.0]), one.texts["prompt"].embeddings[:, :1]
        assert torch.equal(one.transformer(*inputs, return_dict=False)[0], found)


class Broken(Attention):
    """Does what cannot be in a graph."""

    def __call__(self, attn, hidden_states, *args):
        torch._dynamo.graph_break()
        return super().__call__(attn, hidden_states, *args)


def test_a_block_that_does_not_fit_in_one_graph(scene):
    one = scene()
    for block in one.transformer.blocks:
        block.attn1.set_processor(Broken())
    expected = one.forward(who=None)
    compile_(one.transformer, backend="eager")
    with pytest.raises(LynxError, match=r"the blocks cannot be compiled here \(.*graph_break.*leave out --compile"):
        one.forward(who=None)
    uncompile_(one.transformer)
    compile_(one.transformer, backend="eager", fullgraph=False)
    with count_compilations() as count:
        assert torch.equal(one.forward(who=None), expected)
    assert count.breaks > 0


@pytest.mark.parametrize("fullgraph", [True, False])
def test_too_many_shapes_are_said_and_not_run_slowly(fullgraph, scene, monkeypatch):
    monkeypatch.setattr(compiling, "GRAPHS", 2)
    one = scene()
    compile_(one.transformer, backend="eager", fullgraph=fullgraph)
    for frames in (1, 2):
        one.latents = clip(frames)
        one.forward()
    one.latents = clip(3)
    with pytest.raises(LynxError, match="compiled for 2 different shapes and settings in this process; start a new one"):
        one.forward()
    one.latents = clip(2)
    one.forward()
    assert torch._dynamo.config.recompile_limit != 2


def test_more_shapes_than_torch_allows_by_itself(scene):
    one = scene()
    compile_(one.transformer, backend="eager")
    with count_compilations() as count, torch._dynamo.config.patch(recompile_limit=2):
        for frames in (1, 2, 3):
            one.latents = clip(frames)
            one.forward()
    assert count.graphs == 3, count


def test_twice_is_once_and_it_can_be_undone(scene):
    one = scene()
    assert not is_compiled(one.transformer)
    compile_(one.transformer, backend="eager")
    compiled = [block.forward for block in one.transformer.blocks]
    assert is_compiled(one.transformer)
    compile_(one.transformer, backend="eager")
    assert [block.forward for block in one.transformer.blocks] == compiled
    uncompile_(one.transformer)
    uncompile_(one.transformer)
    assert not is_compiled(one.transformer)
    with count_compilations() as count:
        one.forward()
    assert count.graphs == 0


def test_the_weights_stay_where_they_were(scene, stock_transformer):
    one = scene()
    compile_(one.transformer, backend="eager")
    assert one.transformer.state_dict().keys() == stock_transformer().state_dict().keys()


def test_a_copy_has_its_own_blocks(scene):
    one = scene()
    compile_(one.transformer, backend="eager")
    one.forward(who=None)
    other = copy.deepcopy(one.transformer)
    for block in other.blocks:
        block.ffn.net[2].bias.data += 1.0
    inputs = one.latents, torch.tensor([5.0]), one.data["prompt_embeds"]
    with torch.no_grad():
        found = [model(*inputs, return_dict=False)[0] for model in (one.transformer, other)]
        uncompile_(other)
        plain = other(*inputs, return_dict=False)[0]
    assert torch.equal(found[1], plain)
    assert not torch.equal(found[0], plain)


def test_hooks_stay_outside(scene):
    """Put on afterwards, they may do what no graph can hold."""
    from diffusers.hooks import HookRegistry, ModelHook

    one, seen = scene(), []
    expected = one.forward()

    class Look(ModelHook):
        def pre_forward(self, module, hidden_states, *args, **kwargs):  # noqa: ARG002
            seen.append(float(hidden_states.sum()))
            return (hidden_states, *args), kwargs

    compile_(one.transformer, backend="eager")
    for block in one.transformer.blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Look(), "look")
    with count_compilations() as count:
        assert torch.equal(one.forward(), expected)
    assert (count.graphs, count.breaks) == (1, 0), count
    assert len(seen) == 4
    assert is_compiled(one.transformer)
    compile_(one.transformer, backend="eager")
    with pytest.raises(AssertionError, match="hooks off"):
        uncompile_(one.transformer)


def test_hooks_from_before_are_our_own_mistake(scene):
    from diffusers.hooks import HookRegistry, ModelHook

    one = scene()
    HookRegistry.check_if_exists_or_initialize(one.transformer.blocks[0]).register_hook(ModelHook(), "early")
    with pytest.raises(AssertionError, match="before putting hooks"):
        compile_(one.transformer)


def test_hooks_within_a_block_are_refused(scene):
    one = scene()
    one.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(BadRequest, match="leave out --compile"):
        compile_(one.transformer)
    assert not is_compiled(one.transformer)


@pytest.mark.parametrize("backend", ["_native_math", "_native_flash"])
def test_attention_kernels_that_torch_chooses_in_a_scope(backend, scene):
    """`sdpa_kernel` around the product, as cuDNN and FlashAttention have it, fits in the graph."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    one = scene()
    for processor in one.transformer.attn_processors.values():
        processor._attention_backend = AttentionBackendName(backend)
    expected = one.forward()
    compile_(one.transformer, backend="eager")
    with count_compilations() as count:
        assert torch.equal(one.forward(), expected)
    assert (count.graphs, count.breaks) == (1, 0), count


@pytest.mark.parametrize("arm", SHARE)
def test_what_a_compiler_is_given(arm, scene):
    """Through AOTAutograd, as every compiler behind it sees the graph: lowered operations, the scale as an input."""
    one = scene(arm)
    expected = [one.forward(identity=Influence(scale=scale)) for scale in (1.0, 0.7)]
    compile_(one.transformer, backend="aot_eager")
    with count_compilations() as count:
        for scale, plain in zip((1.0, 0.7), expected, strict=True):
            torch.testing.assert_close(one.forward(identity=Influence(scale=scale)), plain, rtol=0, atol=1e-5)
    assert (count.graphs, count.breaks) == (SHARE[arm], 0), count


def test_a_compiler_that_fails(scene):
    def fail(*_):
        raise RuntimeError("no C++ compiler found\nand much more")

    one = scene()
    compile_(one.transformer, backend=fail)
    with pytest.raises(LynxError, match=r"compiled here \(RuntimeError: no C\+\+ compiler found\); leave out --compile"):
        one.forward()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch, by torch
def test_inductor(scene):
    one = scene()
    ways = [
        {"identity": Influence(scale=scale), "reference": Influence(scale=scale), "t": t}
        for scale, t in ((1.0, 999.0), (0.7, 5.0))
    ]
    expected = [one.forward(**way) for way in ways]
    compile_(one.transformer)
    with count_compilations() as count:
        for way, plain in zip(ways, expected, strict=True):
            torch.testing.assert_close(one.forward(**way), plain, rtol=0, atol=1e-5)
    assert (count.graphs, count.breaks) == (1, 0), count
