"""The database of a service: its tables, and transactions on SQLite (by default, a file in the data folder) or PostgreSQL.

On SQLite every writing transaction takes the lock at its beginning, so that two never undo each other; readers are not stopped by
it (WAL). What cannot be had because the database is locked, away or full is an error of ours.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoConnection

from lynx_video.errors import BadRequest, LynxError, MissingDependency
from lynx_video.server.config import StoreFlags

SCHEMA = 1
"""Counts up when the tables change."""
BUSY = 5.0
"""Seconds that a transaction waits for another's lock."""
IDLE = 60.0
"""Seconds after which PostgreSQL ends a transaction in which nothing happens."""

tables = MetaData()
meta = Table("lynx_meta", tables, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
jobs = Table(
    "lynx_jobs",
    tables,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("attempts", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("worker", String(64)),
    Column("token", String(64)),
    Column("lease", Double),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("step_seconds", Double),
    Column("preview", Integer),
    Column("work_seconds", Double),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Index("lynx_jobs_queue", "status", "priority", "seq"),
    Index("lynx_jobs_owner", "owner", "kind", "seq"),
    Index("lynx_jobs_recent", "kind", "status", "completed_at"),
)
repeats = Table(
    "lynx_repeats",
    tables,
    Column("owner", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("job", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
)
keys = Table(
    "lynx_keys",
    tables,
    Column("id", String(64), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)
buckets = Table(
    "lynx_buckets",
    tables,
    Column("key", String(64), primary_key=True),
    Column("tokens", Double, nullable=False),
    Column("at", Double, nullable=False),
)
workers = Table(
    "lynx_workers",
    tables,
    Column("name", String(64), primary_key=True),
    Column("ready", Boolean, nullable=False),
    Column("seen", Double, nullable=False),
    Column("note", Text, nullable=False),
)
tallies = Table(
    "lynx_tallies",
    tables,
    Column("metric", String(64), primary_key=True),
    Column("label", String(64), primary_key=True),
    Column("value", Double, nullable=False),
)


class Unavailable(LynxError):
    """The database cannot be had just now."""


class DatabaseFull(LynxError):
    """The database has no room for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Database:
    """An open database. `busy`: seconds that a transaction waits for a lock."""

    engine: Engine
    busy: float

    @contextmanager
    def write(self, *, lasting: bool = True) -> Iterator[Connection]:
        """A transaction that writes. lasting: a power cut after it undoes nothing; progress does without and is 100 times faster.

        Raises Unavailable or DatabaseFull, with nothing written.
        """
        with _translated(), self.engine.connect() as connection:
            connection = connection.execution_options(lynx="lasting" if lasting else "fleeting")
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A view of the database as it is. Raises Unavailable."""
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    def forget_log(self) -> None:
        """Let what was deleted go from SQLite's log as well, as far as nobody reads it just now. Raises Unavailable."""
        if self.engine.dialect.name == "sqlite":
            with _translated(), self.engine.connect() as connection:
                own = connection.connection.driver_connection  # outside of a transaction
                assert isinstance(own, sqlite3.Connection)
                with suppress(sqlite3.OperationalError):  # locked: the next time
                    own.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Let all connections go."""
        self.engine.dispose()

    def upsert(self, table: Table, values: Mapping[str, Any], **changes: Any) -> Any:
        """An INSERT that changes the row that is there; `changes` may speak of its old values. None: that row stays as it is."""
        kind = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        statement: Any = kind.insert(table).values(**values)
        key = [column.name for column in table.primary_key]
        return (
            statement.on_conflict_do_update(index_elements=key, set_=changes) if changes else statement.on_conflict_do_nothing()
        )


def open_database(flags: StoreFlags, busy: float = BUSY) -> Database:
    """Open the database, and make the data folder and the tables if they are not there.

    Raises BadRequest for an address or a file that cannot be used, or a database of a newer version of this program;
    MissingDependency without the PostgreSQL driver, Unavailable if the database cannot be reached.
    """
    url = _url(flags)
    try:
        flags.data.mkdir(parents=True, exist_ok=True, mode=0o700)  # faces lie in it
    except OSError as error:
        raise BadRequest(f"{flags.data}: the data folder cannot be made ({error.strerror or error}).") from error
    arguments = {"timeout": busy} if url.get_backend_name() == "sqlite" else _limits(url)
    try:
        engine = create_engine(
            url,
            connect_args=arguments,
            pool_size=20,
            max_overflow=20,
            pool_timeout=busy,
            pool_pre_ping=True,
            hide_parameters=True,  # prompts have no place in a log
        )
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "PostgreSQL needs a driver that is not installed: pip install 'lynx-video[postgres]'"
        ) from error
    if url.get_backend_name() == "sqlite":
        _keep_private(Path(url.database or ""))
        _prepare_sqlite(engine)
    database = Database(engine=engine, busy=busy)
    try:
        _make_tables(database)
    except BaseException:
        database.close()
        raise
    return database


def _url(flags: StoreFlags) -> URL:
    if flags.database is None:
        return URL.create("sqlite", database=str(flags.data / "lynx-video.db"))
    try:
        url = make_url(flags.database)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadRequest("--database is no address of a database; expected postgresql://USER:PASSWORD@HOST/NAME.") from error
    if backend in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database:
        return url
    raise BadRequest(f"--database {backend}://: only postgresql:// and sqlite:///FILE are known.")


def _limits(url: URL) -> dict[str, Any]:
    """How long PostgreSQL may keep us waiting, and we others, where the address does not say it."""
    options = f"-c lock_timeout={round(BUSY * 1000)} -c idle_in_transaction_session_timeout={round(IDLE * 1000)}"
    limits = {"connect_timeout": round(BUSY), "options": options}
    return {name: value for name, value in limits.items() if name not in url.query}


def _keep_private(file: Path) -> None:
    """Nobody else may read the database, whoever may look into its folder: make its file so before SQLite does (its log follows)."""
    with suppress(OSError):  # what cannot be opened, SQLite says in its own words
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    for one in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        with suppress(OSError):
            one.chmod(0o600)


def _prepare_sqlite(engine: Engine) -> None:
    """Transactions begin when we say so (the driver would begin them at the first change, too late for the lock)."""

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA secure_delete=ON")  # what is forgotten is overwritten
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise BadRequest(f"the folder of the database can't do what SQLite needs (journal mode {mode}): take a local disk.")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        kind = connection.get_execution_options().get("lynx")
        if kind is None:
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if kind == 'lasting' else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _make_tables(database: Database) -> None:
    with database.write() as connection:
        if inspect(connection).has_table(meta.name):
            found = connection.execute(select(meta.c.value).where(meta.c.name == "schema")).scalar()
            if found is not None and int(found) > SCHEMA:
                raise BadRequest(
                    f"the database is of a newer lynx-video (its tables are version {found}, known is {SCHEMA}): update this one."
                )
        if database.engine.dialect.name == "postgresql":  # two servers may start at once
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7061)")
        tables.create_all(connection)
        connection.execute(database.upsert(meta, {"name": "schema", "value": str(SCHEMA)}))
        connection.execute(database.upsert(meta, {"name": "queue", "value": ""}))


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the database that are nobody's mistake, in our words."""
    try:
        yield
    except NoConnection as error:
        raise Unavailable("the database is busy; try again in a moment.") from error
    except DBAPIError as error:
        raise _in_our_words(error) from error


_SQLITE: tuple[tuple[str, type[LynxError], str], ...] = (
    ("is locked", Unavailable, "the database is locked by another program; try again in a moment."),
    ("is full", DatabaseFull, "the disk is full: nothing was written; make room and try again."),
    ("not a database", BadRequest, "the database's file is none of SQLite's; name another --data or --database."),
    ("malformed", BadRequest, "the database's file is damaged; name another --data or --database."),
    ("unable to open", Unavailable, "the database's file can't be opened."),
    ("readonly", Unavailable, "the database's file can't be written."),
    ("disk I/O error", Unavailable, "the database's disk fails."),
)
"""What SQLite's messages mean (its codes are not told before Python 3.11)."""


def _in_our_words(error: DBAPIError) -> Exception:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        known = (kind(text) for words, kind, text in _SQLITE if words in str(cause))
        return next(known, error)
    if error.connection_invalidated or _is_operational(cause):
        if getattr(cause, "sqlstate", None) == "53100":
            return DatabaseFull("the database's disk is full: nothing was written; make room and try again.")
        return Unavailable("the database can't be reached just now; try again in a moment.")
    return error


def _is_operational(cause: BaseException | None) -> bool:
    """Whether a driver's error is about the connection or the server, and not about the statement."""
    return any(kind.__name__ in ("OperationalError", "InterfaceError") for kind in type(cause).__mro__)
