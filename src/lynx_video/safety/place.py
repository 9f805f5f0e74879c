"""Where a classifier lies on this machine: a folder, the models folder, or a hub id in the hub's cache. Nothing is downloaded.

`lynx-video download safety` keeps a record beside what it fetched, and the hub's cache names its files by their sha256; what
either says of the weights is what they must be.
"""

from __future__ import annotations

import json
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from lynx_video.errors import BadWeights, MissingDependency
from lynx_video.safety.classifier import WEIGHTS

DOWNLOAD_RECORD = ".lynx-download.json"
_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of classifier. name: in messages. option: its flag. files: what its folder must hold.

    folder: where in the models folder `lynx-video download ASSET` puts it, from the repository `hub_id`; empty: it offers none.
    """

    name: str
    option: str
    files: tuple[str, ...]
    folder: str = ""
    asset: str = ""
    hub_id: str = ""


PICTURES = Kind(
    name="safety checker",
    option="--safety-checker",
    files=("config.json", "preprocessor_config.json", WEIGHTS),
    folder="safety_checker",
    asset="safety",
    hub_id="Falconsai/nsfw_image_detection",
)
PROMPTS = Kind(name="prompt checker", option="--prompt-checker", files=("config.json", "tokenizer.json", WEIGHTS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder with a classifier. name, commit: what it is known by, without the path; empty commit: unknown.

    sha256: what the weights must be; empty: unknown. remedy: how to get it again.
    """

    kind: Kind
    folder: Path
    name: str
    commit: str = ""
    sha256: str = ""
    remedy: str = "download it again"


def place_of(kind: Kind, setting: str, models_dir: str | PathLike[str]) -> Place:
    """The place of a classifier named by its folder or its hub id (`OWNER/NAME`, or `OWNER/NAME@REVISION`).

    Raises:
        BadWeights: no such folder, and not the form of a hub id.
        MissingDependency: a hub id that is not on this machine; the message has the command that gets it.
    """
    folder = Path(setting).expanduser()
    if folder.is_dir():
        return in_folder(kind, folder)
    named = _HUB_ID.fullmatch(setting)
    if named is None:
        from_download = f" as `lynx-video download {kind.asset}` puts it there" if kind.asset else ""
        raise BadWeights(f"{folder}: no such folder; expected a {kind.name}{from_download}, or a hub id such as OWNER/NAME.")
    repo, revision = named.groups()
    if kind.folder and repo == kind.hub_id:
        downloaded = in_folder(kind, Path(models_dir) / kind.folder)
        if downloaded.name == repo and revision in (None, downloaded.commit):
            return downloaded
    cached = _in_cache(kind, repo, revision)
    if cached is None:
        command = _command(kind, repo, revision, models_dir)
        raise MissingDependency(
            f"{setting}: neither a folder nor a hub model that is on this machine; get it with `{command}`, "
            f"or do without it: {kind.option} off"
        )
    return cached


def in_models(kind: Kind, models_dir: str | PathLike[str]) -> Place:
    """The place of the classifier that `lynx-video download` fetches. Raises MissingDependency if it is not there."""
    folder = Path(models_dir) / kind.folder
    if not folder.is_dir():
        raise MissingDependency(
            f"{folder}: the {kind.name} is not there; get it with `{_command(kind, kind.hub_id, None, models_dir)}`, "
            f"or do without it: {kind.option} off"
        )
    return in_folder(kind, folder)


def in_folder(kind: Kind, folder: Path) -> Place:
    """The place that a folder is, with what the record of a download says of it."""
    entry: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        entry = dict(json.loads((folder / DOWNLOAD_RECORD).read_text(encoding="utf-8"))["files"][WEIGHTS])
    if not all(isinstance(entry.get(key), str) for key in ("repo", "commit", "sha256")):
        remedy = f"run `lynx-video download {kind.asset}` again" if kind.asset else "download it again"
        return Place(kind=kind, folder=folder, name=folder.resolve().name, remedy=remedy)
    remedy = f"run `{_command(kind, entry['repo'], None, folder.parent)}` again"
    return Place(kind=kind, folder=folder, name=entry["repo"], commit=entry["commit"], sha256=entry["sha256"], remedy=remedy)


def _in_cache(kind: Kind, repo: str, revision: str | None) -> Place | None:
    """The place in the hub's cache, None if it has not all of the files."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        paths = [try_to_load_from_cache(repo, name, revision=revision) for name in kind.files]
    except HFValidationError as error:
        raise BadWeights(f"{repo}: no such folder, and no hub id either ({' '.join(str(error).split())[:200]}).") from error
    files = [Path(path) for path in paths if isinstance(path, str)]
    if len(files) < len(kind.files):
        return None
    weights = next(file for file in files if file.name == WEIGHTS)
    blob = weights.resolve().name
    return Place(
        kind=kind,
        folder=weights.parent,
        name=repo,
        commit=weights.parent.name,
        sha256=blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "",
        remedy=f"remove {weights.resolve()} and run `{_command(kind, repo, revision, None)}`",
    )


def _command(kind: Kind, repo: str, revision: str | None, models_dir: str | PathLike[str] | None) -> str:
    """The command that gets a classifier."""
    if kind.asset and repo == kind.hub_id and revision is None and models_dir is not None:
        elsewhere = "" if Path(models_dir) == Path("models") else f" --models {shlex.quote(str(models_dir))}"
        return f"lynx-video download {kind.asset}{elsewhere}"
    return f"hf download {repo} {' '.join(kind.files)}" + (f" --revision {revision}" if revision else "")
