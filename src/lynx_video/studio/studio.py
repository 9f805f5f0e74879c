"""A model behind a door: checks a request before any work, meets the person, makes the clip and publishes it.

    check   everything that can be refused without the video model's weights -> Order
    meet    the person of an order -> Guest
    film    the clip -> a file, signed and whole

The weights are read with the first clip and kept; a request that needs them held in another way (a preset that quantizes or brings a
LoRA) has them read anew. One thing at a time: a studio is not for several threads.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest, LynxWarning, Refused
from lynx_video.studio.gate import check_source, gate_of
from lynx_video.studio.models import idle_options, read_face_record, scored_by, sit, survey_model
from lynx_video.studio.publish import publish, record_of
from lynx_video.studio.replay import bits_facts, machine_facts
from lynx_video.studio.request import Request
from lynx_video.studio.setup import SelectFlags, Setup
from lynx_video.studio.speed import tune

if TYPE_CHECKING:
    from lynx_video.media.certificate import Signer
    from lynx_video.pipeline.best import Candidate
    from lynx_video.pipeline.components import Blueprint, Components
    from lynx_video.pipeline.denoise import Step
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.pipeline.forecast import Forecast
    from lynx_video.pipeline.generate import Plan
    from lynx_video.pipeline.identify import Sitter
    from lynx_video.runtime.parallel import Ranks
    from lynx_video.safety import Gate
    from lynx_video.types import Clip, Face, Identity, Picture

KEPT_PEOPLE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A request that was checked, with everything it means for this model. cautions: what may spoil the result, in sentences."""

    request: Request
    config: GenerateConfig
    blueprint: Blueprint
    plan: Plan
    enrolment: Enrolment | None
    gate: Gate
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Guest:
    """Who the clip will show. cautions: what about the portrait costs likeness."""

    who: Identity | Enrolment
    cautions: tuple[str, ...] = ()

    @property
    def identity(self) -> Identity:
        """The person, without memories."""
        from lynx_video.types import Identity

        return self.who if isinstance(self.who, Identity) else self.who.identity


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A clip and where it is. judge: who measured the similarity. missed: what it lacks of what was asked. Empty: nobody, nothing.

    record: what the file says of itself. cautions: all warnings of the request, the portrait and the generation.
    """

    clip: Clip
    output: Path
    judge: str
    missed: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    cautions: tuple[str, ...] = ()


class Studio:
    """A model that is loaded once and makes clip after clip."""

    def __init__(self, setup: Setup) -> None:
        """Reads nothing yet; errors of the setup come with the first request, or with `open`."""
        self.setup = setup
        self._held: tuple[Any, Components] | None = None
        self._people: OrderedDict[Any, Any] = OrderedDict()
        self._signer: Signer | None = None
        self._guards: tuple[Gate, list[str]] | None = None
        self._recogniser: Any = None

    def open(self) -> None:
        """Read the weights now, for a clip of the model's own size, so that the first request does not wait and faults show early."""
        config, runtime = tune("exact", self.setup.model, {}, self.setup.runtime)
        blueprint = self._survey(config, None, runtime)
        self._gate(blueprint)
        self.signer()
        self._components(blueprint, config)

    def blueprint(self) -> Blueprint:
        """The model as its files describe it, for a clip of its own size; no weight is read."""
        config, runtime = tune("exact", self.setup.model, {}, self.setup.runtime)
        return self._survey(config, None, runtime)

    def check(self, request: Request) -> Order:
        """Everything that can be refused before the video model's weights are read.

        Raises BadRequest or a subclass, Refused, or MissingDependency for a safety checker that is not there.
        """
        from lynx_video.media.image import read_picture
        from lynx_video.pipeline.calibration import check_step_cache
        from lynx_video.pipeline.condition import clean_prompt
        from lynx_video.pipeline.enrol import load_enrolment, usable_memories
        from lynx_video.pipeline.generate import plan

        if not clean_prompt(request.prompt):
            raise BadRequest("the prompt is empty; say what the person should do.")
        config, runtime = tune(request.preset, self.setup.model, request.generation, self.setup.runtime)
        check_select(request.select, config)
        if request.portrait is not None:
            read_picture(request.portrait)
        self.signer()
        enrolment = load_enrolment(request.identity) if request.identity is not None else None
        blueprint = self._survey(config, enrolment, runtime)
        chosen = plan(blueprint, config)
        check_step_cache(blueprint, config.step_cache)
        if enrolment is not None:
            usable_memories(blueprint, enrolment)
        gate, cautions = self._gate(blueprint)
        gate.prompt(request.prompt, quote=not request.marks.private)
        cautions = [*cautions, *blueprint.cautions, *idle_options(blueprint, enrolment, config, chosen)]
        return Order(
            request=request,
            config=config,
            blueprint=blueprint,
            plan=chosen,
            enrolment=enrolment,
            gate=gate,
            cautions=tuple(cautions),
        )

    def meet(self, order: Order) -> Guest:
        """The person of an order, by the safety checker's leave. Raises Refused, NoFace, BadRequest for a face that is not there."""
        request = order.request
        check_source(order.gate, request.portrait, order.enrolment)
        guest = Guest(who=order.enrolment) if order.enrolment is not None else self._guest(order)
        if request.select.best_of > 1 or request.select.min_similarity is not None:
            _check_scorable(order.blueprint, guest.identity)
        return guest

    def film(
        self,
        order: Order,
        guest: Guest,
        target: Path,
        *,
        on_step: Callable[[Step], None] | None = None,
        on_candidate: Callable[[Candidate], None] = lambda _: None,
        before_writing: Callable[[Clip], None] | None = None,
        tensors: Path | None = None,
        ranks: Ranks | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Made:
        """Make the clip and publish it as `target`; whatever is raised, no file is left.

        on_step: may raise Cancelled. on_candidate: told of each clip the best is chosen from. before_writing: what it raises keeps
        the clip from being published. ranks: processes that make the clip together; the first writes it. facts: what else the record
        should say (plain JSON values).
        """
        from lynx_video.pipeline.best import generate_best
        from lynx_video.pipeline.generate import generate

        request, select, config, blueprint = order.request, order.request.select, order.config, order.blueprint
        components = self._components(blueprint, config, ranks)
        marks = request.marks if request.marks.consent else replace(request.marks, consent=guest.identity.consent)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=LynxWarning)
            subject = face_facts(request)
            if select.best_of > 1:
                clip, _ = generate_best(
                    components,
                    guest.who,
                    request.prompt,
                    config,
                    select.best_of,
                    follow=self._follow(),
                    on_step=on_step,
                    on_candidate=on_candidate,
                    facts=subject,
                )
            else:
                clip = generate(components, guest.who, request.prompt, config, on_step=on_step, facts=subject)
        order.gate.frames(clip.frames)
        if before_writing is not None:
            before_writing(clip)
        judge = blueprint.faces.judge_name if clip.coverage is not None else ""
        missed = what_missed(clip, select.min_similarity)
        said: dict[str, Any] = {"model": self.setup.model.model, "judge": judge, "preset": request.preset}
        said |= {"safety": order.gate.record()} | ({"missed": missed} if missed else {})
        if order.enrolment is not None and not components.adapter_hash:
            said["adapter_hash"] = order.enrolment.adapter_hash  # whose memories the file brought
        said |= {
            "face_encoder": guest.identity.encoder,
            **bits_facts(components),
            "machine": machine_facts(str(components.device)),
        }
        record = record_of(clip, {**said, **(facts or {})}, marks)
        if marks.private and config.negative_prompt is not None:
            record["negative_prompt_withheld"] = True
        if ranks is None or ranks.first:
            publish(target, clip, record, marks, self.signer(), tensors)
        cautions = (*order.cautions, *guest.cautions, *dict.fromkeys(str(one.message) for one in told))
        return Made(clip=clip, output=target, judge=judge, missed=missed, record=record, cautions=cautions)

    def make(self, request: Request, target: Path, *, on_step: Callable[[Step], None] | None = None, **more: Any) -> Made:
        """`check`, `meet` and `film` in one."""
        order = self.check(request)
        return self.film(order, self.meet(order), target, on_step=on_step, **more)

    def faces(self, portrait: Path) -> list[tuple[Face, list[str]]]:
        """The faces of a picture, largest first, each with what about it costs likeness. Raises BadPicture; no face: an empty list."""
        from lynx_video.face.detect import find_faces
        from lynx_video.face.quality import face_warnings
        from lynx_video.media.image import read_picture

        picture = read_picture(portrait)
        return [(face, face_warnings(picture, face)) for face in find_faces(picture, self.blueprint().faces.detector())]

    def enrol(self, portrait: Path, face_index: int | None = None, *, consent: str = "", shown: str = "") -> Enrolment:
        """A person projected for the loaded base and adapter, for any number of clips. Raises as `meet`, and as pipeline.enrol."""
        from lynx_video.pipeline.enrol import enrol

        config, runtime = tune("exact", self.setup.model, {}, self.setup.runtime)
        blueprint = self._survey(config, None, runtime)
        check_source(self._gate(blueprint)[0], portrait, None)
        request = Request(prompt="-", portrait=portrait, face_index=face_index, shown=shown)
        sitter = self._sitter(blueprint, request)
        return enrol(self._components(blueprint, config), replace(sitter.identity, consent=consent))

    def forecast(self, request: Request) -> Forecast:
        """Time and memory of a request, by estimate. Raises as `check`."""
        from lynx_video.pipeline.forecast import forecast

        order = self.check(request)
        return forecast(order.blueprint, order.config, order.blueprint.runtime)

    def preview(self, step: Step) -> Picture | None:
        """The first frame as a step leaves it, uint8 [H, W, 3]; None if the safety gate refuses it. Only while a clip is being made."""
        from lynx_video.pipeline.preview import preview

        assert self._held is not None, "a preview is of a running generation"
        assert self._guards is not None
        picture = preview(self._held[1], step)
        try:
            self._guards[0].portrait(picture)
        except Refused:
            return None
        return picture

    def signer(self) -> Signer:
        """Whose signature the clips carry. Raises BadRequest for a key or certificate that cannot be used."""
        from lynx_video.media.certificate import load_signer

        if self._signer is None:
            self._signer = load_signer(self.setup.signing.signing_key, self.setup.signing.signing_certificate)
        return self._signer

    def _survey(self, config: GenerateConfig, enrolment: Enrolment | None, runtime: RuntimeConfig) -> Blueprint:
        held = self._held[1] if self._held is not None else None
        if held is not None and held.adapter_hash:
            # What is loaded is not read again for a request that could do with less of it.
            config = replace(config, ip_scale=config.ip_scale or 1.0, ref_scale=config.ref_scale or 1.0)
            if enrolment is not None and (enrolment.base_hash, enrolment.adapter_hash) == (held.base_hash, held.adapter_hash):
                enrolment = None
        found = survey_model(self.setup.model, self.setup.face, config, enrolment, runtime)
        if self.setup.recogniser is not None:
            found = replace(found, faces=scored_by(found.faces, self.setup.recogniser))
        return found

    def _gate(self, blueprint: Blueprint) -> tuple[Gate, list[str]]:
        if self._guards is None:
            self._guards = gate_of(self.setup.safety, self.setup.model, blueprint)
        return self._guards

    def _components(self, blueprint: Blueprint, config: GenerateConfig, ranks: Ranks | None = None) -> Components:
        """The model, held as the blueprint says; read anew only if it is held otherwise."""
        from lynx_video.pipeline.load import assemble

        key = (
            blueprint.runtime,
            blueprint.layout and str(blueprint.layout),
            blueprint.base_hash,
            blueprint.adapter_hash,
            blueprint.files and repr(blueprint.files.config),
            blueprint.arm,
            blueprint.defaults,
            config.idle_models,
            ranks is None,
        )
        if self._held is None or self._held[0] != key:
            self._held = None  # two models do not fit
            self._held = (key, assemble(blueprint, idle_models=config.idle_models, ranks=ranks))
        return self._held[1]

    def _guest(self, order: Order) -> Guest:
        request = order.request
        sitter = self._sitter(order.blueprint, request)
        return Guest(who=sitter.identity, cautions=tuple(f"{request.name}: {warning}" for warning in sitter.warnings))

    def _sitter(self, blueprint: Blueprint, request: Request) -> Sitter:
        from lynx_video.media.image import file_hash

        assert request.portrait is not None
        size = blueprint.defaults.reference_size
        face = replace(self.setup.face, face_index=request.face_index, face_record=request.face_record)
        record = read_face_record(face)
        key = (file_hash(request.portrait), request.face_index, record and file_hash(request.face_record or ""), size)
        if key in self._people:
            self._people.move_to_end(key)
            return self._people[key]  # type: ignore[no-any-return]
        sitter = sit(
            blueprint.faces,
            request.portrait,
            self.setup.model,
            face,
            record=record,
            reference_size=size,
            shown=Path(request.name),
        )
        if sitter.identity.portrait_hash != key[0]:
            raise BadRequest(f"{request.name}: the file was changed while it was read; ask again.")
        self._people[key] = sitter
        if len(self._people) > KEPT_PEOPLE:
            self._people.popitem(last=False)
        return sitter

    def _follow(self) -> Callable[[Any, str], float | None] | None:
        """How far a clip does what its prompt says, for a model of which that can be told exactly."""
        from lynx_video.pipeline.models import MODELS

        own = MODELS[self.setup.model.model]
        return own.follow if own.probe is not None and self.setup.model.base_model_path is None else None


def check_select(select: SelectFlags, config: GenerateConfig) -> None:
    """Raises BadRequest for numbers out of range."""
    if isinstance(select.best_of, bool) or not 1 <= select.best_of <= 1000:
        raise BadRequest(f"--best-of must be a whole number from 1 to 1000, got {select.best_of}.")
    if select.min_similarity is not None and not -1 <= select.min_similarity <= 1:
        raise BadRequest(f"--min-similarity is a cosine, from -1 to 1, got {select.min_similarity}.")
    replace(config, seed=config.seed + select.best_of - 1)  # refuses a last seed that is none


def what_missed(clip: Clip, least: float | None) -> str:
    """What a clip lacks of the similarity that was asked for; empty if nothing."""
    if least is None or (clip.similarity is not None and clip.similarity >= least):
        return ""
    if clip.similarity is None:
        return f"no face was found in it, and a similarity of {least:g} was asked for"
    return f"its similarity is {clip.similarity:.3f}, below the {least:g} that was asked for"


def face_facts(request: Request) -> dict[str, Any]:
    """Whose face the clip shows, as its record keeps it: file names without their folders, and how the face was chosen."""
    portrait = request.identity is None
    name = Path(request.name).name
    return {
        "portrait": name if portrait else None,
        "identity_file": None if portrait else name,
        "face_index": (request.face_index or 0) if portrait and request.face_record is None else None,
        "face_record": request.face_record is not None,
    }


def _check_scorable(blueprint: Blueprint, identity: Identity) -> None:
    """Raises BadRequest, before any work, where nobody could say how alike the clip is; loads the recogniser."""
    if blueprint.faces.judge is None:
        raise BadRequest(
            "--best-of and --min-similarity need a face recogniser to score with, and none is at hand: "
            "`lynx-video download face` gets one, --recogniser FILE names one."
        )
    if identity.aligned is None:
        raise BadRequest("this identity file has no aligned crop to compare clips with; enroll the portrait again.")
    blueprint.faces.judge()
