"""One measured number, what it rests on, and why it is missing where it is."""

from __future__ import annotations

from dataclasses import dataclass

NO_FACE = "no frame has a face"
"""The reason of whatever needs one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """value: the number, None where it could not be measured. n: how many frames (or pairs, pictures, votes) it rests on.

    reason: why the value is None, in a few words; empty where there is one.
    """

    value: float | None
    n: int
    reason: str = ""
