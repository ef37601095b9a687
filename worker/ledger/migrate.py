"""Brings a database to the schema of this version. Several processes may start at once: one migrates."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from dicom_node.errors import ConfigurationError
from worker.ledger.roles import apply_roles
from worker.ledger.store import transaction

_DIRECTORY = Path(__file__).parent / "migrations"
_alembic = threading.Lock()
"""Alembic keeps its context in module globals."""


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision, in one transaction that waits for other writers.

    Raises:
        ConfigurationError: the database was made by a newer version.
        Retryable: the database is away or busy.
    """
    with _alembic, transaction(engine, writes=True) as connection:
        if not _is_current(connection):
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def grant(engine: Engine) -> list[str]:
    """Do again what the migration did for roles; returns what must be run by hand first (`apply_roles`)."""
    with transaction(engine, writes=True) as connection:
        return apply_roles(connection)


def check(engine: Engine) -> None:
    """Raise ConfigurationError unless the schema is that of this version."""
    with transaction(engine, writes=False) as connection:
        if not _is_current(connection):
            raise ConfigurationError(
                "The database does not have this version's schema yet: start `covariance up` or a worker."
            )


def revisions(engine: Engine) -> tuple[str | None, str]:
    """The revision that the database is at, None before the first, and the one that this version needs.

    Raises:
        Retryable: the database is away or busy.
    """
    with transaction(engine, writes=False) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    return found, str(ScriptDirectory.from_config(_config()).get_current_head())


def _is_current(connection: Connection) -> bool:
    scripts = ScriptDirectory.from_config(_config())
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise ConfigurationError(f"The database is at revision {found}, which this version does not know.")
    return found == scripts.get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY).replace("%", "%%"))
    return config
