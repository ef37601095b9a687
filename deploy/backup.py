"""`covariance backup` and `restore`: ledger, spool and models, in an order that loses nothing.

For a moment the ledger takes no writer: the files of the outbox get a second name each, and a snapshot of
the ledger is taken. What the snapshot says is still to be sent is in the copy, byte for byte, because nothing
was proven or dropped in between. Both are copied while everything goes on, and the films after them: whoever
has come since is in the spool and not yet in the ledger, which is what the reconciler is for. What was purged
in between is gone, and was proven before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from sqlalchemy import URL, Engine, make_url

from dicom_node.durable import synchronise
from dicom_node.errors import ConfigurationError, CovarianceError, Retryable
from dicom_node.logs import configure_logs
from dicom_node.settings import child_environment
from worker.ledger import ChainHead, migrate, open_ledger
from worker.ledger.store import make_engine, transaction
from worker.model_store import ModelStore
from worker.settings import Settings

_LEDGER = {"sqlite": "ledger.sqlite3", "postgresql": "ledger.dump"}
_BESIDE = ("-wal", "-shm", "-journal")
_UNDER_LOCK = ("outbox", "reports", "refusals")
_MANIFEST = "backup.json"
_MODELS = "models"
_PINS = "backup-"
"""Folder in the spool with the second names of its files, for as long as they are copied."""
_PINNED_SECONDS = 86_400.0


class Manifest(BaseModel):
    """What a backup holds; it is written last, so that a backup without it is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made_at: datetime
    version: str
    backend: str
    events: int
    head: str
    ledger_sha256: str
    files: int
    """Files of the spool."""


def back_up(settings: Settings, directory: Path) -> None:
    """Write a backup into a directory that is not there yet, or empty.

    Raises:
        ConfigurationError: the directory holds something, or a program of PostgreSQL is missing.
        Retryable: database or disk is away.
    """
    configure_logs(level="ERROR")
    _claim(directory)
    root, copy = settings.spool.path, directory / "spool"
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
            snapshot(directory / _LEDGER[backend])
        for name in _UNDER_LOCK:
            _copy(pins / name, copy / name, shutil.copyfile)
        _copy(root / "studies", copy / "studies", shutil.copyfile)
        _copy(settings.worker.models, directory / _MODELS, shutil.copyfile)
    except (OSError, sqlite3.Error) as error:
        raise _stopped(error, "backed up") from None
    finally:
        shutil.rmtree(pins, ignore_errors=True)
    files = sum(1 for one in copy.rglob("*") if one.is_file())
    manifest = Manifest(
        made_at=datetime.now(UTC),
        version=version("covariance"),
        backend=backend,
        events=head.events,
        head=head.hash,
        ledger_sha256=_digest(directory / _LEDGER[backend]),
        files=files,
    )
    path = directory / _MANIFEST
    path.write_text(manifest.model_dump_json(indent=2) + "\n")
    os.sync()
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{files} files of the spool and {head.events} events are in {directory}.")
    models = len(ModelStore(directory / _MODELS).bundles())
    # None of a site that installed some: the command was run where the store is not mounted.
    console.print(f"{models or 'No'} installed model{'s' * (models != 1)}, of {settings.worker.models}.")
    console.print(f"Keep the head elsewhere: {head.events}:{head.hash}")


def restore(settings: Settings, directory: Path) -> None:
    """Bring a backup back to where the settings point; nothing may be there yet.

    Raises:
        ConfigurationError: it is no backup, it is damaged, or something is there already.
        CovarianceError: the audit trail that was restored is not the one that was backed up.
    """
    configure_logs(level="ERROR")
    manifest = _read(directory)
    root, source = settings.spool.path, directory / "spool"
    backend = make_url(settings.database.url).get_backend_name()
    if backend != manifest.backend:
        raise ConfigurationError(f"The backup is of {manifest.backend}, and database.url names {backend}.")
    if root.exists() and any(root.iterdir()):
        raise ConfigurationError(f"{root} is not empty: move it aside, or set another spool.path.")
    dump = directory / _LEDGER[backend]
    if _digest(dump) != manifest.ledger_sha256:
        raise ConfigurationError(f"{dump} is not what was backed up.")
    if sum(1 for one in source.rglob("*") if one.is_file()) != manifest.files:
        raise ConfigurationError(f"{source} does not hold the {manifest.files} files that were backed up.")
    _require_no_ledger(settings)
    models = settings.worker.models
    into = {source: root}
    if not models.exists() or not any(models.iterdir()):
        into[directory / _MODELS] = models
    _fill(settings, dump, into)
    with open_ledger(settings, migrate=True) as ledger:
        noted = {ChainHead(events=manifest.events, hash=manifest.head): f"the backup {directory}"}
        found = ledger.verify(noted)
        if not found.ok:
            raise CovarianceError(f"The audit trail is not the one that was backed up. {found.sentence}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{manifest.files} files and {manifest.events} events of {manifest.made_at:%Y-%m-%d %H:%M} UTC."
    )
    if len(into) == 1:
        console.print(
            f"{models} holds models already and is as it was: `covariance model list` says which scores."
        )
    checkpoints = settings.audit.checkpoints
    if checkpoints and Path(checkpoints).exists():
        console.print(
            f"{checkpoints} may note more events than the backup had: move it aside and keep it. A new one "
            "is begun; with the old one in its place the trail would count as tampered with."
        )
    console.print("Start `covariance up`: it goes on from there. Films of since then must be sent again.")


def _fill(settings: Settings, dump: Path, into: dict[Path, Path]) -> None:
    """Copy trees to where nothing is, and load the ledger; after a failure nothing is there again."""
    try:
        for source, target in into.items():
            _copy(source, target, shutil.copyfile)
        os.sync()
        # Last: a ledger that is there says that all of it is.
        _load(settings, dump)
    except (OSError, sqlite3.Error, CovarianceError) as error:
        for target in into.values():
            for _, entry in list(_entries(target)):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        raise error if isinstance(error, CovarianceError) else _stopped(error, "restored") from None


def _claim(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = any(directory.iterdir())
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written: {error.strerror}.") from None
    if held:
        raise ConfigurationError(f"{directory} is not empty: name a new directory for each backup.")


def _stopped(error: OSError | sqlite3.Error, done: str) -> Retryable:
    said = error.strerror if isinstance(error, OSError) else type(error).__name__
    sentence = f"Not {done}: {said or type(error).__name__}. What is there of it is no use; run it again."
    return Retryable(sentence)


def _pin(source: Path, target: Path) -> None:
    """Give every file of a tree a second name, as far as it has none there yet."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, entry in _entries(source):
        if entry.is_dir():
            _pin(entry, target / name)
        elif not (target / name).exists():
            with suppress(FileNotFoundError):
                os.link(entry, target / name)


def _copy(source: Path, target: Path, each: Callable[[Path, Path], object]) -> None:
    """Copy a tree whose files come and go: what is gone meanwhile is passed over."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, entry in _entries(source):
        if entry.is_dir():
            _copy(entry, target / name, each)
        else:
            try:
                each(entry, target / name)
                # Arrival times order a study; retention and the reconciler go by them.
                shutil.copystat(entry, target / name)
            except FileNotFoundError:
                (target / name).unlink(missing_ok=True)
    if source.is_dir():
        shutil.copystat(source, target)


def _entries(source: Path) -> Iterator[tuple[str, Path]]:
    try:
        yield from ((one.name, one) for one in sorted(source.iterdir()))
    except FileNotFoundError:
        return


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
        yield lambda target: _postgresql(url, [*command, f"--file={target}"])


def _require_no_ledger(settings: Settings) -> None:
    url = make_url(settings.database.url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        # Empty is what looking at the state before leaves. What SQLite keeps beside a ledger is a part of it,
        # and would be played into another one.
        for one in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
            if one.exists() and one.stat().st_size:
                raise ConfigurationError(
                    f"{one} is there already: move {path.name}* aside together, or set another database.url."
                )
        return
    engine = make_engine(settings.database.url)
    try:
        if migrate.standing(engine).found is not None:
            raise ConfigurationError(
                "The database of database.url holds a ledger already: name an empty one."
            )
    finally:
        engine.dispose()


def _load(settings: Settings, dump: Path) -> None:
    url = make_url(settings.database.url)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            shutil.copyfile(dump, part)
            part.chmod(0o600)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        synchronise(path.parent)
        return
    restoring = ["pg_restore", "--no-owner", "--no-acl", "--exit-on-error", "--single-transaction", str(dump)]
    _postgresql(url, restoring)
    engine = make_engine(settings.database.url)
    try:
        _grant(engine)
    finally:
        engine.dispose()


def _grant(engine: Engine) -> None:
    for statement in migrate.grant(engine):
        Console(highlight=False, soft_wrap=True).print(f"To be run by hand first: {statement};")


def _postgresql(url: URL, command: list[str]) -> None:
    """Run a program of PostgreSQL against the database; its password goes by the environment."""
    # Every account of the machine sees a command line, and `URL.set` keeps what is set to None.
    query = {name: value for name, value in url.query.items() if name != "password"}
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, query)
    password = str(url.password or url.query.get("password") or "")
    environment = {**child_environment(), **({"PGPASSWORD": password} if password else {})}
    try:
        done = subprocess.run(
            [*command, f"--dbname={plain.render_as_string(hide_password=False)}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ConfigurationError(
            f"{command[0]} is not installed: it comes with PostgreSQL's client."
        ) from None
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise Retryable(f"{command[0]} failed: {first[:200]}")


def _read(directory: Path) -> Manifest:
    try:
        return Manifest.model_validate(json.loads((directory / _MANIFEST).read_text()))
    except (OSError, ValueError, ValidationError):
        raise ConfigurationError(
            f"{directory} holds no complete backup: {_MANIFEST} is missing or torn."
        ) from None


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
