"""What a backup is: the names in it, its manifest, and how trees and databases are copied."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import URL

from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.settings import child_environment

LEDGER = {"sqlite": "ledger.sqlite3", "postgresql": "ledger.dump"}
"""File of the ledger in a backup, by backend."""
MANIFEST = "backup.json"
MODELS = "models"
SPOOL = "spool"


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


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a backup that was written to its end.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return Manifest.model_validate(json.loads((directory / MANIFEST).read_text()))
    except (OSError, ValueError, ValidationError):
        raise ConfigurationError(
            f"{directory} holds no complete backup: {MANIFEST} is missing or torn."
        ) from None


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree whose files come and go: what is gone meanwhile is passed over."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, entry in entries(source):
        if entry.is_dir():
            copy_tree(entry, target / name)
        else:
            try:
                shutil.copyfile(entry, target / name)
                # Arrival times order a study; retention and the reconciler go by them.
                shutil.copystat(entry, target / name)
            except FileNotFoundError:
                (target / name).unlink(missing_ok=True)
    if source.is_dir():
        shutil.copystat(source, target)


def entries(source: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths in a directory, in order; none of one that is not there."""
    try:
        yield from ((one.name, one) for one in sorted(source.iterdir()))
    except FileNotFoundError:
        return


def run_client(url: URL, command: list[str]) -> None:
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


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None


def stopped(error: OSError | sqlite3.Error, done: str) -> Retryable:
    """What is said where a disk or SQLite ended it."""
    said = error.strerror if isinstance(error, OSError) else type(error).__name__
    sentence = f"Not {done}: {said or type(error).__name__}. What is there of it is no use; run it again."
    return Retryable(sentence)
