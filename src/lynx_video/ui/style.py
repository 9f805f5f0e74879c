"""How the page looks: system fonts only, nothing from the network, light and dark by the visitor's own setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Quiet greys and one accent."""
    import gradio as gr

    chosen = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        font=FONTS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
    )
    settings: dict[str, Any] = {
        "body_background_fill": "*neutral_50",
        "body_background_fill_dark": "*neutral_950",
        "body_text_color_subdued": "*neutral_600",
        "body_text_color_subdued_dark": "*neutral_400",
        "block_background_fill": "white",
        "block_background_fill_dark": "*neutral_900",
        "block_border_color": "*neutral_200",
        "block_border_color_dark": "*neutral_800",
        "block_shadow": "none",
        "block_label_background_fill": "transparent",
        "block_label_background_fill_dark": "transparent",
        "block_label_border_width": "0px",
        "block_label_text_color": "*neutral_700",
        "block_label_text_color_dark": "*neutral_200",
        "block_title_text_color": "*neutral_800",
        "block_title_text_color_dark": "*neutral_100",
        "block_info_text_color": "*neutral_600",
        "block_info_text_color_dark": "*neutral_400",
        "button_primary_background_fill": "*primary_600",
        "button_primary_background_fill_hover": "*primary_700",
        "button_primary_background_fill_dark": "*primary_600",
        "button_primary_background_fill_hover_dark": "*primary_500",
        "button_primary_text_color": "white",
        "button_large_padding": "12px 20px",
        "input_background_fill": "white",
        "input_background_fill_dark": "*neutral_800",
        "input_border_width": "1px",
        "input_border_width_dark": "1px",
        "checkbox_border_width": "1px",
        "checkbox_border_color": "*neutral_400",
        "checkbox_border_color_dark": "*neutral_500",
        "input_border_color": "*neutral_300",
        "input_border_color_dark": "*neutral_700",
    }
    return chosen.set(**settings)


CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container > .main.fillable { padding: 16px 24px 40px !important; }
footer { display: none !important; }
.block:has(> .html-container > .prose:empty) { display: none !important; }
.block:has(> .html-container), .html-container { padding: 0 !important; }
#title h1 { font-size: 1.5rem; font-weight: 650; margin: 8px 0 0; }
#title p { margin: 4px 0 0; color: var(--body-text-color-subdued); max-width: 100ch; }

button { touch-action: manipulation; }
button.lg, button.md, button.sm, .gallery-item, .tab-container button { min-height: 44px; }
#seed-row { align-items: flex-end; }
#new-seed { margin-bottom: 12px; flex: 0 1 140px; }
:is(button, input, textarea, a, summary, [tabindex]):focus-visible {
  outline: 3px solid var(--primary-500) !important; outline-offset: 2px;
}
fieldset label:focus-within { outline: 3px solid var(--primary-500); outline-offset: 1px; }
fieldset label { min-height: 40px; }
.head { gap: 12px; }

.note { border-radius: 8px; padding: 10px 14px; border: 1px solid var(--border-color-primary); line-height: 1.45;
  background: var(--block-background-fill); overflow-wrap: anywhere; }
.prose .note ul { margin: 6px 0 0; padding-left: 1.2em; list-style: disc; }
.note.bad { border-color: #dc2626; background: #fef2f2; color: #7f1d1d; }
.note.warn { border-color: #d97706; background: #fffbeb; color: #713f12; }
.note.good { border-color: #16a34a; background: #f0fdf4; color: #14532d; }
.dark .note.bad { background: #450a0a; color: #fee2e2; }
.dark .note.warn { background: #422006; color: #fef3c7; }
.dark .note.good { background: #052e16; color: #dcfce7; }
.prose .hint { color: var(--body-text-color-subdued); margin: 0; line-height: 1.45; }

.stage { display: flex; flex-direction: column; gap: 12px; align-items: center; justify-content: center; min-height: 360px;
  border: 1px solid var(--block-border-color); border-radius: 8px; background: var(--block-background-fill); padding: 16px; }
.prose .stage.empty > p { color: var(--body-text-color-subdued); }
.prose .stage img { width: 100%; height: 400px; max-height: 60vh; object-fit: contain; border-radius: 6px; margin: 0; }
.stage .wait { font-size: 2rem; margin: 0; }
.prose .stage p { margin: 0; text-align: center; font-variant-numeric: tabular-nums; }
.stage progress { appearance: none; width: 100%; height: 10px; border: 0; border-radius: 5px; overflow: hidden;
  background: var(--neutral-200); }
.dark .stage progress { background: var(--neutral-700); }
.stage progress::-webkit-progress-bar { background: transparent; }
.stage progress::-webkit-progress-value { background: var(--primary-600); transition: width 0.2s; }
.stage progress::-moz-progress-bar { background: var(--primary-600); }
.tiny .stage img, .tiny video, .tiny #gallery img { image-rendering: pixelated; }
#picture img { width: 100%; max-height: 360px; object-fit: contain; cursor: pointer; }
#gallery :is(.grid-wrap, .gallery-container) { height: auto !important; max-height: none !important; min-height: 0 !important; }
#gallery .thumbnail-item { aspect-ratio: auto; height: auto; display: flex; flex-direction: column; }
#gallery .thumbnail-item img { aspect-ratio: 1; height: auto; width: 100%; }
#gallery .caption-label { position: static; max-width: none; width: 100%; margin: 0; border: 0; border-radius: 0; white-space: normal;
  background: none; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; text-align: left;
  line-height: 1.3; }
#gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important; }

.prose .verdict { font-size: 1.1rem; margin: 4px 0 10px; }
.prose .facts { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 4px 0; line-height: 1.45; }
.prose .facts dt { color: var(--body-text-color-subdued); font-weight: 400; margin: 0; }
.prose .facts dd { margin: 0; padding: 0; overflow-wrap: anywhere; }
.prose .facts + .note { margin-top: 10px; }

.volume-control-wrapper { display: none !important; }
.dark .slider_input_container { --neutral-200: var(--neutral-700); }

@media (min-width: 800px) {
  #right, #chosen { position: sticky; top: 12px; align-self: flex-start; }
}
@media (max-width: 640px) {
  .gradio-container > .main.fillable { padding: 8px 12px 32px !important; }
  #result-video, #past-video { height: auto !important; max-height: 70vh; }
  .stage { min-height: 220px; }
  .prose .stage img { height: 300px; }
  #go { position: fixed; inset: auto 0 0 0; z-index: 50; padding: 10px 12px calc(10px + env(safe-area-inset-bottom));
    background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary); flex-wrap: nowrap; }
  #go #cancel { flex: 0 1 110px; }
  .gradio-container > .main.fillable { padding-bottom: 96px !important; }
  .prose .verdict { font-size: 1.1rem; margin: 4px 0 10px; }
.prose .facts { grid-template-columns: 1fr; gap: 0; }
  .prose .facts dd { margin-bottom: 8px; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""

NAMES = """
() => {
  const name = (found, text) => { if (text && found.getAttribute("aria-label") !== text) found.setAttribute("aria-label", text); };
  const all = () => {
    const each = (which, text) => document.querySelectorAll(which).forEach(one => name(one, text(one)));
    each("fieldset", one => one.querySelector("[data-testid=block-info]")?.textContent.trim());
    each("#gallery .thumbnail-item", one => one.querySelector("img")?.alt);
    each("#picture .image-container > button", () => "The picture with its faces numbered");
  };
  new MutationObserver(all).observe(document.body, { childList: true, subtree: true });
  all();
}
"""
"""Names for a screen reader where Gradio gives none: groups of choices, the clips of the gallery, the picture that can be clicked."""
