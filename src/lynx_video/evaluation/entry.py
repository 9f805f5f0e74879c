"""Which clip shows whom doing what, before anything is measured (Entry), and the numbers of one clip afterwards (Record)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lynx_video.errors import BadData

GONE, UNSCORED = "the clip is not there", "could not be scored"
"""Failures of a clip, beside that it does not decode and that no frame has a face."""
REFERENCE = "the reference photo cannot be used"
"""How the reason begins where it is not the clip's fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A clip to score.

    key: its name in the benchmark, the same for every system that made a clip of this subject, prompt and seed.
    clip, reference, others: files; the video, the photo it was made from, other photos of the same person (may be empty).
    subject, prompt_id: what results are grouped by. seed: None where nobody noted it.
    """

    key: str
    clip: Path
    subject: str
    reference: Path
    prompt: str
    prompt_id: str
    seed: int | None = None
    others: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What was measured of one clip. Plain JSON values throughout.

    clip, reference: as in the entry, relative to the folder of the clips where they lie in it (posix), else absolute.
    sha256: of the clip's bytes, "" if it could not be read. frames, fps, height, width: of the clip, 0 if it does not decode.
    scores: by the name of the metric, see `metrics.catalogue`; None where it was not measured. missing: why, by the same names.
    counts: how many frames (pairs, votes) a score rests on, by the same names.
    per_frame: by recogniser, the cosine of each frame that was looked at with the reference photo; None where it has no face.
    failure: what is wrong with the whole clip, in a sentence: it does not decode, no frame has a face. "" for nothing.
    """

    key: str
    clip: str
    subject: str
    reference: str
    prompt: str
    prompt_id: str
    seed: int | None = None
    sha256: str = ""
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    failure: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    per_frame: dict[str, list[float | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> Record:
        """The record in JSON values. Raises BadData, naming `where`, for what is none."""
        known = {one.name for one in fields(cls)}
        try:
            record = cls(**{name: value for name, value in values.items() if name in known})
            odd = [name for name, value in record.scores.items() if not (value is None or type(value) in (int, float))]
        except (TypeError, AttributeError) as error:
            raise BadData(f"{where}: no record of a scored clip ({error}).") from error
        if odd:
            raise BadData(f"{where}: the score {odd[0]} is no number: {record.scores[odd[0]]!r}.")
        return record
