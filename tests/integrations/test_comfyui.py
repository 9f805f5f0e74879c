"""The ComfyUI nodes against ComfyUI's documented interface: what they declare, the example workflows, and clips made through them."""

from __future__ import annotations

import copy
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_interface import CORE, FOLDER, api_workflow, inputs_of, load_package, run

import lynx_video
from lynx_video.errors import BadPicture, BadRequest, BadWeights, MissingDependency, NoFace, Refused

NODES = load_package().NODE_CLASS_MAPPINGS
OURS = {"LYNX_MODEL", "LYNX_GATE", "LYNX_IDENTITY", "LYNX_CLIP"}
THEIRS = {"IMAGE", "STRING", "INT", "FLOAT", "BOOLEAN"}
PROMPT = "the person nods wearing a green shirt in front of a white wall"


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A drawn person, uint8 [H, W, 3]."""
    from lynx_video.nano.people import portrait

    return portrait(1)


def save_strict_classifier(folder: Path) -> Path:
    """A ViT of toy size that calls every picture nsfw."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "image_size": 16}
    model = ViTForImageClassification(ViTConfig(**sizes, patch_size=8, id2label={0: "normal", 1: "nsfw"}))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 5.0]))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))
    return folder


def as_image(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures).astype(np.float32) / 255)


@pytest.fixture
def call() -> Any:
    """call("LynxVideoSample", ...) runs one node with its defaults, changed."""

    def make(name: str, **given: Any) -> tuple[Any, ...]:
        node = NODES[name]
        values = {key: spec[1]["default"] for key, spec in inputs_of(node).items() if len(spec) > 1 and "default" in spec[1]}
        with torch.inference_mode():
            made = getattr(node(), node.FUNCTION)(**{**values, **given})
        return made["result"] if isinstance(made, dict) else made

    return make


@pytest.fixture(scope="module")
def nano() -> Any:
    """nano, loaded once, and its gate."""
    with torch.inference_mode():
        (model,) = NODES["LynxVideoLoadModel"]().load("nano", "models", "auto", "cpu", 0, "keep")
        (gate,) = NODES["LynxVideoSafetyGate"]().gate(model)
    return types.SimpleNamespace(model=model, gate=gate)


# --- what is declared -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NODES)
def test_a_node_declares_what_comfyui_reads(name: str) -> None:
    node = NODES[name]
    assert node.CATEGORY == "Lynx Video"
    assert callable(getattr(node, node.FUNCTION))
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) > 0
    assert set(node.RETURN_TYPES) <= OURS | THEIRS
    assert load_package().NODE_DISPLAY_NAME_MAPPINGS[name]
    assert len(node.DESCRIPTION) > 20
    kinds = node.INPUT_TYPES()
    assert set(kinds) <= {"required", "optional"}
    for key, spec in inputs_of(node).items():
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        if isinstance(kind, list):
            assert options["default"] in kind
        else:
            assert kind in OURS | THEIRS
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], key
            assert type(options["default"]) in ((int,) if kind == "INT" else (int, float))
        if kind == "STRING":
            assert isinstance(options["default"], str)
        assert (isinstance(kind, str) and kind in OURS | {"IMAGE"}) or options["tooltip"]


@pytest.mark.parametrize("name", NODES)
def test_a_function_takes_what_its_node_declares(name: str) -> None:
    import inspect

    node = NODES[name]
    taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
    free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    for key in inputs_of(node):
        assert key in taken or free
    for key, parameter in taken.items():
        if (
            parameter.default is inspect.Parameter.empty
            and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            and key != "self"
        ):
            assert key in node.INPUT_TYPES()["required"]


def test_importing_the_package_loads_no_model_library() -> None:
    import subprocess

    script = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('package', {str(FOLDER / '__init__.py')!r}); "
        "sys.modules['package'] = module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "assert len(module.NODE_CLASS_MAPPINGS) == 6; assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_registry_file_says_our_version() -> None:
    tomllib = pytest.importorskip("tomllib")
    about = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert about["project"]["version"] == lynx_video.__version__
    assert about["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split()


# --- the example workflows --------------------------------------------------------------------------------------------------------


def test_the_api_workflow_fits_the_nodes() -> None:
    workflow = api_workflow()
    for number, node in workflow.items():
        if node["class_type"] in CORE:
            continue
        declared, required = inputs_of(NODES[node["class_type"]]), NODES[node["class_type"]].INPUT_TYPES()["required"]
        assert set(required) <= set(node["inputs"]) <= set(declared)
        for name, value in node["inputs"].items():
            spec = declared[name]
            if isinstance(value, list):
                source = workflow[value[0]]["class_type"]
                types_out = CORE[source] if source in CORE else NODES[source].RETURN_TYPES
                assert types_out[value[1]] == spec[0], f"{number}.{name}"
            elif isinstance(spec[0], list):
                assert value in spec[0]
            elif spec[0] in ("INT", "FLOAT"):
                assert spec[1]["min"] <= value <= spec[1]["max"]
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[spec[0]])


def test_the_page_workflow_is_the_same_graph() -> None:
    page = json.loads((FOLDER / "example_workflows" / "portrait_to_clip.json").read_text(encoding="utf-8"))
    api = api_workflow()
    links = {link[0]: link for link in page["links"]}
    assert page["last_link_id"] == max(links)
    assert {str(node["id"]): node["type"] for node in page["nodes"]} == {key: node["class_type"] for key, node in api.items()}
    nodes = {node["id"]: node for node in page["nodes"]}
    for link, source, slot, target, place, kind in page["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == link
        assert api[str(target)]["inputs"][nodes[target]["inputs"][place]["name"]] == [str(source), slot]
    for node in page["nodes"]:
        linked = {each["name"] for each in node["inputs"] if each["link"] is not None}
        given = {name: value for name, value in api[str(node["id"])]["inputs"].items() if name not in linked}
        values = list(node["widgets_values"])
        if node["type"] in NODES:  # the order of the widgets is that of the inputs; a seed has its control after it
            declared = inputs_of(NODES[node["type"]])
            assert [each["name"] for each in node["inputs"]] == list(declared)
            assert [each["type"] for each in node["outputs"]] == list(NODES[node["type"]].RETURN_TYPES)
            for name in declared:
                if name in given:
                    assert values.pop(0) == given[name]
                    if len(declared[name]) > 1 and declared[name][1].get("control_after_generate"):
                        assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            assert values == []


def test_the_example_workflow_makes_the_clip_that_generate_makes(
    portrait: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lynx_video import GenerateConfig, generate, load
    from lynx_video.media.provenance import read_provenance
    from lynx_video.media.video import read_video

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LYNX_VIDEO_HOME", str(tmp_path / "home"))
    workflow = api_workflow()
    workflow["7"]["inputs"] |= {"num_inference_steps": 3, "prompt": PROMPT, "seed": 7}
    outputs = run(workflow, {"portrait.png": as_image(portrait)})

    expected = generate(load("nano", device="cpu"), portrait, PROMPT, GenerateConfig(seed=7, num_inference_steps=3))
    images, fps, settings, _ = outputs["7"]
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), torch.from_numpy(expected.frames))
    assert fps == expected.fps
    said = json.loads(settings)
    for name in (
        "prompt",
        "seed",
        "num_inference_steps",
        "base_hash",
        "adapter_hash",
        "ip_scale",
        "ref_scale",
        "portrait_hash",
    ):
        assert said[name] == expected.settings[name]
    assert said["model"] == "nano"
    assert said["similarity"] == pytest.approx(expected.similarity)
    assert said["consent"] == "a drawn person: nobody to ask"
    assert said["safety"] == {"prompt": {"rules": ["minors", "nudity"], "classifier": None}, "pictures": "not needed"}

    drawn, count, faces = outputs["4"]
    assert drawn.shape == (1, *portrait.shape)
    assert count == 1
    assert json.loads(faces)[0]["index"] == 0
    crop = outputs["6"][1]
    assert crop.shape[-1] == 3
    (file,) = outputs["8"]
    assert Path(file) == Path("output/lynx_video/clip_00001_.mp4")
    assert read_video(file)[0].shape == expected.frames.shape
    provenance = read_provenance(Path(file))
    assert (provenance.state, provenance.record["prompt"]) == ("untouched", PROMPT)
    again = NODES["LynxVideoSaveClip"]().save(outputs["7"][3], "lynx_video/clip", True)
    assert again["result"] == ("output/lynx_video/clip_00002_.mp4",)
    assert again["ui"]["images"] == [{"filename": "clip_00002_.mp4", "subfolder": "lynx_video", "type": "output"}]


# --- what the widgets do ----------------------------------------------------------------------------------------------------------


def test_widgets_become_the_config() -> None:
    from lynx_video import GenerateConfig

    config_of = sys.modules["lynx_video_comfyui.inputs"].config_of
    node = NODES["LynxVideoSample"]
    plain = {key: spec[1]["default"] for key, spec in inputs_of(node).items() if len(spec) > 1}
    assert config_of(plain) == GenerateConfig()
    changed = {
        "seed": 3,
        "num_inference_steps": 4,
        "num_frames": 9,
        "width": 64,
        "height": 80,
        "guidance_scale": 2.5,
        "guidance_scale_i": "1.5",
        "guidance_stop": 0.5,
        "ip_scale": 0.8,
        "ip_start": 0.1,
        "ip_stop": 0.9,
        "ref_scale": 0.0,
        "ref_start": 0.2,
        "ref_stop": 0.7,
        "negative_prompt": "blur",
        "scheduler": "euler",
        "flow_shift": 4.0,
    }
    blocks = {"ip_blocks": "0-2, 5", "ref_blocks": "1"}
    assert set(plain) - {"prompt", "previews"} == set(changed) | set(blocks)
    expected = GenerateConfig(
        **changed | {"guidance_scale_i": 1.5}, ip_blocks=frozenset({0, 1, 2, 5}), ref_blocks=frozenset({1})
    )
    assert config_of(plain | changed | blocks) == expected
    assert config_of(plain | {"guidance_scale_i": " none "}).guidance_scale_i == "none"
    for name, value, why in (
        ("ip_blocks", "3-1", "ip_blocks: '3-1'"),
        ("guidance_scale_i", "lots", "guidance_scale_i: 'lots'"),
    ):
        with pytest.raises(BadRequest, match=why):
            config_of(plain | {name: value})


def test_scales_windows_and_blocks_reach_the_model(nano: Any, portrait: np.ndarray, call: Any) -> None:
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))

    def images(**widgets: Any) -> torch.Tensor:
        small = {"num_inference_steps": 2, "num_frames": 5}
        return call("LynxVideoSample", model=nano.model, gate=nano.gate, identity=identity, prompt=PROMPT, **small, **widgets)[
            0
        ]

    plain = images()
    assert plain.shape[0] == 5
    off = images(ip_scale=0.0, ref_scale=0.0)
    assert not torch.equal(off, plain)
    assert torch.equal(images(ip_stop=0.0, ref_stop=0.0), off)
    last = nano.model.components.blocks - 1
    assert not torch.equal(images(ip_scale=0.0, ref_blocks=str(last)), plain)
    with pytest.raises(BadRequest, match=f"the base has blocks 0 to {last}"):
        images(ip_blocks="99")


def test_several_portraits_become_one_identity(nano: Any, portrait: np.ndarray, call: Any) -> None:
    from lynx_video.nano.people import portrait as drawn
    from lynx_video.pipeline.identify import identify, merge

    other = drawn(2)
    identity, crop, _ = call(
        "LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait, other), consent=" me "
    )
    size = nano.model.components.defaults.reference_size
    each = [identify(nano.model.components.faces, one, reference_size=size).identity for one in (portrait, other)]
    both = merge(each)
    assert torch.equal(identity.embedding, both.embedding)
    assert not torch.equal(identity.embedding, each[0].embedding)
    assert identity.consent == "me"
    assert torch.equal((crop * 255).round().byte(), torch.from_numpy(both.crop)[None])


# --- what is refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "error", "why"),
    [
        (torch.zeros(1, 100, 100, 3), NoFace, "No face was found"),
        (torch.zeros(1, 1, 1, 3), BadPicture, "1 x 1 pixels"),
        (torch.zeros(1, 1, 1, 3).expand(1, 10_000, 10_000, 3), BadPicture, "64 megapixels"),
        (torch.full((1, 64, 64, 3), torch.nan), BadPicture, "not numbers"),
        (torch.zeros(1, 64, 64, 1), BadPicture, r"\[1, 64, 64, 1\]"),
        (torch.zeros(0, 64, 64, 3), BadPicture, r"\[0, 64, 64, 3\]"),
        ("portrait.png", BadPicture, "got str"),
    ],
)
def test_pictures_that_cannot_be_used(nano: Any, call: Any, image: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=image)
    with pytest.raises(error, match=why):
        call("LynxVideoFindFaces", model=nano.model, image=image)


def test_a_face_that_is_not_there_and_too_many_pictures(nano: Any, call: Any, portrait: np.ndarray) -> None:
    with pytest.raises(BadRequest, match="There is no face 3"):
        call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait), face_index=3)
    with pytest.raises(BadPicture, match="2 pictures; expected one"):
        call("LynxVideoFindFaces", model=nano.model, image=as_image(portrait, portrait))


def test_the_gate_stands_before_every_node(nano: Any, call: Any, portrait: np.ndarray, tmp_path: Path) -> None:
    strict = str(save_strict_classifier(tmp_path / "strict"))
    (gate,) = call("LynxVideoSafetyGate", model=nano.model, safety_checker=strict)
    with pytest.raises(Refused, match="the portrait was refused"):
        call("LynxVideoMakeIdentity", model=nano.model, gate=gate, image=as_image(portrait))
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))
    one = {"model": nano.model, "identity": identity, "num_inference_steps": 1, "num_frames": 1}
    with pytest.raises(Refused, match="the video was refused"):
        call("LynxVideoSample", gate=gate, prompt=PROMPT, **one)
    with pytest.raises(Refused, match="'naked'"):
        call("LynxVideoSample", gate=nano.gate, prompt="the naked person nods", **one)
    (lenient,) = call("LynxVideoSafetyGate", model=nano.model, safety_checker=strict, safety_threshold=1.0)
    settings = json.loads(call("LynxVideoSample", gate=lenient, prompt=PROMPT, **one)[2])
    assert settings["safety"]["pictures"]["checker"] == "strict"
    assert settings["safety"]["pictures"]["threshold"] == 1.0


def test_a_prompt_that_nothing_lets_through_is_refused_when_it_is_queued() -> None:
    validate = NODES["LynxVideoSample"].VALIDATE_INPUTS
    assert validate(prompt=PROMPT) is True
    assert validate(prompt=None) is True  # it comes over a link
    assert "no setting lets that through" in validate(prompt="a naked child")


def test_a_gate_of_another_model_is_no_gate(nano: Any, call: Any, portrait: np.ndarray) -> None:
    other = copy.copy(nano.model)
    with pytest.raises(BadRequest, match="made for another model"):
        call("LynxVideoMakeIdentity", model=other, gate=nano.gate, image=as_image(portrait))
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))
    with pytest.raises(BadRequest, match="made for another model"):
        call("LynxVideoSample", model=other, gate=nano.gate, identity=identity)


def test_what_is_missing_is_said(nano: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    with pytest.raises(BadWeights, match="lynx-video download base"):
        call("LynxVideoLoadModel", model="lynx-full", models_folder=str(tmp_path), device="cpu")
    with pytest.raises(BadWeights, match="gone"):
        call("LynxVideoLoadModel", base=str(tmp_path / "gone"), adapter=str(tmp_path), device="cpu")
    with pytest.raises(BadRequest, match="abacus"):
        call("LynxVideoLoadModel", device="abacus")
    # a base as wide as nano's counts as a real one
    monkeypatch.setattr("lynx_video.studio.gate.REAL_WIDTH", nano.model.blueprint.shape.width)
    flags = replace(nano.model.flags, model="lynx-full", models=tmp_path)
    real = replace(nano.model, flags=flags)
    with pytest.raises(MissingDependency, match="lynx-video download safety"):
        call("LynxVideoSafetyGate", model=real)


def test_a_file_name_outside_the_output_folder(
    nano: Any, call: Any, portrait: np.ndarray, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))
    made = {"identity": identity, "num_inference_steps": 1, "num_frames": 1, "prompt": PROMPT}
    film = call("LynxVideoSample", model=nano.model, gate=nano.gate, **made)[3]
    for prefix in ("../up", "/etc/clip", "a/../../b", ""):
        with pytest.raises(BadRequest, match="filename_prefix"):
            call("LynxVideoSaveClip", clip=film, filename_prefix=prefix)
    assert list(tmp_path.iterdir()) == []


# --- progress and interruption ----------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for ComfyUI's InterruptProcessingException."""


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of ComfyUI that the nodes look for, with what its documentation says is in them."""
    seen = types.SimpleNamespace(bars=[], unloaded=0, stop_at=None)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.calls = total, []
            seen.bars.append(self)

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            self.calls.append((value, total, preview))

    def throw() -> None:
        if seen.stop_at is not None and seen.bars and len(seen.bars[0].calls) >= seen.stop_at:
            raise Interrupted

    def unload() -> None:
        seen.unloaded += 1

    package, management, utils = (types.ModuleType(f"comfy{part}") for part in ("", ".model_management", ".utils"))
    package.__path__ = []
    management.throw_exception_if_processing_interrupted = throw
    management.unload_all_models = unload
    management.soft_empty_cache = lambda: None
    utils.ProgressBar = ProgressBar
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_progress_previews_and_cancel(nano: Any, call: Any, portrait: np.ndarray, comfyui: Any) -> None:
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))
    sample = {"model": nano.model, "gate": nano.gate, "identity": identity, "prompt": PROMPT, "num_frames": 5}
    call("LynxVideoSample", num_inference_steps=3, **sample)
    (bar,) = comfyui.bars
    assert [(value, total) for value, total, _ in bar.calls] == [(1, 3), (2, 3), (3, 3)]
    kind, picture, _ = bar.calls[-1][2]
    assert (kind, picture.size) == ("JPEG", (nano.model.components.defaults.width, nano.model.components.defaults.height))

    comfyui.bars.clear()
    call("LynxVideoSample", num_inference_steps=1, previews=False, **sample)
    assert comfyui.bars[0].calls == [(1, 1, None)]

    comfyui.bars.clear()
    comfyui.stop_at = 2
    with pytest.raises(Interrupted):
        call("LynxVideoSample", num_inference_steps=50, **sample)
    assert len(comfyui.bars[0].calls) == 2


def test_no_preview_of_what_the_gate_refuses(nano: Any, call: Any, portrait: np.ndarray, comfyui: Any) -> None:
    identity, _, _ = call("LynxVideoMakeIdentity", model=nano.model, gate=nano.gate, image=as_image(portrait))
    sample = {"model": nano.model, "identity": identity, "prompt": PROMPT, "num_frames": 5, "num_inference_steps": 3}
    scores: list[float] = []

    def worse(_: np.ndarray) -> float:
        scores.append(0.45 * len(scores))  # 0 and 0.45 pass, what follows does not
        return scores[-1]

    strict = replace(nano.gate, gate=replace(nano.gate.gate, pictures=worse))
    with pytest.raises(Refused, match="the video was refused"):
        call("LynxVideoSample", gate=strict, **sample)
    assert [preview is not None for _, _, preview in comfyui.bars[0].calls] == [True, True, False]

    def broken(_: np.ndarray) -> float:
        raise RuntimeError("no memory for a preview")

    comfyui.bars.clear()
    with pytest.raises(RuntimeError):  # by the frames at the end: those have to be looked at
        call("LynxVideoSample", gate=replace(nano.gate, gate=replace(nano.gate.gate, pictures=broken)), **sample)
    assert [preview for _, _, preview in comfyui.bars[0].calls] == [None] * 3


def test_comfyuis_models_leave_the_gpu_and_only_that(comfyui: Any) -> None:
    make_room = sys.modules["lynx_video_comfyui.host"].make_room
    make_room("cpu")
    assert comfyui.unloaded == 0
    make_room("cuda")
    assert comfyui.unloaded == 1
