"""Getting the real weights: `plan` says what would be fetched, from where, how large and under which licence; `run` fetches it.

Each folder keeps a record, `.lynx-download.json`: the commit it came from and the sha256 of every file, as fetched and as it
lies there. A second run checks the files against it and fetches what is missing or damaged; a run that was cut goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from lynx_video.assets import ASSETS, Asset, Source
from lynx_video.errors import BadRequest, LynxError
from lynx_video.hub import HubFile, explain, fetch, list_files, with_checksum
from lynx_video.media.image import file_hash

RECORD = ".lynx-download.json"
__all__ = ["ASSETS", "Asset", "Outcome", "Plan", "PlannedFile", "Progress", "Source", "plan", "run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedFile:
    """One file of a plan: where it is on the hub, where it goes, and whether the record says that it is there already."""

    asset: str
    repo: str
    commit: str
    remote: HubFile
    path: Path
    convert: bool
    here: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `run` would do. `str(plan)` is the text to show before asking."""

    assets: tuple[str, ...]
    models_dir: Path
    files: tuple[PlannedFile, ...]

    @property
    def bytes(self) -> int:
        """Bytes still to be fetched (files whose size the hub does not say count as 0)."""
        return sum(max(0, (file.remote.bytes or 0) - _arrived(file)) for file in self.files if not file.here)

    @property
    def disk(self) -> int:
        """Free bytes needed: the files as they will lie there, and the largest shard once more while it is converted."""
        left = [file for file in self.files if not file.here]
        shards = [file.remote.bytes or 0 for file in left if file.convert]
        there = sum(_arrived(file) for file in left)
        return max(0, sum(map(_lasting, left)) + max(shards, default=0) - there)

    def __str__(self) -> str:
        lines = []
        for name in self.assets:
            asset, files = ASSETS[name], [file for file in self.files if file.asset == name]
            lines.append(f"{name}: {asset.note}\n  licence: {asset.licence}\n  to: {self.models_dir / asset.folder}")
            moving = {source.repo: source.revision for source in asset.sources if not _pinned(source)}
            for repo, commit in dict.fromkeys((file.repo, file.commit) for file in files):
                note = f" (not pinned: {moving[repo]} as it is now; the commit is recorded)" if repo in moving else ""
                lines.append(f"  from: {repo} at {commit[:12]}{note}")
            for file in files:
                state = "  (here)" if file.here else "  -> bfloat16" if file.convert else ""
                lines.append(
                    f"    {_amount(file.remote.bytes):>9}  {file.path.relative_to(self.models_dir / asset.folder)}{state}"
                )
        lines.append(f"to fetch: {_amount(self.bytes)}; disk needed: {_amount(self.disk)}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run is: `done` of `total` bytes of the file at `path` (total None if unknown)."""

    path: Path
    stage: Literal["check", "fetch", "convert"]
    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a file: `kept` was whole, `fetched` is new, `replaced` was damaged or another version."""

    path: Path
    action: Literal["kept", "fetched", "replaced"]


def plan(names: str | Iterable[str], models_dir: str | PathLike[str], *, to_bfloat16: bool = True) -> Plan:
    """Ask the hub what the named assets consist of (`all`: everything). Nothing is written.

    to_bfloat16: False keeps the base as it is published, in float32.

    Raises:
        BadRequest: an unknown name.
        LynxError: a repository, revision or file is not there, access is refused, or the hub cannot be reached.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name != "all" and name not in ASSETS]
    if unknown or not wanted:
        raise BadRequest(
            f"download: {', '.join(map(repr, unknown)) or 'nothing'} asked for; there is {', '.join(ASSETS)} and all."
        )
    chosen = tuple(name for name in ASSETS if name in wanted or "all" in wanted)
    root = Path(models_dir)
    files: list[PlannedFile] = []
    for name in chosen:
        folder = root / ASSETS[name].folder
        record = _read_record(folder)
        for source in ASSETS[name].sources:
            files += _plan_source(name, source, folder, record, to_bfloat16)
    return Plan(assets=chosen, models_dir=root, files=tuple(files))


def run(plan: Plan, progress: Callable[[Progress], None] | None = None) -> list[Outcome]:
    """Carry out a plan: check what is there, fetch the rest, compare checksums, convert, and record it.

    progress: called often; what it raises (Cancelled, say) ends the run, and the next run goes on from there.

    Raises:
        LynxError: not enough disk, no access, a broken connection, or a file whose checksum differs (the file is removed).
    """
    tell = progress or (lambda _: None)
    _check_disk(plan)
    outcomes = []
    for name in plan.assets:
        folder = plan.models_dir / ASSETS[name].folder
        files = [file for file in plan.files if file.asset == name]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record = _read_record(folder)
            for file in files:
                action = _settle(file, record, folder, tell)
                outcomes.append(Outcome(path=file.path, action=action))
            if any(file.convert for file in files):
                _refresh_indexes(files, record, folder)
            for stale in folder.rglob(".*.part"):  # of revisions that are no longer asked for
                stale.unlink()
            _write_record(folder, record | {"complete": True})
        except OSError as error:
            raise explain(error, name, "") from error
    return outcomes


def _plan_source(asset: str, source: Source, folder: Path, record: dict[str, Any], to_bfloat16: bool) -> list[PlannedFile]:
    known = {local: entry for local, entry in record["files"].items() if entry["repo"] == source.repo}
    if (
        _pinned(source)
        and record.get("complete")
        and known
        and all(entry["commit"] == source.revision for entry in known.values())
    ):
        # A pinned commit does not change: the record tells all, and a complete folder can be checked without a network.
        commit = source.revision
        listed = tuple(HubFile(path=e["remote"], bytes=e["source_bytes"], sha256=e["source_sha256"]) for e in known.values())
    else:
        commit, listed = list_files(source.repo, source.revision)
    planned = []
    for remote in listed:
        if not any(fnmatchcase(remote.path, pattern) for pattern in source.patterns):
            continue
        checked = with_checksum(source.repo, commit, remote)
        if remote.path in source.sha256:
            checked = replace(checked, sha256=source.sha256[remote.path], git_sha1=None)
        local = source.local(remote.path)
        convert = to_bfloat16 and any(fnmatchcase(remote.path, pattern) for pattern in source.to_bfloat16)
        entry = record["files"].get(local)
        same = entry is not None and (entry["source_sha256"] == checked.sha256 if checked.sha256 else entry["commit"] == commit)
        here = same and entry["to_bfloat16"] == convert and _size(folder / local) == entry["bytes"]
        planned.append(
            PlannedFile(
                asset=asset, repo=source.repo, commit=commit, remote=checked, path=folder / local, convert=convert, here=here
            )
        )
    if not planned:
        raise LynxError(f"{source.repo}: nothing at {commit[:12]} matches {', '.join(source.patterns)}.")
    return planned


def _settle(
    file: PlannedFile, record: dict[str, Any], folder: Path, tell: Callable[[Progress], None]
) -> Literal["kept", "fetched", "replaced"]:
    """Bring one file to its place and into the record."""
    local = file.path.relative_to(folder).as_posix()
    entry = record["files"].get(local)
    there = file.path.is_file()
    size = _size(file.path)
    if there and file.here and entry is not None:
        tell(Progress(path=file.path, stage="check", done=0, total=size))
        if file_hash(file.path) == entry["sha256"]:
            tell(Progress(path=file.path, stage="check", done=size, total=size))
            return "kept"
    # A file that came some other way is as good, if the hub's checksum says so.
    adopted = there and not file.here and size == file.remote.bytes and _wrong(file, file.path) is None
    if adopted:
        origin = file.path
    else:
        origin = _part(file)
        origin.parent.mkdir(parents=True, exist_ok=True)
        total = file.remote.bytes
        fetch(
            file.repo,
            file.commit,
            file.remote,
            origin,
            lambda done: tell(Progress(path=file.path, stage="fetch", done=done, total=total)),
        )
        tell(Progress(path=file.path, stage="check", done=0, total=total))
        if wrong := _wrong(file, origin):
            origin.unlink()
            raise LynxError(f"{file.repo}/{file.remote.path}: {wrong}; what was fetched is removed, run the command again.")
    source_bytes = _size(origin)
    facts: dict[str, Any] = {
        "repo": file.repo,
        "commit": file.commit,
        "remote": file.remote.path,
        "source_bytes": source_bytes,
        "source_sha256": file_hash(origin),
    }
    record["files"].pop(local, None)
    converted = False
    if file.convert:
        tell(Progress(path=file.path, stage="convert", done=0, total=source_bytes))
        from lynx_video.shards import to_bfloat16

        converted = to_bfloat16(origin, file.path)
        tell(Progress(path=file.path, stage="convert", done=source_bytes, total=source_bytes))
    if not adopted:
        if converted:
            origin.unlink()
        else:
            origin.replace(file.path)
    digest = file_hash(file.path) if converted else facts["source_sha256"]
    record["files"][local] = facts | {"bytes": _size(file.path), "sha256": digest, "to_bfloat16": file.convert}
    _write_record(folder, record | {"complete": False})
    return "kept" if adopted else "replaced" if there else "fetched"


def _wrong(file: PlannedFile, path: Path) -> str | None:
    """How a file differs from what the hub promised, or None."""
    size = _size(path)
    if file.remote.bytes is not None and size != file.remote.bytes:
        return f"{size} bytes instead of {file.remote.bytes}"
    if file.remote.sha256:
        digest, expected = file_hash(path), file.remote.sha256
        return None if digest == expected else f"sha256 {digest[:12]}... instead of {expected[:12]}..."
    if file.remote.git_sha1:
        blob = hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False).hexdigest()
        return (
            None if blob == file.remote.git_sha1 else f"git checksum {blob[:12]}... instead of {file.remote.git_sha1[:12]}..."
        )
    return None


def _refresh_indexes(files: list[PlannedFile], record: dict[str, Any], folder: Path) -> None:
    """Converted shards are smaller than their index says; loaders and disk estimates read it."""
    from lynx_video.shards import update_index

    parents = {file.path.parent for file in files if file.convert}
    for file in files:
        if file.path.parent in parents and file.path.name.endswith(".safetensors.index.json") and update_index(file.path):
            entry = record["files"][file.path.relative_to(folder).as_posix()]
            entry |= {"bytes": _size(file.path), "sha256": file_hash(file.path)}


def _check_disk(plan: Plan) -> None:
    folder = plan.models_dir.resolve()
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if plan.disk > free:
        raise LynxError(
            f"{plan.models_dir}: needs {_amount(plan.disk)} of free disk, there are {_amount(free)}; free some or use another."
        )


def _read_record(folder: Path) -> dict[str, Any]:
    """The record of a folder; empty if there is none or it is not one of ours (then everything is checked against the hub)."""
    needed = {"repo", "commit", "remote", "source_bytes", "source_sha256", "bytes", "sha256", "to_bfloat16"}
    with suppress(OSError, ValueError):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record.get("files") if isinstance(record, dict) else None
        if isinstance(files, dict) and all(isinstance(entry, dict) and needed <= entry.keys() for entry in files.values()):
            return {"complete": record.get("complete") is True, "files": files}
    return {"complete": False, "files": {}}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    beside = folder / f"{RECORD}.part"
    beside.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(folder / RECORD)


def _pinned(source: Source) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", source.revision) is not None


def _lasting(file: PlannedFile) -> int:
    """Bytes a file will take: about half when converted, three fifths of a text encoder, whose `wo` (a sixth of it) stays."""
    size = file.remote.bytes or 0
    if not file.convert:
        return size
    return size * 3 // 5 if file.path.parent.name == "text_encoder" else size // 2


def _part(file: PlannedFile) -> Path:
    """Where a file grows. The name holds its checksum, so that bytes of two versions are never joined."""
    mark = (file.remote.sha256 or file.remote.git_sha1 or file.commit)[:12]
    return file.path.with_name(f".{file.path.name}.{mark}.part")


def _arrived(file: PlannedFile) -> int:
    """Bytes that need not be fetched: of a cut transfer, or of a file of the right size that came some other way."""
    there = _size(file.path)
    return there if there and there == file.remote.bytes else _size(_part(file))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _amount(count: int | None) -> str:
    if count is None:
        return "? B"
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"
