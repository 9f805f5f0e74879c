"""Find faces: one interface, two detectors by ONNX file (insightface's SCRFD, OpenCV's YuNet), and the choice among the finds.

SCRFD (`buffalo_l/det_10g.onnx`) is what the reference uses; its weights are for non-commercial use. YuNet's are permissive.
A detector is a value that is passed in, so others (nano's) need nothing from this module but the protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lynx_video.errors import BadRequest, BadWeights, NoFace
from lynx_video.face.align import require_picture
from lynx_video.face.session import line_of, model_file, open_session
from lynx_video.types import Face

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lynx_video.types import Picture

    Array = NDArray[np.float32]

SCRFD_FILE = "det_10g.onnx"
SCRFD_SIDE = 640  # pixels, height and width of what the network sees; as the reference
SCRFD_STRIDES = (8, 16, 32)
SCRFD_ANCHORS = 2  # predictions per cell
SCRFD_OVERLAP = 0.4  # of two boxes that overlap more, the weaker one goes
YUNET_SIDE = 640  # larger pictures are shrunk to it: YuNet was trained on faces up to about 300 px
YUNET_OVERLAP = 0.3
YUNET_OUTPUTS = {f"{kind}_{stride}" for kind in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32)}
_GREY = 127  # next to what the networks call zero


class Detector(Protocol):
    """Anything that finds faces in a picture."""

    @property
    def name(self) -> str:
        """One word for messages and metadata."""

    def __call__(self, image: Picture, /) -> list[Face]:
        """image: uint8 [H, W, 3] RGB. The faces, in any order; none is an empty list."""


class SCRFD:
    """insightface's detector, run by onnxruntime on the CPU.

    path: the .onnx file, or a folder that holds it (`models/buffalo_l`). threshold: the lowest score that counts as a face.
    Raises BadWeights for a file that is missing or no SCRFD with points, MissingDependency without onnxruntime.
    Source: Guo et al. 2021, arXiv 2105.04714.
    """

    name = "scrfd"

    def __init__(self, path: str | Path, *, threshold: float = 0.5) -> None:
        self.path = _scrfd_file(Path(path))
        self.threshold = threshold
        self._session = open_session(self.path, "face detector SCRFD")
        self._check()

    def __call__(self, image: Picture, /) -> list[Face]:
        """image: uint8 [H, W, 3] RGB. Strongest first."""
        picture, scale = letterbox(image)
        blob = ((picture.astype(np.float32) - 127.5) / 128.0).transpose(2, 0, 1)[None]
        try:
            outputs = self._session.run(None, {self._session.get_inputs()[0].name: blob})
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base
            raise BadWeights(f"The face detector {self.path} fails on a {SCRFD_SIDE} px picture: {line_of(error)}") from None
        return decode_scrfd(self._levels(outputs), scale, self.threshold)

    def _check(self) -> None:
        """Refuses at once what the declared shapes already rule out."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(inputs[0].shape) if inputs else []
        sizes = [size if isinstance(size, int) else want for size, want in zip(shape, _scrfd_input(), strict=False)]
        widths = sorted(output.shape[-1] for output in outputs if output.shape and isinstance(output.shape[-1], int))
        known = len(widths) < len(outputs) or widths == [1, 1, 1, 4, 4, 4, 10, 10, 10]
        if len(inputs) != 1 or len(shape) != 4 or sizes != _scrfd_input() or len(outputs) != 9 or not known:
            raise BadWeights(
                f"The face detector {self.path} has {len(outputs)} outputs for an input {shape}; an SCRFD with points such as "
                f"{SCRFD_FILE} has 9 for [1, 3, {SCRFD_SIDE}, {SCRFD_SIDE}]."
            )

    def _levels(self, outputs: Sequence[Array]) -> list[tuple[Array, Array, Array]]:
        """Scores [N, 1], boxes [N, 4] and points [N, 10] for each stride, whatever the order of the outputs."""
        by_shape = {(output.size // output.shape[-1], output.shape[-1]): output for output in outputs if output.size}
        levels = []
        for stride in SCRFD_STRIDES:
            count = SCRFD_ANCHORS * (SCRFD_SIDE // stride) ** 2
            for width in (1, 4, 10):
                if (count, width) not in by_shape:
                    raise BadWeights(
                        f"The face detector {self.path} has no output [{count}, {width}], so it is no SCRFD with points."
                    )
            levels.append((by_shape[count, 1], by_shape[count, 4].reshape(count, 4), by_shape[count, 10].reshape(count, 10)))
        return levels


class YuNet:
    """OpenCV's detector (`face_detection_yunet_2023mar.onnx` of the OpenCV Zoo).

    path: the .onnx file. threshold: the lowest score that counts as a face.
    Raises BadWeights for a file that is missing or no YuNet. Source: Wu et al. 2023, Machine Intelligence Research 20.
    """

    name = "yunet"

    def __init__(self, path: str | Path, *, threshold: float = 0.6) -> None:
        import cv2

        self.path = model_file(
            Path(path), "face detector", "https://github.com/opencv/opencv_zoo has face_detection_yunet_2023mar.onnx"
        )
        with _quiet():
            try:
                outputs = set(cv2.dnn.readNetFromONNX(str(self.path)).getUnconnectedOutLayersNames())
            except cv2.error as error:
                raise BadWeights(
                    f"The face detector {self.path} is not an ONNX model that can be read: {line_of(error)}"
                ) from None
            if outputs != YUNET_OUTPUTS:
                raise BadWeights(
                    f"The face detector {self.path} is no YuNet: its outputs are {', '.join(sorted(outputs)[:4])}, ... "
                    "instead of cls_8, obj_8, bbox_8, kps_8, ..."
                )
            self._net = cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), threshold, YUNET_OVERLAP)

    def __call__(self, image: Picture, /) -> list[Face]:
        """image: uint8 [H, W, 3] RGB."""
        import cv2

        height, width = require_picture(image).shape[:2]
        shrink = min(1.0, YUNET_SIDE / max(height, width))
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if shrink < 1 else image
        self._net.setInputSize(size)
        with _quiet():
            try:
                rows = self._net.detect(np.ascontiguousarray(picture[..., ::-1]))[1]
            except cv2.error as error:
                raise BadWeights(
                    f"The face detector {self.path} fails on a {size[0]}x{size[1]} picture: {line_of(error)}"
                ) from None
        return [face_of_row(row, width / size[0], height / size[1]) for row in (rows if rows is not None else ())]


def load_detector(path: str | Path) -> Detector:
    """The detector in an .onnx file, told by its outputs: a YuNet, or else an SCRFD (whose file may lie in a folder).

    Raises BadWeights for a file that is missing or neither of them.
    """
    import cv2

    if (path := Path(path)).is_file():
        with _quiet(), suppress(cv2.error):
            if set(cv2.dnn.readNetFromONNX(str(path)).getUnconnectedOutLayersNames()) == YUNET_OUTPUTS:
                return YuNet(path)
    return SCRFD(path)


def face_of_row(row: Array, scale_x: float = 1.0, scale_y: float = 1.0) -> Face:
    """The face in a row of cv2.FaceDetectorYN: x, y, width, height, five points, score; times the scales, in pixels.

    YuNet's first point is the right eye of the person, which is the left one for the viewer: its order is ours already.
    """
    x, y, width, height = (float(value) for value in row[:4])
    points = np.asarray(row[4:14], dtype=np.float32).reshape(5, 2) * np.array([scale_x, scale_y], dtype=np.float32)
    box = (x * scale_x, y * scale_y, (x + width) * scale_x, (y + height) * scale_y)
    return Face(box=box, points=points, score=float(row[14]))


def letterbox(image: Picture) -> tuple[Picture, float]:
    """The picture scaled into the top left corner of a black square, and the scale, as insightface does it.

    image: uint8 [H, W, 3]. Returns uint8 [640, 640, 3], and how many of its pixels one pixel of the image became.
    """
    import cv2

    height, width = require_picture(image).shape[:2]
    if height > width:
        size = (max(1, int(SCRFD_SIDE * width / height)), SCRFD_SIDE)
    else:
        size = (SCRFD_SIDE, max(1, int(SCRFD_SIDE * height / width)))
    square = np.zeros((SCRFD_SIDE, SCRFD_SIDE, 3), dtype=np.uint8)
    square[: size[1], : size[0]] = cv2.resize(image, size)
    return square, size[1] / height


def decode_scrfd(levels: Sequence[tuple[Array, Array, Array]], scale: float, threshold: float) -> list[Face]:
    """Faces from the network's numbers, strongest first, in pixels of the picture before scaling.

    levels: for each stride, scores [N, 1] from 0 to 1, boxes [N, 4] as distances from the cell to left, top, right and bottom,
    and points [N, 10] as offsets from the cell, both in strides; two predictions per cell, cells row by row.
    """
    scores, boxes, points = [], [], []
    for stride, (score, distance, offset) in zip(SCRFD_STRIDES, levels, strict=True):
        chosen = np.flatnonzero(score.reshape(-1) >= threshold)
        cell, per_row = chosen // SCRFD_ANCHORS, SCRFD_SIDE // stride
        centre = np.stack([cell % per_row, cell // per_row], axis=1).astype(np.float32) * stride
        distance = distance[chosen] * stride
        scores.append(score.reshape(-1)[chosen])
        boxes.append(np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1) / scale)
        points.append((centre[:, None] + offset[chosen].reshape(-1, 5, 2) * stride) / scale)
    score, box, point = np.concatenate(scores), np.concatenate(boxes), np.concatenate(points)
    return [
        Face(
            box=(float(box[i, 0]), float(box[i, 1]), float(box[i, 2]), float(box[i, 3])),
            points=point[i].astype(np.float32),
            score=float(score[i]),
        )
        for i in strongest(box, score, SCRFD_OVERLAP)
    ]


def strongest(boxes: NDArray[np.floating], scores: NDArray[np.floating], overlap: float) -> list[int]:
    """Indices of the boxes that no stronger one overlaps by more than the share (non-maximum suppression), strongest first.

    boxes: [N, 4] left, top, right, bottom. scores: [N].
    """
    left, top, right, bottom = boxes.T
    area = (right - left + 1) * (bottom - top + 1)  # the edge pixels count on both sides, as in the reference
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while waiting.size:
        first, rest = waiting[0], waiting[1:]
        kept.append(int(first))
        width = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest]) + 1
        height = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest]) + 1
        shared = np.maximum(0, width) * np.maximum(0, height)
        waiting = rest[shared / (area[first] + area[rest] - shared) <= overlap]
    return kept


def find_faces(image: Picture, detector: Detector) -> list[Face]:
    """The faces of a picture, largest first; an empty list if there are none.

    Where the detector finds none it looks again with a grey margin of half the picture's size on each side: a face that fills
    the picture is larger than detectors expect. image: uint8 [H, W, 3] RGB; boxes and points are in its pixels.
    """
    height, width = require_picture(image).shape[:2]
    faces = detector(image)
    if not faces:
        top, left = (height + 1) // 2, (width + 1) // 2
        padded = np.full((height + 2 * top, width + 2 * left, 3), _GREY, dtype=np.uint8)
        padded[top : top + height, left : left + width] = image
        faces = [_moved(face, -left, -top) for face in detector(padded)]
    return sorted(faces, key=lambda face: face.size, reverse=True)


def choose_face(faces: Sequence[Face], index: int | None = None) -> Face:
    """The largest face, or the one at an index that counts from 0 in the order of `find_faces`.

    Raises NoFace if there are none, BadRequest for an index that none of them has.
    """
    if not faces:
        raise NoFace("No face was found in the picture; use one that shows a face from the front, upright and well lit.")
    if index is None:
        return max(faces, key=lambda face: face.size)
    if not 0 <= index < len(faces):
        found, valid = ("1 face was", "0") if len(faces) == 1 else (f"{len(faces)} faces were", f"0 to {len(faces) - 1}")
        raise BadRequest(f"There is no face {index}: {found} found, so the index can be {valid} (0 is the largest).")
    return faces[index]


def draw_faces(image: Picture, faces: Sequence[Face]) -> Picture:
    """A copy of the picture with a box, five dots and its number on each face. uint8 [H, W, 3] RGB."""
    import cv2

    drawn: Picture = np.ascontiguousarray(require_picture(image)).copy()
    height, width = drawn.shape[:2]
    line = max(1, round(min(height, width) / 250))
    font, letters = cv2.FONT_HERSHEY_SIMPLEX, max(0.4, min(height, width) / 500)
    for number, face in enumerate(faces):
        left, top, right, bottom = (round(value) for value in face.box)
        cv2.rectangle(drawn, (left, top), (right, bottom), (0, 255, 0), line)
        for x, y in face.points:
            cv2.circle(drawn, (round(float(x)), round(float(y))), line, (255, 0, 255), -1)
        text_width, text_height = cv2.getTextSize(str(number), font, letters, line)[0]
        # Above the box, but never outside the picture.
        place = (min(max(left, 0), max(0, width - text_width)), min(max(top - 2 * line, text_height + line), height - 1))
        cv2.putText(drawn, str(number), place, font, letters, (0, 0, 0), 3 * line, cv2.LINE_AA)
        cv2.putText(drawn, str(number), place, font, letters, (255, 255, 0), line, cv2.LINE_AA)
    return drawn


def _moved(face: Face, x: float, y: float) -> Face:
    left, top, right, bottom = face.box
    points = face.points + np.array([x, y], dtype=np.float32)
    return Face(box=(left + x, top + y, right + x, bottom + y), points=points, score=face.score)


def _scrfd_input() -> list[int]:
    return [1, 3, SCRFD_SIDE, SCRFD_SIDE]


def _scrfd_file(path: Path) -> Path:
    hint = "lynx-video download face fetches it, or insightface's buffalo_l holds it"
    if path.is_dir():
        places = [path / SCRFD_FILE, path / "buffalo_l" / SCRFD_FILE, path / "models" / "buffalo_l" / SCRFD_FILE]
        path = next((place for place in places if place.is_file()), places[0])
    return model_file(path, "face detector", hint)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences OpenCV's own log, which would repeat on stderr what the exception says."""
    from cv2.utils import logging

    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
