"""Prompts before any work: the word rule, and a text classifier where one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadWeights, Refused
from lynx_video.safety.classifier import Classifier
from lynx_video.safety.words import RULES, Rule, breach

if TYPE_CHECKING:
    from lynx_video.safety.place import Place

THRESHOLD = 0.5
"""Probability from which a prompt is refused: unsafe is the likelier answer. The reference has no prompt checker."""
BATCH = 16
_LONGEST = 512


class TextClassifier:
    """A text classifier of transformers. Raises BadWeights for one that cannot be used.

    A text longer than the model reads is read in windows that overlap by an eighth; the highest score counts.
    """

    def __init__(self, place: Place, device: str = "cpu") -> None:
        from transformers import AutoTokenizer

        self._classifier = Classifier(place, "AutoModelForSequenceClassification", device)
        config = self._classifier.model.config
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place.folder, local_files_only=True)
        except Exception as error:  # tokenizers raises no narrower one
            raise BadWeights(f"{place.folder}: the tokenizer can't be read ({' '.join(str(error).split())[:200]}).") from error
        if len(self._tokenizer) > config.vocab_size or self._tokenizer.pad_token_id is None:
            raise BadWeights(
                f"{place.folder / 'tokenizer.json'}: {len(self._tokenizer)} tokens, padding {self._tokenizer.pad_token!r}; "
                f"expected a padding token and at most the {config.vocab_size} tokens of config.json."
            )
        # RoBERTa counts positions from the padding token on, so it reads two fewer than it says.
        room = getattr(config, "max_position_embeddings", _LONGEST) - (config.model_type.endswith("roberta") and 2)
        self.window = min(room, self._tokenizer.model_max_length, _LONGEST)

    def __call__(self, text: str, /) -> float:
        """The probability that a text is unsafe, 0 to 1."""
        tokens = self._tokenizer(
            text,
            truncation=True,
            max_length=self.window,
            stride=self.window // 8,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
        )
        ids_BS, mask_BS = tokens["input_ids"], tokens["attention_mask"]
        scores: list[float] = []
        for start in range(0, len(ids_BS), BATCH):
            part = slice(start, start + BATCH)
            scores += self._classifier.scores(input_ids=ids_BS[part], attention_mask=mask_BS[part])
        # `max` passes over a NaN that is not the first.
        return next((score for score in scores if score != score), max(scores))

    def record(self) -> dict[str, Any]:
        """Which classifier it is, as plain JSON values."""
        return self._classifier.record()


def check_prompt(
    text: str,
    *,
    rules: tuple[Rule, ...] = RULES,
    classifier: TextClassifier | None = None,
    threshold: float = THRESHOLD,
    quote: bool = True,
) -> float | None:
    """The score of a prompt by the classifier, None without one.

    quote: whether a refusal says which words it is for.

    Raises:
        Refused: one of the word rules is broken, or the score is `threshold` or more, or not a number.
    """
    broken = breach(text, rules)
    if broken is not None and broken.rule == "minors":
        raise Refused(
            f"the prompt was refused: words of sex or undress{_quoted(broken.sexual, quote)} together with words for a minor"
            f"{_quoted(broken.minor or broken.sexual, quote)}; no setting lets that through."
        )
    if broken is not None:
        raise Refused(
            f"the prompt was refused: words of sex or undress{_quoted(broken.sexual, quote)}, and every clip shows a real person; "
            "ask for something else."
        )
    if classifier is None:
        return None
    score = classifier(text)
    if not score < threshold:  # also true of NaN: a checker that cannot tell does not let through
        raise Refused(f"the prompt was refused by the prompt checker: {score:.2f}, less than {threshold:.2f} passes.")
    return score


def _quoted(words: tuple[str, ...], quote: bool) -> str:
    return f" ({', '.join(map(repr, words[:3]))}{', ...' if len(words) > 3 else ''})" if quote else ""
