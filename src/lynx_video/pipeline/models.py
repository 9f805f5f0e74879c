"""The models there are, by name: where base and adapter lie, where faces come from, and what else only that model can tell."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.errors import MissingDependency

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_video.face.detect import Detector
    from lynx_video.types import Video

NANO = Path(__file__).parent.parent / "nano" / "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceModels:
    """Where faces come from; each is loaded when first called and then kept.

    detector finds faces; encoder turns aligned crops [B, 3, 112, 112] in [-1, 1] into the vectors [B, 512] the adapter was trained
    with; judge, if there is one, turns such crops into vectors of its own for scoring.
    """

    detector: Callable[[], Detector]
    encoder: Callable[[], Callable[[Tensor], Tensor]]
    judge: Callable[[], Callable[[Tensor], Tensor]] | None = None
    judge_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model by name: where its base, adapter and face models lie."""

    base: str
    adapter: str
    faces: Callable[[Path], FaceModels]
    needs_safety_checker: bool = True
    same_person: float = 0.5
    "mean cosine of face vectors from which on two sets of pictures show one person"
    follow: Callable[[Video, str], float | None] | None = None
    "how far a clip does what its prompt says, 0 to 1, where that can be told exactly"


def _nano_faces(_: Path) -> FaceModels:
    from lynx_video.face.embed import load_arcface
    from lynx_video.nano.vision import Judge, NanoDetector

    return FaceModels(
        detector=functools.cache(lambda: NanoDetector(nano_file("face/detector.safetensors"))),
        encoder=functools.cache(lambda: load_arcface(nano_file("face/encoder.safetensors"))),
        judge=functools.cache(lambda: Judge(nano_file("face/judge.safetensors"))),
        judge_name="nano judge",
    )


def _nano_follow(frames: Video, prompt: str) -> float | None:
    from lynx_video.nano.prompt import following

    return following(frames, prompt, _nano_faces(Path()).detector())


def nano_file(name: str) -> Path:
    """A file of the weights that ship with the package. Raises MissingDependency if it came without."""
    file = NANO / name
    if not file.is_file():
        raise MissingDependency(
            f"{file} is not there: the package came without nano's weights; install it again, or `make nano`."
        )
    return file


def photograph_faces(
    models: Path, *, detector: Path | None = None, arcface: Path | None = None, device: str = "cpu"
) -> FaceModels:
    """SCRFD (or YuNet) and the official ArcFace, from `models/face` or by path."""
    from lynx_video.face.detect import load_detector
    from lynx_video.face.embed import load_arcface

    found = detector or models / "face" / "buffalo_l"
    weights = arcface or models / "face" / "recognition_arcface_ir_se50.pth"
    return FaceModels(
        detector=functools.cache(lambda: load_detector(found)),
        encoder=functools.cache(lambda: load_arcface(weights, device)),
    )


def _nano(adapter: str) -> Model:
    return Model(
        base=str(NANO / "base"),
        adapter=str(NANO / adapter),
        faces=_nano_faces,
        needs_safety_checker=False,
        same_person=0.8,  # the same drawn person has 0.89 and more
        follow=_nano_follow,
    )


MODELS: dict[str, Model] = {
    "nano": _nano("lynx_full"),
    "nano-lite": _nano("lynx_lite"),
    "lynx-full": Model(base="models/Wan2.1-T2V-14B-Diffusers", adapter="models/lynx_full", faces=photograph_faces),
    "lynx-lite": Model(base="models/Wan2.1-T2V-14B-Diffusers", adapter="models/lynx_lite", faces=photograph_faces),
}
