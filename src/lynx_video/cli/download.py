"""`lynx-video download`: the real weights, after their size and licence were shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options
from lynx_video.errors import BadRequest, Cancelled

if TYPE_CHECKING:
    from lynx_video.download import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadFlags:
    """Where to, and whether to ask."""

    models: Path = Path("models")
    "folder the models go to"
    yes: bool = field(default=False, metadata={"flags": ("-y",)})
    "do not ask before fetching"
    keep_float32: bool = False
    "keep the base as published, in float32 (twice the disk)"
    quiet: bool = False
    "no plan and no bars"
    json: bool = False
    "one JSON object on stdout instead of the result line; the plan is shown (on stderr) only if it is asked about"


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="base|full|lite|face|safety|all")
@options(DownloadFlags)
def download(what: tuple[str, ...], flags: DownloadFlags) -> None:
    """Fetch models: show what, how large and under which licence, ask, fetch, check.

    A download that was cut goes on where it stopped; a second run checks what is there. HF_ENDPOINT names another hub.
    """
    from lynx_video.download import plan, run

    chosen = plan(what, flags.models, to_bfloat16=not flags.keep_float32)
    if not flags.quiet and not (flags.json and flags.yes):
        click.echo(str(chosen), err=flags.json)
    if not flags.yes and any(not file.here for file in chosen.files):
        if not sys.stdin.isatty():
            raise BadRequest("not fetched: nobody can be asked here; say --yes to go ahead.")
        if not click.confirm("fetch it?", err=True):
            raise Cancelled("not fetched.")
    try:
        with _bars(quiet=flags.quiet or flags.json) as progress:
            outcomes = run(chosen, progress)
    except KeyboardInterrupt:
        raise click.Abort("interrupted; what has arrived is kept, the same command goes on from there.") from None
    counts = {action: sum(one.action == action for one in outcomes) for action in ("fetched", "replaced", "kept")}
    line = f"{flags.models}: " + ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    files = [{"path": str(one.path), "action": one.action} for one in outcomes]
    facts = {"models": str(flags.models), "assets": list(chosen.assets), **counts, "files": files}
    Console(quiet=flags.quiet, as_json=flags.json).result(line, facts)


@contextmanager
def _bars(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar for each file and stage, one after the other."""
    from tqdm import tqdm

    current: dict[tuple[Path, str], Any] = {}

    def show(progress: Progress) -> None:
        key = (progress.path, progress.stage)
        if key not in current:
            close()
            current[key] = tqdm(
                total=progress.total,
                initial=progress.done,
                desc=f"{progress.stage} {progress.path.name}",
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                disable=quiet,
            )
        current[key].update(progress.done - current[key].n)

    def close() -> None:
        while current:
            current.popitem()[1].close()

    try:
        yield show
    finally:
        close()
