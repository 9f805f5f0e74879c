"""The safety switch with a real ViT classifier of toy size, saved the way the real one is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lynx_video.errors import BadRequest, BadWeights, MissingDependency, Refused
from lynx_video.safety import check_frames, check_portrait, load_safety_checker, resolve_safety

RED = np.full((50, 70, 3), (230, 20, 20), np.uint8)
BLUE = np.full((50, 70, 3), (20, 20, 230), np.uint8)


def save_classifier(folder: Path, labels: tuple[str, str] = ("normal", "nsfw")) -> Path:
    """A ViT that calls red pictures nsfw: its weights are random, its last layer is fitted to tell red from blue."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        red, blue = (model.vit(pixel_values=expected_input(each)).last_hidden_state[0, 0] for each in (RED, BLUE))
        direction = (red - blue) / (red - blue).square().sum()
        model.classifier.weight.copy_(torch.stack([torch.zeros(16), 8 * direction]))
        model.classifier.bias.copy_(torch.tensor([0.0, float(-4 * direction @ (red + blue))]))
    model.save_pretrained(folder)
    settings = {"do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5, 0.4, 0.3]}
    settings |= {"image_std": [0.5, 0.25, 0.2], "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def expected_input(picture: np.ndarray) -> torch.Tensor:
    from PIL import Image

    small = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR)) / 255
    return torch.from_numpy((small - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]).float().permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("models") / "safety_checker")


def test_scores_are_the_models_probability_of_nsfw(classifier: Path) -> None:
    from transformers import ViTForImageClassification

    checker = load_safety_checker(classifier)
    model = ViTForImageClassification.from_pretrained(classifier).eval()
    noise = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    for picture in (RED, BLUE, noise, noise[:, ::-1]):
        with torch.no_grad():
            expected = model(pixel_values=expected_input(picture)).logits.softmax(-1)[0, 1]
        assert checker(picture) == pytest.approx(float(expected), abs=1e-5)
    assert checker(RED) > 0.9
    assert checker(BLUE) < 0.1


def test_preparation_equals_the_processor_of_transformers(classifier: Path) -> None:
    processing = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    from lynx_video.safety import _Preparation

    processor = processing.ViTImageProcessorPil.from_pretrained(classifier)
    noise = np.random.default_rng(1).integers(0, 256, (60, 41, 3), np.uint8)
    theirs = processor(images=noise, return_tensors="pt")["pixel_values"]
    ours = _Preparation(classifier / "preprocessor_config.json")(noise)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_index_of_the_label_is_read(tmp_path: Path) -> None:
    checker = load_safety_checker(save_classifier(tmp_path, labels=("NSFW", "normal")))
    # The fitted last layer answers 1 for red, which is now the harmless label.
    assert checker(RED) < 0.1
    assert checker(BLUE) > 0.9


def test_portrait(classifier: Path) -> None:
    checker = load_safety_checker(classifier)
    assert check_portrait(checker, BLUE) < 0.1
    with pytest.raises(Refused, match=r"portrait.*0\.9\d.*0\.85") as caught:
        check_portrait(checker, RED)
    assert caught.value.exit_code == 3
    assert check_portrait(checker, RED, threshold=1.0) > 0.9


def test_the_references_threshold_and_every_frame() -> None:
    scores = {0: 0.0, 1: 0.84, 2: 0.85}
    assert check_portrait(lambda _: 0.84, BLUE) == 0.84
    with pytest.raises(Refused, match=r"0\.85, less than 0\.85 passes"):
        check_portrait(lambda _: 0.85, BLUE)
    numbered = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    frames = np.concatenate([numbered[:2], numbered[1:]])  # 0 1 1 2
    assert check_frames(lambda frame: scores[int(frame[0, 0, 0])], frames[:3]) == 0.84
    frames = frames[[0, 3, 1, 1, 0]]  # the frame to refuse is neither the first, the last, nor a fourth
    with pytest.raises(Refused, match=r"frame 1 of 5: 0\.85, less than"):
        check_frames(lambda frame: scores[int(frame[0, 0, 0])], frames)


def test_frames(classifier: Path) -> None:
    checker = load_safety_checker(classifier)
    frames = np.repeat(BLUE[None], 9, axis=0)
    assert check_frames(checker, frames) < 0.1
    frames[3] = RED
    assert check_frames(checker, frames, every=4) < 0.1  # 0, 4 and 8 are looked at
    with pytest.raises(Refused, match=r"frame 3 of 9: 0\.9"):
        check_frames(checker, frames, every=3)
    with pytest.raises(Refused, match="frame 3 of 9"):
        check_frames(checker, frames, every=1)
    frames[3], frames[8] = BLUE, RED
    with pytest.raises(Refused, match="frame 8 of 9"):  # the last one always is
        check_frames(checker, frames, every=5)
    with pytest.raises(BadRequest, match="every"):
        check_frames(checker, frames, every=0)
    with pytest.raises(BadRequest, match="no frames"):
        check_frames(checker, frames[:0])


def test_a_checker_that_cannot_tell_does_not_let_through() -> None:
    with pytest.raises(Refused, match="nan"):
        check_portrait(lambda _: float("nan"), BLUE)
    with pytest.raises(Refused, match="nan"):
        check_frames(lambda _: float("nan"), BLUE[None])


def test_resolve(classifier: Path, tmp_path: Path) -> None:
    models = classifier.parent
    assert resolve_safety("off", True, models) is None
    assert resolve_safety("auto", False, tmp_path) is None
    assert resolve_safety("auto", False, models) is None
    for setting, folder in (("auto", models), (str(classifier), tmp_path)):
        checker = resolve_safety(setting, True, folder)
        assert checker is not None
        assert checker(RED) > 0.9
    with pytest.raises(MissingDependency, match=r"lynx-video download safety.*--safety-checker off") as caught:
        resolve_safety("auto", True, tmp_path)
    assert caught.value.exit_code == 1
    with pytest.raises(BadWeights, match="nowhere"):
        resolve_safety(str(tmp_path / "nowhere"), False, models)


def test_broken_classifiers_are_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())

    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "cat", "1": "dog"}}))
    with pytest.raises(BadWeights, match=r"cat.*dog.*'nsfw'"):
        load_safety_checker(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadWeights, match=r"config\.json"):
        load_safety_checker(folder)
    # One layer more than the file holds: transformers would fill it with random numbers.
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(BadWeights, match=r"layer.*1"):
        load_safety_checker(folder)
    (folder / "config.json").write_text(json.dumps(config))

    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(BadWeights, match="cannot be loaded"):
        load_safety_checker(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"model\.safetensors: missing"):
        load_safety_checker(folder)
    (folder / "model.safetensors").write_bytes(weights)

    for settings, why in (
        ({"size": {"shortest_edge": 16}}, "size"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"resample": 9}, "resample"),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        with pytest.raises(BadWeights, match=why):
            load_safety_checker(folder)
