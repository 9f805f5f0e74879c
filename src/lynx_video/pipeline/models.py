"""The models there are, by name: where base and adapter lie, where faces come from, and what else only that model can tell."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.errors import MissingDependency

if TYPE_CHECKING:
    from lynx_video.face.detect import Detector
    from lynx_video.face.likeness import Recogniser
    from lynx_video.types import Video

RECOGNISERS = ("buffalo_l/w600k_r50.onnx", "antelopev2/glintr100.onnx", "curricularface.onnx")
"""Files below `models/face` that score photographs, if they are there: the first found scores every clip."""
NANO = Path(__file__).parent.parent / "nano" / "weights"


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceModels:
    """Where faces come from; each is loaded when first called and then kept.

    detector finds faces; encoder turns aligned crops [B, 3, 112, 112] in [-1, 1] into the vectors [B, 512] the adapter was trained
    with; judges, by name, turn such crops into vectors of their own for scoring: no adapter was conditioned on them.
    """

    detector: Callable[[], Detector]
    encoder: Callable[[], Recogniser]
    judges: Mapping[str, Callable[[], Recogniser]] = field(default_factory=dict)
    encoder_name: str = "IR-SE50"

    @property
    def judge(self) -> Callable[[], Recogniser] | None:
        """The first of the judges, which scores every generated clip; None if there is none."""
        return next(iter(self.judges.values()), None)

    @property
    def judge_name(self) -> str:
        """Its name; empty if there is none."""
        return next(iter(self.judges), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model by name: where its base, adapter and face models lie."""

    base: str
    adapter: str
    faces: Callable[[Path], FaceModels]
    needs_safety_checker: bool = True
    few_step: Path | None = None
    "LoRA for few steps, in the models folder unless absolute"
    same_person: float = 0.5
    "mean cosine of face vectors from which on two sets of pictures show one person"
    probe: Callable[[Video, str], dict[str, float]] | None = None
    "what can be told exactly of a clip and its prompt, 0 to 1 each, by name; `following` is how far it does what the prompt says"

    def follow(self, frames: Video, prompt: str) -> float | None:
        """How far a clip does what its prompt says, 0 to 1; None where that cannot be told exactly."""
        return self.probe(frames, prompt).get("following") if self.probe else None


def _nano_faces(_: Path) -> FaceModels:
    from lynx_video.face.embed import load_arcface
    from lynx_video.nano.vision import Judge, NanoDetector, SecondJudgeNet

    return FaceModels(
        detector=functools.cache(lambda: NanoDetector(nano_file("face/detector.safetensors"))),
        encoder=functools.cache(lambda: load_arcface(nano_file("face/encoder.safetensors"))),
        judges={
            "nano judge": functools.cache(lambda: Judge(nano_file("face/judge.safetensors"))),
            "nano second judge": functools.cache(lambda: Judge(nano_file("face/second_judge.safetensors"), SecondJudgeNet)),
        },
        encoder_name="nano encoder",
    )


def _nano_probe(frames: Video, prompt: str) -> dict[str, float]:
    from lynx_video.nano.prompt import probe

    return probe(frames, prompt, _nano_detector())


@functools.cache
def _nano_detector() -> Detector:
    return _nano_faces(Path()).detector()


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
    """SCRFD (or YuNet) and the official ArcFace, from `models/face` or by path; as judges, the recognisers that lie there."""
    from lynx_video.face.detect import load_detector
    from lynx_video.face.embed import load_arcface

    found = detector or models / "face" / "buffalo_l"
    weights = arcface or models / "face" / "recognition_arcface_ir_se50.pth"
    can_run = importlib.util.find_spec("onnxruntime") is not None
    there = [file for name in RECOGNISERS if can_run and (file := models / "face" / name).is_file()]
    return FaceModels(
        detector=functools.cache(lambda: load_detector(found)),
        encoder=functools.cache(lambda: load_arcface(weights, device)),
        judges={file.stem: recogniser(file) for file in there},
    )


def recogniser(file: Path) -> Callable[[], Recogniser]:
    """The recogniser in an ONNX file, loaded when first called."""
    from lynx_video.face.recogniser import OnnxRecogniser

    return functools.cache(lambda: OnnxRecogniser(file))


def _nano(adapter: str) -> Model:
    return Model(
        base=str(NANO / "base"),
        adapter=str(NANO / adapter),
        faces=_nano_faces,
        needs_safety_checker=False,
        few_step=NANO / "few_step" / "lora.safetensors",
        same_person=0.8,  # the same drawn person has 0.89 and more
        probe=_nano_probe,
    )


def _real(adapter: str) -> Model:
    return Model(
        base="models/Wan2.1-T2V-14B-Diffusers",
        adapter=f"models/{adapter}",
        faces=photograph_faces,
        few_step=Path("few_step.safetensors"),
    )


MODELS: dict[str, Model] = {
    "nano": _nano("lynx_full"),
    "nano-lite": _nano("lynx_lite"),
    "lynx-full": _real("lynx_full"),
    "lynx-lite": _real("lynx_lite"),
}
