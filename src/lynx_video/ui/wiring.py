"""What happens on the page: each event calls one function of the desk and shows what came of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from lynx_video.errors import LynxError, Refused
from lynx_video.ui import view
from lynx_video.ui.gallery import Entry, lend, still
from lynx_video.ui.jobs import unforeseen
from lynx_video.ui.knobs import moved
from lynx_video.ui.page import Parts
from lynx_video.ui.portrait import Portrait
from lynx_video.ui.session import Desk, Form

LOOK_SECONDS = 0.2
"""How often a page looks how far its clip is."""
SETTLE_SECONDS = 0.6
"""How long the settings have to rest before they are estimated anew."""
PAGE = 48
"""Clips that the gallery shows at once."""
TO_STAGE = "() => { document.querySelector('#right').scrollIntoView({block: 'nearest'}); }"
TO_CHOSEN = "() => { document.querySelector('#chosen').scrollIntoView({block: 'nearest'}); }"
"""On a narrow page what happens is below what was pressed."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class Wiring:
    """The page's handlers. lent: a folder for copies of clips that are shown. alike: similarity that counts as the same person."""

    def __init__(self, desk: Desk, parts: Parts, lent: Path, alike: float) -> None:
        self.desk, self.parts, self.lent, self.alike = desk, parts, lent, alike

    def connect(self, page: gr.Blocks) -> None:
        """Tie the handlers to their events."""
        on, watching = self.parts, [self.parts.stage, *self.parts.result.parts, self.parts.make, self.parts.cancel]
        about = [on.portrait, on.picture, on.faces, on.about_faces]
        # Until the new picture was looked at there is none: the clip would be of the person before.
        on.upload.change(
            lambda before, consent: [None, view.LOOKING, consent if before is None else ""],  # who agreed was the person before
            [on.portrait, on.consent],
            [on.portrait, on.about_faces, on.consent],
            queue=False,
            **QUIET,
        ).then(self.receive, [on.upload], about, **QUIET)
        on.picture.select(self.point, [on.portrait, on.faces], about[1:], **QUIET)
        on.faces.input(self.choose, [on.portrait, on.faces], about[1:], **QUIET)
        on.watermark.change(lambda kept: gr.update(visible=not kept), [on.watermark], [on.reason], **QUIET)
        on.new_seed.click(lambda: secrets.randbelow(2**31), None, [on.seed], **QUIET)

        knobs = list(on.knobs.values())
        on.preset.input(self.prefer, [on.preset, on.preset_before, *knobs], [on.preset_before, on.carried, *knobs], **QUIET)
        turning = [control.change for control in knobs if not isinstance(control, gr.Textbox)]
        gr.on(
            [page.load, on.preset.change, *turning],
            self.expect,
            [on.preset, *knobs],
            [on.preset, on.about_preset],
            trigger_mode="always_last",
            **QUIET,
        )

        asked = gr.on(
            [on.make.click, on.prompt.submit],
            self.ask,
            [on.job, on.portrait, *on.form],
            [on.job, on.kept, on.notice, *watching],
            trigger_mode="once",
            **QUIET,
        )
        gr.on([on.make.click, on.prompt.submit], None, None, None, js=TO_STAGE, **QUIET)
        asked.then(self.watch, [on.job], watching, concurrency_limit=None, **QUIET)
        on.cancel.click(self.cancel, [on.job], [on.cancel], queue=False, **QUIET)
        page.load(self.resume, [on.kept], [on.job, *watching], **QUIET).then(
            self.watch, [on.job], watching, concurrency_limit=None, **QUIET
        )

        shelf = [on.gallery, on.names, on.count, on.more]
        on.past_tab.select(lambda: self.refresh(PAGE), None, shelf, **QUIET)
        on.more.click(lambda names: self.refresh(len(names) + PAGE), [on.names], shelf, **QUIET)
        on.gallery.select(self.show, [on.names], [on.shown, on.past_note, *on.past.parts, on.again], **QUIET).then(
            None, None, None, js=TO_CHOSEN, **QUIET
        )
        on.again.click(
            self.again,
            [on.shown, on.portrait],
            [on.past_note, on.notice, on.tabs, on.preset_before, *on.form],
            **QUIET,
        )

    def receive(self, path: str | None) -> list[Any]:
        """A picture was dropped, or taken away."""
        if path is None:
            return [None, gr.update(visible=False, value=None), gr.update(visible=False, choices=[], value=None), ""]
        try:
            portrait = self.desk.portrait(Path(path), Path(path).name)
        except Exception as error:  # noqa: BLE001 (what is wrong is said where it was dropped)
            return [None, gr.update(visible=False, value=None), gr.update(visible=False, choices=[], value=None), _alert(error)]
        return [portrait, *self._faces(portrait, 0)]

    def point(self, portrait: Portrait | None, chosen: int | None, at: gr.SelectData) -> list[Any]:
        """Somebody clicked into the picture."""
        if portrait is None:
            return [gr.skip()] * 3
        hit = portrait.at(*at.index)
        return self._faces(portrait, hit if hit is not None else chosen or 0)

    def choose(self, portrait: Portrait | None, chosen: int | None) -> list[Any]:
        """Another face was chosen."""
        return [gr.skip()] * 3 if portrait is None or chosen is None else self._faces(portrait, chosen)

    def _faces(self, portrait: Portrait, chosen: int) -> list[Any]:
        choices = [(portrait.label(index), index) for index in range(len(portrait.faces))]
        return [
            gr.update(value=portrait.drawn(chosen), visible=True),
            gr.update(choices=choices, value=chosen, visible=len(choices) > 1),
            view.about_faces(portrait, chosen),
        ]

    def prefer(self, preset: str, before: str, *values: Any) -> list[Any]:
        """Another preset: its settings, but for those the visitor turned."""
        names = list(self.parts.knobs)
        stand = moved(dict(zip(names, values, strict=True)), self.desk.settings(before), self.desk.settings(preset))
        return [preset, {}, *(stand[name] for name in names)]

    async def expect(self, preset: str, *values: Any) -> list[Any]:
        """The presets with what they take, once the settings rest."""
        await asyncio.sleep(SETTLE_SECONDS)
        names = list(self.parts.knobs)
        try:
            found = await asyncio.to_thread(self.desk.outlooks, preset, dict(zip(names, values, strict=True)))
        except Exception as error:  # noqa: BLE001
            return [gr.skip(), _alert(error)]
        chosen = next(one for one in found if one.preset == preset)
        return [gr.update(choices=[(view.outlook_label(one), one.preset) for one in found]), view.about_preset(chosen)]

    def ask(self, key: str, portrait: Portrait | None, *fields: Any) -> list[Any]:
        """Queue what was filled in, or say why not. key: what this page asked for before; while it is made there is no other."""
        unchanged = [gr.skip()] * (3 + len(self.parts.result.parts))
        before = self.desk.queue.find(key) if key else None
        if before is not None and not before.ended:
            return [gr.skip(), gr.skip(), view.alert("A clip is being made: wait for it, or cancel it."), *unchanged]
        try:
            job = self.desk.ask(portrait, form_of(list(self.parts.knobs), fields))
        except Exception as error:  # noqa: BLE001
            return ["", gr.skip(), _alert(error), *unchanged]
        stage = gr.update(value=view.progress(job, self.desk.queue.ahead(job)), visible=True)
        return [job.key, job.key, "", stage, *hidden(), *_busy(True)]

    async def watch(self, key: str) -> AsyncIterator[list[Any]]:
        """A clip as it is being made, until it has ended; whoever leaves may come back to it."""
        job = self.desk.queue.find(key) if key else None
        if job is None:
            yield [gr.skip()] * (3 + len(self.parts.result.parts))
            return
        seen: Any = None
        while not job.ended:
            ahead = self.desk.queue.ahead(job)
            now = (job.state, job.step, ahead, job.stop.is_set())
            if now != seen:
                seen = now
                yield [view.progress(job, ahead), *[gr.skip()] * len(self.parts.result.parts), gr.skip(), gr.skip()]
            await asyncio.sleep(LOOK_SECONDS)
        yield await asyncio.to_thread(self._ended, key)

    def _ended(self, key: str) -> list[Any]:
        job = self.desk.queue.find(key)
        if job is None or job.state != "done":
            stage = view.progress(job, 0) if job is not None else view.EMPTY_STAGE
            return [gr.update(value=stage, visible=True), *hidden(), *_busy(False)]
        try:
            shown = self._clip(self.desk.clip(job.target.name), job.cautions)
        except LynxError as error:
            return [gr.update(value=_alert(error), visible=True), *hidden(), *_busy(False)]
        return [gr.update(visible=False), *shown, *_busy(False)]

    def cancel(self, key: str) -> Any:
        """Stop at the next step."""
        self.desk.queue.cancel(key)
        return gr.update(interactive=False)

    def resume(self, key: str | None) -> list[Any]:
        """A page that was loaded again: the clip it asked for, if there is one."""
        job = self.desk.queue.find(key) if isinstance(key, str) and key else None
        if job is None:
            return ["", *[gr.skip()] * (3 + len(self.parts.result.parts))]
        if job.ended:
            return ["", *self._ended(job.key)]
        return [job.key, view.progress(job, self.desk.queue.ahead(job)), *hidden(), *_busy(True)]

    def refresh(self, most: int) -> list[Any]:
        """The gallery."""
        found, older = self.desk.past(most)
        stills = [(entry, still(entry)) for entry in found]
        there = [(entry, picture) for entry, picture in stills if picture is not None]
        titles = view.captions([entry.title for entry, _ in there])
        pictures = [(picture, title) for (_, picture), title in zip(there, titles, strict=True)]
        said = (
            f'<p class="hint">{len(there)} clips{f", {older} older ones" if older else ""}. Choose one to see it.</p>'
            if there
            else '<p class="hint">There are no clips yet.</p>'
        )
        return [
            gr.update(value=pictures, selected_index=None),
            [entry.name for entry, _ in there],
            said,
            gr.update(visible=older > 0),
        ]

    def show(self, names: list[str], at: gr.SelectData) -> list[Any]:
        """A clip of the gallery was chosen."""
        try:
            entry = self.desk.clip(names[int(at.index)])
            return [entry.name, "", *self._clip(entry), gr.update(visible=True)]
        except Exception as error:  # noqa: BLE001
            return ["", _alert(error), *hidden(), gr.update(visible=False)]

    def again(self, name: str, portrait: Portrait | None) -> list[Any]:
        """The form as it was for the chosen clip."""
        fields = len(self.parts.form)
        try:
            record = self.desk.clip(name).record
            form = self.desk.again(record, portrait)
        except Exception as error:  # noqa: BLE001
            return [_alert(error), *[gr.skip()] * (3 + fields)]
        same = portrait is not None and portrait.hash == record.get("portrait_hash")
        face: Any = form.face if same and portrait is not None and form.face < len(portrait.faces) else gr.skip()
        said = view.taken_over(
            form.carried, record, self.desk.setup.model.model, portrait.hash if portrait else None, form.private
        )
        filled = [form.prompt, face, form.preset, form.seed, form.consent, form.private, form.watermark, form.no_watermark]
        values = [form.values[knob] for knob in self.parts.knobs]
        return ["", said, gr.update(selected="make"), form.preset, *filled, dict(form.carried), *values]

    def _clip(self, entry: Entry, cautions: tuple[str, ...] = ()) -> list[Any]:
        """A clip in its panel."""
        from lynx_video.media.provenance import read_provenance

        clip, settings = lend(entry, self.lent)
        try:
            origin = view.sentence(read_provenance(entry.path).sentence)
        except LynxError as error:
            origin = f"can't be checked: {error}"
        return [
            gr.update(value=str(clip), visible=True),
            view.facts(entry.record, alike=self.alike, cautions=cautions, origin=origin),
            gr.update(visible=True),
            gr.update(value=str(clip)),
            gr.update(value=str(settings)),
            gr.update(visible=True),
            dict(entry.record),
        ]


def form_of(knobs: list[str], fields: tuple[Any, ...]) -> Form:
    """The fields of `Parts.form`, by name."""
    prompt, face, preset, seed, consent, private, watermark, reason, carried, *values = fields
    return Form(
        prompt=prompt or "",
        face=face or 0,
        preset=preset,
        seed=seed,
        values=dict(zip(knobs, values, strict=True)),
        carried=carried,
        consent=consent or "",
        private=bool(private),
        watermark=bool(watermark),
        no_watermark=reason or "",
    )


def hidden() -> list[Any]:
    """A panel without a clip; in the order of `Panel.parts`."""
    away = gr.update(visible=False)
    return [gr.update(value=None, visible=False), "", away, gr.skip(), gr.skip(), away, gr.skip()]


def _busy(busy: bool) -> list[Any]:
    return [gr.update(interactive=not busy), gr.update(interactive=busy)]


def _alert(error: Exception) -> str:
    if isinstance(error, Refused):
        return view.alert(f"{view.REFUSED}{error}")
    return view.alert(str(error) if isinstance(error, LynxError) else unforeseen(error))
