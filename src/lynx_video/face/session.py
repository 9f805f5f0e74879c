"""ONNX files: is it one, and a session of onnxruntime on the CPU whose troubles are one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lynx_video.errors import BadWeights, MissingDependency


def model_file(path: Path, what: str, hint: str) -> Path:
    """The path, if a file that could be a model lies there. Raises BadWeights, calling it `what` and saying `hint` at the end."""
    if not path.is_file():
        raise BadWeights(f"The {what} {path} {'is a folder' if path.is_dir() else 'is not there'}: {hint}.")
    try:
        with path.open("rb") as stream:
            start = stream.read(40)
    except OSError as error:
        raise BadWeights(f"The {what} {path} cannot be read: {error.strerror or error}.") from None
    if start.startswith(b"version https://git-lfs"):
        raise BadWeights(f"The {what} {path} is a Git LFS pointer, not the model itself: run git lfs pull, or download it.")
    if not start:
        raise BadWeights(f"The {what} {path} is an empty file: {hint}.")
    return path


def open_session(path: Path, what: str, *, threads: int = 0) -> Any:
    """An onnxruntime session. threads: 0 is onnxruntime's choice.

    Raises BadWeights for a file that is no ONNX model, MissingDependency without onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency(
            f"The {what} needs onnxruntime, which is not installed: pip install 'lynx-video[face]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is said once, by the exception
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base
        raise BadWeights(f"The {what} {path} is not an ONNX model that can be read: {line_of(error)}") from None


def line_of(error: Exception) -> str:
    """What a C++ library has to say, in one line, without its error codes and the places in its source."""
    text = " ".join(str(error).split()).split(" error: ")[-1]
    text = re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : |\(-\d+:[^)]*\) )", "", text)
    return text.split(" in function ")[0][:160]
