"""Pictures before a classifier: a portrait, or frames of a clip, many at once.

The classifier is Falconsai/nsfw_image_detection, a ViT with the labels `normal` and `nsfw`, or another of that kind. Its picture
processor is three lines of arithmetic, done here from `preprocessor_config.json`, so that neither torchvision nor TensorFlow is
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lynx_video.errors import BadRequest, BadWeights, Refused
from lynx_video.safety.classifier import Classifier, read_object

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.safety.place import Place
    from lynx_video.types import Picture, Video

THRESHOLD = 0.85
"""Probability from which a picture is refused, as the reference has it for this classifier, on each frame of its result."""
EVERY = 4
"""Every how many frames one is looked at. The Wan VAE decodes one latent into 4 frames, so one frame of each latent is seen."""
BATCH = 8
"""Pictures that go through the classifier at once."""


class SafetyChecker(Protocol):
    """Anything that maps uint8 [H, W, 3] RGB to the probability, 0 to 1, that the picture is unsafe."""

    def __call__(self, picture: Picture, /) -> float: ...


class PictureClassifier:
    """A picture classifier of transformers. Raises BadWeights for one that cannot be used."""

    def __init__(self, place: Place, device: str = "cpu") -> None:
        self._classifier = Classifier(place, "AutoModelForImageClassification", device)
        self._prepare = Preparation(place.folder / "preprocessor_config.json")

    def __call__(self, picture: Picture, /) -> float:
        """The probability that uint8 [H, W, 3] RGB is unsafe."""
        return self.scores([picture])[0]

    def scores(self, pictures: Sequence[Picture]) -> list[float]:
        """The probability of each picture, uint8 [H, W, 3] RGB of any size, all computed at once."""
        import torch

        return self._classifier.scores(pixel_values=torch.cat([self._prepare(picture) for picture in pictures]))

    def record(self) -> dict[str, Any]:
        """Which classifier it is, as plain JSON values."""
        return self._classifier.record()


def check_portrait(checker: SafetyChecker, picture: Picture, *, threshold: float = THRESHOLD) -> float:
    """The score of a portrait, uint8 [H, W, 3].

    Raises:
        Refused: the score is `threshold` or more, or not a number.
    """
    score = checker(picture)
    if not score < threshold:  # also true of NaN: a checker that cannot tell does not let through
        raise Refused(f"the portrait was refused by the safety checker: {score:.2f}, less than {threshold:.2f} passes.")
    return score


def check_frames(
    checker: SafetyChecker, frames: Video, *, every: int = 1, batch: int = BATCH, threshold: float = THRESHOLD
) -> float:
    """The highest score among the frames of uint8 [F, H, W, 3]; with `every`, of frames 0, `every`, 2 `every`, ... and the last.

    batch: frames that go through the classifier at once.

    Raises:
        Refused: at the first frame looked at of `threshold` or more, or that is not a number, naming it and its score.
        BadRequest: `every` or `batch` below 1, or no frames.
    """
    for name, value in (("every", every), ("batch", batch)):
        if value < 1:
            raise BadRequest(f"{name} must be at least 1, got {value}.")
    if len(frames) == 0:
        raise BadRequest("there are no frames to check.")
    chosen = sorted({*range(0, len(frames), every), len(frames) - 1})
    highest = 0.0
    for start in range(0, len(chosen), batch):
        indices = chosen[start : start + batch]
        pictures = [frames[index] for index in indices]
        if isinstance(checker, PictureClassifier):
            scores = checker.scores(pictures)
        else:
            scores = [checker(picture) for picture in pictures]
        for index, score in zip(indices, scores, strict=True):
            if not score < threshold:
                raise Refused(
                    f"the video was refused by the safety checker at frame {index} of {len(frames)}: {score:.2f}, "
                    f"less than {threshold:.2f} passes."
                )
            highest = max(highest, score)
    return highest


class Preparation:
    """Picture -> the classifier's input, as its processor does it: resize by Pillow, scale, subtract mean, divide by std."""

    def __init__(self, file: Path) -> None:
        settings = read_object(file)
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
