"""A transformers classifier from a folder, checked: whole, undamaged, fitting its configuration, with a label that says unsafe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadWeights

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.safety.place import Place

WEIGHTS = "model.safetensors"
UNSAFE_LABELS = ("nsfw", "unsafe")
"""Labels, in any case, whose probabilities add up to a score."""


class Classifier:
    """The model of a place on a device, in float32, and which of its outputs say unsafe.

    auto: the class of transformers that reads such models. sha256: of the weights, hex. labels: those that say unsafe.

    Raises:
        BadWeights: a file missing, unreadable, damaged or not matching its configuration; a weight that is not a number; no label
            that says unsafe.
    """

    def __init__(self, place: Place, auto: str, device: str) -> None:
        for name in place.kind.files:
            if not (place.folder / name).is_file():
                raise BadWeights(f"{place.folder / name}: missing; {place.remedy}.")
        self.place, self.device = place, device
        config = read_object(place.folder / "config.json")
        self.labels, self._unsafe = _unsafe(place, config)
        # As transformers' own pipelines read such a model: labels that exclude each other, unless it says otherwise.
        self._apart = config.get("problem_type") == "multi_label_classification" or len(config["id2label"]) == 1
        self.sha256 = _hash(place.folder / WEIGHTS)
        if place.sha256 and self.sha256 != place.sha256:
            raise BadWeights(
                f"{place.folder / WEIGHTS}: damaged, its sha256 is {self.sha256[:12]}... instead of {place.sha256[:12]}...; "
                f"{place.remedy}."
            )
        self.model = _load(place, auto).to(device).eval().requires_grad_(False)

    def scores(self, **inputs: Tensor) -> list[float]:
        """The probability of being unsafe, 0 to 1, of each row of a batch."""
        import torch

        with torch.inference_mode():
            logits_BK = self.model(**{name: each.to(self.device) for name, each in inputs.items()}).logits.float()
            shares_BK = logits_BK.sigmoid() if self._apart else logits_BK.softmax(dim=-1)
            chosen_BU = shares_BK[:, self._unsafe]
            score_B = chosen_BU.amax(dim=-1) if self._apart else chosen_BU.sum(dim=-1)
            return [float(score) for score in score_B]

    def record(self) -> dict[str, Any]:
        """Which classifier it is, as plain JSON values."""
        return {
            "checker": self.place.name,
            "commit": self.place.commit or None,
            "sha256": self.sha256,
            "labels": list(self.labels),
        }


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BadWeights if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWeights(f"{file}: not readable as JSON ({_line(error)}).") from error
    if not isinstance(value, dict):
        raise BadWeights(f"{file}: expected a JSON object.")
    return value


def _unsafe(place: Place, config: dict[str, Any]) -> tuple[tuple[str, ...], list[int]]:
    """The labels of a configuration that say unsafe, and their numbers."""
    named = config.get("id2label")
    found = [
        (str(label), int(number))
        for number, label in (named.items() if isinstance(named, dict) else ())
        if str(label).lower() in UNSAFE_LABELS and str(number).isdigit()
    ]
    if not found:
        names = sorted(map(str, named.values())) if isinstance(named, dict) else "none"
        raise BadWeights(
            f"{place.folder / 'config.json'}: labels {names}; a {place.kind.name} needs a label "
            f"{' or '.join(map(repr, UNSAFE_LABELS))}."
        )
    return tuple(label for label, _ in found), [number for _, number in found]


def _load(place: Place, auto: str) -> Any:
    import torch
    import transformers
    from safetensors import SafetensorError

    folder, name = place.folder, place.kind.name
    try:
        model, report = getattr(transformers, auto).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadWeights(f"{folder}: the {name} cannot be loaded ({_line(error)}); {place.remedy}.") from error
    # transformers fills gaps with random numbers and goes on; a gate of random numbers is no gate.
    gaps = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report.get(kind) or ())
    if gaps:
        raise BadWeights(
            f"{folder / WEIGHTS}: does not fit config.json, first at {gaps[0]!r} ({len(gaps)} keys in all); {place.remedy}."
        )
    for key, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise BadWeights(f"{folder / WEIGHTS}: {key!r} has values that are not numbers; {place.remedy}.")
    return model


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BadWeights(f"{file}: can't be read ({error.strerror or error}).") from error
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
