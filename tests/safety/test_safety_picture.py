"""Pictures before a real ViT classifier of toy size, saved the way the published one is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import BLUE, RED, expected_input, save_picture_classifier, with_weights

from lynx_video.errors import BadRequest, BadWeights, Refused
from lynx_video.safety import PictureClassifier, check_frames, check_portrait, load_safety_checker
from lynx_video.safety.picture import Preparation


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


def test_many_at_once_score_as_one_by_one(classifier: Path) -> None:
    checker = load_safety_checker(classifier)
    pictures = [*np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), np.uint8), RED, BLUE]
    assert checker.scores(pictures) == pytest.approx([checker(picture) for picture in pictures], abs=1e-6)


def test_preparation_equals_the_processor_of_transformers(classifier: Path) -> None:
    processing = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    processor = processing.ViTImageProcessorPil.from_pretrained(classifier)
    noise = np.random.default_rng(1).integers(0, 256, (60, 41, 3), np.uint8)
    theirs = processor(images=noise, return_tensors="pt")["pixel_values"]
    ours = Preparation(classifier / "preprocessor_config.json")(noise)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_labels_that_say_unsafe_are_read(tmp_path: Path) -> None:
    swapped = load_safety_checker(save_picture_classifier(tmp_path / "swapped", labels=("NSFW", "normal")))
    # The fitted last layer answers 1 for red, which is now the harmless label.
    assert swapped(RED) < 0.1
    assert swapped(BLUE) > 0.9
    graded = load_safety_checker(save_picture_classifier(tmp_path / "graded", labels=("safe", "unsafe", "nsfw")))
    logits = torch.tensor([0.0, 4.0, 0.0]).softmax(-1)  # of red: the two unsafe labels add up
    assert graded(RED) == pytest.approx(float(logits[1] + logits[2]), abs=1e-4)


def test_labels_that_do_not_exclude_each_other(classifier: Path, spoil: Callable[..., Path]) -> None:
    def apart(content: bytes) -> bytes:
        return json.dumps(json.loads(content) | {"problem_type": "multi_label_classification"}).encode()

    def both(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.bias"][0] = 9.0  # surely normal, whatever else

    folder = spoil(spoil(classifier, "config.json", apart), "model.safetensors", with_weights(both))
    assert load_safety_checker(folder)(RED) == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-4)


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


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_frames(classifier: Path, batch: int) -> None:
    checker = load_safety_checker(classifier)
    frames = np.repeat(BLUE[None], 9, axis=0)
    assert check_frames(checker, frames, batch=batch) < 0.1
    frames[3] = RED
    assert check_frames(checker, frames, every=4, batch=batch) < 0.1  # 0, 4 and 8 are looked at
    with pytest.raises(Refused, match=r"frame 3 of 9: 0\.9"):
        check_frames(checker, frames, every=3, batch=batch)
    with pytest.raises(Refused, match="frame 3 of 9"):
        check_frames(checker, frames, every=1, batch=batch)
    frames[3], frames[8] = BLUE, RED
    with pytest.raises(Refused, match="frame 8 of 9"):  # the last one always is
        check_frames(checker, frames, every=5, batch=batch)


def test_frames_go_through_in_batches(classifier: Path) -> None:
    sizes = []

    class Counted(PictureClassifier):
        def scores(self, pictures):
            sizes.append(len(pictures))
            return super().scores(pictures)

    counted = Counted(load_safety_checker(classifier)._classifier.place)
    video = np.repeat(BLUE[None], 81, axis=0)
    check_frames(counted, video, every=4, batch=8)
    assert sizes == [8, 8, 5]
    sizes.clear()
    video[0] = RED
    with pytest.raises(Refused, match="frame 0 of 81"):
        check_frames(counted, video, every=4, batch=8)
    assert sizes == [8]  # nothing more to know


def test_frames_that_cannot_be_asked_for(classifier: Path) -> None:
    checker = load_safety_checker(classifier)
    with pytest.raises(BadRequest, match="every"):
        check_frames(checker, BLUE[None], every=0)
    with pytest.raises(BadRequest, match="batch"):
        check_frames(checker, BLUE[None], batch=0)
    with pytest.raises(BadRequest, match="no frames"):
        check_frames(checker, BLUE[None][:0])


def test_a_checker_that_cannot_tell_does_not_let_through(classifier: Path) -> None:
    with pytest.raises(Refused, match="nan"):
        check_portrait(lambda _: float("nan"), BLUE)
    with pytest.raises(Refused, match="nan"):
        check_frames(lambda _: float("nan"), BLUE[None])
    checker = load_safety_checker(classifier)
    with torch.no_grad():
        checker._classifier.model.classifier.weight[1] = torch.inf  # 0 times infinity, as an overflow gives it
        checker._classifier.model.vit.layernorm.weight.zero_()
        checker._classifier.model.vit.layernorm.bias.zero_()
    with pytest.raises(Refused, match=r"frame 0 of 3: nan"):
        check_frames(checker, np.repeat(BLUE[None], 3, axis=0))


def test_broken_classifiers_are_refused(classifier: Path, spoil: Callable[..., Path]) -> None:
    def config(**changes):
        return lambda content: json.dumps(json.loads(content) | changes).encode()

    def nan(tensors):
        tensors["classifier.bias"][0] = torch.nan

    for name, change, why in (
        ("config.json", config(id2label={"0": "cat", "1": "dog"}), r"cat.*dog.*'nsfw'"),
        ("config.json", config(id2label=["nsfw", "normal"]), r"labels none"),
        ("config.json", lambda _: b"{", r"config\.json: not readable"),
        ("config.json", lambda _: b"[]", r"config\.json: expected a JSON object"),
        # One layer more than the file holds: transformers would fill it with random numbers.
        ("config.json", config(num_hidden_layers=2), r"does not fit.*layer.*1"),
        ("config.json", config(hidden_size=32), r"cannot be loaded|does not fit"),
        ("model.safetensors", lambda content: content[:-100], r"cannot be loaded.*again"),
        ("model.safetensors", lambda content: b"\xff" * len(content), r"cannot be loaded"),
        ("model.safetensors", with_weights(nan), r"'classifier\.bias' has values that are not numbers"),
        ("model.safetensors", None, r"model\.safetensors: missing; run `lynx-video download safety` again"),
        ("preprocessor_config.json", None, r"preprocessor_config\.json: missing"),
        ("preprocessor_config.json", lambda _: b'{"size": {"shortest_edge": 16}}', "size"),
        ("preprocessor_config.json", lambda _: b'{"image_std": [0, 1, 1]}', "image_std"),
        ("preprocessor_config.json", lambda _: b'{"resample": 9}', "resample"),
    ):
        with pytest.raises(BadWeights, match=why):
            load_safety_checker(spoil(classifier, name, change))
