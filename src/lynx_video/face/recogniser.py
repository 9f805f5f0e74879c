"""Face recognisers for scoring, from ONNX files: insightface's ArcFace packs and CurricularFace.

None of them conditioned an adapter, so none is flattered. All are fed the same: the 112 px ArcFace crop (`face.align`), RGB,
(x - 127.5) / 127.5.

- ArcFace (`w600k_r50.onnx` of buffalo_l, `glintr100.onnx` of antelopev2, `w600k_mbf.onnx`, ...): so feeds them insightface's own
  python-package/insightface/model_zoo/arcface_onnx.py, which swaps OpenCV's BGR. Packs converted from MXNet subtract and scale
  by themselves, and get the pixels 0 to 255; here as there, their first nodes tell.
- CurricularFace (IR-101): so feed it ConsisID (eval/get_facesim_fid.py) and OpenS2V-Eval (eval/get_facesim.py), whose network has
  one output. The original one (github.com/HuangYG123/CurricularFace) has two, and the vector is the first. The two benchmarks cut
  224 px and halve them; here the crop is cut at 112 px at once, as for every other recogniser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from lynx_video.errors import BadPicture, BadRequest, BadWeights
from lynx_video.face.align import ARCFACE_SIZE
from lynx_video.face.session import line_of, model_file, open_session

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

WIDEST = 4096  # a face vector has 128 to 2048 numbers; a map of features, laid out flat, 25,088
_INPUT = [1, 3, ARCFACE_SIZE, ARCFACE_SIZE]
_FIRST_NODES = 8  # among which insightface looks for a subtraction and a multiplication
_HINT = "take an ArcFace such as w600k_r50.onnx (insightface's buffalo_l), or CurricularFace exported to ONNX"


class OnnxRecogniser:
    """A face recogniser, run by onnxruntime on the CPU, in one thread and crop by crop.

    So the vector of a crop depends on neither the crops beside it nor the number of cores.
    path: the .onnx file. name: what its scores are called; the file's name without extension if it is None.
    hash: sha256 of the file, hex; where its weights lie beside it (`NAME.onnx.data`), of both, one after the other.
    Raises BadWeights for a file that is missing or no such recogniser, MissingDependency without onnxruntime.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        self.path = model_file(Path(path), "face recogniser", _HINT)
        self.name = name or self.path.stem
        # One thread: sums are split otherwise with the number of cores.
        self._session = open_session(self.path, "face recogniser", threads=1)
        self._check()
        # a subtraction and a multiplication before the first convolution: it scales by itself
        self._raw = {"Sub", "Mul"} <= set(takewhile(lambda name: name != "Conv", _first_operators(self.path)))
        self.width = self._vector(np.linspace(-1, 1, 3 * ARCFACE_SIZE**2, dtype=np.float32).reshape(_INPUT)).size
        self.hash = _hash(self.path)

    def __call__(self, crops: Tensor) -> Tensor:
        """crops: float [B, 3, 112, 112] RGB in [-1, 1], any device. Returns float32 [B, E] of unit length, on the CPU.

        Raises BadPicture for another shape, BadWeights where the network gives no vector with a direction.
        """
        if crops.ndim != 4 or list(crops.shape[1:]) != _INPUT[1:]:
            raise BadPicture(f"The face recogniser {self.name} takes crops [B, {_shape(_INPUT[1:])}], not {list(crops.shape)}.")
        array = crops.detach().float().cpu().numpy()
        vectors = np.empty((len(array), self.width), dtype=np.float32)
        for number, crop in enumerate(array):
            vectors[number] = self._vector(np.ascontiguousarray(crop[None]))
        return torch.from_numpy(vectors)

    def _check(self) -> None:
        """Refuses at once what the declared shapes already rule out."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(inputs[0].shape) if inputs else []
        sizes = [size if isinstance(size, int) else want for size, want in zip(shape, _INPUT, strict=False)]
        if len(inputs) != 1 or len(shape) != 4 or sizes != _INPUT or inputs[0].type != "tensor(float)":
            got = f"{inputs[0].type} [{_shape(shape)}]" if len(inputs) == 1 else f"{len(inputs)} inputs"
            raise BadWeights(
                f"The face recogniser {self.path} takes {got}, expected one crop at a time (or any number), "
                f"tensor(float) [{_shape(_INPUT)}]: {_HINT}."
            )
        widths = list(outputs[0].shape)
        fits = len(widths) == 2 and not (isinstance(widths[1], int) and not 2 <= widths[1] <= WIDEST)
        if not fits and widths:  # a graph may leave out the shape of its output; the probe sees it
            raise self._no_vector(widths)

    def _vector(self, crop: NDArray[np.float32]) -> NDArray[np.float32]:
        """[1, 3, 112, 112] RGB in [-1, 1] -> [E] of unit length."""
        pixels = crop * np.float32(127.5) + np.float32(127.5) if self._raw else crop
        try:
            output = self._session.run(None, {self._session.get_inputs()[0].name: pixels})[0]
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base
            raise BadWeights(f"The face recogniser {self.path} fails on a crop [{_shape(_INPUT)}]: {line_of(error)}") from None
        if output.ndim != 2 or output.shape[0] != 1 or not 2 <= output.shape[1] <= WIDEST:
            raise self._no_vector(list(output.shape))
        vector = output[0].astype(np.float64)
        length = float(np.sqrt(np.square(vector).sum()))
        if not np.isfinite(length) or length == 0:
            raise BadWeights(
                f"The face recogniser {self.path} gives a vector of length {length} for a crop, expected a finite one above 0: "
                "the file is damaged; get it again."
            )
        unit: NDArray[np.float32] = (vector / length).astype(np.float32)
        return unit

    def _no_vector(self, shape: list[object]) -> BadWeights:
        return BadWeights(
            f"The face recogniser {self.path} gives [{_shape(shape)}] for a crop, expected a face vector [1, E] "
            f"with E from 2 to {WIDEST}: {_HINT}."
        )


def load_recogniser(text: str) -> OnnxRecogniser:
    """The recogniser that `PATH` or `NAME=PATH` names; a file that is there goes by its path, whatever stands in it.

    Raises BadRequest where name or path is empty, and what `OnnxRecogniser` raises.
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name or Path(text).is_file():
        name, path = "", text
    elif not name.strip():
        raise BadRequest(f"The recogniser {text!r} has no name before the equals sign; expected PATH or NAME=PATH.")
    if not path.strip():
        raise BadRequest(f"The recogniser {text!r} names no file; expected PATH or NAME=PATH.")
    return OnnxRecogniser(path.strip(), name.strip() or None)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for part in (path, path.with_name(path.name + ".data")):
        if part.is_file():
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _shape(sizes: list[object] | list[int]) -> str:
    return ", ".join(str(size) for size in sizes)


def _first_operators(path: Path) -> list[str]:
    """The operators of the first nodes of a graph, such as Conv: as much of protobuf as that takes, so as not to need onnx.

    ModelProto.graph is field 7, GraphProto.node field 1, NodeProto.op_type field 4; all have a length before them.
    """
    found: list[str] = []
    with path.open("rb") as stream:
        for _, graph_end in _fields(stream, path.stat().st_size, 7):
            for _, node_end in _fields(stream, graph_end, 1):
                for start, end in _fields(stream, node_end, 4):
                    stream.seek(start)
                    found.append(stream.read(end - start).decode(errors="replace"))
                if len(found) >= _FIRST_NODES:
                    return found
    return found


def _fields(stream: BinaryIO, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where each field of that number starts and ends in the message from here to `end`; the stream stands at its start."""
    while stream.tell() < end:
        key = _number(stream)
        kind = key & 7
        size = _number(stream) if kind == 2 else {1: 8, 5: 4}.get(kind, 0)
        if kind == 0:
            _number(stream)
        start = stream.tell()
        if kind == 2 and key >> 3 == wanted:
            yield start, start + size
        stream.seek(start + size)


def _number(stream: BinaryIO) -> int:
    """Protobuf's numbers: seven bits a byte, the lowest first, until one has no top bit."""
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    return value
