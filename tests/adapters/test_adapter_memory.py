"""Memories: flat tensors and back, and computed once being the same as computed in every step."""

import torch
from safetensors.torch import load, save

from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.memory import Memory, text_memory
from lynx_video.adapters.projection import KeysValues


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, y) for i in a for x, y in zip(a[i], b[i], strict=True))


def remember(adapter, data, text):
    latents = data["initial_latents"][:, :, :1]
    return adapter.remember(data["face_embedding"], latents, text)


def test_tensors_and_back(attached, golden):
    data = golden("full_three_pass")
    memory = remember(attached("full"), data, data["prompt_embeds"])
    flat = memory.tensors()
    assert {"identity.0.key", "identity.3.value", "reference.0.key", "reference.3.value"} <= flat.keys()
    assert flat["identity.0.key"].shape == (1, 6 + 4, 4, 24)  # tokens and registers
    again = Memory.from_tensors(load(save(flat)))
    assert equal(memory.identity, again.identity)
    assert equal(memory.reference, again.reference)
    assert Memory.from_tensors(Memory().tensors()) == Memory()


def test_blocks_keep_their_numbers_above_nine():
    memory = Memory(identity={i: KeysValues(torch.full((1, 1, 1, 1), i), torch.zeros(1, 1, 1, 1)) for i in range(12)})
    again = Memory.from_tensors(memory.tensors())
    assert list(again.identity) == list(range(12))
    assert all(int(pair.key) == i for i, pair in again.identity.items())


@torch.no_grad()
def test_once_equals_every_step(attached, golden):
    """K and V depend neither on the timestep nor on the latents: anew in every step changes nothing, bit for bit."""
    data, adapter = golden("full_three_pass"), attached("full")
    text, once = data["prompt_embeds"], remember(attached("full"), data, data["prompt_embeds"])
    latents = data["initial_latents"]
    for t in data["timesteps"].float():
        anew = remember(adapter, data, text)
        outs = []
        for memory in (once, anew):
            with adapter.using(memory, text=text_memory(adapter.transformer, text)):
                outs.append(adapter.transformer(latents, t[None], text, return_dict=False)[0])
        assert torch.equal(*outs)
        latents = latents - 0.1 * outs[0]


def test_text_memory_replaces_the_projection(attached, golden):
    """With text in scope the embeddings that the transformer is given are not read."""
    data, adapter = golden("full_three_pass"), attached("full")
    text = text_memory(adapter.transformer, data["prompt_embeds"])
    assert list(text.blocks) == [0, 1, 2, 3]
    assert text.blocks[0].key.shape == (1, 512, 4, 24)
    with torch.no_grad(), adapter.using(None, text=text):
        outs = [
            adapter.transformer(data["initial_latents"], torch.tensor([500.0]), shown, return_dict=False)[0]
            for shown in (data["prompt_embeds"], torch.zeros(1, 1, 48))
        ]
    assert torch.equal(*outs)


def test_dtype(attached, golden):
    data = golden("full_three_pass")
    memory = remember(attached("full"), data, data["prompt_embeds"]).to("cpu", torch.bfloat16)
    assert {tensor.dtype for tensor in memory.tensors().values()} == {torch.bfloat16}


@torch.no_grad()
def test_an_adapter_without_weights_uses_a_memory(attached, golden):
    data, adapter = golden("full_three_pass"), attached("full")
    memory = remember(adapter, data, data["prompt_embeds"])
    inputs = data["initial_latents"], torch.tensor([500.0]), data["prompt_embeds"]
    with adapter.using(memory):
        expected = adapter.transformer(*inputs, return_dict=False)[0]
    transformer = adapter.transformer
    adapter.detach()
    empty = Adapter(AdapterConfig(width=96, heads=4))
    empty.attach(transformer)
    assert not list(empty.parameters())
    with empty.using(memory):
        assert torch.equal(transformer(*inputs, return_dict=False)[0], expected)
