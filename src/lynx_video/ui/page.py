"""The page's layout: what is on it, where, and what it is called. What happens is in `wiring`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lynx_video.ui import view
from lynx_video.ui.knobs import Knob
from lynx_video.ui.session import Desk

PICTURES = ["image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A clip with all that is known of it."""

    video: Any
    facts: Any
    files: Any
    save_clip: Any
    save_settings: Any
    fold: Any
    settings: Any

    @property
    def parts(self) -> list[Any]:
        """In the order in which they are updated."""
        return [self.video, self.facts, self.files, self.save_clip, self.save_settings, self.fold, self.settings]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Everything on the page that something happens to."""

    tabs: Any
    upload: Any
    portrait: Any
    picture: Any
    faces: Any
    about_faces: Any
    prompt: Any
    knobs: dict[str, Any]
    preset: Any
    preset_before: Any
    about_preset: Any
    seed: Any
    new_seed: Any
    consent: Any
    private: Any
    watermark: Any
    reason: Any
    carried: Any
    make: Any
    cancel: Any
    notice: Any
    job: Any
    kept: Any
    stage: Any
    result: Panel
    past_tab: Any
    gallery: Any
    names: Any
    count: Any
    more: Any
    past_note: Any
    past: Panel
    again: Any
    shown: Any

    @property
    def form(self) -> list[Any]:
        """The fields of a form, in the order of `wiring.form_of`."""
        marks = [self.consent, self.private, self.watermark, self.reason, self.carried]
        return [self.prompt, self.faces, self.preset, self.seed, *marks, *self.knobs.values()]


def lay_out(desk: Desk, examples: Sequence[tuple[str, str]], about: str, hint: str) -> Parts:
    """Put everything on the page that is being built.

    examples: (short name, prompt). about: HTML below the title. hint: how to prompt.
    """
    settings = desk.settings("exact")
    knobs: dict[str, Any] = {}
    tiny = ["tiny"] if desk.drawn else []  # clips of 64 pixels are shown as such
    job, carried = gr.State(""), gr.State({})
    # A page that is loaded again finds its clip again. The key of a clip is of use only while this process runs: no secret is needed.
    kept = gr.BrowserState("", storage_key="lynx-video-clip", secret="lynx-video")
    gr.HTML(f"<h1>Lynx Video</h1><p>{about}</p>", elem_id="title")
    with gr.Tabs() as tabs:
        with gr.Tab("Make a clip", id="make", elem_classes=tiny), gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                upload = gr.File(
                    label="Portrait: drop a picture of the person", file_types=PICTURES, height=170, elem_id="portrait"
                )
                portrait = gr.State(None)
                about_faces = gr.HTML()
                picture = gr.Image(
                    label="Faces found",
                    show_label=False,
                    interactive=False,
                    visible=False,
                    buttons=[],
                    elem_id="picture",
                    format="webp",
                )
                faces = gr.Radio([], label="Which face", visible=False, elem_id="faces")
                prompt = gr.Textbox(
                    label="What does the person do?",
                    info=hint,
                    placeholder=examples[0][1],
                    lines=3,
                    max_lines=12,
                    elem_id="prompt",
                )
                gr.Examples(
                    [[text] for _, text in examples],
                    inputs=[prompt],
                    label="For example",
                    example_labels=[name for name, _ in examples],
                    api_visibility="private",
                )
                for knob in desk.knobs:
                    if knob.fold == "likeness":
                        knobs[knob.name] = _control(knob, settings[knob.name])
                preset = gr.Radio(
                    [(name, name) for name in ("exact", "balanced", "fast", "draft")],
                    value="exact",
                    label="How exact, how fast",
                    elem_id="preset",
                )
                preset_before = gr.State("exact")
                about_preset = gr.HTML()
                with gr.Row(equal_height=False, elem_id="seed-row"):
                    seed = gr.Number(
                        42, label="Seed", info="The same seed and settings, the same clip.", elem_id="seed", min_width=160
                    )
                    new_seed = gr.Button("New seed", elem_id="new-seed", min_width=120)
                with gr.Accordion("Advanced", open=False):
                    for group in _pairs([knob for knob in desk.knobs if knob.fold == "advanced"]):
                        with gr.Row():
                            for knob in group:
                                knobs[knob.name] = _control(knob, settings[knob.name])
                with gr.Accordion("Consent, privacy, watermark", open=desk.consent_required):
                    gr.HTML(f'<p class="hint">{view.CONSENT}</p>')
                    consent = gr.Textbox(
                        label="Who agreed to the use of this face, and how?"
                        + (" (needed here)" if desk.consent_required else ""),
                        info="Kept in the clip's record.",
                        lines=2,
                        elem_id="consent",
                    )
                    private = gr.Checkbox(
                        False,
                        label="Private",
                        info="Prompt, file name and consent stay out of the clip's record.",
                        elem_id="private",
                    )
                    watermark = gr.Checkbox(
                        True,
                        label="Invisible watermark",
                        info="Tells later that a model made the clip, even after it was encoded again.",
                        elem_id="watermark",
                    )
                    reason = gr.Textbox(label="Why without a watermark?", visible=False, elem_id="reason")
            with gr.Column(scale=6, min_width=320, elem_id="right"):
                with gr.Row(elem_id="go"):
                    make = gr.Button("Make the clip", variant="primary", size="lg", scale=3, elem_id="make", min_width=180)
                    cancel = gr.Button("Cancel", size="lg", interactive=False, scale=1, elem_id="cancel", min_width=110)
                notice = gr.HTML(elem_id="notice")
                stage = gr.HTML(view.EMPTY_STAGE, elem_id="stage")
                result = _panel("result")
        with gr.Tab("Past clips", id="past", elem_classes=tiny) as past_tab, gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                count = gr.HTML()
                gallery = gr.Gallery(
                    label="Past clips, newest first",
                    show_label=False,
                    allow_preview=False,
                    object_fit="cover",
                    buttons=[],
                    interactive=False,
                    elem_id="gallery",
                )
                names, shown = gr.State([]), gr.State("")
                more = gr.Button("Show older clips", visible=False, elem_id="more")
            with gr.Column(scale=6, min_width=320, elem_id="chosen"):
                past_note = gr.HTML(elem_id="past-note")
                past = _panel("past")
                again = gr.Button("Use these settings again", visible=False, elem_id="again", variant="primary")
    return Parts(
        tabs=tabs,
        upload=upload,
        portrait=portrait,
        picture=picture,
        faces=faces,
        about_faces=about_faces,
        prompt=prompt,
        knobs={knob.name: knobs[knob.name] for knob in desk.knobs},
        preset=preset,
        preset_before=preset_before,
        about_preset=about_preset,
        seed=seed,
        new_seed=new_seed,
        consent=consent,
        private=private,
        watermark=watermark,
        reason=reason,
        carried=carried,
        make=make,
        cancel=cancel,
        notice=notice,
        job=job,
        kept=kept,
        stage=stage,
        result=result,
        past_tab=past_tab,
        gallery=gallery,
        names=names,
        count=count,
        more=more,
        past_note=past_note,
        past=past,
        again=again,
        shown=shown,
    )


def _panel(name: str) -> Panel:
    """A clip with its facts, its files and its settings; hidden until there is one."""
    video = gr.Video(
        label="Clip",
        visible=False,
        interactive=False,
        autoplay=True,
        loop=True,
        buttons=[],
        height=420,
        elem_id=f"{name}-video",
    )
    facts = gr.HTML(elem_id=f"{name}-facts")
    with gr.Row(visible=False) as files:
        save_clip = gr.DownloadButton("Download the clip", elem_id=f"{name}-clip", min_width=150)
        save_settings = gr.DownloadButton("Download its settings", elem_id=f"{name}-settings", min_width=150)
    with gr.Accordion("All settings", open=False, visible=False) as fold:
        settings = gr.JSON(show_label=False, max_height=360)
    return Panel(
        video=video,
        facts=facts,
        files=files,
        save_clip=save_clip,
        save_settings=save_settings,
        fold=fold,
        settings=settings,
    )


def _control(knob: Knob, value: Any) -> Any:
    """What turns a knob."""
    about: dict[str, Any] = {
        "label": knob.label,
        "info": knob.help,
        "value": value,
        "elem_id": f"knob-{knob.name}",
        "min_width": 200,
    }
    if knob.kind == "slider":
        return gr.Slider(knob.low, knob.high, step=knob.step, buttons=[], **about)
    if knob.kind == "choice":
        return gr.Radio(list(knob.words), **about)
    if knob.kind == "text":
        return gr.Textbox(lines=2, **about)
    return gr.Number(**about)


def _pairs(knobs: Sequence[Knob]) -> list[list[Knob]]:
    """Two numbers side by side; all else alone."""
    rows: list[list[Knob]] = []
    for knob in knobs:
        if knob.kind == "whole" and rows and len(rows[-1]) == 1 and rows[-1][0].kind == "whole":
            rows[-1].append(knob)
        else:
            rows.append([knob])
    return rows
