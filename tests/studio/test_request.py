"""A request as a value, and settings from JSON and from texts."""

import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest

from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.studio.request import Request, generation_of
from lynx_video.studio.setup import MarkFlags

PORTRAIT = Path("me.png")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "say who"),
        ({"portrait": PORTRAIT, "identity": Path("me.safetensors")}, "one of the two"),
        ({"identity": Path("me.safetensors"), "face_index": 0}, "neither"),
        ({"portrait": PORTRAIT, "face_index": 0, "face_record": Path("me.json")}, "one of the two"),
        ({"portrait": PORTRAIT, "face_index": -1}, "face_index"),
        ({"portrait": PORTRAIT, "face_index": True}, "face_index"),
        ({"portrait": PORTRAIT, "prompt": "word " * 10_000}, "50000 characters, at most 8000"),
        ({"portrait": PORTRAIT, "prompt": "smiles \ud83d"}, r"the prompt has a broken character at place 7 \('\\ud83d'\)"),
    ],
)
def test_a_request_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(BadRequest, match=sentence):
        Request(**{"prompt": "smiles", **fields})


def test_a_negative_prompt_with_half_a_character_is_refused():
    with pytest.raises(BadRequest, match="the negative prompt has a broken character at place 0"):
        generation_of({"negative_prompt": "\udce4"})


def test_marks_that_say_nothing_are_refused():
    with pytest.raises(BadRequest, match="left out for a reason"):
        MarkFlags(no_watermark="  ")
    with pytest.raises(BadRequest, match="the consent has a broken character"):
        MarkFlags(consent="Ada\ud83d")


def test_a_request_travels():
    request = Request(prompt="smiles", portrait=PORTRAIT, generation={"seed": 3})
    assert pickle.loads(pickle.dumps(request)) == request


def test_settings_come_from_json_and_from_texts():
    as_json = generation_of(
        {
            "seed": 7,
            "num-frames": 17,
            "fps": 8,
            "guidance_scale_i": "none",
            "ip_blocks": [0, 1, 2],
            "step_cache": 0.2,
            "scheduler": "euler",
            "negative_prompt": "blurred",
            "width": None,
        }
    )
    as_texts = generation_of(
        {
            "seed": "7",
            "num_frames": "17",
            "fps": "8",
            "guidance_scale_i": "none",
            "ip_blocks": "0-2",
            "step_cache": "0.2",
            "scheduler": "euler",
            "negative_prompt": "blurred",
            "width": "",
        }
    )
    assert as_json == as_texts
    assert as_json["ip_blocks"] == frozenset({0, 1, 2})
    assert (type(as_json["seed"]), type(as_json["fps"])) == (int, float)
    assert "width" not in as_json


def test_every_field_of_a_generation_can_be_named():
    plain = {one.name: getattr(GenerateConfig(), one.name) for one in fields(GenerateConfig)}
    assert generation_of(plain) == {name: value for name, value in plain.items() if value is not None}
    json.dumps({name: sorted(value) if isinstance(value, frozenset) else value for name, value in plain.items()})


def test_a_seed_beyond_the_exact_range_of_floats_stays_exact():
    assert generation_of({"seed": 2**62 + 1}) == generation_of({"seed": str(2**62 + 1)}) == {"seed": 2**62 + 1}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sede": 1}, "unknown setting 'sede'"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"seed": float("inf")}, "seed"),
        ({"seed": "1e400"}, "seed"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": [1]}, "seed must be a whole number"),
        ({"guidance_scale_i": "strong"}, "guidance_scale_i must be a number or 'none'"),
        ({"guidance_scale": "nan"}, "guidance_scale must be a number from 0"),
        ({"scheduler": "fast"}, "scheduler must be 'unipc' or 'euler' or 'dpm'"),
        ({"ip_blocks": "9-0"}, "ip_blocks must be block numbers"),
        ({"ip_blocks": [True]}, "ip_blocks must be block numbers"),
        ({"negative_prompt": 3}, "negative_prompt must be a text"),
        ({"negative_prompt": "x" * 8001}, "negative prompt has 8001 characters"),
        ({"ip_blocks": "0," * 600}, "text of 1200 characters"),
    ],
)
def test_a_setting_that_cannot_be_is_named(values, sentence):
    with pytest.raises(BadRequest, match=sentence):
        generation_of(values)
