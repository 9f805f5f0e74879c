"""The words that depend on the model: what it is, and what may be asked of it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_video.ui.session import Desk

_NANO = ("nods-orange-on-black", "smiles-red-on-blue", "left-green-on-purple", "tilts-yellow-on-red", "still-orange-on-blue")
_REAL = ("laughs", "drinks-tea", "turns-head", "reads-book", "walks-closer", "rain")


def examples(drawn: bool) -> list[tuple[str, str]]:
    """Prompts to click, each with a short name. drawn: nano's words."""
    from lynx_video.evaluation.prompts import NANO_PROMPTS, PROMPTS

    texts = {prompt.id: prompt.text for prompt in (NANO_PROMPTS if drawn else PROMPTS)}
    return [(_short(name), texts[name]) for name in (_NANO if drawn else _REAL)]


def about(desk: Desk) -> str:
    """Which model runs, in a line of HTML."""
    model = escape(desk.setup.model.base_model_path or desk.setup.model.model)
    toy = ": the toy model, which knows drawn people only" if desk.drawn else ""
    return f"A clip of a person, from one picture and a sentence. This page runs {model}{toy}."


def hint(drawn: bool) -> str:
    """How a prompt is given. drawn: in nano's words."""
    keys = "Shift+Enter makes the clip."
    if not drawn:
        return f"What is to be seen, as in a film script: the person, the place, the light, the camera. {keys}"
    from lynx_video.nano.captions import DOES
    from lynx_video.nano.faces import WALLS

    does, colours = (f"{', '.join(list(words)[:-1])} or {list(words)[-1]}" for words in (DOES, WALLS))
    return f"The person {does}, in a shirt and in front of a wall that are {colours}. {keys}"


def _short(name: str) -> str:
    """nods-orange-on-black -> `nods, orange shirt, black wall`; drinks-tea -> `drinks tea`."""
    motion, _, clothes = name.partition("-")
    shirt, on, wall = clothes.partition("-on-")
    return f"{motion}, {shirt} shirt, {wall} wall" if on else name.replace("-", " ")
