"""`covariance restore`: a backup goes back to where the settings point, its ledger last.

A ledger that is there says that all of it is.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine, make_url

from deploy.backup.archive import (
    LEDGER,
    MODELS,
    SPOOL,
    copy_tree,
    digest,
    entries,
    read_manifest,
    run_client,
    stopped,
)
from dicom_node.durable import synchronise
from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.logs import configure_logs
from worker.ledger import ChainHead, migrate, open_ledger
from worker.ledger.store import make_engine
from worker.settings import Settings

_BESIDE = ("-wal", "-shm", "-journal")


def restore(settings: Settings, directory: Path) -> None:
    """Bring a backup back to where the settings point; nothing may be there yet.

    Raises:
        ConfigurationError: it is no backup, it is damaged, or something is there already.
        CovarianceError: the audit trail that was restored is not the one that was backed up.
    """
    configure_logs(level="ERROR")
    manifest = read_manifest(directory)
    root, source = settings.spool.path, directory / SPOOL
    backend = make_url(settings.database.url).get_backend_name()
    if backend != manifest.backend:
        raise ConfigurationError(f"The backup is of {manifest.backend}, and database.url names {backend}.")
    if root.exists() and any(root.iterdir()):
        raise ConfigurationError(f"{root} is not empty: move it aside, or set another spool.path.")
    dump = directory / LEDGER[backend]
    if digest(dump) != manifest.ledger_sha256:
        raise ConfigurationError(f"{dump} is not what was backed up.")
    if sum(1 for one in source.rglob("*") if one.is_file()) != manifest.files:
        raise ConfigurationError(f"{source} does not hold the {manifest.files} files that were backed up.")
    _require_no_ledger(settings)
    models = settings.worker.models
    into = {source: root}
    if not models.exists() or not any(models.iterdir()):
        into[directory / MODELS] = models
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


def _fill(settings: Settings, dump: Path, into: dict[Path, Path]) -> None:
    """Copy trees to where nothing is, then load the ledger; after a failure nothing is there again."""
    try:
        for source, target in into.items():
            copy_tree(source, target)
        os.sync()
        _load(settings, dump)
    except (OSError, sqlite3.Error, CovarianceError) as error:
        for target in into.values():
            for _, entry in list(entries(target)):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)
        raise error if isinstance(error, CovarianceError) else stopped(error, "restored") from None


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
    run_client(url, restoring)
    engine = make_engine(settings.database.url)
    try:
        _grant(engine)
    finally:
        engine.dispose()


def _grant(engine: Engine) -> None:
    for statement in migrate.grant(engine):
        Console(highlight=False, soft_wrap=True).print(f"To be run by hand first: {statement};")
