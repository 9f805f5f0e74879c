"""Guidance as a table of passes whose weights sum to one.

Full: v = u + g_i (i - u) + g (c - i), where c has prompt and identity, i the negative prompt and the identity, u the negative prompt
and the unconditional identity. Lite, and full without g_i: v = u + g (c - u). With g <= 1: c alone. A pass of weight zero is not run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Pass(NamedTuple):
    """One forward of the transformer: which text and which identity it sees, and its weight in the velocity."""

    name: str
    text: Literal["prompt", "negative"]
    who: Literal["person", "nobody"]
    weight: float


Table = tuple[Pass, ...]
UNGUIDED: Table = (Pass("prompt", "prompt", "person", 1.0),)


def passes(guidance_scale: float, guidance_scale_i: float | None) -> Table:
    """The passes of a step for g and g_i (None: prompt and identity are guided together)."""
    g, g_i = guidance_scale, guidance_scale_i
    if g <= 1:
        return UNGUIDED
    if g_i is None:
        table: Table = (Pass("prompt", "prompt", "person", g), Pass("none", "negative", "nobody", 1 - g))
    else:
        table = (
            Pass("prompt", "prompt", "person", g),
            Pass("identity", "negative", "person", g_i - g),
            Pass("none", "negative", "nobody", 1 - g_i),
        )
    return tuple(one for one in table if one.weight != 0)


def tables(table: Table, steps: int, stop: float) -> tuple[Table, ...]:
    """The table of each step, with guidance in the share `stop` of the steps and the prompt's pass alone from there on."""
    return tuple(table if number / steps < stop else UNGUIDED for number in range(steps))
