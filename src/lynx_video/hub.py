"""The model hub, as much of it as a download needs: what a repository holds, and one file of it, resumed where it was cut.

huggingface_hub lists, builds addresses and signs requests. The bytes are fetched here: newer versions of
huggingface_hub throw away what had arrived when a download fails, which hurts with shards of 5 GB.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lynx_video.errors import BadRequest, LynxError

RETRIES = 5
"""How often a cut connection is taken up again without a byte arriving."""
RETRY_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One file of a repository: its path there, its bytes, and the hub's checksum (sha256, or git's sha1 for small files)."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or huggingface.co.

    Raises:
        BadRequest: HF_ENDPOINT is not an http address.
    """
    # Read at each call, not at huggingface_hub's import, so that it can be set late.
    address = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    if not re.match(r"https?://[^/\s]+", address):
        raise BadRequest(f"HF_ENDPOINT is {address!r}; expected an address such as https://huggingface.co")
    return address


def list_files(repo: str, revision: str) -> tuple[str, tuple[HubFile, ...]]:
    """The commit that a revision is at, and the files of the repository there.

    Raises:
        LynxError: no such repository or revision, access refused, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    address = endpoint()
    try:
        info = HfApi(endpoint=address).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    except _network_errors() as error:
        raise explain(error, repo, revision) from error
    except (ValueError, TypeError, KeyError) as error:
        raise LynxError(f"{address} does not answer like a model hub ({_line(error)}); check HF_ENDPOINT.") from error
    files = []
    for sibling in info.siblings or ():
        path = PurePosixPath(sibling.rfilename)
        if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename:
            raise LynxError(f"{repo}: the hub lists {sibling.rfilename!r}, a path that leads out of the folder.")
        lfs = sibling.lfs
        sha1 = sibling.blob_id if lfs is None and re.fullmatch(r"[0-9a-f]{40}", sibling.blob_id or "") else None
        size = lfs.size if lfs is not None and sibling.size is None else sibling.size
        files.append(HubFile(path=str(path), bytes=size, sha256=lfs.sha256 if lfs is not None else None, git_sha1=sha1))
    return info.sha or revision, tuple(files)


def with_checksum(repo: str, commit: str, file: HubFile) -> HubFile:
    """`file` with its size and checksum asked for by a HEAD request, where the listing lacked them.

    Raises:
        LynxError: as `list_files`.
    """
    if file.bytes is not None and (file.sha256 or file.git_sha1):
        return file
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    address = endpoint()
    try:
        found = get_hf_file_metadata(hf_hub_url(repo, file.path, revision=commit, endpoint=address), timeout=TIMEOUT_SECONDS)
    except _network_errors() as error:
        raise explain(error, repo, commit, file.path) from error
    tag = found.etag or ""
    return replace(
        file,
        bytes=found.size if file.bytes is None else file.bytes,
        sha256=file.sha256 or (tag if re.fullmatch(r"[0-9a-f]{64}", tag) else None),
        git_sha1=file.git_sha1 or (tag if re.fullmatch(r"[0-9a-f]{40}", tag) else None),
    )


def fetch(repo: str, commit: str, file: HubFile, part: Path, progress: Callable[[int], None]) -> None:
    """Fetch one file into `part`, going on after the bytes that are there; a failure leaves them for the next time.

    progress: called with the bytes there so far; what it raises ends the transfer.

    Raises:
        LynxError: the file is not there, access is refused, the connection keeps breaking, or the disk is full.
    """
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file.path, revision=commit, endpoint=endpoint())
    left = RETRIES
    while True:
        have = part.stat().st_size if part.exists() else 0
        if file.bytes is not None and have > file.bytes:
            part.unlink()
            have = 0
        if have and have == file.bytes:
            return
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        before = have
        try:
            with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True) as response:
                if response.status_code == 416 and have:
                    part.unlink()  # longer than the file is now; begin again
                    continue
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                # 200 to a Range request is the whole file from the start.
                resumed = response.status_code == 206
                have = have if resumed else 0
                with part.open("ab" if resumed else "wb") as stream:
                    for block in response.iter_bytes():
                        stream.write(block)
                        have += len(block)
                        progress(have)
            if file.bytes is None or have >= file.bytes:
                return
            failure: Exception = LynxError(f"{repo}/{file.path}: the connection ended after {have} of {file.bytes} bytes.")
        except _network_errors() as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            # An OSError without a status is the disk, or the hub switched off; both stay as they are.
            if isinstance(error, OSError) and (status is None or (status < 500 and status not in (408, 429))):
                raise explain(error, repo, commit, file.path) from error
            failure = error
        left = RETRIES if part.exists() and part.stat().st_size > before else left - 1
        if left <= 0:
            raise explain(failure, repo, commit, file.path) from failure
        time.sleep(RETRY_SECONDS)


def explain(error: Exception, repo: str, revision: str, path: str = "") -> LynxError:
    """What went wrong between here and the hub, in one sentence that says what to do."""
    from huggingface_hub import errors

    what = f"{repo}/{path}" if path else repo
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LynxError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return LynxError(f"{what}: not fetched because HF_HUB_OFFLINE is set; unset it to download.")
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        return LynxError(
            f"{what}: {endpoint()} refuses access ({status}); log in with `hf auth login` or HF_TOKEN, and accept the licence "
            f"on the page of {repo} if it asks for that."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return LynxError(f"{repo}: has no revision {revision} at {endpoint()}.")
    if status == 404:
        return LynxError(f"{what}: not found at {endpoint()} (revision {revision}).")
    if status is not None:
        return LynxError(f"{what}: {endpoint()} answered {status}; try again later, what has arrived is kept.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return LynxError(f"{what}: the disk is full; free some space and run the command again, what has arrived is kept.")
    if isinstance(error, OSError) and error.errno and error.filename:
        return LynxError(f"{error.filename}: {error.strerror}.")
    return LynxError(
        f"{what}: {endpoint()} cannot be reached or keeps breaking off ({_line(error)}); check the network and HF_ENDPOINT and "
        "run the command again, what has arrived is kept."
    )


def _network_errors() -> tuple[type[Exception], ...]:
    """OSError, and the HTTPError of the client library that huggingface_hub is built on, which changed between its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(each for each in HfHubHTTPError.__bases__ if issubclass(each, Exception))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
