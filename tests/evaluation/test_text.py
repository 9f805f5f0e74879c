"""The CLIP score with a real CLIP model of toy size, saved the way the real ones are."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lynx_video.errors import BadWeights, LynxWarning
from lynx_video.evaluation.metrics.text import ClipScorer

LIMIT = 24
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def save_clip(folder: Path, kind: str = "clip") -> Path:
    """A CLIP or SigLIP model with random weights and a tokenizer of single letters."""
    import transformers

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: number for number, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    text = {**SIZES, "vocab_size": end + 1, "max_position_embeddings": LIMIT, "bos_token_id": start, "eos_token_id": end}
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():  # as they are drawn, all pictures and texts are nearly one
        for weights in model.parameters():
            weights.mul_(3)
    model.save_pretrained(folder)
    name = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[kind]
    size: Any = {"shortest_edge": 16} if kind == "clip" else {"height": 16, "width": 16}
    settings = {"image_processor_type": name, "do_resize": True, "size": size, "resample": 3, "do_rescale": True}
    settings |= {"do_center_crop": kind == "clip", "crop_size": {"height": 16, "width": 16}}
    settings |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def noise(seed: int, count: int = 20, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def expected(folder: Path, frames: np.ndarray, tokens: list[int]) -> float:
    """The mean cosine by hand; frames have the model's own size."""
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder).eval()
    pixels = (torch.from_numpy(frames).double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    with torch.no_grad():
        picture = clip.visual_projection(clip.vision_model(pixels.float().permute(0, 3, 1, 2)).pooler_output).double()
        text = clip.text_projection(clip.text_model(torch.tensor([tokens])).pooler_output).double()
    return float(((picture @ text.T)[:, 0] / picture.norm(dim=1) / text.norm()).mean())


def tokens_of(prompt: str) -> list[int]:
    start = 2 * 94
    ids = [ord(letter) - 33 for word in prompt.split() for letter in word]
    ends = np.cumsum([len(word) for word in prompt.split()]) - 1
    return [start, *(number + 94 * (place in ends) for place, number in enumerate(ids)), start + 1]


def test_the_score_is_the_mean_cosine_of_eight_frames(model: Path) -> None:
    score, frames = ClipScorer(model), noise(0)
    found = score(frames, "a red shirt")
    chosen = frames[[0, 3, 5, 8, 11, 14, 16, 19]]
    assert found.n == 8
    assert found.reason == ""
    assert found.value == pytest.approx(expected(model, chosen, tokens_of("a red shirt")), abs=1e-5)
    assert found.value != pytest.approx(score(frames, "a blue wall").value, abs=1e-3)
    assert found.value != pytest.approx(score(noise(1), "a red shirt").value, abs=1e-4)
    few = score(frames[:3], "a red shirt")
    assert (few.value, few.n) == (pytest.approx(expected(model, frames[:3], tokens_of("a red shirt")), abs=1e-5), 3)
    nothing = score(frames[:0], "a red shirt")
    assert (nothing.value, nothing.n, nothing.reason) == (None, 0, "no frames")


def test_frames_of_any_shape(model: Path) -> None:
    score = ClipScorer(model)
    for height, width in ((480, 832), (70, 40), (8, 9)):
        assert -1 <= score(noise(2, 9, height, width), "x").value <= 1
    turned = noise(2)[:, ::-1, ::-1]  # a view with negative strides
    assert score(turned, "x") == score(turned.copy(), "x")


def test_neither_order_nor_a_new_start_matters(model: Path) -> None:
    clips = [(noise(seed, count), prompt) for seed, count, prompt in ((0, 20, "one"), (1, 5, "two words"), (2, 9, "three"))]
    first, second = ClipScorer(model), ClipScorer(str(model))
    forward = [first(*clip) for clip in clips]
    backward = [second(*clip) for clip in clips[::-1]]
    assert backward[::-1] == forward
    assert len({score.value for score in forward}) == 3


def test_a_prompt_longer_than_the_model_reads(model: Path) -> None:
    score, frames = ClipScorer(model), noise(0)
    whole = "a" * (LIMIT - 2)
    assert not score.cuts(whole)
    assert score.cuts(whole + "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(frames, whole)
    with pytest.warns(LynxWarning, match=f"{LIMIT} tokens"):
        cut = score(frames, "a" * LIMIT + " red shirt")
    assert cut == score(frames, "a" * LIMIT + " blue wall")  # said once
    kept = [188, *[64] * (LIMIT - 2), 189]
    assert cut.value == pytest.approx(expected(model, frames[[0, 3, 5, 8, 11, 14, 16, 19]], kept), abs=1e-5)


def test_siglip(tmp_path: Path) -> None:
    score, frames = ClipScorer(save_clip(tmp_path, "siglip")), noise(0)
    assert score(frames, "a red shirt").n == 8
    assert score(frames, "a red shirt").value != score(frames, "a red skirt").value


def test_what_the_model_is_known_by(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    known = ClipScorer(model).hash
    assert len(known) == 64
    assert ClipScorer(copy).hash == known
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert ClipScorer(copy).hash != known
    assert ClipScorer("somebody/clip").hash == "hub:somebody/clip"


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadWeights, match=r"nowhere: no such folder.*openai/clip-vit-base-patch32"):
        ClipScorer(tmp_path / "nowhere")
    with pytest.raises(BadWeights, match=r"config\.json: missing"):
        ClipScorer(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    score = ClipScorer("somebody/no-such-clip")
    with pytest.raises(BadWeights, match=r"somebody/no-such-clip: .*hf download somebody/no-such-clip"):
        score(noise(0), "x")


def test_broken_models_are_refused(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "broken")
    weights, config = (folder / "model.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())

    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(BadWeights, match="broken: the CLIP model cannot be loaded"):
        ClipScorer(folder).load()
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"model\.safetensors: missing"):
        ClipScorer(folder)
    (folder / "model.safetensors").write_bytes(weights)

    deeper = config | {"text_config": config["text_config"] | {"num_hidden_layers": 3}}
    (folder / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(BadWeights, match=r"do not fit config\.json, first at '.*layers\.2"):
        ClipScorer(folder).load()
    (folder / "config.json").write_text("{")
    with pytest.raises(BadWeights, match="cannot be loaded"):
        ClipScorer(folder).load()


def test_another_kind_of_model_is_refused(model: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    folder = shutil.copytree(model, tmp_path / "vit")
    ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=8)).save_pretrained(folder)
    with pytest.raises(BadWeights, match="kind 'vit'; a text-image score needs CLIP"):
        ClipScorer(folder).load()
