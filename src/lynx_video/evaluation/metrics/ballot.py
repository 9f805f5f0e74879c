"""What a judge model is asked about a clip, and what its answers are worth: the question, a vote, the mean of votes, the tally.

The question holds the prompt the clip was to follow and evenly spaced frames with their times: JPEG of quality 95 without chroma
subsampling, at most 512 px on the long side (area average). A frame with a long side under 256 px is enlarged by the smallest whole
number that brings it there, pixels repeated, so that a model can make it out and nothing is invented.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lynx_video.errors import BadRequest
from lynx_video.evaluation.metrics.score import Score

if TYPE_CHECKING:
    from lynx_video.types import Picture, Video

AXES = ("prompt_following", "aesthetics", "motion_naturalness", "video_quality")
VERSION = 1
"""Of the question, the rubric aside; with another one every vote is asked for anew."""
LONGEST, SHORTEST, QUALITY = 512, 256, 95


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """One answer. marks: by axis, None if the vote is not valid; failure: why in a few words, to count by; detail: what was said.

    reason: the judge's own. tokens_in, tokens_out: as the endpoint counts them, None where it does not say.
    """

    marks: dict[str, float] | None = None
    reason: str = ""
    failure: str = ""
    detail: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(kw_only=True, slots=True)
class Tally:
    """What judging took and what failed, over all clips of a run.

    requests: questions sent, repeats by the client not counted. cached: votes taken from disk. valid: votes that count, those from
    disk too. tokens: of this run's answers, and of the answers behind the cached votes, which an earlier run paid for. unmetered:
    valid votes without token counts; they make a cost a lower bound. failures: votes that are not valid, by reason; examples: what
    the first of a kind said. left_out: parameters that the endpoint does not know.
    """

    requests: int = 0
    cached: int = 0
    valid: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens_in: int = 0
    cached_tokens_out: int = 0
    unmetered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def add(self, vote: Vote, *, cached: bool = False, again: bool = False) -> None:
        """Count a vote. again: one that counts for a second clip with the same content; it was paid for once."""
        self.cached += cached
        if not again and cached:
            self.cached_tokens_in += vote.tokens_in or 0
            self.cached_tokens_out += vote.tokens_out or 0
        elif not again:
            self.tokens_in += vote.tokens_in or 0
            self.tokens_out += vote.tokens_out or 0
        if vote.marks is not None:
            self.valid += 1
            self.unmetered += not again and (vote.tokens_in is None or vote.tokens_out is None)
        else:
            self.failures[vote.failure] += 1
            self.examples.setdefault(vote.failure, vote.detail)


def question(frames: Video, fps: float, prompt: str, most: int) -> list[dict[str, Any]]:
    """What is asked about uint8 [F, H, W, 3], as parts of a chat message. Raises BadRequest for no frames, and a rate not above 0."""
    import numpy as np

    if not len(frames) or not 0 < fps < np.inf:
        raise BadRequest(f"a judge needs frames and their rate, got {len(frames)} frames at {fps} a second.")
    chosen = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int).tolist()
    height, width = frames.shape[1:3]
    about = (
        f"The prompt that the clip was to follow:\n<prompt>\n{prompt}\n</prompt>\n\nThe clip has {len(frames)} frames of {width} x "
        f"{height} pixels at {fps:g} frames per second, {len(frames) / fps:.2f} s in all. You see {len(chosen)} of them."
    )
    parts: list[dict[str, Any]] = [{"type": "text", "text": about}]
    for index in chosen:
        parts.append({"type": "text", "text": f"Frame {index}, at {index / fps:.2f} s:"})
        parts.append({"type": "image_url", "image_url": {"url": _data_url(frames[index])}})
    return [*parts, {"type": "text", "text": "Answer with the JSON object."}]


def marks_in(text: str) -> tuple[dict[str, float] | None, str]:
    """The marks in an answer and the judge's reason; or None and why it is no vote.

    The JSON object may stand in a code fence or among prose; of several the last that has a mark counts.
    """
    decoder, at = json.JSONDecoder(), text.find("{")
    found: list[dict[str, Any]] = []
    while at >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            at += 1
        at = text.find("{", at)
    if not found:
        return None, "answered prose" if text.strip() else "answered nothing"
    last: dict[str, Any] = next((one for one in reversed(found) if any(axis in one for axis in AXES)), {})
    if any(axis not in last for axis in AXES):
        return None, "mark missing"
    if any(isinstance(last[axis], bool) or not isinstance(last[axis], (int, float)) for axis in AXES):
        return None, "mark is no number"
    if any(not 0 <= last[axis] <= 1 for axis in AXES):
        return None, "out of range"
    return {axis: float(last[axis]) for axis in AXES}, str(last.get("reason") or "")


def scores_of(votes: Iterable[Vote]) -> dict[str, Score]:
    """By `judge/AXIS` the mean of the valid votes, n of them; None with the reasons if there is none."""
    all_votes = list(votes)
    valid = [vote.marks for vote in all_votes if vote.marks is not None]
    if valid:
        return {f"judge/{axis}": Score(value=sum(one[axis] for one in valid) / len(valid), n=len(valid)) for axis in AXES}
    why = ", ".join(f"{count} x {name}" for name, count in sorted(Counter(vote.failure for vote in all_votes).items()))
    return {f"judge/{axis}": Score(value=None, n=0, reason=f"no valid vote: {why}") for axis in AXES}


def _data_url(frame: Picture) -> str:
    import numpy as np
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    width, height = image.size
    longest = max(width, height)
    if longest > LONGEST:
        size = (max(1, round(width * LONGEST / longest)), max(1, round(height * LONGEST / longest)))
        image = image.resize(size, Image.Resampling.BOX)
    elif longest < SHORTEST:
        times = -(-SHORTEST // longest)
        image = image.resize((width * times, height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
