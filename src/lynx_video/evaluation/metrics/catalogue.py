"""Every metric by name: what it is, in which direction it is better, and what a clip gets that cannot be measured.

A name may have a part after a slash: the recogniser (`similarity/nano judge`), the question put to the judge model
(`judge/aesthetics`), or what was drawn (`probe/wall`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """label: a few words for tables. text: what it is, one sentence, for the report. better: which way is good; "" if neither is.

    worst: what a clip counts as that does not decode or, where a face is needed, shows none; None: it is left out of the mean, and
    counted.
    """

    label: str
    text: str
    better: Literal["high", "low", ""] = "high"
    worst: float | None = None


# by the whole name, or by the part before the slash
METRICS: dict[str, Metric] = {
    "similarity": Metric(
        label="face similarity",
        text="Cosine between the face in a frame and the face in the reference photo, mean over the frames with a face.",
        worst=0.0,
    ),
    "worst_tenth": Metric(
        label="worst tenth",
        text="Mean of the lowest tenth of the frames' cosines (a tenth rounded down, at least one).",
        worst=0.0,
    ),
    "coverage": Metric(label="coverage", text="Share of the frames in which a face was found.", worst=0.0),
    "kept": Metric(
        label="similarity x coverage",
        text="Face similarity times coverage: a frame without a face counts as a stranger's.",
        worst=0.0,
    ),
    "consistency": Metric(
        label="self-consistency", text="Cosine between the first face of the clip and each later one, mean.", worst=0.0
    ),
    "copying": Metric(
        label="copying, faces",
        text="Similarity to the reference photo less the similarity to other photos of the person: above 0 the photo is copied, "
        "not the person.",
        better="low",
    ),
    "pasted": Metric(
        label="copying, pixels",
        text="Structural similarity (SSIM) of the aligned face with that of the reference photo, mean over frames; at the same "
        "sharpness, the photo laid over the frame. 1: the photo's own pixels.",
        better="low",
    ),
    "frontal": Metric(
        label="frontal frames",
        text="Share of the frames with a face in which it is turned aside by less than 15 degrees.",
        better="",
    ),
    "yaw_spread": Metric(label="spread of yaw", text="Standard deviation of the head's turn, in degrees.", better=""),
    "pitch_spread": Metric(
        label="spread of pitch",
        text="Standard deviation of the head's nod, in degrees (rough). Means nothing for drawn heads.",
        better="",
    ),
    "face_size": Metric(label="face size", text="Area of the face's box over that of the frame, mean.", better=""),
    "motion_amount": Metric(
        label="motion amount",
        text="Mean length of the optical flow (Farneback), in heights per second, seen 256 px high.",
        better="",
    ),
    "flicker": Metric(
        label="flicker",
        text="Mean difference of a frame from the mean of its two neighbours, as a share of full scale.",
        better="low",
    ),
    "sharpness": Metric(label="sharpness", text="Variance of the Laplacian over the variance of the grey values.", better=""),
    "clip_score": Metric(label="CLIP score", text="Cosine between prompt and frames by a CLIP model, mean over frames."),
    "judge": Metric(label="judge model", text="0 to 1 by a vision-language model, see the rubric.", worst=0.0),
    "probe": Metric(
        label="probe", text="1 where a drawn clip shows what its prompt asks for, else 0: exact, since it was drawn.", worst=0.0
    ),
    "probe/prompt": Metric(label="probe: wall and shirt", text="Share of wall and shirt that are as asked.", worst=0.0),
    "probe/following": Metric(
        label="probe: all that was asked", text="Share of wall, shirt and motion that are as asked.", worst=0.0
    ),
    "probe/clean": Metric(
        label="probe: clean wall",
        text="Share of the wall in the upper corners that has the wall's colour. Stands in for aesthetics on drawn clips.",
        worst=0.0,
    ),
    "probe/steady": Metric(
        label="probe: steady wall",
        text="Share of that wall that keeps its colour from frame to frame. Stands in for quality on drawn clips.",
        worst=0.0,
    ),
}


def metric(name: str) -> Metric:
    """The metric behind a name such as `similarity/nano judge`. Raises KeyError for one that is not in the table."""
    return METRICS[name] if name in METRICS else METRICS[name.split("/", 1)[0]]


def part(name: str) -> str:
    """What stands after the slash; "" if there is none."""
    return name.partition("/")[2]
