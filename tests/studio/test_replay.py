"""From a record to the request it came from."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lynx_video.errors import BadRequest
from lynx_video.media.image import pixels_hash, write_picture
from lynx_video.nano.people import portrait
from lynx_video.studio.replay import check_same, differences, request_of, setup_of
from lynx_video.studio.setup import ModelFlags, Setup

RECORD = {
    "prompt": "smiles",
    "negative_prompt": "blurred",
    "num_frames": 9,
    "fps": 8.0,
    "height": 64,
    "width": 64,
    "seed": 5,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "guidance_scale_i": None,
    "ip_blocks": [0, 1],
    "reference_latent": "sample",
    "scheduler": "unipc",
    "flow_shift": 3.0,
    "step_cache": "off",
    "base_hash": "b",
    "adapter_hash": "a",
    "lora_hash": "",
    "portrait_hash": "p",
    "frames_hash": "f",
    "face_index": 1,
    "preset": "exact",
    "model": "nano-lite",
    "torch_dtype": "bfloat16",
    "quantize": "int8",
    "vae_tiling": False,
    "attention_backend": "native",
    "lora_passes": "all",
    "loras": [],
    "gguf": None,
    "private": False,
    "consent": "drawn",
    "no_watermark_reason": None,
}


def test_a_record_becomes_the_request_it_came_from(tmp_path):
    request = request_of(RECORD, portrait=tmp_path / "me.png")
    assert (request.prompt, request.face_index, request.preset) == ("smiles", 1, "exact")
    assert request.generation["ip_blocks"] == frozenset({0, 1})
    assert request.generation["guidance_scale_i"] == "none"  # None in a record: prompt and identity were guided together
    assert request.generation["seed"] == 5
    assert request.marks.consent == "drawn"
    assert "base_hash" not in request.generation


def test_the_model_is_held_as_it_was():
    setup = setup_of(RECORD, Setup())
    assert (setup.model.model, setup.model.torch_dtype) == ("nano-lite", "bf16")
    assert setup.runtime == {"quantize": "int8", "vae_tiling": False, "attention_backend": "native", "lora_passes": "all"}


def test_what_is_named_anew_counts():
    setup = setup_of(RECORD, Setup(model=ModelFlags(base_model_path="base", torch_dtype="fp32"), runtime={"compile": True}))
    assert (setup.model.model, setup.model.base_model_path, setup.model.torch_dtype) == ("nano", "base", "fp32")
    assert setup.runtime["compile"]


@pytest.mark.parametrize(
    ("changes", "prompt", "sentence"),
    [
        ({"prompt": None}, None, "--prompt"),
        ({}, "another", "made with another prompt: 'smiles'"),
        ({"frames_hash": ...}, None, "no record"),
        ({"num_frames": "many"}, None, "num_frames"),
    ],
)
def test_a_record_that_does_not_do_is_refused(changes, prompt, sentence, tmp_path):
    record = {name: value for name, value in {**RECORD, **changes}.items() if value is not ...}
    with pytest.raises(BadRequest, match=sentence):
        request_of(record, portrait=tmp_path / "me.png", prompt=prompt)


def test_a_private_record_takes_the_prompt_anew(tmp_path):
    private = {**RECORD, "prompt": None, "negative_prompt": None, "private": True}
    request = request_of(private, portrait=tmp_path / "me.png", prompt="smiles")
    assert request.prompt == "smiles"
    assert request.marks.private
    assert "negative_prompt" not in request.generation


@pytest.mark.parametrize(
    ("name", "value", "flag"), [("loras", ["one.safetensors"], "--lora-path"), ("gguf", "q.gguf", "--gguf")]
)
def test_files_that_a_record_only_names_are_asked_for(name, value, flag):
    with pytest.raises(BadRequest, match=flag):
        setup_of({**RECORD, name: value}, Setup())


def test_a_preset_brings_its_own_lora():
    assert "lora_path" not in setup_of({**RECORD, "preset": "draft", "loras": ["lora.safetensors"]}, Setup()).runtime


def test_a_portrait_that_came_as_pixels_is_known_by_its_file(tmp_path):
    """As in ComfyUI, which hands on no files."""
    picture = portrait(seed=5)
    write_picture(tmp_path / "ann.png", picture)
    write_picture(tmp_path / "bob.png", portrait(seed=6))
    blueprint = SimpleNamespace(base_hash="b", adapter_hash="a", lora_hash="")
    identity = SimpleNamespace(portrait_hash="of the file", encoder="e")
    record = {"base_hash": "b", "adapter_hash": "a", "lora_hash": "", "portrait_hash": pixels_hash(picture)}
    for name, same in (("ann.png", True), ("bob.png", False)):
        order = SimpleNamespace(blueprint=blueprint, enrolment=None, request=SimpleNamespace(portrait=tmp_path / name))
        with nullcontext() if same else pytest.raises(BadRequest, match="another portrait"):
            check_same(record, order, SimpleNamespace(identity=identity))


def test_differences_are_named():
    before = {"versions": {"torch": "2.12", "diffusers": "0.42"}, "machine": {"threads": 1}}
    now = {"versions": {"torch": "2.13", "diffusers": "0.42"}, "machine": {"threads": 2}}
    assert differences(before, now) == ["torch was 2.12, here it is 2.13.", "threads was 1, here it is 2."]
    assert differences(now, now) == []


def test_what_a_private_record_withholds_is_asked_for(tmp_path):
    private = {**RECORD, "negative_prompt": None, "negative_prompt_withheld": True}
    with pytest.raises(BadRequest, match="--negative-prompt"):
        request_of(private, portrait=tmp_path / "me.png")
    given = request_of(private, portrait=tmp_path / "me.png", negative_prompt="dark")
    assert given.generation["negative_prompt"] == "dark"
    with pytest.raises(BadRequest, match="another negative prompt"):
        request_of(RECORD, portrait=tmp_path / "me.png", negative_prompt="dark")


def test_a_face_record_is_asked_for(tmp_path):
    recorded = {**RECORD, "face_record": True, "face_index": None}
    with pytest.raises(BadRequest, match="--face-record"):
        request_of(recorded, portrait=tmp_path / "me.png")
    assert request_of(recorded, portrait=tmp_path / "me.png", face_record=tmp_path / "me.json").face_record


def test_a_record_of_no_known_model_is_refused():
    with pytest.raises(BadRequest, match="model"):
        setup_of({**RECORD, "model": {"name": "nano"}}, Setup())
