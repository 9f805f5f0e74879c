"""The files of a service, by the id of the job they belong to; a name never comes from anybody else.

    uploads/ID.*               the portrait, until the job is done
    videos/ID.mp4, ID.jpg      a clip, and its middle frame
    identities/ID.safetensors  an enrolled person
    previews/ID.jpg            how far a clip is

What is being written has a name with a dot in front.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lynx_video.errors import BadRequest

FOLDERS = ("uploads", "videos", "identities", "previews")
YOUNG = 3600.0
"""Seconds: what is younger may belong to a request that is only just being taken in."""
_ID = re.compile(r"(?:video|ident)_[0-9a-f]{32}")


def sync(path: Path) -> None:
    """See a file, or the names in a folder, through to the disk: after a power cut the database must not know of what is not there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not know how to, for folders
            raise
    finally:
        os.close(handle)


def is_id(text: str) -> bool:
    """Whether a text may be an id at all."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """The data folder of a service."""

    path: Path

    def make(self) -> None:
        """Make what is missing. Raises BadRequest if that cannot be done."""
        for name in FOLDERS:
            try:
                (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise BadRequest(f"{self.path / name}: cannot be made ({error.strerror or error}).") from error

    @property
    def uploads(self) -> Path:
        """Where uploads go."""
        return self.path / "uploads"

    def upload(self, name: str) -> Path:
        """An upload by its file name."""
        return self.uploads / name

    def video(self, job: str) -> Path:
        """A finished clip."""
        return self.path / "videos" / f"{job}.mp4"

    def thumbnail(self, job: str) -> Path:
        """The middle frame of a finished clip."""
        return self.path / "videos" / f"{job}.jpg"

    def identity(self, job: str) -> Path:
        """An enrolled person."""
        return self.path / "identities" / f"{job}.safetensors"

    def preview(self, job: str) -> Path:
        """How far a clip is."""
        return self.path / "previews" / f"{job}.jpg"

    def draft(self, final: Path, token: str) -> Path:
        """Where the owner of this token may write what will become `final`."""
        return final.with_name(f".{final.stem}.{token}{final.suffix}")

    def place(self, drafts: Mapping[Path, Path]) -> None:
        """Give drafts their final names, for good. Again is no harm: what has its final name already is left as it is."""
        for draft, final in drafts.items():
            if draft.exists() or not final.exists():
                draft.replace(final)
        for folder in {final.parent for final in drafts.values()}:
            sync(folder)

    def forget_source(self, job: str) -> None:
        """Remove what only a job that is not done needs: the portrait, previews and drafts."""
        for file in self._of(job):
            if file.parent.name in ("uploads", "previews") or file.name.startswith("."):
                _remove(file)

    def forget(self, job: str) -> None:
        """Remove everything of a job."""
        for file in self._of(job):
            _remove(file)

    def sweep(self, known: Collection[str], unfinished: Collection[str]) -> list[Path]:
        """Remove what belongs to no job that is known, or what only one needs that is not done; not what is young. What was removed."""
        removed = []
        for name in FOLDERS:
            for file in (self.path / name).iterdir():
                match = _ID.search(file.name)
                with suppress(OSError):
                    source = name in ("uploads", "previews") or file.name.startswith(".")
                    wanted = match is not None and match[0] in (unfinished if source else known)
                    if not wanted and time.time() - file.stat().st_mtime > YOUNG:
                        file.unlink()
                        removed.append(file)
        return removed

    def _of(self, job: str) -> Iterator[Path]:
        assert is_id(job), job
        for name in FOLDERS:
            yield from (self.path / name).glob(f"*{job}.*")


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink(missing_ok=True)
