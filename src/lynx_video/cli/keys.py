"""`lynx-video keys`: who may ask the service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options
from lynx_video.errors import MissingDependency
from lynx_video.server.config import StoreFlags

if TYPE_CHECKING:
    from lynx_video.server.access import Key
    from lynx_video.server.database import Database


@dataclass(frozen=True, kw_only=True, slots=True)
class SayFlags:
    """How the result is told."""

    json: bool = False
    "one JSON object on stdout instead of lines"


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of the service. Everything that a key's owner makes is seen by that owner's keys only."""


@keys.command()
@click.argument("owner")
@options(StoreFlags, SayFlags)
def add(owner: str, store: StoreFlags, say: SayFlags) -> None:
    """Make a key for OWNER and show it, once. Several keys may have one owner."""
    with _open(store) as database:
        from lynx_video.server.access import add_key

        key, token = add_key(database, owner)
    line = f"{token}\n{key.id} of {key.owner}: this is shown once; send it as `Authorization: Bearer`."
    Console(as_json=say.json).result(line, {**_shown(key), "token": token})


@keys.command("list")
@options(StoreFlags, SayFlags)
def list_(store: StoreFlags, say: SayFlags) -> None:
    """List the keys, oldest first."""
    with _open(store) as database:
        from lynx_video.server.access import list_keys

        found = [_shown(key) for key in list_keys(database)]
    lines = [
        f"{one['id']}  {one['owner']}  made {one['created_at']}"
        + (f", revoked {one['revoked_at']}" if one["revoked_at"] else "")
        for one in found
    ]
    Console(as_json=say.json).result("\n".join(lines) or "no keys: the service answers this machine only.", {"keys": found})


@keys.command()
@click.argument("key_id")
@options(StoreFlags, SayFlags)
def revoke(key_id: str, store: StoreFlags, say: SayFlags) -> None:
    """Make the key KEY_ID useless from now on. What its owner made stays."""
    with _open(store) as database:
        from lynx_video.server.access import revoke_key

        key = revoke_key(database, key_id)
    Console(as_json=say.json).result(f"{key.id} of {key.owner} is revoked.", _shown(key))


@contextmanager
def _open(store: StoreFlags) -> Iterator[Database]:
    try:
        from lynx_video.server.database import open_database
    except ModuleNotFoundError as error:
        raise MissingDependency(f"keys need {error.name}, which is not installed: pip install 'lynx-video[serve]'") from error
    database = open_database(store)
    try:
        yield database
    finally:
        database.close()


def _shown(key: Key) -> dict[str, str | None]:
    def moment(seconds: float | None) -> str | None:
        return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

    return {"id": key.id, "owner": key.owner, "created_at": moment(key.created_at), "revoked_at": moment(key.revoked_at)}
