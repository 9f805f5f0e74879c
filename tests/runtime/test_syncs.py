"""Host syncs: none inside a forward, the scheduler's are known, and planted ones are found with their line."""

import warnings

import pytest
import torch

from lynx_video.adapters.attach import OFF, Influence
from lynx_video.adapters.attention import Attention
from lynx_video.adapters.memory import Memory, text_memory
from lynx_video.config import GenerateConfig
from lynx_video.pipeline.denoise import denoise, initial_noise
from lynx_video.pipeline.guidance import passes, tables
from lynx_video.pipeline.predict import Conditions, Expert
from lynx_video.pipeline.schedule import make_scheduler, set_timesteps
from lynx_video.runtime.compiling import compile_
from lynx_video.runtime.syncs import count_host_syncs

PARTS = {"identity": Influence(scale=0.7), "reference": Influence(scale=0.7)}


@torch.no_grad()
def scene(adapter, golden, device="cpu"):
    """Latents, timestep, and the texts and memories of a generation, on a device."""
    data = golden("full_three_pass")
    adapter.to(device)
    adapter.transformer.to(device)
    texts = {
        name: text_memory(adapter.transformer, data[key].to(device))
        for name, key in (("prompt", "prompt_embeds"), ("negative", "negative_prompt_embeds"))
    }
    features = [data[f"ref_buffer.cond.{i}"].to(device) for i in range(4)]
    reference = adapter.reference_memory(features) if adapter.config.reference_blocks else {}
    faces = {"person": data["face_embedding"][None].to(device), "nobody": torch.zeros(1, 512, device=device)}
    memories = {who: Memory(identity=adapter.identity_memory(face), reference=reference) for who, face in faces.items()}
    return data["initial_latents"].to(device), torch.full((1,), 500.0, device=device), texts, memories


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("arm", ["full", "lite"])
def test_none_inside_a_forward(arm, device, attached, golden):
    """On meta a copy from the host would count too, and a value that leaves in any way would fail."""
    adapter = attached(arm)
    latents, timestep, texts, memories = scene(adapter, golden, device)
    scopes = [(memories[one.who], texts[one.text], PARTS) for one in passes(5.0, 2.0)]
    scopes += [(None, texts["prompt"], {}), (memories["person"], texts["prompt"], {"identity": OFF, "reference": OFF})]
    assert len(scopes) == 5
    for memory, text, parts in scopes:
        with torch.no_grad(), count_host_syncs(device) as syncs, adapter.using(memory, text=text, **parts):
            adapter.transformer(latents, timestep, text.embeddings[:, :1], return_dict=False)
        assert not syncs, syncs


def test_none_inside_a_compiled_forward(attached, golden):
    """What is in a full graph runs uncompiled to be looked at."""
    adapter = attached("full")
    compile_(adapter.transformer, backend="eager")
    latents, timestep, texts, memories = scene(adapter, golden)
    with torch.no_grad(), count_host_syncs() as syncs, adapter.using(memories["person"], text=texts["prompt"]):
        adapter.transformer(latents, timestep, texts["prompt"].embeddings[:, :1], return_dict=False)
    assert not syncs, syncs


@pytest.mark.parametrize("mode", ["sequential", "batched"])
def test_a_loop_waits_in_its_scheduler_only(mode, attached, full, golden):
    """UniPC: to find its place in the first step, and to check its 2 x 2 system from the third on."""
    adapter = attached("full")
    latents, _, texts, memories = scene(adapter, golden)
    scheduler = make_scheduler(full.scheduler, GenerateConfig())
    timesteps = set_timesteps(scheduler, 4, "cpu")
    expert = Expert(adapter=adapter, texts=texts, memories=memories)
    table = tables(passes(5.0, 2.0), 4, 0.5)
    counts, seen = [], []

    def on_step(_):
        counts.append(len(syncs) - sum(counts))
        seen[:] = syncs

    conditions = Conditions(mode=mode, **PARTS)
    with count_host_syncs() as syncs:
        denoise([expert], scheduler, initial_noise(latents.shape, 1), timesteps, table, conditions, on_step=on_step)
    assert all("/schedulers/" in sync.where or "float(t)" in sync.where for sync in seen), seen
    reading = sum("float(t)" in sync.where for sync in seen)
    assert reading in (0, 4), "the timesteps are read once, before the first step"
    assert counts[0] - reading <= 2, seen
    assert max(counts[1:]) <= 1, seen


class Planted(Attention):
    """Asks for a value in every forward."""

    def __call__(self, attn, hidden_states, *args):
        if float(hidden_states.abs().max()) < 0:  # planted
            raise AssertionError
        return super().__call__(attn, hidden_states, *args)


def test_a_planted_one_is_found_with_its_line(attached, golden):
    adapter = attached("full")
    adapter.transformer.blocks[2].attn2.set_processor(Planted())
    latents, timestep, texts, memories = scene(adapter, golden)
    with torch.no_grad(), count_host_syncs() as syncs, adapter.using(memories["person"], text=texts["prompt"]):
        adapter.transformer(latents, timestep, texts["prompt"].embeddings[:, :1], return_dict=False)
    assert len(syncs) == 1, syncs
    assert syncs[0].operation == "aten._local_scalar_dense"
    assert "test_syncs.py" in syncs[0].where
    assert "# planted" in str(syncs[0])


X = torch.arange(6.0)
MASK = X > 2
WAITS = {
    "item": lambda: X[0].item(),
    "bool": lambda: bool(MASK[0]),
    "if": lambda: 1 if X.sum() > 0 else 0,
    "int": lambda: range(X[1].int()),
    "mask": lambda: X[MASK],
    "set by mask": lambda: X.clone().index_put_((MASK,), torch.ones(3)),
    "masked_select": lambda: X.masked_select(MASK),
    "nonzero": lambda: MASK.nonzero(),
    "where": lambda: torch.where(MASK),
    "unique": lambda: X.unique(),
    "consecutive": lambda: X.unique_consecutive(),
    "equal": lambda: torch.equal(X, X + 0),
    "allclose": lambda: torch.allclose(X, X),
    "bincount": lambda: X.long().bincount(),
    "repeat": lambda: X.repeat_interleave(torch.arange(6)),
    "solve": lambda: torch.linalg.solve(torch.eye(2), torch.ones(2)),
    "to the device": lambda: X.to("meta"),
    "copied over": lambda: torch.empty(6, device="meta").copy_(X),
}
GOES_ON = {
    "index": lambda: X[torch.arange(3)],
    "slice": lambda: X[1:3] * 2,
    "masked_fill": lambda: X.masked_fill(MASK, 0.0),
    "where of two": lambda: torch.where(MASK, X, -X),
    "repeat of known size": lambda: X.repeat_interleave(torch.arange(6), output_size=15),
    "repeat by a number": lambda: X.repeat_interleave(2),
    "dtype": lambda: X.to(torch.bfloat16).float(),
    "not waited for": lambda: X.to("meta", non_blocking=True),
    "full": lambda: torch.full((), 0.5, device="meta"),
    "scaled": lambda: torch.empty(3, device="meta") * torch.full((), 0.5),
}


@pytest.mark.parametrize("way", WAITS)
def test_what_waits(way):
    with count_host_syncs() as syncs:
        WAITS[way]()
    assert syncs
    assert all("test_syncs.py" in sync.where for sync in syncs)


@pytest.mark.parametrize("way", GOES_ON)
def test_what_does_not_wait(way):
    with count_host_syncs() as syncs:
        GOES_ON[way]()
    assert not syncs, syncs


def test_nothing_counts_outside():
    with count_host_syncs() as syncs:
        X[0].item()
    X[1].item()
    assert len(syncs) == 1


def test_cuda_is_asked_itself(monkeypatch):
    """Its warnings are noted and not shown; others are shown; the mode from before comes back."""
    modes = ["error"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally ...)", UserWarning, stacklevel=1)

    with count_host_syncs("cuda") as syncs:
        work()
        assert modes == ["error", "warn"]
        with pytest.raises(UserWarning, match="another"):
            warnings.warn("another", UserWarning, stacklevel=1)
    assert modes == ["error", "warn", "error"]
    assert len(syncs) == 2
    assert all("test_syncs.py" in sync.where and "warnings.warn" in sync.where for sync in syncs)
    with pytest.raises(UserWarning, match="synchronizing"):
        work()
