"""A file that is either whole or not there: written beside its place under another name, then renamed."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lynx_video.errors import BadOutput


def is_draft(file: Path) -> bool:
    """Whether a file is one that `draft` began and a kill left behind."""
    return re.fullmatch(r"\..*\.[0-9a-f]{12}", file.stem, re.DOTALL) is not None and file.is_file()


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, with the same suffix; becomes `path` if the block ends well.

    Missing parent folders are created. If the block raises, the temporary file and the folders created for it are removed.

    Raises:
        BadOutput: the folder cannot be created or the file cannot be put in place.
    """
    created: list[Path] = []
    temporary = path.with_name(f".{path.stem[:60]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    done = False
    try:
        try:
            _make_parents(path.parent, created)
        except OSError as error:
            raise BadOutput(f"{path}: the folder cannot be created ({error.strerror or error}).") from error
        yield temporary
        try:
            temporary.replace(path)
        except OSError as error:
            raise BadOutput(f"{path}: cannot be written ({error.strerror or error}).") from error
        done = True
    finally:
        if not done:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            for folder in reversed(created):
                # Somebody else may have put a file there meanwhile; then the folder stays.
                with suppress(OSError):
                    folder.rmdir()


def _make_parents(folder: Path, created: list[Path]) -> None:
    """Create `folder` and what is missing above it; `created` grows by each folder made, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        if folder.parent == folder:
            break
        folder = folder.parent
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir()
            created.append(each)
    # `exists` is also true of a file; mkdir says so in the words of the system.
    folder.mkdir(exist_ok=True)
