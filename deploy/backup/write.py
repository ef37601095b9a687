"""`covariance backup`: ledger, spool and models, in an order that loses nothing.

For a moment the ledger takes no writer: the files of the outbox get a second name each, and a snapshot of
the ledger is taken. What the snapshot says is still to be sent is in the copy, byte for byte, because nothing
was proven or dropped in between. Both are copied while everything goes on, and the films after them: whoever
has come since is in the spool and not yet in the ledger, which is what the reconciler is for. What was purged
in between is gone, and was proven before.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine, make_url

from deploy.backup.archive import (
    LEDGER,
    MANIFEST,
    MODELS,
    SPOOL,
    Manifest,
    copy_tree,
    digest,
    entries,
    run_client,
    stopped,
)
from dicom_node.errors import ConfigurationError
from dicom_node.logs import configure_logs
from worker.ledger import open_ledger
from worker.ledger.store import make_engine, transaction
from worker.model_store import ModelStore
from worker.settings import Settings

_UNDER_LOCK = ("outbox", "reports", "refusals")
_PINS = "backup-"
"""Folder in the spool with the second names of its files, for as long as they are copied."""
_PINNED_SECONDS = 86_400.0


def back_up(settings: Settings, directory: Path) -> None:
    """Write a backup into a directory that is not there yet, or empty.

    Raises:
        ConfigurationError: the directory holds something, or a program of PostgreSQL is missing.
        Retryable: database or disk is away.
    """
    configure_logs(level="ERROR")
    _claim(directory)
    root, copy = settings.spool.path, directory / SPOOL
    copy.mkdir(mode=0o700)
    backend = make_url(settings.database.url).get_backend_name()
    pins = root / f"{_PINS}{uuid.uuid4().hex}"
    try:
        for left in root.glob(f"{_PINS}*"):
            # Of a backup that was killed: one that runs beside this one needs its own.
            if left.stat().st_mtime < time.time() - _PINNED_SECONDS:
                shutil.rmtree(left)
        with ExitStack() as held, open_ledger(settings, migrate=False) as ledger:
            engine = make_engine(settings.database.url)
            held.callback(engine.dispose)
            for name in _UNDER_LOCK:
                _pin(root / name, pins / name)
            with transaction(engine, writes=True):
                # What came since. Nobody may write meanwhile, and an outbox of a weekend holds thousands.
                for name in _UNDER_LOCK:
                    _pin(root / name, pins / name)
                head = ledger.head()
                snapshot = held.enter_context(_snapshot(settings, engine))
            snapshot(directory / LEDGER[backend])
        for name in _UNDER_LOCK:
            copy_tree(pins / name, copy / name)
        copy_tree(root / "studies", copy / "studies")
        copy_tree(settings.worker.models, directory / MODELS)
    except (OSError, sqlite3.Error) as error:
        raise stopped(error, "backed up") from None
    finally:
        shutil.rmtree(pins, ignore_errors=True)
    files = sum(1 for one in copy.rglob("*") if one.is_file())
    manifest = Manifest(
        made_at=datetime.now(UTC),
        version=version("covariance"),
        backend=backend,
        events=head.events,
        head=head.hash,
        ledger_sha256=digest(directory / LEDGER[backend]),
        files=files,
    )
    path = directory / MANIFEST
    path.write_text(manifest.model_dump_json(indent=2) + "\n")
    os.sync()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{files} files of the spool and {head.events} events are in {directory}.")
    models = len(ModelStore(directory / MODELS).bundles())
    # None of a site that installed some: the command was run where the store is not mounted.
    console.print(f"{models or 'No'} installed model{'s' * (models != 1)}, of {settings.worker.models}.")
    console.print(f"Keep the head elsewhere: {head.events}:{head.hash}")


def _claim(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = any(directory.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written: {error.strerror}.") from None
    if held:
        raise ConfigurationError(f"{directory} is not empty: name a new directory for each backup.")


def _pin(source: Path, target: Path) -> None:
    """Give every file of a tree a second name, as far as it has none there yet."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, entry in entries(source):
        if entry.is_dir():
            _pin(entry, target / name)
        elif not (target / name).exists():
            with suppress(FileNotFoundError):
                os.link(entry, target / name)


@contextmanager
def _snapshot(settings: Settings, engine: Engine) -> Iterator[Callable[[Path], None]]:
    """The ledger as it is at this moment; called with a path, it is written there."""
    url = make_url(settings.database.url)
    if url.get_backend_name() == "sqlite":
        uri = f"file:{url.database}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as source:
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it sees no writer

            def write(target: Path) -> None:
                with closing(sqlite3.connect(target)) as copy:
                    source.backup(copy)
                    copy.execute("PRAGMA journal_mode=DELETE")

            yield write
        return
    with transaction(engine, writes=False) as connection:
        exported = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
        command = ["pg_dump", "--format=custom", "--no-owner", "--no-acl", f"--snapshot={exported}"]
        yield lambda target: run_client(url, [*command, f"--file={target}"])
