"""What a person sees of a training run: a line a step in `log.jsonl`, TensorBoard if wanted, and progress in the terminal.

    {"kind": "step", "step": 12, "stage": "video", "loss": 0.21, "learning_rate": 1e-05, ...}
    {"kind": "validation", "step": 500, "facts": {"similarity": 0.61}, "clips": {"anna": "validation/anna-000500.mp4"}}
    {"kind": "note", "step": 500, "text": "..."}

JSON has no NaN and no infinity: such a number is null, and its name stands in the list `not_finite` of the line. A run that goes on
at step k cuts away what was logged after k, so each step stands in the log once.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lynx_video.draft import draft
from lynx_video.errors import BadData, BadOutput, MissingDependency

LOG = "log.jsonl"
SMOOTHING = 0.98
"""Weight of the past in the smoothed loss, for each step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """One training step, over all ranks."""

    step: int
    "counted from 1; the number of optimizer steps tried so far"
    stage: str
    "image or video"
    loss: float
    "may be NaN or infinite"
    learning_rate: float
    "as used in this step"
    gradient_norm: float
    "before clipping; may be NaN or infinite"
    samples: int
    "in this step"
    tokens: int
    "video tokens in this step"
    seconds: float
    "wall time of this step"
    skipped: int = 0
    "steps so far whose loss or gradient was not finite and that changed nothing"
    peak_memory: int | None = None
    "bytes on the device of this rank at most so far; None: unknown"


class Smooth:
    """A loss averaged over the last steps, exponentially, without a pull towards where it started."""

    def __init__(self, past: float = SMOOTHING) -> None:
        self.past = past
        self._sum = self._weight = 0.0

    def add(self, value: float | None) -> float | None:
        """The average with this value in it; one that is not finite is left out. None: no value yet."""
        if value is not None and math.isfinite(value):
            self._sum = self.past * self._sum + (1 - self.past) * value
            self._weight = self.past * self._weight + (1 - self.past)
        return self._sum / self._weight if self._weight else None


class Journal:
    """The log of one run, open within a `with`."""

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        start: int = 0,
        quiet: bool = False,
        tensorboard: bool = False,
        active: bool = True,
    ) -> None:
        """folder: of the run. total_steps: where it will end. start: the step it goes on after; 0 starts the log anew.

        quiet: nothing in the terminal. tensorboard: also write events to `folder/tensorboard`. active: False on every rank but
        the first; such a journal does nothing.
        """
        self.folder, self.total_steps, self.start = folder, total_steps, start
        self.quiet, self.tensorboard, self.active = quiet, tensorboard, active
        self._step = start
        self._smooth = Smooth()
        self._open = ExitStack()
        self._log: TextIO | None = None
        self._events: Any = None
        self._bar: Any = None

    def __enter__(self) -> Journal:
        """Raises MissingDependency for a missing TensorBoard, BadOutput for a folder that cannot be written, BadData for a log
        that is damaged before its last line."""
        if not self.active:
            return self
        if self.tensorboard:
            self._events = _summary_writer(self.folder / "tensorboard", self.start)
            self._open.callback(self._events.close)
        try:
            self._resume()
            self._log = self._open.enter_context((self.folder / LOG).open("a", encoding="utf-8"))
            if not self.quiet:
                self._bar = self._open.enter_context(_progress(self.total_steps, self.start))
            if self.start:
                self.note(f"goes on after step {self.start}")
        except BaseException as error:
            self._open.close()
            if isinstance(error, OSError):
                raise BadOutput(f"{self.folder / LOG}: cannot be written ({error.strerror or error}).") from error
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()
        self._log = self._events = self._bar = None

    def step(self, facts: StepFacts) -> None:
        """Log one step. Steps come in order, each once."""
        if not self.active:
            return
        assert facts.step > self._step, f"step {facts.step} after step {self._step}"
        ahead, self._step = facts.step - self._step, facts.step
        self._write("step", asdict(facts))
        smooth = self._smooth.add(facts.loss)
        speed = facts.tokens / facts.seconds if facts.seconds > 0 else 0.0
        scalars = {name: float(getattr(facts, name)) for name in ("loss", "learning_rate", "gradient_norm", "skipped")}
        scalars["tokens_per_second"] = speed
        if facts.peak_memory is not None:
            scalars["peak_memory_gib"] = facts.peak_memory / 2**30
        self._plot("train", scalars, facts.step)
        if self._bar is not None:
            words = [
                facts.stage,
                f"loss {smooth:.4f}" if smooth is not None else "loss not finite",
                f"{_short(speed)} tokens/s",
            ]
            if facts.skipped:
                words.append(f"{facts.skipped} skipped")
            self._bar.set_postfix_str(", ".join(words), refresh=False)
            self._bar.update(ahead)

    def validation(self, step: int, facts: Mapping[str, float], clips: Mapping[str, Path] | None = None) -> None:
        """Log what was measured at a step, and the clips made then, by name. Paths in the run's folder are kept relative to it."""
        if not self.active:
            return
        kept = {name: _relative(path, self.folder) for name, path in (clips or {}).items()}
        numbers = {name: float(value) for name, value in facts.items()}
        self._write("validation", {"step": step, "facts": numbers, "clips": kept})
        self._plot("validation", numbers, step)
        self._say(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

    def note(self, text: str) -> None:
        """Log a sentence, and show it."""
        if self.active:
            self._write("note", {"step": self._step, "text": text})
            self._say(text)

    def _plot(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        """Numbers for TensorBoard; what is not finite leaves a gap."""
        if self._events is not None:
            for name, value in scalars.items():
                if math.isfinite(value):
                    self._events.add_scalar(f"{group}/{name}", value, step)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        """Add a line, whole and at once: what the program is killed after is on disk."""
        assert self._log is not None, "a journal is used within `with`"
        line = {"kind": kind, **values, "time": round(time.time(), 3)}
        bad: list[str] = []
        text = json.dumps(_finite(line, "", bad), ensure_ascii=False, allow_nan=False)
        if bad:
            text = text[:-1] + f', "not_finite": {json.dumps(bad)}}}'
        try:
            self._log.write(text + "\n")
            self._log.flush()
        except OSError as error:
            raise BadOutput(f"{self.folder / LOG}: cannot be written ({error.strerror or error}).") from error

    def _resume(self) -> None:
        """Cut the log after the start, and take up the smoothed loss where it was."""
        file = self.folder / LOG
        kept = [line for line in read_log(self.folder) if line["step"] <= self.start] if self.start and file.exists() else []
        with draft(file) as temporary:
            temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
        for line in kept:
            if line["kind"] == "step":
                self._smooth.add(line["loss"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log in order; [] for an empty one. A last line cut off in the middle is left out.

    Raises BadData for a log that is not there or is damaged before its last line, with file and line.
    """
    file = folder / LOG
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise BadData(f"{file}: the log of the run cannot be read ({error.strerror or error}).") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if not (isinstance(values, dict) and isinstance(values["kind"], str) and isinstance(values["step"], int)):
                raise ValueError("no kind and step")
        except (ValueError, KeyError) as error:
            if number == len(lines):  # no newline after it: the program was killed while it wrote
                break
            raise BadData(f"{file}: line {number} is not a line of a training log ({error}).") from error
        found.append(values)
    return found


def _summary_writer(folder: Path, start: int) -> Any:
    """TensorBoard's writer; what earlier events say of later steps no longer counts."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency("writing TensorBoard events needs tensorboard: pip install 'lynx-video[train]'") from error
    try:
        return SummaryWriter(str(folder), purge_step=start + 1 if start else 0)
    except OSError as error:
        raise BadOutput(f"{folder}: cannot be written ({error.strerror or error}).") from error


def _progress(total: int, start: int) -> Any:
    """A bar with the time left on a terminal; in a file, a line every half a minute."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=start,
        unit=" steps",
        file=sys.stderr,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
    )


def _finite(value: Any, name: str, bad: list[str]) -> Any:
    """The value with None for numbers that are not finite, whose names go to `bad`."""
    if isinstance(value, dict):
        return {key: _finite(one, f"{name}.{key}" if name else key, bad) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        bad.append(name)
        return None
    return value


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from the folder if it lies in it, else whole; with forward slashes."""
    path, folder = path.absolute(), folder.absolute()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _short(number: float) -> str:
    """12345 -> 12.3k."""
    return f"{number / 1000:.1f}k" if number >= 1000 else f"{number:.0f}"
