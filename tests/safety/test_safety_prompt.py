"""Prompts before the word rule and a real BERT classifier of toy size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from classifiers import BAD_WORD, WINDOW, with_weights

from lynx_video.errors import BadWeights, Refused
from lynx_video.safety import TextClassifier, check_prompt
from lynx_video.safety.place import PROMPTS, in_folder


def load(folder: Path) -> TextClassifier:
    return TextClassifier(in_folder(PROMPTS, folder))


def test_scores_are_the_models_probability_of_nsfw(texts: Path) -> None:
    from transformers import AutoTokenizer, BertForSequenceClassification

    classifier = load(texts)
    model, tokenizer = BertForSequenceClassification.from_pretrained(texts).eval(), AutoTokenizer.from_pretrained(texts)
    for text in ("the person smiles", f"the person {BAD_WORD} smiles", "a garden", ""):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1]
        assert classifier(text) == pytest.approx(float(expected), abs=1e-5)
    assert classifier("The person smiles") < 0.1
    assert classifier(f"the person {BAD_WORD} smiles") > 0.9


@pytest.mark.parametrize("place", [0, 13, 14, 100, 239])
def test_a_long_prompt_is_read_to_its_end(texts: Path, place: int) -> None:
    classifier = load(texts)
    assert classifier.window == WINDOW
    words = ("the person smiles and walks up " * 40).split()
    assert classifier(" ".join(words)) < 0.1
    words[place] = BAD_WORD
    assert classifier(" ".join(words)) > 0.9


def test_padding_is_not_read(texts: Path) -> None:
    classifier = load(texts)
    weights = classifier._classifier.model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        weights[0] = weights[-1]  # the padding reads like the bad word
    assert classifier("the person smiles " * 20) < 0.1


def test_check_prompt(texts: Path) -> None:
    classifier = load(texts)
    assert check_prompt("the person smiles") is None
    score = check_prompt("the person smiles", classifier=classifier)
    assert score is not None
    assert score < 0.1
    with pytest.raises(Refused, match=r"by the prompt checker: (0\.9\d|1\.00), less than 0\.50 passes") as caught:
        check_prompt(f"a {BAD_WORD} garden", classifier=classifier)
    assert caught.value.exit_code == 3
    assert check_prompt(f"a {BAD_WORD} garden", classifier=classifier, threshold=1.0)


def test_word_rules_refuse_by_themselves(texts: Path) -> None:
    with pytest.raises(Refused, match=r"'naked'.*real person") as caught:
        check_prompt("the person is naked", classifier=load(texts))
    assert caught.value.exit_code == 3
    with pytest.raises(Refused, match=r"'nude'.*minor.*'child'.*no setting"):
        check_prompt("a nude child")
    with pytest.raises(Refused, match=r"'lolicon'.*minor"):
        check_prompt("lolicon", rules=("minors",))
    assert check_prompt("the person is naked", rules=("minors",)) is None


def test_a_classifier_that_cannot_tell_does_not_let_through(texts: Path) -> None:
    classifier = load(texts)
    with torch.no_grad():
        classifier._classifier.model.bert.embeddings.word_embeddings.weight[-1] = torch.nan  # of the one bad word
    assert check_prompt("the person smiles", classifier=classifier) is not None
    for before in (0, 60):  # in the first window, and in a later one
        with pytest.raises(Refused, match="nan"):
            check_prompt("smiles " * before + BAD_WORD, classifier=classifier)


def test_broken_classifiers_are_refused(texts: Path, spoil: Callable[..., Path]) -> None:
    def config(**changes):
        return lambda content: json.dumps(json.loads(content) | changes).encode()

    def inf(tensors):
        tensors["classifier.weight"][1, 3] = torch.inf

    def padless(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "pad_token": None}).encode()

    for name, change, why in (
        ("config.json", config(id2label={"0": "toxic", "1": "fine"}), r"fine.*toxic.*prompt checker needs.*'nsfw' or 'unsafe'"),
        ("config.json", config(num_hidden_layers=2), r"does not fit"),
        ("config.json", None, r"config\.json: missing"),
        ("model.safetensors", None, r"model\.safetensors: missing; download it again"),
        ("model.safetensors", lambda content: content[: len(content) // 2], "prompt checker cannot be loaded"),
        ("model.safetensors", with_weights(inf), r"classifier\.weight.*not numbers"),
        ("tokenizer.json", None, r"tokenizer\.json: missing"),
        ("tokenizer.json", lambda _: b"{}", "tokenizer"),
        ("tokenizer_config.json", padless, "padding None"),
    ):
        with pytest.raises(BadWeights, match=why):
            load(spoil(texts, name, change))

    def more_tokens(content: bytes) -> bytes:
        settings = json.loads(content)
        settings["model"]["vocab"]["more"] = len(settings["model"]["vocab"])
        return json.dumps(settings).encode()

    with pytest.raises(BadWeights, match=r"18 tokens.*at most the 17 tokens"):
        load(spoil(texts, "tokenizer.json", more_tokens))
