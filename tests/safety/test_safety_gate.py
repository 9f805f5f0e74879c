"""The gate as doors use it: each way to be refused, each way to be switched off, and what is noted of it."""

from __future__ import annotations

import hashlib
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from classifiers import BAD_WORD, BLUE, RED

from lynx_video.errors import BadRequest, BadWeights, MissingDependency, Refused
from lynx_video.safety import EVERY, Gate, SafetyConfig, resolve_gate, resolve_safety

VIDEO = np.repeat(BLUE[None], 17, axis=0)
RULES = ["minors", "nudity"]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_everything_that_passes_and_everything_that_does_not(models: Path, texts: Path) -> None:
    config = SafetyConfig(prompt_checker=str(texts))
    gate = resolve_gate(config, needs_gate=True, models_dir=models)
    for score in (gate.prompt("the person smiles"), gate.portrait(BLUE), gate.frames(VIDEO)):
        assert score is not None
        assert score < 0.1
    late = VIDEO.copy()
    late[16] = RED
    for ask, said in (
        (lambda: gate.prompt("the person undresses"), "'undresses'"),
        (lambda: gate.prompt("a naked child"), "minor"),
        (lambda: gate.prompt(f"the person {BAD_WORD}"), "by the prompt checker"),
        (lambda: gate.portrait(RED), "the portrait was refused"),
        (lambda: gate.frames(late), "frame 16 of 17"),
    ):
        with pytest.raises(Refused, match=said) as caught:
            ask()
        assert caught.value.exit_code == 3


def test_which_frames_are_looked_at(classifier: Path) -> None:
    def seen(**settings: int) -> set[int]:
        gate = resolve_gate(SafetyConfig(safety_checker=str(classifier), **settings), needs_gate=False)
        found = set()
        for index in range(len(VIDEO)):
            video = VIDEO.copy()
            video[index] = RED
            try:
                gate.frames(video)
            except Refused:
                found.add(index)
        return found

    assert seen() == {0, 4, 8, 12, 16}  # one for each latent of the VAE
    assert seen(safety_every=1) == set(range(17))
    assert seen(safety_every=7) == {0, 7, 14, 16}
    assert seen(safety_every=1000) == {0, 16}


def test_thresholds_are_those_of_the_settings(classifier: Path, texts: Path) -> None:
    config = SafetyConfig(safety_checker=str(classifier), safety_threshold=1.0, prompt_checker=str(texts), prompt_threshold=1.0)
    gate = resolve_gate(config, needs_gate=False)
    for score in (gate.portrait(RED), gate.frames(RED[None]), gate.prompt(BAD_WORD)):
        assert score is not None
        assert score > 0.9
    config = SafetyConfig(
        safety_checker=str(classifier), safety_threshold=1e-6, prompt_checker=str(texts), prompt_threshold=1e-6
    )
    gate = resolve_gate(config, needs_gate=False)
    for ask in (lambda: gate.portrait(BLUE), lambda: gate.frames(VIDEO), lambda: gate.prompt("the person smiles")):
        with pytest.raises(Refused, match=r"less than 0\.00 passes"):
            ask()


def test_off_and_not_needed(models: Path, tmp_path: Path) -> None:
    for config, needed, why in (
        (SafetyConfig(safety_checker="off"), True, "off"),
        (SafetyConfig(safety_checker="off"), False, "off"),
        (SafetyConfig(), False, "not needed"),
    ):
        gate = resolve_gate(config, needs_gate=needed, models_dir=models)
        assert gate.pictures is None
        assert gate.portrait(RED) is gate.frames(RED[None]) is None
        assert gate.record()["pictures"] == why
        with pytest.raises(Refused):  # prompts have a switch of their own
            gate.prompt("nude")
    gate = resolve_gate(SafetyConfig(prompt_checker="off"), needs_gate=False, models_dir=tmp_path)
    assert gate.prompt("nude") is None
    assert gate.record()["prompt"] == {"rules": ["minors"], "classifier": None}
    with pytest.raises(Refused, match="no setting lets that through"):
        gate.prompt("a nude child")


def test_missing_is_refused_and_never_skipped(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for setting, needed in (("auto", True), ("Falconsai/nsfw_image_detection", False)):
        with pytest.raises(MissingDependency, match=r"lynx-video download safety.*--safety-checker off") as caught:
            resolve_gate(SafetyConfig(safety_checker=setting), needs_gate=needed, models_dir=tmp_path)
        assert caught.value.exit_code == 1
    with pytest.raises(MissingDependency, match=r"hf download owner/texts .*--prompt-checker off"):
        resolve_gate(SafetyConfig(prompt_checker="owner/texts"), needs_gate=False, models_dir=models)
    with pytest.raises(BadWeights, match="gone: no such folder") as caught_too:
        resolve_gate(SafetyConfig(safety_checker=str(tmp_path / "gone")), needs_gate=False, models_dir=models)
    assert caught_too.value.exit_code == 2
    (tmp_path / "safety_checker").mkdir()
    with pytest.raises(BadWeights, match=r"config\.json: missing"):
        resolve_gate(SafetyConfig(), needs_gate=True, models_dir=tmp_path)


def test_what_is_noted(models: Path, classifier: Path, texts: Path) -> None:
    config = SafetyConfig(prompt_checker=str(texts), safety_threshold=0.7, safety_every=2)
    record = resolve_gate(config, needs_gate=True, models_dir=models).record()
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "prompt": {
            "rules": RULES,
            "classifier": {
                "checker": "texts",
                "commit": None,
                "sha256": sha256(texts / "model.safetensors"),
                "labels": ["NSFW"],
                "threshold": 0.5,
            },
        },
        "pictures": {
            "checker": "safety_checker",
            "commit": None,
            "sha256": sha256(classifier / "model.safetensors"),
            "labels": ["nsfw"],
            "threshold": 0.7,
            "every": 2,
        },
    }
    assert str(models) not in json.dumps(record)
    own = Gate(pictures=lambda _: 0.0)
    assert own.frames(VIDEO) == 0.0
    assert own.record()["pictures"] == {"checker": "own", "sha256": None, "threshold": 0.85, "every": EVERY}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("safety_threshold", 0),
        ("safety_threshold", 1.01),
        ("safety_threshold", float("nan")),
        ("prompt_threshold", "0.5"),
        ("prompt_threshold", True),
        ("safety_every", 0),
        ("safety_every", 2.0),
        ("safety_checker", ""),
        ("prompt_checker", None),
    ],
)
def test_settings_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(BadRequest, match=name):
        SafetyConfig(**{name: value})


def test_the_recipe_of_a_gate_travels_to_workers(models: Path) -> None:
    recipe = partial(resolve_gate, SafetyConfig(safety_every=3), needs_gate=True, models_dir=models)
    with pytest.raises(Refused, match="frame 3 of 17"):
        pickle.loads(pickle.dumps(recipe))().frames(np.where(np.arange(17)[:, None, None, None] == 3, RED, BLUE))


def test_the_picture_classifier_alone(models: Path, classifier: Path, tmp_path: Path) -> None:
    assert resolve_safety("off", True, models) is None
    assert resolve_safety("auto", False, models) is None
    for setting, folder in (("auto", models), (str(classifier), tmp_path)):
        checker = resolve_safety(setting, True, folder)
        assert checker is not None
        assert checker(RED) > 0.9
    with pytest.raises(MissingDependency, match=r"lynx-video download safety.*--safety-checker off"):
        resolve_safety("auto", True, tmp_path)
