"""A work folder: one small file for each thing done, whole or not there, so that a killed run goes on.

    settings.json         what the files were made with
    lock                  held by the run that works here
    STAGE/KEY.safetensors a result: an item that was looked at, an example that was encoded, a clip that was scored
    STAGE/KEY.begun       which run began with it: one that killed its worker twice is given up

A file holds tensors and one JSON value. Its `stamp` says what it was made from; with another stamp it is made again.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, LynxError

if TYPE_CHECKING:
    from torch import Tensor

Made = tuple[Any, Mapping[str, "Tensor"]]
"""What a result is: a JSON value and tensors by name."""
WORK, SETTINGS, LOCK = "work", "settings.json", "lock"
ATTEMPTS = 2


class DiskFull(BadOutput):
    """There is no room for more; what is done is kept."""


def disk_full(folder: Path) -> DiskFull:
    """The error, for whoever makes room."""
    return DiskFull(f"{folder}: the disk is full; make room and give the same command again, it goes on from here.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """A folder of results by key. run: names the run that reads and writes, so that attempts of earlier ones do not count."""

    folder: Path
    run: str = ""

    def save(self, key: str, stamp: str, value: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep a result. Raises OSError where the disk is full."""
        from safetensors.torch import save

        note = json.dumps({"stamp": stamp, "value": value})
        whole = save({name: tensor.contiguous() for name, tensor in (tensors or {}).items()}, {"note": note})
        # Written by Python, not by safetensors, whose errors do not say that the disk is full.
        with draft(self._file(key)) as partial:
            partial.write_bytes(whole)
        with suppress(OSError):
            self._begun(key).unlink(missing_ok=True)

    def value(self, key: str, stamp: str) -> Any | None:
        """The JSON value of a result with this stamp; None if there is none, or the file was damaged."""
        found = self.note(key)
        return found[1] if found is not None and found[0] == stamp else None

    def note(self, key: str) -> tuple[str, Any] | None:
        """The stamp and the JSON value of a result, whatever it was made from; None if there is none, or the file was damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(key), framework="pt") as file:
                note = json.loads(file.metadata()["note"])
                return note["stamp"], note["value"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def drop(self, key: str) -> None:
        """Forget a result, so that it is made again."""
        self._file(key).unlink(missing_ok=True)

    def tensors(self, key: str, *names: str) -> dict[str, Tensor]:
        """These tensors of a result that is there; all of them if none is named."""
        from safetensors import safe_open

        with safe_open(self._file(key), framework="pt") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}

    def begin(self, key: str) -> bool:
        """Note that this run begins with a key. False if it did so twice already: whoever worked on it died each time."""
        note = self._begun(key)
        before = note.read_text(encoding="utf-8").split() if note.is_file() else []
        if before.count(self.run) >= ATTEMPTS:
            return False
        with draft(note) as partial:
            partial.write_text(" ".join([*(run for run in before if run == self.run), self.run]), encoding="utf-8")
        return True

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _begun(self, key: str) -> Path:
        return self.folder / f"{key}.begun"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else works in this work folder meanwhile; a killed holder holds it no longer. Raises BadOutput if somebody does."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise BadOutput(f"{folder}: another run works here; wait for it, or take another folder.") from None
    except (OSError, NotImplementedError) as error:
        raise BadOutput(f"{folder / LOCK}: can't be locked ({error}); take a folder on a disk that can.") from error
    try:
        yield
    finally:
        lock.release()


def claim_work(folder: Path, settings: Mapping[str, Any], *, otherwise: str = "begin anew with --overwrite") -> None:
    """Make the work folder for these settings, or go on with one that was made with the same.

    otherwise: what else can be done, for the message. Raises BadOutput, naming the first setting that differs.
    """
    file = folder / SETTINGS
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    if file.is_file():
        try:
            before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadOutput(f"{file} can't be read ({error}); {otherwise}.") from error
        for name in sorted({*plain, *before}):
            if before.get(name) != plain.get(name):
                raise BadOutput(
                    f"{folder} was begun with {name} {json.dumps(before.get(name))}, now it is {json.dumps(plain.get(name))}: "
                    f"go on with the same, take another folder, or {otherwise}."
                )
        return
    with draft(file) as partial:
        partial.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def keep(shelf: Shelf, key: str, stamp: str, made: Made) -> None:
    """Keep what was made. Raises BadOutput if it cannot be written."""
    try:
        shelf.save(key, stamp, *made)
    except (OSError, BadOutput) as error:
        if is_full(error):
            raise disk_full(shelf.folder) from error
        if isinstance(error, BadOutput):
            raise
        raise BadOutput(f"{shelf.folder}: cannot be written ({error.strerror or error}).") from error


def attempt(
    shelf: Shelf, key: str, stamp: str, make: Callable[[], Made], lost: Callable[[Exception | None], Made], name: str
) -> None:
    """Make something and keep it, unless it is there; or keep what `lost` says of the error that came (None: of a worker that died).

    name: of what is made, for messages. Raises BadOutput if the disk is full, LynxError if memory is: neither is the item's fault,
    nor would the next one fare better.
    """
    if shelf.value(key, stamp) is not None:
        return
    try:
        made = make() if shelf.begin(key) else lost(None)
    except Exception as error:  # one item must not end a run of hours; the result names it
        if is_full(error):
            raise disk_full(shelf.folder) from error
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise LynxError(
                f"{name}: out of memory; take smaller clips or fewer --workers, the same command goes on."
            ) from error
        made = lost(error)
    keep(shelf, key, stamp, made)
