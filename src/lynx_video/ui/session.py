"""What can be done on the page, as functions of plain values: look at a portrait, expect, ask, watch, look back.

Two studios of one setup: one makes the clips, in the queue's thread; the other looks at portraits, checks requests and estimates, so
that nobody waits for a clip to be told that a picture has no face in it. The second reads no weights of the video model.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest, LynxError
from lynx_video.presets import SPEED
from lynx_video.studio.request import Request
from lynx_video.studio.setup import MarkFlags, Setup
from lynx_video.ui.gallery import Entry, entries, find_entry
from lynx_video.ui.jobs import Job, Queue
from lynx_video.ui.knobs import carried, knobs_of, recorded, settings_of, turned
from lynx_video.ui.portrait import Portrait, look

if TYPE_CHECKING:
    from lynx_video.studio.studio import Studio

LARGEST_SEED = 2**53 - 1
"""Beyond it a browser's numbers are no longer exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a visitor filled in. values: the knobs by name. seed: None if the field was emptied.

    carried: settings of an earlier clip that the page has no knob for, taken over as they are.
    """

    prompt: str
    face: int = 0
    preset: str = "exact"
    seed: float | None = 42
    values: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    consent: str = ""
    private: bool = False
    watermark: bool = True
    no_watermark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What a preset will take. refusal: why it can't be run as things stand; then the numbers are 0."""

    preset: str
    seconds: float = 0.0
    memory: int = 0
    exact: bool = True
    advice: tuple[str, ...] = ()
    refusal: str = ""


class Desk:
    """Everything behind the page, for all its visitors. May be called from any thread."""

    def __init__(self, setup: Setup, clips: Path, scratch: Path, *, consent_required: bool = False) -> None:
        """clips: where they go and are looked for. scratch: for copies of portraits while their clips are made."""
        from lynx_video.studio.studio import Studio

        self.setup, self.clips, self.scratch, self.consent_required = setup, clips, scratch, consent_required
        self._studio: Studio = Studio(setup)
        # It keeps to the word rules for prompts; the classifiers are the other one's.
        words = "off" if setup.safety.prompt_checker == "off" else "auto"
        lighter = replace(setup.safety, safety_checker="off", prompt_checker=words)
        self._looking: Studio = Studio(replace(setup, safety=lighter))
        self._lock = threading.Lock()
        self._queue: Queue | None = None
        self.blueprint = self._looking.blueprint()
        self.knobs = knobs_of(self.blueprint)
        self.drawn = setup.model.model.startswith("nano") and setup.model.base_model_path is None

    def open(self) -> None:
        """Read the weights and begin with the work; faults of the setup show here."""
        self._studio.open()
        self.outlooks("exact", self.settings("exact"))  # what they rest on is measured once, while nothing else is at work
        self._queue = Queue(self._studio, self.clips)

    def close(self) -> None:
        """Cancel what is in work, and end."""
        if self._queue is not None:
            self._queue.close()

    @property
    def queue(self) -> Queue:
        """The clips that are asked for."""
        assert self._queue is not None, "the desk is not open"
        return self._queue

    def portrait(self, path: Path, name: str) -> Portrait:
        """The faces in a picture. Raises BadPicture and NoFace."""
        with self._lock:
            return look(self._looking, path, name)

    def settings(self, preset: str) -> dict[str, Any]:
        """Where the knobs stand with a preset; with `exact` for one that can't be run."""
        try:
            return settings_of(self.setup, self.blueprint, preset, self.knobs)
        except LynxError:
            return settings_of(self.setup, self.blueprint, "exact", self.knobs)

    def outlooks(self, preset: str, values: Mapping[str, Any]) -> list[Outlook]:
        """What each preset would take with what the visitor turned beside the chosen one."""
        asked = turned(values, self.settings(preset))
        with self._lock:
            return [self._outlook(name, asked) for name in SPEED]

    def _outlook(self, preset: str, asked: Mapping[str, Any]) -> Outlook:
        from lynx_video.pipeline.calibration import check_step_cache
        from lynx_video.pipeline.forecast import forecast
        from lynx_video.studio.models import survey_model
        from lynx_video.studio.speed import tune

        try:
            config, runtime = tune(preset, self.setup.model, asked, self.setup.runtime)
            blueprint = survey_model(self.setup.model, self.setup.face, config, None, runtime)
            check_step_cache(blueprint, config.step_cache)
            expected = forecast(blueprint, config, blueprint.runtime)
        except LynxError as error:
            return Outlook(preset=preset, refusal=str(error))
        return Outlook(
            preset=preset,
            seconds=sum(expected.layout.seconds.values()),
            memory=expected.layout.peak,
            exact=expected.layout.exact,
            advice=tuple(expected.facts["advice"]),
        )

    def ask(self, portrait: Portrait | None, form: Form) -> Job:
        """Check what can be checked without the video model, and queue it.

        Raises BadRequest, and what `Studio.check` raises.
        """
        if portrait is None:
            raise BadRequest("there is no portrait yet: drop a picture of the person first.")
        if self.consent_required and not form.consent.strip():
            raise BadRequest("say who agreed to the use of this face, and how: clips are made with consent only here.")
        request = self.request(portrait, form)
        own = self._copy(portrait)
        request = replace(request, portrait=own)
        try:
            with self._lock:
                self._looking.check(request)
            return self.queue.submit(request, own)
        except BaseException:
            own.unlink(missing_ok=True)
            raise

    def request(self, portrait: Portrait, form: Form) -> Request:
        """What a visitor filled in, as a request to the studio. Raises BadRequest."""
        seed = form.seed
        if seed is None or seed != int(seed) or not 0 <= seed <= LARGEST_SEED:
            raise BadRequest(f"the seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r}.")
        if not form.watermark and not form.no_watermark.strip():
            raise BadRequest(
                "a clip without a watermark needs a reason, which its record keeps: say why, or leave the mark on."
            )
        return Request(
            prompt=form.prompt,
            portrait=portrait.path,
            face_index=form.face,
            preset=form.preset,
            generation={**form.carried, **turned(form.values, self.settings(form.preset)), "seed": int(seed)},
            marks=MarkFlags(
                private=form.private,
                consent=form.consent.strip(),
                no_watermark="" if form.watermark else form.no_watermark.strip(),
            ),
            shown=portrait.name,
        )

    def _copy(self, portrait: Portrait) -> Path:
        """The portrait as a file of the job's own: the visitor may drop another one meanwhile."""
        own = self.scratch / f"{uuid.uuid4().hex}{portrait.path.suffix[:8]}"
        try:
            shutil.copyfile(portrait.path, own)
        except FileNotFoundError as error:
            raise BadRequest("the portrait is no longer here; drop it again.") from error
        except OSError as error:
            raise BadRequest(f"the portrait can't be kept ({error.strerror or error}).") from error
        return own

    def past(self, most: int) -> tuple[list[Entry], int]:
        """The newest clips, newest first; and how many files there are beyond them."""
        return entries(self.clips, most)

    def clip(self, name: str) -> Entry:
        """A clip of the folder. Raises BadRequest if it is gone."""
        return find_entry(self.clips, name)

    def again(self, record: Mapping[str, Any], portrait: Portrait | None) -> Form:
        """The form as it was for a clip; of its portrait the record holds only the hash.

        The face and who agreed to its use are those of the clip only if `portrait`, which the page has, is the clip's. A watermark
        that was left out is not left out again: its reason was that clip's.
        """
        preset = record.get("preset")
        preset = preset if preset in SPEED else "exact"
        seed, face, prompt = record.get("seed"), record.get("face_index"), record.get("prompt")
        same = portrait is not None and portrait.hash == record.get("portrait_hash")
        return Form(
            prompt=prompt if isinstance(prompt, str) else "",
            face=face if isinstance(face, int) else 0,
            preset=preset,
            seed=seed if isinstance(seed, int) else 42,
            values=recorded(record, self.settings(preset)),
            carried=carried(record, self.setup, self.blueprint, preset),
            consent=str(record.get("consent") or "") if same and not record.get("private") else "",
            private=bool(record.get("private")),
        )
