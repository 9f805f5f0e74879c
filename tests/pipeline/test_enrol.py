"""The identity file: written, read, used without the adapter, and refused where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_video.errors import BadOutput, BadRequest, BadWeights
from lynx_video.pipeline.enrol import enrol, load_enrolment, save_enrolment, usable_memories
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.identify import merge

PROMPT = "A person waves."


@pytest.fixture
def alice(full, sitter, tmp_path):
    """The path of an identity file of the golden portrait for the golden full model."""
    path = tmp_path / "alice.safetensors"
    save_enrolment(path, enrol(full, sitter()))
    return path


def test_round_trip(alice, full, sitter):
    written, read = enrol(full, sitter()), load_enrolment(alice)
    assert torch.equal(read.identity.embedding, sitter().embedding)
    assert np.array_equal(read.identity.crop, sitter().crop)
    assert np.array_equal(read.identity.aligned, sitter().aligned)
    assert (read.identity.consent, read.identity.portrait_hash) == ("public domain", sitter().portrait_hash)
    assert (read.base_hash, read.adapter_hash, read.arm) == (full.base_hash, full.adapter_hash, "full")
    assert read.memories.keys() == {"person", "nobody"}
    for who, memory in read.memories.items():
        expected = written.memories[who].tensors()
        assert memory.tensors().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in memory.tensors().items())
    assert [file.name for file in alice.parent.iterdir()] == ["alice.safetensors"]


@pytest.mark.parametrize("arm", ["full", "lite"])
def test_from_the_file_as_from_the_portrait(arm, sitter, tiny, tmp_path, load_golden, request):
    components, path = request.getfixturevalue(arm), tmp_path / "alice.safetensors"
    save_enrolment(path, enrol(components, sitter()))
    who = load_enrolment(path)
    without_weights = load_golden(arm, with_adapter=False)
    assert not list(without_weights.adapter.parameters())
    for seed in (1, 2):
        config = tiny(seed=seed, reference_latent="mean")
        expected = generate(components, sitter(), PROMPT, config)
        for loaded in (components, without_weights):
            for same in (config, tiny(seed=seed)):  # the mean is the default of a file
                clip = generate(loaded, who, PROMPT, same)
                assert torch.equal(clip.latents, expected.latents)
                assert np.array_equal(clip.frames, expected.frames)


def test_scales_and_blocks_work_on_a_file(alice, full, sitter, tiny, load_golden):
    without_weights, who = load_golden("full", with_adapter=False), load_enrolment(alice)
    for change in ({"ref_scale": 0.0}, {"ip_scale": 0.0}, {"ip_scale": 0.3, "ref_blocks": frozenset({1})}, {"ip_stop": 0.5}):
        config = tiny(reference_latent="mean", **change)
        expected = generate(full, sitter(), PROMPT, config).latents
        assert torch.equal(generate(without_weights, who, PROMPT, config).latents, expected)


def test_sampled_latents_with_a_file(alice, full, sitter, tiny, load_golden):
    config, who = tiny(reference_latent="sample"), load_enrolment(alice)
    assert torch.equal(generate(full, who, PROMPT, config).latents, generate(full, sitter(), PROMPT, tiny()).latents)
    with pytest.raises(BadRequest, match="--adapter-path"):
        generate(load_golden("full", with_adapter=False), who, PROMPT, config)


def test_another_base_or_adapter(alice, full, lite, tiny, load_golden):
    who, without_weights = load_enrolment(alice), load_golden("full", with_adapter=False)
    other_base = replace(who, base_hash="0" * 64)
    with pytest.raises(BadRequest, match="another base"):
        generate(without_weights, other_base, PROMPT, tiny())
    with pytest.raises(BadRequest, match="another base"):
        generate(without_weights, other_base, PROMPT, tiny(reference_latent="sample"))
    bare = replace(who, identity=replace(who.identity, crop=None, aligned=None))
    with pytest.raises(BadRequest, match="another adapter"):
        generate(lite, bare, PROMPT, tiny())
    assert usable_memories(full, who) is who.memories
    assert usable_memories(lite, who) is None


def forbidden():
    raise AssertionError("the face encoder is not needed")


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_projected_again_for_another_adapter_of_the_base(alice, latent, lite, sitter, tiny):
    """The embedding that was enrolled counts, which may be the mean of several photos: no face encoder is asked."""
    mean = torch.nn.functional.normalize(torch.ones(512), dim=0)
    who = replace(load_enrolment(alice), identity=replace(sitter(), embedding=mean))
    clip = generate(replace(lite, faces=replace(lite.faces, encoder=forbidden)), who, PROMPT, tiny(reference_latent=latent))
    expected = generate(lite, replace(sitter(), embedding=mean), PROMPT, tiny(reference_latent=latent))
    assert torch.equal(clip.latents, expected.latents)


def test_projected_again_for_another_base_with_the_same_encoder(alice, lite, sitter, tiny):
    from lynx_video.face.embed import IRSE, FaceEncoder, IRSEConfig, encoder_hash

    encoders = [FaceEncoder(IRSE(IRSEConfig(widths=(8, 12), units=(1, 1)))) for _ in range(2)]
    assert len({encoder_hash(encoder) for encoder in encoders}) == 2
    mean = torch.nn.functional.normalize(torch.ones(512), dim=0)
    identity = replace(sitter(), embedding=mean, encoder=encoder_hash(encoders[0]))
    who = replace(load_enrolment(alice), identity=identity, base_hash="0" * 64)
    same, other = (replace(lite, faces=replace(lite.faces, encoder=lambda e=e: e)) for e in encoders)
    expected = generate(lite, identity, PROMPT, tiny(reference_latent="mean"))
    assert torch.equal(generate(same, who, PROMPT, tiny()).latents, expected.latents)
    with pytest.warns(UserWarning, match="another face encoder"):
        assert not torch.equal(generate(other, who, PROMPT, tiny()).latents, expected.latents)


def test_a_file_says_which_encoder_made_it(full, sitter, tmp_path):
    assert sitter().encoder == "record"
    save_enrolment(tmp_path / "a.safetensors", enrol(full, replace(sitter(), encoder="abc")))
    assert load_enrolment(tmp_path / "a.safetensors").identity.encoder == "abc"
    assert merge([sitter(), sitter()]).encoder == "record"
    assert merge([sitter(), replace(sitter(), encoder="abc")]).encoder == ""


@pytest.mark.parametrize("latent", ["mean", "sample"])
def test_projected_again_for_another_base(alice, latent, lite, sitter, tiny):
    """The embedding is taken again from the aligned crop, by the encoder of the adapter at hand, and not in silence."""
    seen = []

    def encoder(crops):
        seen.append(crops.shape)
        return sitter().embedding[None]

    faces = replace(lite.faces, encoder=lambda: encoder)
    who = replace(
        load_enrolment(alice), base_hash="0" * 64, identity=replace(sitter(), embedding=torch.ones(512) / 512**0.5, encoder="")
    )
    with pytest.warns(UserWarning, match="unknown encoder and from another base"):
        clip = generate(replace(lite, faces=faces), who, PROMPT, tiny(reference_latent=latent))
    assert seen == [(1, 3, 112, 112)]
    assert torch.equal(clip.latents, generate(lite, sitter(), PROMPT, tiny(reference_latent=latent)).latents)


@pytest.mark.parametrize("keep", [0, 7, 300, -1])
def test_a_cut_file(keep, alice):
    alice.write_bytes(alice.read_bytes()[:keep])
    with pytest.raises(BadWeights, match="not a complete identity file") as caught:
        load_enrolment(alice)
    assert str(alice) in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(BadWeights, match="enroll PORTRAIT"):
        load_enrolment(tmp_path / "gone.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(BadWeights, match="no identity file"):
        load_enrolment(tmp_path / "x.safetensors")


@pytest.mark.parametrize("lost", ["embedding", "person.identity.0.key"])
def test_a_file_that_lacks_a_tensor(lost, alice):
    from safetensors import safe_open

    with safe_open(alice, "pt") as file:
        metadata = file.metadata()
    save_file({key: tensor for key, tensor in load_file(alice).items() if key != lost}, alice, metadata)
    with pytest.raises(BadWeights, match="not a complete identity file"):
        load_enrolment(alice)


def test_a_bare_identity(full, sitter, tmp_path, tiny):
    """Without pictures the file still serves its own base and adapter."""
    enrolled = enrol(full, sitter())
    save_enrolment(tmp_path / "a.safetensors", replace(enrolled, identity=replace(sitter(), crop=None, aligned=None)))
    who = load_enrolment(tmp_path / "a.safetensors")
    assert who.identity.crop is None
    expected = generate(full, sitter(), PROMPT, tiny(reference_latent="mean")).latents
    assert torch.equal(generate(full, who, PROMPT, tiny()).latents, expected)


def test_several_photos(sitter):
    first = sitter()
    second = replace(first, embedding=torch.nn.functional.normalize(torch.randn(512), dim=0), portrait_hash="b")
    both = merge([first, second])
    assert float(both.embedding.norm()) == pytest.approx(1)
    assert float(both.embedding @ first.embedding) == pytest.approx(float(both.embedding @ second.embedding), abs=1e-5)
    assert both.portrait_hash == f"{first.portrait_hash}+b"
    assert both.crop is first.crop
    assert torch.allclose(merge([first]).embedding, first.embedding)
    with pytest.raises(BadRequest, match="at least one"):
        merge([])


def rewrite(path, change, about=None):
    """The file again, with its tensors as `change` gives them and its facts as `about` does."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if about is not None:
        metadata = {"lynx_video": json.dumps(about(json.loads(metadata["lynx_video"])))}
    save_file(change(load_file(path)), path, metadata)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: v for k, v in t.items() if not k.startswith("person.")}, "memories of person are missing"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("nobody.")}, "memories of nobody are missing"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("person.identity.")}, "differ"),
        (lambda t: {k: v for k, v in t.items() if ".identity.2." not in k}, "some blocks"),
        (lambda t: t | {k: v[0].clone() for k, v in t.items() if "." in k}, "expected one \\[1, tokens"),
        (lambda t: t | {k: v[:, :1].clone() for k, v in t.items() if ".identity.2." in k}, "expected one \\[1, tokens"),
        (lambda t: t | {"embedding": torch.zeros(256)}, "embedding"),
        (lambda t: t | {"embedding": torch.full((512,), float("nan"))}, "embedding"),
        (lambda t: t | {"embedding": torch.zeros(512, dtype=torch.int64)}, "embedding"),
        (lambda t: t | {"aligned": torch.zeros(64, 64, 3, dtype=torch.uint8)}, "aligned"),
        (lambda t: t | {"crop": torch.zeros(256, 256, 3)}, "crop"),
        (lambda t: t | {"crop": torch.tensor(0, dtype=torch.uint8)}, "crop"),
    ],
)
def test_a_file_with_other_tensors(change, words, alice):
    rewrite(alice, change)
    with pytest.raises(BadWeights, match=words) as caught:
        load_enrolment(alice)
    assert str(alice) in str(caught.value)


@pytest.mark.parametrize(
    "about", [list, lambda _: None, lambda _: "x", lambda a: a | {"consent": 3}, lambda a: a | {"base_hash": []}]
)
def test_a_file_with_other_facts(about, alice):
    rewrite(alice, dict, about)
    with pytest.raises(BadWeights, match=r"identity file|is no text"):
        load_enrolment(alice)


@pytest.mark.parametrize("lost", ["encoder", "blocks"])
def test_a_file_of_before(lost, alice):
    rewrite(alice, dict, lambda about: {key: value for key, value in about.items() if key != lost})
    assert load_enrolment(alice).memories.keys() == {"person", "nobody"}


def test_memories_of_other_heads(alice, full, tiny):
    rewrite(alice, lambda t: t | {k: v.flatten(2).unflatten(2, (2, -1)).contiguous() for k, v in t.items() if "." in k})
    with pytest.raises(BadWeights, match="4 heads of 24"):
        generate(full, load_enrolment(alice), PROMPT, tiny())


def test_a_full_disk(full, sitter, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    enrolled = enrol(full, sitter())
    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(BadOutput, match=r"a\.safetensors: cannot be written \(No space left"):
        save_enrolment(tmp_path / "new" / "a.safetensors", enrolled)
    assert list(tmp_path.iterdir()) == []
