"""The gate as one value: what looks at prompt, portrait and frames, at which thresholds, and what is noted of it in a clip."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from lynx_video.errors import BadRequest
from lynx_video.safety import picture, prompt
from lynx_video.safety.picture import PictureClassifier, SafetyChecker
from lynx_video.safety.place import PICTURES, PROMPTS, in_models, place_of
from lynx_video.safety.prompt import TextClassifier
from lynx_video.safety.words import RULES, Rule

if TYPE_CHECKING:
    from lynx_video.types import Picture, Video

UNDENIABLE: tuple[Rule, ...] = ("minors",)
"""The rules that hold whatever is switched off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SafetyConfig:
    """What looks at a request and its clip."""

    safety_checker: str = field(default="auto", metadata={"metavar": "auto|off|PATH|HUB_ID"})
    "picture classifier for portrait and frames: auto (real models need it), off, its folder, or its hub id"
    safety_threshold: float = picture.THRESHOLD
    "probability from which a picture is refused; 0.85 is the reference's for its classifier"
    safety_every: int = picture.EVERY
    "look at every so many frames, and the last; 1 looks at all, as the reference does"
    prompt_checker: str = field(default="auto", metadata={"metavar": "auto|off|PATH|HUB_ID"})
    "prompts: auto (word rules), the folder or hub id of a text classifier beside them, or off (only sex with minors is refused)"
    prompt_threshold: float = prompt.THRESHOLD
    "probability from which a text classifier's prompt is refused"

    def __post_init__(self) -> None:
        for name in ("safety_threshold", "prompt_threshold"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise BadRequest(f"{name} must be a probability above 0, up to 1, got {value!r}.")
        every: object = self.safety_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise BadRequest(f"safety_every must be a whole number from 1, got {every!r}.")
        for name in ("safety_checker", "prompt_checker"):
            setting: object = getattr(self, name)
            if not isinstance(setting, str) or not setting.strip():
                raise BadRequest(f"{name} is auto, off, a folder or a hub id, got {setting!r}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What looks at prompt, portrait and frames. Each method returns the score, None where no classifier looked.

    config: the thresholds, and every how many frames. rules: the word rules for prompts. texts, pictures: the classifiers.
    unwatched: why no picture classifier looks; says nothing where one does.
    """

    config: SafetyConfig = SafetyConfig()
    rules: tuple[Rule, ...] = RULES
    texts: TextClassifier | None = None
    pictures: SafetyChecker | None = None
    unwatched: Literal["off", "not needed"] = "off"

    def prompt(self, text: str, *, quote: bool = True) -> float | None:
        """Raises Refused for a prompt that is not to be carried out. Meant for the prompt, not for the negative prompt.

        quote: whether the refusal says which words it is for; not of a prompt that is private.
        """
        threshold = self.config.prompt_threshold
        return prompt.check_prompt(text, rules=self.rules, classifier=self.texts, threshold=threshold, quote=quote)

    def portrait(self, portrait: Picture) -> float | None:
        """Raises Refused for a portrait, uint8 [H, W, 3], that is unsafe or cannot be told."""
        if self.pictures is None:
            return None
        return picture.check_portrait(self.pictures, portrait, threshold=self.config.safety_threshold)

    def frames(self, video: Video) -> float | None:
        """Raises Refused for a video, uint8 [F, H, W, 3], with a frame looked at that is unsafe or cannot be told."""
        if self.pictures is None:
            return None
        config = self.config
        return picture.check_frames(self.pictures, video, every=config.safety_every, threshold=config.safety_threshold)

    def record(self) -> dict[str, Any]:
        """What looked, as plain JSON values for a clip's record: no paths, and the sha256 of each classifier's weights."""
        config = self.config
        texts = self.texts and {**self.texts.record(), "threshold": config.prompt_threshold}
        return {
            "prompt": {"rules": list(self.rules), "classifier": texts},
            "pictures": self.unwatched if self.pictures is None else self._pictures(self.pictures),
        }

    def _pictures(self, checker: SafetyChecker) -> dict[str, Any]:
        known = checker.record() if isinstance(checker, PictureClassifier) else {"checker": "own", "sha256": None}
        return {**known, "threshold": self.config.safety_threshold, "every": self.config.safety_every}


def resolve_gate(
    config: SafetyConfig, *, needs_gate: bool, models_dir: str | PathLike[str] = "models", device: str = "cpu"
) -> Gate:
    """The gate that the settings ask for, its classifiers loaded.

    needs_gate: whether `auto` insists on a picture classifier (real models do, nano does not).

    Raises:
        MissingDependency: a classifier that is needed or named by hub id is not on this machine; names the command that gets it.
        BadWeights: a folder that is missing or is not a usable classifier.
    """
    pictures: PictureClassifier | None = None
    if config.safety_checker == "auto" and needs_gate:
        pictures = PictureClassifier(in_models(PICTURES, models_dir), device)
    elif config.safety_checker not in ("auto", "off"):
        pictures = PictureClassifier(place_of(PICTURES, config.safety_checker, models_dir), device)
    texts: TextClassifier | None = None
    if config.prompt_checker not in ("auto", "off"):
        texts = TextClassifier(place_of(PROMPTS, config.prompt_checker, models_dir), device)
    return Gate(
        config=config,
        rules=UNDENIABLE if config.prompt_checker == "off" else RULES,
        texts=texts,
        pictures=pictures,
        unwatched="off" if config.safety_checker == "off" else "not needed",
    )
