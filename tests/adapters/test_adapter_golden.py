"""The adapters against the reference implementation: tokens, features, every pass, and the names of the official files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lynx_video.adapters.attach import Adapter, AdapterConfig, Influence
from lynx_video.adapters.memory import Memory, reference_features, text_memory
from lynx_video.adapters.projection import ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.adapters.weights import official_parameters
from lynx_video.pipeline.condition import REFERENCE_PROMPT, encode_prompt, reference_latents

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("full_three_pass", "full_two_pass", "lite")
TEXT = {"cond": "prompt_embeds", "identity": "negative_prompt_embeds", "uncond": "negative_prompt_embeds"}
PASSES = [
    (case, step, one)
    for case, names in (("full_three_pass", ("cond", "identity", "uncond")), ("full_two_pass", ("cond", "uncond")))
    for step in ("step0", "last")
    for one in names
]


def arm(case):
    return case.split("_")[0]


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_resampler_tokens(case, golden, attached):
    data, adapter = golden(case), attached(arm(case))
    close(adapter.resampler(data["face_embedding"][None]), data["id_tokens.cond"])
    close(adapter.resampler(torch.zeros(1, 512)), data["id_tokens.uncond"])


@pytest.mark.parametrize("who", ["cond", "uncond"])
@pytest.mark.parametrize("case", CASES[:2])
def test_reference_features_from_the_crop(case, who, golden, cases, full):
    data = golden(case)
    crop = data["ref_image"].numpy() if who == "cond" else None
    latents = reference_latents(full.vae, crop, 256, cases[case]["seed"] + 1)
    text = encode_prompt(full.tokenizer, full.text_encoder, REFERENCE_PROMPT, 512)
    features = reference_features(full.transformer, latents, text)
    assert len(features) == 4
    for block, ours in enumerate(features):
        close(ours, data[f"ref_buffer.{who}.{block}"])


@pytest.mark.parametrize("projected_text", [False, True])
@pytest.mark.parametrize(("case", "step", "one"), PASSES)
def test_every_full_pass(case, step, one, projected_text, golden, cases, attached):
    data, adapter, settings = golden(case), attached("full"), cases[case]
    who = "uncond" if one == "uncond" else "cond"
    face = data["face_embedding"] if who == "cond" else torch.zeros(512)
    memory = Memory(
        identity=adapter.identity_memory(face[None]),
        reference=adapter.reference_memory([data[f"ref_buffer.{who}.{i}"] for i in range(4)]),
    )
    out = run(adapter, data, step, memory, data[TEXT[one]], projected_text, settings)
    close(out, data[f"{step}.pass.{one}"])


@pytest.mark.parametrize("projected_text", [False, True])
@pytest.mark.parametrize("step", ["step0", "last"])
def test_the_lite_pass_of_two_identities_in_one_batch(step, projected_text, golden, cases, attached):
    data, adapter = golden("lite"), attached("lite")
    faces = torch.stack([torch.zeros(512), data["face_embedding"]])
    text = torch.cat([data["negative_prompt_embeds"], data["prompt_embeds"]])
    out = run(adapter, data, step, Memory(identity=adapter.identity_memory(faces)), text, projected_text, cases["lite"])
    close(out, data[f"{step}.pass.batched"])


@torch.no_grad()
def run(adapter, data, step, memory, embeddings, projected_text, settings):
    latents = data["initial_latents" if step == "step0" else "last_step_input_latents"]
    timestep = data["timesteps"][0 if step == "step0" else -1].float().expand(len(latents))
    text = text_memory(adapter.transformer, embeddings) if projected_text else None
    identity, reference = Influence(scale=settings["ip_scale"]), Influence(scale=settings.get("ref_scale", 1.0))
    shown = embeddings[:, :1] if projected_text else embeddings  # with a text memory the transformer reads no text of its own
    with adapter.using(memory, text=text, identity=identity, reference=reference):
        return adapter.transformer(latents, timestep, shown, return_dict=False)[0]


@pytest.mark.parametrize("name", ["full", "lite"])
def test_official_names_and_values(name, attached):
    stored = {
        f"{file.stem}.{key}": tensor
        for file in (GOLDEN / f"lynx_{name}").glob("*.safetensors")
        for key, tensor in load_file(file).items()
    }
    ours = official_parameters(attached(name))
    assert ours.keys() == stored.keys()
    assert all(torch.equal(ours[key], stored[key]) for key in stored)


@pytest.mark.parametrize("name", ["full", "lite"])
def test_names_and_shapes_at_14b(name):
    output, lite = (5120, False) if name == "full" else (2048, True)
    with torch.device("meta"):
        adapter = Adapter(
            AdapterConfig(
                width=5120,
                heads=40,
                resampler=ResamplerConfig(output=output),
                identity=ProjectionConfig(
                    tokens=output, width=5120, bias=not lite, registers=0 if lite else 16, own_key_norm=lite
                ),
                identity_blocks=tuple(range(0, 40, 2 if lite else 1)),
                reference_blocks=() if lite else tuple(range(40)),
            )
        )
    manifest = json.loads((GOLDEN / "manifest_14b.json").read_text())[f"lynx_{name}"]
    wanted = {f"{file}.{key}": shape for file, keys in manifest.items() for key, shape in keys.items()}
    assert {key: list(parameter.shape) for key, parameter in official_parameters(adapter).items()} == wanted
    assert len(list(adapter.parameters())) == len(wanted)
