"""What a person at a terminal sees: notes and progress on stderr, results on stdout, and no chatter of the libraries below."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lynx_video.pipeline.denoise import Step


@dataclass(kw_only=True, slots=True)
class Console:
    """Where a command speaks. quiet: results and warnings only. as_json: results and warnings as one JSON object, no notes.

    mute: nothing at all, since another process speaks.
    """

    quiet: bool = False
    as_json: bool = False
    mute: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def silent(self) -> bool:
        """Whether notes and progress are unwanted."""
        return self.quiet or self.as_json or self.mute

    def note(self, text: str) -> None:
        """A line about what goes on."""
        if not self.silent:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line about something that may spoil the result, said under `quiet` too; in the JSON object where there is one."""
        self.warnings.append(text)
        if not (self.as_json or self.mute):
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def result(self, line: str, facts: Mapping[str, Any]) -> None:
        """The result: `line` for people, `facts` (plain JSON values) for programs."""
        if not self.mute:
            print(json.dumps({**facts, "warnings": self.warnings}) if self.as_json else line, flush=True)

    @contextmanager
    def steps(self, clips: int = 1) -> Iterator[Callable[[Step], None]]:
        """A step callback that draws a bar with the time left for so many clips; the bar appears with the first step."""
        from tqdm import tqdm

        bars: list[Any] = []

        def on_step(step: Step) -> None:
            if not bars:
                bars.append(tqdm(total=clips * step.total, desc="denoising", unit="step", file=sys.stderr, disable=self.silent))
                bars[0].start_t = time.time() - step.seconds  # the first step counts for the time left, too
            done = bars[0].n // step.total * step.total + step.number
            bars[0].update(done - bars[0].n)

        try:
            yield on_step
        finally:
            for bar in bars:
                bar.close()


@contextmanager
def bars(*, silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress callback (stage, done, total) that draws a bar with the time left for each stage."""
    from tqdm import tqdm

    drawn: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in drawn:
            for bar in drawn.values():
                bar.close()
            drawn[stage] = tqdm(total=total, desc=stage, unit="item", file=sys.stderr, disable=silent or not total)
        drawn[stage].update(done - drawn[stage].n)

    try:
        yield show
    finally:
        for bar in drawn.values():
            bar.close()


@contextmanager
def resumable(*, silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """As `bars`, around work that goes on where it was: an interruption ends it in a sentence that says so."""
    try:
        with bars(silent=silent) as progress:
            yield progress
    except KeyboardInterrupt:
        raise click.Abort("interrupted; what is done is kept, the same command goes on from there.") from None


def hush_libraries() -> None:
    """Keep log lines and loading bars of the libraries below off the terminal; what matters of them is an error of ours."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # they speak when they are imported, by diffusers
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def one_line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).split())
