"""Packed training against the golden step, against one sample at a time, and against leaks between samples."""

import copy
import dataclasses

import pytest
import torch

from lynx_video.adapters.projection import KeysValues
from lynx_video.adapters.weights import official_parameters
from lynx_video.errors import BadRequest
from lynx_video.training import Sample, packed_step
from lynx_video.training.model import PackedModel
from lynx_video.training.objective import step
from lynx_video.training.packing import PLAIN_SCORES, Segments, attend, attend_in_turn

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def samples(golden):
    """The three samples of the golden step: a still and two clips of other sizes, texts of 7, 12 and 5 tokens."""
    data = golden("packed")

    def one(i):
        face = data[f"face.{i}"].flatten()
        rest = (data[f"{name}.{i}"][0] for name in ("ref_latent", "ref_text"))
        return Sample(*(data[f"{name}.{i}"][0] for name in ("clean", "noise", "text")), face, *rest)

    return [one(i) for i in range(3)]


def test_golden_step(load_golden, golden, samples):
    packed, components = golden("packed"), load_golden()
    components.adapter.requires_grad_(True)
    result = packed_step(components, samples, timestep=float(packed["timestep"]))
    for i, output in enumerate(result.outputs):
        torch.testing.assert_close(output, packed[f"out.{i}"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.loss, packed["loss"][0], atol=0, rtol=1e-5)
    result.loss.backward()
    stored = {name.removeprefix("grad."): value for name, value in packed.items() if name.startswith("grad.")}
    ours = official_parameters(components.adapter)
    assert len(stored) == 19
    for name, gradient in stored.items():
        error = (ours[name].grad - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{name}: {error}"
    assert all(parameter.grad is None for parameter in components.transformer.parameters())


@pytest.mark.parametrize("arm", ["full", "lite"])
@pytest.mark.parametrize("timesteps", [[300.0], [0.0, 640.0, 1000.0]])
def test_packed_equals_one_at_a_time(load_golden, samples, arm, timesteps):
    components = load_golden(arm)
    together = packed_step(components, samples, torch.tensor(timesteps))
    assert together.losses.shape == (3,)
    for i, one in enumerate(samples):
        alone = packed_step(components, [one], timesteps[i % len(timesteps)])
        torch.testing.assert_close(together.outputs[i], alone.outputs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.losses[i], alone.loss, atol=1e-5, rtol=1e-5)


def test_one_sample_equals_the_product(load_golden, samples):
    """The way through the blocks that generation takes, adapter included, gives the same."""
    components, one = load_golden(), samples[1]
    memory = components.adapter.remember(one.face, one.reference[None], one.reference_text[None])
    sigma = 0.64
    noisy = ((1 - sigma) * one.latents + sigma * one.noise)[None]
    with torch.no_grad(), components.adapter.using(memory):
        product = components.transformer(noisy, torch.tensor([640.0]), one.text[None], return_dict=False)[0]
        packed = packed_step(load_golden(), [one], 640.0).outputs[0]
    torch.testing.assert_close(packed, product[0], atol=1e-5, rtol=1e-5)


def test_without_conditions_it_is_the_stock_transformer(load_golden, stock_transformer, samples):
    bare = [dataclasses.replace(one, face=None, reference=None) for one in samples]
    result = packed_step(load_golden(), bare, 640.0)
    for one, output in zip(samples, result.outputs, strict=True):
        noisy = (0.36 * one.latents + 0.64 * one.noise)[None]
        with torch.no_grad():
            stock = stock_transformer()(noisy, torch.tensor([640.0]), one.text[None], return_dict=False)[0][0]
        torch.testing.assert_close(output, stock, atol=1e-5, rtol=1e-5)


def test_a_term_left_out_of_one_sample(load_golden, samples):
    """A sample without a reference, or without a face, is what it is alone, whatever its neighbours have."""
    components = load_golden()
    mixed = [
        dataclasses.replace(samples[0], reference=None),
        samples[1],
        dataclasses.replace(samples[2], face=None),
    ]
    together = packed_step(components, mixed, 500.0)
    for i, one in enumerate(mixed):
        torch.testing.assert_close(together.outputs[i], packed_step(components, [one], 500.0).outputs[0], atol=1e-5, rtol=1e-5)
    whole = packed_step(components, samples, 500.0)
    assert not torch.allclose(whole.outputs[0], together.outputs[0], atol=1e-3)
    torch.testing.assert_close(whole.outputs[1], together.outputs[1], atol=1e-5, rtol=1e-5)


def test_a_term_of_scale_zero_is_a_term_left_out(load_golden, samples):
    """Scales are a sample's own: 0 is off, bit for bit, and the neighbours keep theirs."""
    components = load_golden()
    off = dataclasses.replace(samples[1], identity_scale=0.0, reference_scale=0.0)
    without = dataclasses.replace(samples[1], face=None, reference=None)
    assert torch.equal(packed_step(components, [off], 500.0).outputs[0], packed_step(components, [without], 500.0).outputs[0])
    mixed = packed_step(components, [samples[0], off, samples[2]], 500.0)
    whole = packed_step(components, samples, 500.0)
    assert torch.equal(mixed.outputs[0], whole.outputs[0])
    assert torch.equal(mixed.outputs[2], whole.outputs[2])
    torch.testing.assert_close(mixed.outputs[1], packed_step(components, [without], 500.0).outputs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["latents", "noise", "text", "face", "reference", "reference_text"])
@pytest.mark.parametrize("which", range(3))
def test_no_leak(load_golden, samples, field, which):
    """One number of one sample changed: its output moves, the others' are equal bit for bit."""
    components = load_golden()
    changed = getattr(samples[which], field).clone()
    changed.view(-1)[3] += 5.0
    others = list(samples)
    others[which] = dataclasses.replace(samples[which], **{field: changed})
    before, after = packed_step(components, samples, 640.0), packed_step(components, others, 640.0)
    for i in range(3):
        assert torch.equal(before.outputs[i], after.outputs[i]) == (i != which)


def test_recomputed_gradients_are_the_same(load_golden, samples):
    gradients = []
    for recompute in (False, True):
        components = load_golden()
        components.adapter.requires_grad_(True)
        model = PackedModel(components.adapter, recompute=recompute)
        step(model, samples, torch.tensor([640.0]), CPU, torch.float32).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in components.adapter.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_generation_is_untouched_by_training_processors(load_golden, samples):
    plain, trained = load_golden(), load_golden()
    packed_step(trained, samples, 640.0)
    results = []
    for components in (plain, trained):
        memory = components.adapter.remember(samples[0].face, samples[0].reference[None], samples[0].reference_text[None])
        with torch.no_grad(), components.adapter.using(memory):
            noisy, text = samples[0].noise[None], samples[0].text[None]
            results.append(components.transformer(noisy, torch.tensor([999.0]), text, return_dict=False)[0])
    assert torch.equal(*results)


def pair(lengths, keys, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    sizes = (sum(lengths), sum(keys), sum(keys))
    return [torch.randn(1, n, 2, 64, generator=generator).to(device, dtype).requires_grad_(True) for n in sizes]


@pytest.mark.parametrize(
    ("lengths", "keys"), [((5, 5, 9), (4, 4, 4)), ((3, 700, 700), (6, 700, 2)), ((8, 2), (0, 3)), ((4,), (0,))]
)
def test_in_turn_equals_a_mask(lengths, keys):
    """Against one SDPA with a block mask, forward and backward; lengths on both sides of where the plain formula stops."""
    assert any(q * k > PLAIN_SCORES for q, k in zip(lengths, keys, strict=True)) == (700 in lengths)
    query, key, value = pair(lengths, keys)
    out = attend(query, KeysValues(key, value), Segments.of(lengths, keys, CPU))
    mask = torch.zeros(sum(lengths), sum(keys), dtype=torch.bool)
    at = [0, 0]
    for q, k in zip(lengths, keys, strict=True):
        mask[at[0] : at[0] + q, at[1] : at[1] + k] = True
        at = [at[0] + q, at[1] + k]
    rows = mask.any(1)
    expected = torch.zeros_like(out)
    if rows.any():
        some = [x.transpose(1, 2) for x in (query[:, rows], key, value)]
        masked = torch.nn.functional.scaled_dot_product_attention(*some, attn_mask=mask[rows])
        expected[:, rows] = masked.transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(out[:, ~rows], torch.zeros_like(out[:, ~rows]))
    if rows.any():
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        ours = torch.autograd.grad((out * weight).sum(), (query, key, value), retain_graph=True)
        theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs CUDA")
def test_variable_length_kernel_equals_in_turn():
    lengths, keys = (5, 640, 9), (4, 640, 0)
    query, key, value = pair(lengths, keys, torch.bfloat16, "cuda")
    segments = Segments.of(lengths, keys, query.device)
    kernel = attend(query, KeysValues(key, value), segments)
    first = Segments.of(lengths[:2], keys[:2], CPU)
    turn = attend_in_turn(query[:, : sum(lengths[:2])], key, value, first)
    torch.testing.assert_close(kernel[:, : sum(lengths[:2])], turn, atol=2e-2, rtol=2e-2)
    weight = torch.randn_like(turn)
    ours = torch.autograd.grad((kernel[:, : sum(lengths[:2])] * weight).sum(), (query, key, value), retain_graph=True)
    theirs = torch.autograd.grad((turn * weight).sum(), (query, key, value))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=5e-2)


def test_bad_samples_are_named(samples):
    one = samples[0]
    for change, words in (
        ({"noise": one.noise[:, :, :2]}, "noise of the same shape"),
        ({"text": one.text[None]}, "text is"),
        ({"face": one.face[None]}, "face is"),
        ({"reference": one.reference[0]}, "reference is"),
        ({"reference_text": None}, "needs reference_text"),
    ):
        with pytest.raises(BadRequest, match=words):
            dataclasses.replace(one, **change)


def test_bad_packs_are_named(load_golden, samples):
    components = load_golden()
    for given, timestep, words in (
        ([], 5.0, "at least one sample"),
        (samples, torch.zeros(2), "1 or 3 timesteps"),
        (samples, 1000.5, "0 to 1000"),
        (samples, float("nan"), "0 to 1000"),
    ):
        with pytest.raises(BadRequest, match=words):
            packed_step(components, given, timestep)


def test_bfloat16_follows_float32(load_golden, samples):
    exact, coarse = packed_step(load_golden(), samples, 640.0), packed_step(load_golden(dtype=torch.bfloat16), samples, 640.0)
    assert abs(float(exact.loss - coarse.loss)) / float(exact.loss) < 0.02
    assert copy.copy(coarse.outputs[0]).dtype == torch.float32
