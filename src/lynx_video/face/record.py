"""A face on file: five points and an embedding as plain JSON, which stands in for detection and encoding.

    {"points": [[x, y], five of them, in pixels of the portrait], "embedding": [512 numbers of unit length]}

Other keys are left alone, so a note can be kept beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest
from lynx_video.types import FACE_WIDTH

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lynx_video.types import Points

NORM_TOLERANCE = 1e-3  # float32 keeps 1e-7; a thousandth is room for records rounded to a few digits


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceRecord:
    """What a record file holds.

    points: float32 [5, 2] in pixels of the portrait, in the order of `lynx_video.types.Face`.
    embedding: float32 [512] of unit length.
    """

    points: Points
    embedding: NDArray[np.float32]


def write_record(path: str | Path, face_points: Points, embedding: NDArray[np.float32] | Tensor) -> None:
    """Write a record beside its place, then rename it there; a file of that name is replaced, missing folders are made.

    face_points: [5, 2] in pixels. embedding: [512] of unit length, an array or a tensor on any device.
    Raises BadRequest for numbers that `read_record` would refuse, BadOutput if the file cannot be written.
    """
    path = Path(path)
    vector = embedding if isinstance(embedding, np.ndarray) else embedding.detach().float().cpu().numpy()
    record = {
        "points": _numbers(face_points, (5, 2), "points", path).tolist(),
        "embedding": _unit(_numbers(vector, (FACE_WIDTH,), "embedding", path), path).tolist(),
    }
    text = json.dumps(record) + "\n"
    try:
        with draft(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadOutput(f"The face record {path} cannot be written: {error.strerror or error}.") from None


def read_record(path: str | Path) -> FaceRecord:
    """The record in a JSON file.

    Raises BadRequest, naming the file and the key, for a file that is missing, not JSON, or holds other shapes, numbers that
    are not finite, or an embedding whose length is not 1.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"The face record {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The face record {path} is not valid JSON: {error}.") from None
    if not isinstance(record, dict):
        raise BadRequest(f"The face record {path} must be a JSON object with the keys points and embedding.")
    for key in ("points", "embedding"):
        if key not in record:
            raise BadRequest(f"The face record {path} has no key {key}; it needs points (5 x 2) and embedding ({FACE_WIDTH}).")
    return FaceRecord(
        points=_numbers(record["points"], (5, 2), "points", path),
        embedding=_unit(_numbers(record["embedding"], (FACE_WIDTH,), "embedding", path), path),
    )


def _numbers(value: Any, shape: tuple[int, ...], key: str, path: Path) -> NDArray[np.float32]:
    expected = " x ".join(map(str, shape))
    if not isinstance(value, np.ndarray):
        value = _array(value)
    if value is None or not np.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
        raise BadRequest(f"The key {key} of the face record {path} must hold {expected} numbers and nothing else.")
    if value.shape != shape:
        got = " x ".join(map(str, value.shape)) or "one number"
        raise BadRequest(f"The key {key} of the face record {path} must hold {expected} numbers, not {got}.")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused just below
        numbers: NDArray[np.float32] = value.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise BadRequest(f"The key {key} of the face record {path} holds a value that is not a finite number.")
    return numbers


def _array(value: Any) -> NDArray[Any] | None:
    try:
        return np.array(value)
    except (ValueError, OverflowError):  # rows of different lengths
        return None


def _unit(embedding: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    length = float(np.linalg.norm(embedding.astype(np.float64)))
    if abs(length - 1) > NORM_TOLERANCE:
        raise BadRequest(
            f"The embedding of the face record {path} has length {length:.4g}, not 1 (within {NORM_TOLERANCE}): divide it by "
            "its length, and make sure that it comes from the ArcFace encoder of the adapters."
        )
    return embedding
