"""Connections and transactions: one writer at a time, on SQLite and on PostgreSQL alike.

The audit chain orders all writers anyway. Taking that order at the start of every writing
transaction leaves no interleaving to reason about.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dicom_node.errors import ConfigurationError, Retryable
from worker.ledger import audit

BUSY_SECONDS = 30
_SILENT_SECONDS = 60
"""The longest that a transaction waits for its own process, whose machine may have vanished."""
"""How long a writer waits for the one before it."""
_WRITER_LOCK = 0x436F5661726961  # "CoVaria", a key of our own among PostgreSQL's advisory locks

_READ_ONLY = "25006"
"""PostgreSQL while it fails over, or its disk is full; the driver takes it for an error of ours."""

SET_BACK = timedelta(hours=2)
"""What is due further ahead than any pause is was written before the clock was set back: it is due now."""

Clock = Callable[[], datetime]


def utcnow() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)


def make_engine(url_text: str) -> Engine:
    """Open a pool of connections to SQLite or PostgreSQL; the directory of a SQLite file is made.

    Raises:
        ConfigurationError: the URL or its driver cannot be used.
    """
    try:
        url = make_url(url_text)
        if url.get_backend_name() == "sqlite":
            return _sqlite(url)
        if url.get_backend_name() == "postgresql":
            return _postgresql(url)
    except ArgumentError:
        raise ConfigurationError("database.url is no database URL.") from None
    except (NoSuchModuleError, ModuleNotFoundError):
        raise ConfigurationError(
            "The driver of database.url is not installed: `make install EXTRAS=postgresql`."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"The file of database.url cannot be made: {error.strerror}.") from None
    raise ConfigurationError("database.url must name SQLite or PostgreSQL.")


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("database.url must name a file: the ledger outlives its process.")
    path = Path(url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # The driver must not begin transactions by itself: we choose between the two kinds of BEGIN.
        connection.isolation_level = None
        _use_wal(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer that began as a reader could not wait: SQLite refuses it when another wrote meanwhile.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if _writes(connection) else "BEGIN")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    # Processes that open a new file together lock each other out here, and SQLite does not wait for them.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql(url: URL) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": "covariance",
            # Both ends find out where the other's machine has vanished.
            "options": f"-c timezone=UTC -c lock_timeout={BUSY_SECONDS}s"
            " -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * BUSY_SECONDS,
        },
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if _writes(connection):
            # Read committed: every statement after the lock sees all that earlier writers committed.
            # One that falls silent while it holds the lock, on a machine that is frozen, is ended.
            silent = f"set_config('idle_in_transaction_session_timeout', '{_SILENT_SECONDS}s', true)"
            connection.exec_driver_sql(f"SELECT {silent}, pg_advisory_xact_lock({_WRITER_LOCK})")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("covariance_writes"))


@contextmanager
def transaction(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """One transaction: committed when the block ends, undone when it raises.

    Raises:
        Retryable: the database is away, full or busy. Nothing was written, or, if the connection broke
            during the commit, all of it: every method of the ledger may be called again.
    """
    try:
        with engine.execution_options(covariance_writes=writes).begin() as connection:
            yield connection
    except PoolTimeoutError:
        raise Retryable("The database is busy: every connection is in use.") from None
    except DBAPIError as error:
        code = _code(error)
        passes = isinstance(error, OperationalError | InterfaceError) and code != "SQLITE_ERROR"
        if not (passes or error.connection_invalidated or code == _READ_ONLY):
            raise
        # The code only: a driver's text may quote values.
        raise Retryable(f"The database is away or busy ({code}).") from None


def _code(error: DBAPIError) -> str:
    for name in ("sqlite_errorname", "sqlstate"):
        if code := getattr(error.orig, name, None):
            return str(code)
    return type(error.orig).__name__


@dataclass(frozen=True)
class Files:
    """Files of the spool are recorded by where they lie in it: it may move, or be mounted elsewhere."""

    root: Path

    def name(self, path: Path) -> str:
        """What is recorded."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def locate(self, name: str) -> Path:
        """Where the file is now."""
        return self.root / name


class Transaction:
    """A writing transaction: statements, the time they share, and the events that they leave."""

    def __init__(self, connection: Connection, now: datetime, files: Files) -> None:
        self.execute = connection.execute
        self.now = now
        self.files = files
        self.notes: list[audit.Note] = []

    def note(self, kind: audit.Kind, study_instance_uid: str | None, **body: Any) -> None:
        """Add an event to the audit trail; it stands or falls with the transaction."""
        self.notes.append(audit.Note(kind=kind, study_instance_uid=study_instance_uid, body=body))


class Store:
    """What every part of the ledger is built on."""

    def __init__(self, engine: Engine, hash_key: bytes, files: Files, clock: Clock | None = None) -> None:
        self._engine = engine
        self._hash_key = hash_key
        self._files = files
        self._clock = clock

    def _now(self, connection: Connection) -> datetime:
        """The time on the one clock that everybody who opens this ledger shares.

        SQLite is of one machine, and so is its time. PostgreSQL is asked for its own: a worker whose clock
        is a day off would take claims that are alive, or make ones that nobody can take over.
        """
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            now: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
            return now
        return utcnow()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with transaction(self._engine, writes=False) as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Transaction]:
        with transaction(self._engine, writes=True) as connection:
            # The clock is read after the wait for the writers before us.
            writer = Transaction(connection, self._now(connection), self._files)
            yield writer
            audit.append(connection, writer.now, writer.notes)
