"""The safety switch: a picture classifier that looks at the portrait before the work and at the frames after it.

The classifier is Falconsai/nsfw_image_detection, a ViT with the labels `normal` and `nsfw`, read from a local folder with
transformers. Its picture processor is three lines of arithmetic, done here from `preprocessor_config.json`, so that neither
torchvision nor TensorFlow is needed.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lynx_video.errors import BadRequest, BadWeights, MissingDependency, Refused

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.types import Picture, Video

THRESHOLD = 0.85
"""Probability from which a picture is refused, as the reference has it for this classifier."""
FOLDER = "safety_checker"
"""Where `auto` looks for the classifier, below the models folder."""
UNSAFE_LABEL = "nsfw"


class SafetyChecker(Protocol):
    """Anything that maps uint8 [H, W, 3] RGB to the probability, 0 to 1, that the picture is unsafe."""

    def __call__(self, picture: Picture, /) -> float: ...


def load_safety_checker(path: str | PathLike[str], device: str = "cpu") -> SafetyChecker:
    """The classifier in a local folder (`config.json`, `model.safetensors`, `preprocessor_config.json`); reads no network.

    Raises:
        BadWeights: a file missing, unreadable or not matching its configuration, or a classifier without the label `nsfw`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BadWeights(
            f"{folder}: no such folder; expected a safety classifier as `lynx-video download safety` puts it there."
        )
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise BadWeights(f"{folder / name}: missing; run `lynx-video download safety` again.")
    unsafe = _unsafe_index(folder)
    prepare = _Preparation(folder / "preprocessor_config.json")

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BadWeights(f"{folder}: the safety classifier cannot be loaded ({_line(error)}).") from error
    # transformers fills gaps with random numbers and goes on; a gate of random numbers is no gate.
    gaps = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report.get(kind) or ())
    if gaps:
        raise BadWeights(
            f"{folder / 'model.safetensors'}: does not fit config.json, first at {gaps[0]!r} ({len(gaps)} keys in all)."
        )
    model = model.to(device).eval().requires_grad_(False)

    def check(picture: Picture, /) -> float:
        with torch.inference_mode():
            logits = model(pixel_values=prepare(picture).to(device)).logits.float()
            return float(logits.softmax(dim=-1)[0, unsafe])

    return check


def check_portrait(checker: SafetyChecker, picture: Picture, *, threshold: float = THRESHOLD) -> float:
    """The score of a portrait, uint8 [H, W, 3].

    Raises:
        Refused: the score is `threshold` or more, or not a number.
    """
    score = checker(picture)
    if not score < threshold:  # also true of NaN: a checker that cannot tell does not let through
        raise Refused(f"the portrait was refused by the safety checker: {score:.2f}, less than {threshold:.2f} passes.")
    return score


def check_frames(checker: SafetyChecker, frames: Video, *, every: int = 1, threshold: float = THRESHOLD) -> float:
    """The highest score among all frames of uint8 [F, H, W, 3]; with `every`, of frames 0, `every`, 2 `every`, ... and the last.

    Raises:
        Refused: at the first frame of `threshold` or more, naming it and its score.
        BadRequest: `every` below 1, or no frames.
    """
    if every < 1:
        raise BadRequest(f"every must be at least 1, got {every}.")
    if len(frames) == 0:
        raise BadRequest("there are no frames to check.")
    highest = 0.0
    for index in sorted({*range(0, len(frames), every), len(frames) - 1}):
        score = checker(frames[index])
        if not score < threshold:
            raise Refused(
                f"the video was refused by the safety checker at frame {index} of {len(frames)}: {score:.2f}, "
                f"less than {threshold:.2f} passes."
            )
        highest = max(highest, score)
    return highest


def resolve_safety(
    setting: str, needs_gate: bool, models_dir: str | PathLike[str], device: str = "cpu"
) -> SafetyChecker | None:
    """The checker that a setting asks for: `auto`, `off`, or the path of a classifier's folder.

    needs_gate: whether `auto` insists on a checker (real models do, nano does not).

    Raises:
        MissingDependency: `auto`, a gate is needed, and `models_dir` has no classifier.
        BadWeights: the folder is there and is not a usable classifier.
    """
    if setting == "off":
        return None
    if setting != "auto":
        return load_safety_checker(Path(setting).expanduser(), device)
    if not needs_gate:
        return None
    folder = Path(models_dir) / FOLDER
    if not folder.is_dir():
        raise MissingDependency(
            f"{folder}: the safety checker is not there; get it with `lynx-video download safety`, "
            "or do without it: --safety-checker off"
        )
    return load_safety_checker(folder, device)


class _Preparation:
    """Picture -> the classifier's input, as its processor does it: resize by Pillow, scale, subtract mean, divide by std."""

    def __init__(self, file: Path) -> None:
        settings = _object(file)
        size = settings.get("size", 224)
        height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
        resample, scale = settings.get("resample", 2), settings.get("rescale_factor", 1 / 255)
        mean, std = settings.get("image_mean", [0.5] * 3), settings.get("image_std", [0.5] * 3)
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise BadWeights(f"{file}: size {size!r}; expected a height and a width in pixels.")
        if not all(isinstance(each, list) and len(each) == 3 for each in (mean, std)) or 0 in std:
            raise BadWeights(f"{file}: image_mean {mean!r} and image_std {std!r}; expected three numbers each, none of std 0.")
        if not (isinstance(resample, int) and 0 <= resample <= 5 and isinstance(scale, (int, float))):
            raise BadWeights(
                f"{file}: resample {resample!r}, rescale_factor {scale!r}; expected one of Pillow's 0 to 5 and a number."
            )
        self.size, self.resample = (width, height), resample
        self.resize = bool(settings.get("do_resize", True))
        self.scale = float(scale) if settings.get("do_rescale", True) else 1.0
        normalise = settings.get("do_normalize", True)
        self.mean: list[float] = mean if normalise else [0.0] * 3
        self.std: list[float] = std if normalise else [1.0] * 3

    def __call__(self, picture: Picture) -> Tensor:
        """uint8 [H, W, 3] -> float32 [1, 3, height, width]."""
        import numpy as np
        import torch
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(picture))
        if self.resize:
            image = image.resize(self.size, Image.Resampling(self.resample))
        pixels_HWC = torch.from_numpy(np.array(image)).float() * self.scale
        pixels_HWC = (pixels_HWC - torch.tensor(self.mean)) / torch.tensor(self.std)
        return pixels_HWC.permute(2, 0, 1)[None].contiguous()


def _unsafe_index(folder: Path) -> int:
    """The number of the label `nsfw` in a classifier's configuration."""
    file = folder / "config.json"
    labels = _object(file).get("id2label")
    if isinstance(labels, dict):
        for number, label in labels.items():
            if str(label).lower() == UNSAFE_LABEL and str(number).isdigit():
                return int(number)
    names = sorted(map(str, labels.values())) if isinstance(labels, dict) else "none"
    raise BadWeights(f"{file}: labels {names}; a safety checker needs a label {UNSAFE_LABEL!r}.")


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWeights(f"{file}: not readable as JSON ({_line(error)}).") from error
    if not isinstance(value, dict):
        raise BadWeights(f"{file}: expected a JSON object.")
    return value


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
