"""Who may ask: API keys, their owners, and how often.

A key is 256 random bits; the database has its sha256, which tells nothing of it (there is no dictionary of such keys, so a slow hash
would protect nothing). Several keys may have one owner, so that one can be changed for another without a gap.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
import unicodedata
import uuid
from dataclasses import dataclass

from sqlalchemy import Row, case, insert, select, update

from lynx_video.errors import BadRequest
from lynx_video.server.database import Database, buckets, keys

NOBODY = "local"
"""The owner of everything while there are no keys."""
PREFIX = "lynx_"
LONGEST_OWNER = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as the database has it: without the key."""

    id: str
    owner: str
    hash: str
    created_at: float
    revoked_at: float | None


def add_key(database: Database, owner: str) -> tuple[Key, str]:
    """A new key of an owner; and its token, which nobody can be told again. Raises BadRequest for a name that is none."""
    owner = owner.strip()
    if not owner or len(owner) > LONGEST_OWNER or any(unicodedata.category(one)[0] == "C" for one in owner):
        raise BadRequest(f"the owner of a key needs a name of 1 to {LONGEST_OWNER} printable characters, got {owner[:200]!r}.")
    if owner == NOBODY:
        raise BadRequest(f"{NOBODY!r} is the owner of what was made without keys; take another name.")
    token = PREFIX + secrets.token_urlsafe(32)
    values = {"id": f"key_{uuid.uuid4().hex[:12]}", "owner": owner, "hash": _hash(token), "created_at": time.time()}
    with database.write() as connection:
        return _key(connection.execute(insert(keys).values(values).returning(keys)).one()), token


def list_keys(database: Database) -> list[Key]:
    """All keys, also those that are revoked, oldest first."""
    with database.read() as connection:
        return [_key(row) for row in connection.execute(select(keys).order_by(keys.c.created_at))]


def revoke_key(database: Database, identifier: str) -> Key:
    """Make a key useless from now on. Raises BadRequest if there is none of this id that is still good."""
    changed = update(keys).where(keys.c.id == identifier, keys.c.revoked_at.is_(None)).values(revoked_at=time.time())
    with database.write() as connection:
        row = connection.execute(changed.returning(keys)).first()
    if row is None:
        raise BadRequest(f"there is no key {identifier!r} that is still good; `lynx-video keys list` shows them.")
    return _key(row)


def has_keys(database: Database) -> bool:
    """Whether there ever was a key: from then on nothing is to be had without one."""
    with database.read() as connection:
        return connection.execute(select(keys.c.id).limit(1)).first() is not None


def find_key(database: Database, token: str) -> Key | None:
    """The key of a token, if it is good.

    Looked up by the hash: how long that takes tells of a hash that the asker cannot steer, not of the token.
    """
    hashed = _hash(token)
    with database.read() as connection:
        row = connection.execute(select(keys).where(keys.c.hash == hashed, keys.c.revoked_at.is_(None))).first()
    return _key(row) if row is not None and hmac.compare_digest(row.hash, hashed) else None


def wait_seconds(database: Database, key: str, rate: int) -> int:
    """0 if the key may ask now (and then that counts), else the whole seconds until it may.

    A bucket in the database, so that all processes of a service share it: it holds up to `rate` tokens, and `rate` drip in a minute.
    """
    now, size = time.time(), float(rate)
    dripped = buckets.c.tokens + (now - buckets.c.at) * size / 60
    full = case((dripped > size, size), (dripped < 0, 0.0), else_=dripped)
    with database.write(lasting=False) as connection:
        at = case((buckets.c.at > now, now), else_=buckets.c.at)  # the clock was set back
        connection.execute(database.upsert(buckets, {"key": key, "tokens": size, "at": now}, at=at))
        taken = update(buckets).where(buckets.c.key == key, full >= 1).values(tokens=full - 1, at=now)
        if connection.execute(taken).rowcount == 1:
            return 0
        left = float(connection.execute(select(full).where(buckets.c.key == key)).scalar_one())
    return max(1, math.ceil((1 - left) * 60 / size))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _key(row: Row[tuple[object, ...]]) -> Key:
    return Key(**row._mapping)
