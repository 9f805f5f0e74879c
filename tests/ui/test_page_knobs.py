"""The page's settings: what each preset says, what a visitor turned, and what a clip was made with."""

import pytest

from lynx_video.config import GenerateConfig
from lynx_video.studio.setup import ModelFlags, Setup
from lynx_video.studio.studio import Studio
from lynx_video.ui.knobs import KNOBS, carried, knobs_of, moved, recorded, settings_of, turned


@pytest.fixture(scope="module")
def nano(desk):
    return desk.setup, desk.blueprint, desk.knobs


def test_every_knob_is_a_setting_and_says_what_it_does():
    names = [knob.name for knob in KNOBS]
    assert set(names) < set(GenerateConfig.__dataclass_fields__)
    assert len(set(names)) == len(names)
    assert all(knob.label and knob.help.endswith(".") for knob in KNOBS)
    assert all(bool(knob.words) == (knob.kind == "choice") for knob in KNOBS)


def test_the_model_decides_which_knobs_there_are(nano):
    assert [knob.name for knob in nano[2]] == [knob.name for knob in KNOBS]
    assert "a multiple of 8" in next(knob.help for knob in nano[2] if knob.name == "width")
    lite = Studio(Setup(model=ModelFlags(model="nano-lite"))).blueprint()
    without = {"ref_scale", "ref_start", "ref_stop"} | (
        {"guidance_scale_i"} if lite.defaults.guidance_scale_i is None else set()
    )
    assert {knob.name for knob in KNOBS} - {knob.name for knob in knobs_of(lite)} == without


def test_a_preset_says_where_the_knobs_stand(nano):
    exact, draft = settings_of(*nano[:2], "exact", nano[2]), settings_of(*nano[:2], "draft", nano[2])
    assert (exact["num_inference_steps"], exact["guidance_scale"], exact["ip_scale"]) == (20, 3.0, 1.0)
    assert (draft["num_inference_steps"], draft["guidance_scale"]) == (4, 1.0)
    assert exact["width"] == draft["width"] == nano[1].defaults.width


def test_only_what_was_turned_is_asked_for():
    settings = {"ip_scale": 1.0, "num_frames": 9, "negative_prompt": "static", "scheduler": "unipc"}
    assert turned({**settings, "ip_scale": 1}, settings) == {}
    assert turned({**settings, "ip_scale": 0.95, "num_frames": None, "negative_prompt": ""}, settings) == {
        "ip_scale": 0.95,
        "negative_prompt": "",
    }


def test_what_was_turned_stays_under_another_preset():
    exact, draft = {"steps": 20, "guidance": 3.0}, {"steps": 4, "guidance": 1.0}
    assert moved({"steps": 20, "guidance": 2.0}, exact, draft) == {"steps": 4, "guidance": 2.0}
    assert moved({"steps": 4, "guidance": 2.0}, draft, exact) == {"steps": 20, "guidance": 2.0}


def test_a_record_that_lies_about_its_kinds_moves_nothing():
    settings = {"ip_scale": 1.0, "scheduler": "unipc", "num_frames": 9}
    assert recorded({"ip_scale": 0.5, "scheduler": "dpm", "num_frames": 13}, settings) == {
        "ip_scale": 0.5,
        "scheduler": "dpm",
        "num_frames": 13,
    }
    assert recorded({"ip_scale": "much", "scheduler": 3, "num_frames": True}, settings) == settings


def test_settings_without_a_knob_are_carried_if_they_differ(nano):
    as_it_is = {"fps": 8.0, "flow_shift": 1.5, "reference_latent": "sample", "guidance_stop": 1.0, "step_cache": "off"}
    assert carried(as_it_is, *nano[:2], "exact") == {}
    found = carried({**as_it_is, "ip_blocks": [0, 2], "flow_shift": 3.0, "step_cache": 0.15}, *nano[:2], "exact")
    assert found == {"ip_blocks": frozenset({0, 2}), "flow_shift": 3.0, "step_cache": 0.15}
    assert carried({"guidance_stop": 0.6, "step_cache": 0.2}, *nano[:2], "balanced") == {}
    assert carried({"fps": "quick"}, *nano[:2], "exact") == {}
