"""Where requests are checked before they are queued: a studio without weights, one request at a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lynx_video.config import GenerateConfig
from lynx_video.errors import LynxError, NoFace
from lynx_video.presets import SPEED
from lynx_video.server.faults import ApiError, told
from lynx_video.server.folder import Folder
from lynx_video.server.forms import ClipForm, VideoForm
from lynx_video.studio.models import explained
from lynx_video.studio.request import Request, generation_of
from lynx_video.studio.setup import MarkFlags, SelectFlags, Setup
from lynx_video.studio.studio import Studio

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.pipeline.generate import Plan

Answer = TypeVar("Answer")
CROWDED = 4.0
"""Most tokens of a pass, in those of the model's own size: time and memory of the attention grow with their square."""
Found = list[dict[str, Any]]
"""Faces as plain values: index, box, score, warnings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A request that can be queued. request: what the worker needs, as JSON values. facts: what is told of it from now on."""

    request: Mapping[str, Any]
    facts: Mapping[str, Any]
    steps: int


class Desk:
    """What the model is and what it can do, asked without its weights. largest: as in ServeFlags."""

    def __init__(self, setup: Setup, folder: Folder, largest: float) -> None:
        """Reads nothing yet."""
        from anyio import CapacityLimiter

        self.setup, self.folder, self.largest = setup, folder, largest
        self._studio = Studio(setup)
        self._one = CapacityLimiter(1)
        self._blueprint: Blueprint | None = None
        self._own: Plan | None = None
        self.opened = 0.0

    def open(self) -> None:
        """Look at the model's files, signer, safety checker and face detector, so that faults of the setup show before a request."""
        from lynx_video.pipeline.generate import plan

        self._blueprint = self._studio.blueprint()
        self._own = plan(self._blueprint, GenerateConfig())
        self._studio.signer()
        self._blueprint.faces.detector()
        self.opened = time.time()

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """Run something here in a thread, after whatever runs already: a studio is not for several threads."""
        from anyio.to_thread import run_sync

        return await run_sync(question, limiter=self._one)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.setup.model.model

    @property
    def blueprint(self) -> Blueprint:
        """The model as its files describe it."""
        assert self._blueprint is not None, "opened before the first request"
        return self._blueprint

    def defaults(self) -> dict[str, Any]:
        """What a clip is if nothing else is asked."""
        own = self.blueprint.defaults
        return {
            "seconds": seconds_text(own.num_frames, own.fps),
            "size": f"{own.width}x{own.height}",
            "num_frames": own.num_frames,
            "fps": own.fps,
            "num_inference_steps": own.num_inference_steps,
            "guidance_scale": own.guidance_scale,
            "guidance_scale_i": own.guidance_scale_i,
        }

    def presets(self) -> list[str]:
        """Presets by name."""
        return list(SPEED)

    def faces(self, portrait: Path) -> Found:
        """The faces of a picture, largest first."""
        return [
            {"index": index, "box": [round(one, 1) for one in face.box], "score": round(face.score, 4), "warnings": warnings}
            for index, (face, warnings) in enumerate(self._studio.faces(portrait))
        ]

    def choose(self, portrait: Path, shown: str, face_index: int | None, field: str) -> tuple[Found, int]:
        """The faces of a portrait and which one is meant. field: what the client calls the portrait.

        Raises ApiError: there is none, with the boxes if there are several and none was chosen, or there is none of this number.
        """
        found = self.faces(portrait)
        if not found:
            refusal = told(explained(NoFace("no face was found."), Path(shown), self.setup.model, self.setup.face))
            refusal.param = field
            raise refusal
        if face_index is None and len(found) > 1:
            message = (
                f"{shown}: {len(found)} faces were found; say which one: face_index 0 to {len(found) - 1}, 0 is the largest."
            )
            raise ApiError(400, message, code="several_faces", param="face_index", more={"faces": found})
        index = face_index or 0
        if not 0 <= index < len(found):
            message = f"{shown}: there is no face {index}; face_index goes from 0 to {len(found) - 1} here."
            raise ApiError(400, message, code="no_such_face", param="face_index", more={"faces": found})
        return found, index

    def check(self, form: ClipForm, portrait: Path | None, shown: str) -> Checked:
        """Everything about a clip that can be refused now. shown: the portrait's name.

        Raises ApiError, and what Studio.check raises.
        """
        if form.model not in (None, self.model):
            message = f"the model {form.model[:100]!r} is not served here; {self.model!r} is."
            raise ApiError(404, message, code="model_not_found", param="model")
        if (portrait is None) == (form.identity is None):
            message = "say who: a portrait as input_reference or the id of an identity, one of the two."
            raise ApiError(400, message, param="input_reference")
        named = generation_of(form.generation())
        generation = generation_of({**named, **self._shape(form, named)})
        request = Request(
            prompt=form.prompt,
            portrait=portrait,
            identity=None if form.identity is None else self.folder.identity(form.identity),
            face_index=form.face_index,
            preset=form.preset,
            generation=generation,
            select=SelectFlags(best_of=form.best_of, min_similarity=form.min_similarity),
            marks=MarkFlags(private=form.private, consent=form.consent, no_watermark=form.no_watermark),
            shown=shown,
        )
        try:
            order = self._studio.check(request)
        except LynxError as error:
            refusal = told(error)
            refusal.message = worded(refusal.message, request)
            raise refusal from error
        plan = order.plan
        steps = plan.steps * form.best_of
        self._check_size(plan, form.best_of)
        warnings = list(order.cautions)
        if portrait is not None:
            found, index = self.choose(portrait, shown, form.face_index, "input_reference")
            warnings += found[index]["warnings"]
        facts = {
            "model": self.model,
            "seconds": seconds_text(plan.num_frames, plan.fps),
            "size": f"{plan.width}x{plan.height}",
            "num_frames": plan.num_frames,
            "fps": plan.fps,
            "seed": order.config.seed,
            "preset": form.preset,
            "best_of": form.best_of,
            "identity": form.identity,
            "portrait": shown if portrait is not None and not form.private else None,
            "private": form.private,
            "warnings": warnings,
        }
        return Checked(request=packed(request, form.identity), facts=facts, steps=steps)

    def _shape(self, form: ClipForm, generation: Mapping[str, Any]) -> dict[str, Any]:
        """Size and seconds as the fields of GenerateConfig."""
        found: dict[str, Any] = {}
        if form.size is not None:
            match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", form.size)
            if not match:
                raise ApiError(
                    400, f"size must be WIDTHxHEIGHT in pixels, such as 832x480, got {form.size[:100]!r}.", param="size"
                )
            found = {"width": int(match[1]), "height": int(match[2])}
        if form.seconds is not None:
            if generation.get("num_frames") is not None:
                raise ApiError(
                    400, "seconds and num_frames both say how long the clip is: give one of the two.", param="seconds"
                )
            try:
                seconds = float(form.seconds)
            except ValueError:
                seconds = math.nan
            if not 0 < seconds <= 3600:
                raise ApiError(400, f"seconds must be a number above 0, got {str(form.seconds)[:100]!r}.", param="seconds")
            fps, factor = generation.get("fps") or self.blueprint.defaults.fps, self.blueprint.temporal_factor
            found["num_frames"] = round(seconds * fps / factor) * factor + 1
        return found

    def _check_size(self, plan: Plan, clips: int) -> None:
        own, patch = self._own, self.blueprint.patch_size
        assert own is not None
        window, usual_window = plan.tokens(patch), own.tokens(patch)
        if window > CROWDED * usual_window:
            raise ApiError(
                400,
                f"the model would look at {window} tokens at once; at most {CROWDED * usual_window:g} are taken: "
                "ask for fewer pixels, or shorter windows.",
                code="too_much",
            )
        asked, usual = work_of(plan, patch) * clips, work_of(own, patch)
        if asked > self.largest * usual:
            raise ApiError(
                400,
                f"this is the work of {asked / usual:.1f} clips of {own.num_frames} frames, {own.width}x{own.height} and "
                f"{own.steps} steps; at most {self.largest:g} are taken at once: "
                "ask for fewer frames, pixels, steps or clips, or windows that overlap less.",
                code="too_much",
            )


def work_of(plan: Plan, patch_size: tuple[int, int, int]) -> int:
    """What a clip costs: the tokens of all passes of the transformer."""
    windows = plan.windows.count if plan.windows is not None else 1
    return windows * plan.tokens(patch_size) * sum(map(len, plan.tables))


def packed(request: Request, identity: str | None) -> dict[str, Any]:
    """A request as JSON values; files by their names below the data folder, so that it may be moved."""
    generation = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in request.generation.items()}
    return {
        "prompt": request.prompt,
        "portrait": request.portrait.name if request.portrait is not None else None,
        "identity": identity,
        "face_index": request.face_index,
        "preset": request.preset,
        "generation": generation,
        "best_of": request.select.best_of,
        "min_similarity": request.select.min_similarity,
        "consent": request.marks.consent,
        "private": request.marks.private,
        "no_watermark": request.marks.no_watermark,
        "shown": request.shown,
    }


def unpacked(values: Mapping[str, Any], folder: Folder) -> Request:
    """The same request, for a worker."""
    portrait, identity = values["portrait"], values["identity"]
    return Request(
        prompt=values["prompt"],
        portrait=None if portrait is None else folder.upload(portrait),
        identity=None if identity is None else folder.identity(identity),
        face_index=values["face_index"],
        preset=values["preset"],
        generation=generation_of(values["generation"]),
        select=SelectFlags(best_of=values["best_of"], min_similarity=values["min_similarity"]),
        marks=MarkFlags(private=values["private"], consent=values["consent"], no_watermark=values["no_watermark"]),
        shown=values["shown"],
    )


def seconds_text(frames: int, fps: float) -> str:
    """A length as OpenAI's shape has it."""
    return f"{round(frames / fps, 2):g}"


def worded(text: str, request: Request) -> str:
    """A message of the layers below for a client: fields instead of options, and the portrait's name instead of our file."""
    fields = re.sub(r"--([a-z][a-z-]*[a-z])", lambda match: _field(match[1]) or match[0], text)
    return fields.replace(str(request.source), request.name)


def _field(option: str) -> str:
    name = option.replace("-", "_")
    return name if name in VideoForm.model_fields else ""
