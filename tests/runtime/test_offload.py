"""Block offload, and the text projections away and back: the same outputs, and never more than two blocks on the device."""

import copy
from contextlib import ExitStack, nullcontext

import pytest
import torch
from torch import nn

from lynx_video.adapters.memory import text_memory
from lynx_video.errors import BadRequest, LynxError
from lynx_video.runtime.host import PeakHostMemory, host_memory, peak_host_memory
from lynx_video.runtime.offload import Away, Offload, check_offload, is_offloaded, offload_, parked, placed
from lynx_video.runtime.quantize import quantize_

PROJECTIONS = [(i, name) for i in range(4) for name in ("to_k", "to_v")]


@pytest.fixture
def scene(attached, golden):
    """scene(dtype) is an adapter on its transformer, and forward(text=None) of it for one input, with and without a memory."""
    data = golden("full_two_pass")

    def make(dtype=torch.float32):
        adapter = attached("full", dtype)
        reference = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        memory = adapter.remember(data["face_embedding"], reference, data["prompt_embeds"])

        def forward(text=None):
            outputs = []
            for who in (memory, None):
                with torch.no_grad(), adapter.using(who, text=text):
                    latents, prompt = data["initial_latents"].to(dtype), data["prompt_embeds"].to(dtype)
                    prompt = prompt if text is None else text.embeddings[:, :1]
                    outputs.append(adapter.transformer(latents, torch.tensor([999.0]), prompt, return_dict=False)[0])
            return torch.cat(outputs)

        forward.text = lambda: text_memory(adapter.transformer, data["prompt_embeds"])
        return adapter, forward

    return make


@pytest.fixture
def fresh_compiler():
    """What earlier tests compiled counts for nothing."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def device(monkeypatch):
    """A device that is not there: what was not brought to it is not a number, and it says how many blocks it holds.

    In place of what diffusers' hooks do between two kinds of memory; when they do it is theirs.
    """
    from diffusers.hooks.group_offloading import ModuleGroup

    class Device:
        def __init__(self):
            self.held, self.most, self.hidden = set(), 0, {}

        def tensors(self, group):
            return [tensor for module in group.modules for tensor in (*module.parameters(), *module.buffers())]

        def come(self, group):
            for tensor in self.tensors(group):
                if id(tensor) in self.hidden:
                    tensor.data = self.hidden.pop(id(tensor))[1]
            self.held.add(group.onload_leader)
            self.most = max(self.most, len(self.held))

        def go(self, group):
            for tensor in self.tensors(group):
                if id(tensor) not in self.hidden:
                    self.hidden[id(tensor)] = (tensor, tensor.data)
                    tensor.data = torch.full_like(tensor.data, torch.nan)
            self.held.discard(group.onload_leader)

    device = Device()
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: device.come(group))
    monkeypatch.setattr(ModuleGroup, "offload_", lambda group: device.go(group))
    return device


@pytest.fixture
def streamed(monkeypatch):
    """What diffusers does on a GPU with a stream for transfers, on the CPU: pinning copies, and nothing runs beside anything."""
    from lynx_video.runtime import offload

    class Stream(torch.cpu.Stream):
        def synchronize(self):
            pass

    monkeypatch.setattr(offload, "_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cpu, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: True)


@pytest.mark.parametrize("kind", ["none", "fp8-storage", "int8", "nf4"])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.usefixtures("streamed")
def test_streams(pinned, kind, scene):
    """The bookkeeping of transfers holds while projections are parked, placed and back, for layers of every kind."""
    adapter, forward = scene(torch.bfloat16)
    if kind != "none":
        quantize_(adapter.transformer, kind)
    exact, text = forward(), forward.text()
    offload_(adapter.transformer, Offload(device="cpu", pinned=pinned))
    for _ in range(2):
        assert torch.equal(forward(), exact)
        with placed(adapter.transformer, "cpu"):
            assert torch.equal(forward.text().blocks[2].key, text.blocks[2].key)
        with parked(adapter.transformer):
            assert torch.equal(forward(text), exact)
            assert torch.equal(forward(text), exact)
    assert torch.equal(forward(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloading_changes_nothing(dtype, scene):
    adapter, forward = scene(dtype)
    exact, text = forward(), forward.text()
    offload_(adapter.transformer, Offload(device="cpu"))
    assert is_offloaded(adapter.transformer)
    assert torch.equal(forward(), exact)
    assert torch.equal(forward(text), exact)
    assert torch.equal(forward.text().blocks[2].key, text.blocks[2].key)
    assert (adapter.transformer.dtype, adapter.transformer.device.type) == (dtype, "cpu")


def test_two_blocks_at_most(scene, device):
    """Every block is brought before it computes, one ahead of its turn, and sent away after it; with all four held nothing would."""
    adapter, forward = scene()
    exact = forward()
    offload_(adapter.transformer, Offload(device="cpu"))
    weight = adapter.transformer.blocks[3].ffn.net[2].weight
    assert weight.isnan().all()  # away, until its turn
    for _ in range(3):
        assert torch.equal(forward(), exact)
        assert not device.held
        assert device.most == 2
        assert weight.isnan().all()


def test_what_stays_on_the_device(scene, monkeypatch):
    """The matrices of the blocks wait in host memory; embedders, norms, modulation and the output layer do not."""
    transformer = scene()[0].transformer
    monkeypatch.setattr("diffusers.hooks.group_offloading.TorchDeviceBackend", lambda _: torch.cpu)
    offload_(transformer, Offload(device="meta"))
    there = {name for name, parameter in transformer.named_parameters() if parameter.device.type == "meta"}
    waiting = {name for name, _ in transformer.named_parameters()} - there
    attention = [f"{attn}.{part}" for attn in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
    layers = (*attention, "ffn.net.0.proj", "ffn.net.2")
    assert {name.split(".", 2)[-1] for name in waiting} == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    assert "blocks.0.attn2.norm_k.weight" in there  # which projecting a memory needs, outside of any block
    assert {buffer.device.type for buffer in transformer.buffers()} == {"meta"}
    assert transformer.device.type == "meta"


@pytest.mark.parametrize("kind", ["fp8-storage", "int8", "nf4"])
def test_offloading_a_quantized_base(kind, scene):
    adapter, forward = scene(torch.bfloat16)
    quantize_(adapter.transformer, kind)
    exact, text = forward(), forward.text()
    offload_(adapter.transformer, Offload(device="cpu"))
    assert torch.equal(forward(), exact)
    with parked(adapter.transformer):
        assert torch.equal(forward(text), exact)
    with placed(adapter.transformer, "cpu"):
        assert torch.equal(forward.text().blocks[1].value, text.blocks[1].value)
    assert torch.equal(forward(), exact)


def test_fp8_storage_is_offloaded_with_its_scales(scene, device):
    adapter, forward = scene()
    quantize_(adapter.transformer, "fp8-storage")
    exact = forward()
    offload_(adapter.transformer, Offload(device="cpu"))
    assert adapter.transformer.blocks[1].attn1.to_q.scale.isnan().all()
    assert torch.equal(forward(), exact)
    assert device.most == 2


@pytest.mark.parametrize("kind", ["int8", "fp8-storage"])
def test_placed_when_quantized(kind, scene):
    adapter, forward = scene(torch.bfloat16)
    quantize_(adapter.transformer, kind)
    exact = forward()
    layer = adapter.transformer.blocks[2].attn2.to_v
    weight = layer.weight
    with placed(adapter.transformer, "meta"):
        assert layer(torch.empty(1, 3, 96, device="meta", dtype=torch.bfloat16)).device.type == "meta"
    assert layer.weight is weight
    assert torch.equal(forward(), exact)


@pytest.mark.usefixtures("streamed", "fresh_compiler")
def test_compiled_torchao_weights_are_not_offloaded(scene):
    """diffusers would swap tensors that the compiler still refers to, in the middle of a forward."""
    adapter, forward = scene(torch.bfloat16)
    quantize_(adapter.transformer, "int8")
    text = forward.text()
    exact = forward(text)
    for block in adapter.transformer.blocks:
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
    with pytest.raises(BadRequest, match="quantize in fp8-storage, or leave out --compile"):
        offload_(adapter.transformer, Offload(device="cpu"))
    assert torch.equal(forward(), forward())  # all weights are seen
    with parked(adapter.transformer):
        assert torch.equal(forward(text), exact)
    with placed(adapter.transformer, "meta"):
        assert adapter.transformer.blocks[0].attn2.to_k(torch.empty(1, 9, 96, device="meta")).device.type == "meta"
    assert torch.equal(forward(text), exact)


def test_what_cannot_be_offloaded_is_known_before():
    for quantize in (None, "none", "fp8-storage", "nf4"):
        check_offload(quantize, compiled=True)
    check_offload("int8", compiled=False)
    with pytest.raises(BadRequest, match="torchao quantized them"):
        check_offload("fp8", compiled=True)


def test_offloaded_once(scene):
    transformer = scene()[0].transformer
    offload_(transformer, Offload(device="cpu"))
    with pytest.raises(BadRequest, match="offloaded already"):
        offload_(transformer, Offload(device="cpu"))


@pytest.mark.parametrize("offloaded", [False, True])
def test_text_projections_parked(offloaded, scene):
    adapter, forward = scene()
    exact, text = forward(), forward.text()
    if offloaded:
        offload_(adapter.transformer, Offload(device="cpu"))
    blocks = adapter.transformer.blocks
    layers = {place: getattr(blocks[place[0]].attn2, place[1]) for place in PROJECTIONS}
    parameters = dict(adapter.transformer.named_parameters())
    for _ in range(2):
        with parked(adapter.transformer), parked(adapter.transformer):
            assert not any(
                ".attn2.to_k." in name or ".attn2.to_v." in name for name, _ in adapter.transformer.named_parameters()
            )
            assert torch.equal(forward(text), exact)
            with pytest.raises(LynxError, match="text projections are parked"):
                forward()
        assert all(getattr(blocks[i].attn2, name) is layers[i, name] for i, name in PROJECTIONS)
        assert torch.equal(forward(), exact)
    after = dict(adapter.transformer.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameter for name, parameter in parameters.items())


@pytest.mark.usefixtures("device")
def test_parked_projections_take_no_room(scene):
    """They are not brought to the device with their block, and are there again when they are back."""
    adapter, forward = scene()
    exact, text = forward(), forward.text()
    offload_(adapter.transformer, Offload(device="cpu"))
    layer = adapter.transformer.blocks[1].attn2.to_k
    brought = []
    with parked(adapter.transformer):
        hook = adapter.transformer.blocks[1].attn1.register_forward_hook(lambda *_: brought.append(layer.weight.isnan().any()))
        assert torch.equal(forward(text), exact)
        hook.remove()
    assert brought
    assert all(brought)
    assert torch.equal(forward(), exact)


def test_parked_whatever_was_fetched_ahead(scene, device):
    """A step cache may leave a block on the device that was fetched and not used."""
    adapter, forward = scene()
    exact, text = forward(), forward.text()
    offload_(adapter.transformer, Offload(device="cpu"))
    blocks = adapter.transformer.blocks
    for block in blocks[1:]:
        block.skipped, block.forward = block.forward, lambda hidden, *_: hidden
    forward()
    assert device.held == {blocks[1]}
    for block in blocks[1:]:
        block.forward = block.skipped
    with parked(adapter.transformer):
        assert not device.held
        assert torch.equal(forward(text), exact)
    assert torch.equal(forward(), exact)
    assert device.most == 2


def test_parked_on_another_device_and_back_after_an_error(scene):
    adapter, forward = scene()
    exact = forward()
    layers = [getattr(adapter.transformer.blocks[i].attn2, name) for i, name in PROJECTIONS]

    def fails():
        with parked(adapter.transformer, "meta"):
            assert {parameter.device.type for layer in layers for parameter in layer.parameters()} == {"meta"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(forward(), exact)
    assert not any(isinstance(module, Away) for module in adapter.transformer.modules())


def test_fused_projections_parked(scene):
    adapter, forward = scene()
    adapter.transformer.fuse_qkv_projections()
    exact, text = forward(), forward.text()
    with parked(adapter.transformer):
        assert isinstance(adapter.transformer.blocks[0].attn2.to_kv, Away)
        assert torch.equal(forward(text), exact)
    assert torch.equal(forward(), exact)


def test_placed_for_one_product(scene):
    """Each comes for its product and goes: the meta device stands for the GPU."""
    adapter, forward = scene()
    exact, text = forward(), forward.text()
    layers = [getattr(adapter.transformer.blocks[i].attn2, name) for i, name in PROJECTIONS]
    weights = [layer.weight for layer in layers]
    with placed(adapter.transformer, "meta"):
        for layer in layers:
            assert layer(torch.empty(1, 3, 96, device="meta")).device.type == "meta"
            assert layer.weight.device.type == "cpu"
        with pytest.raises(RuntimeError):
            layers[0](torch.empty(1, 3, 5, device="meta"))
        assert layers[0].weight.device.type == "cpu"  # after an error too
    assert [layer.weight for layer in layers] == weights or all(a is b.weight for a, b in zip(weights, layers, strict=True))
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
    with placed(adapter.transformer, "cpu"):
        assert torch.equal(forward.text().blocks[3].key, text.blocks[3].key)
        assert torch.equal(forward(), exact)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("offloaded", [False, True])
def test_compiled_blocks_are_compiled_once(offloaded, scene):
    """Parking, unparking and offloading bring no compilation beyond the first of the path with text in scope."""
    from torch._dynamo.testing import CompileCounter

    adapter, forward = scene()
    transformer = adapter.transformer
    text = forward.text()
    exact = forward(text)
    counter = CompileCounter()
    for block in transformer.blocks:
        block.forward = torch.compile(block.forward, backend=counter, fullgraph=True)
    if offloaded:
        offload_(transformer, Offload(device="cpu"))
    assert torch.equal(forward(text), exact)
    compiled = counter.frame_count
    assert compiled
    with parked(transformer):
        assert torch.equal(forward(text), exact)
    with parked(transformer):
        assert torch.equal(forward(text), exact)
    with placed(transformer, "cpu"):
        assert torch.equal(forward(text), exact)
    assert torch.equal(forward(text), exact)
    assert counter.frame_count == compiled


def test_everything_at_once(scene, device):
    """Offloaded, parked and compiled, in each order of entering."""
    adapter, forward = scene()
    text = forward.text()
    exact = forward(text)
    offload_(adapter.transformer, Offload(device="cpu"))
    for order in ((parked, placed), (placed, parked)):
        with ExitStack() as stack:
            for scope in order:
                stack.enter_context(scope(adapter.transformer, "cpu"))
            assert torch.equal(forward(text), exact)
        assert torch.equal(forward(), exact)
    assert device.most == 2


def test_one_block_needs_no_stream(scene):
    from lynx_video.runtime import offload as module

    transformer = copy.deepcopy(scene()[0].transformer)
    transformer.blocks = nn.ModuleList([transformer.blocks[0]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_stream", lambda _: pytest.fail("a stream for one block, which nothing would wait for"))
        offload_(transformer, Offload(device="cpu"))
    assert is_offloaded(transformer)


def test_host_memory():
    now = host_memory()
    assert now.anonymous > 10e6
    assert now.mapped > 1e6
    assert now.total == now.anonymous + now.mapped
    assert now.peak >= now.total * 0.9
    with peak_host_memory(every=0.001) as peak:
        filled = torch.ones(30_000_000)
        assert filled[-1] == 1
    assert 115e6 < peak.anonymous - now.anonymous < 200e6
    assert peak.total >= peak.anonymous


def test_host_memory_elsewhere(monkeypatch, tmp_path):
    from lynx_video.runtime import host

    monkeypatch.setattr(host, "_STATUS", tmp_path / "gone")
    now = host_memory()
    assert (now.anonymous, now.mapped, now.total) == (None, None, None)
    assert now.peak > 10e6
    with peak_host_memory() as peak, nullcontext():
        pass
    assert peak == PeakHostMemory()
