"""Brings a database to the schema of this version, so that programs of the version before go on.

Every migration says in `compatible_since` the oldest revision whose programs can work with what it leaves:
mostly an old one, because a migration only adds. The newest such word stands in the database, so that older
programs, which do not know the migration, know all the same whether they may start. One that older programs
cannot work with is taken only by `covariance migrate --all-stopped`, never by a program that starts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, Engine, delete, insert, inspect, select

from dicom_node.errors import ConfigurationError
from worker.ledger.models import Base, SchemaCompatibility
from worker.ledger.roles import apply_roles
from worker.ledger.store import transaction

_DIRECTORY = Path(__file__).parent / "migrations"
_alembic = threading.Lock()
"""Alembic keeps its context in module globals."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Where a database stands, seen from this version."""

    found: str | None
    """Its revision; None before the first migration."""
    needed: str
    """The newest revision that this version knows."""
    behind: bool
    """Whether this version has migrations for it."""
    compatible: bool
    """Whether a newer version has migrated it, and says that this one can work with it."""
    compatible_since: str | None
    """Which programs can work with it at all, by their revision; None where nobody has said so."""

    @property
    def usable(self) -> bool:
        """Whether this version works with it as it is."""
        return self.found == self.needed or self.compatible

    @property
    def obstacle(self) -> str:
        """Why a database that a newer version has migrated is of no use here."""
        since = self.compatible_since
        asked = f", which needs a program of revision {since} or newer" if since else ""
        return (
            f"The database is at revision {self.found}{asked}, and this version knows {self.needed}: run the "
            "version that made it, or restore a backup from before."
        )


def migrate(engine: Engine, *, all_stopped: bool = False) -> Schema:
    """Upgrade to the newest revision, in one transaction that waits for other writers.

    Args:
        engine: the database.
        all_stopped: no program of an older version runs, so that none breaks.

    Raises:
        ConfigurationError: a newer version made the database what this one cannot use, or programs of the
            version before cannot work with the new schema, and nobody said that they are stopped.
        Retryable: the database is away or busy.
    """
    with _alembic, transaction(engine, writes=True) as connection:
        schema = _schema(connection)
        if schema.usable:
            return schema
        if not schema.behind:
            raise ConfigurationError(schema.obstacle)
        lineage = _lineage()
        since = _compatible_since(lineage)
        names = [script.revision for script in lineage]
        if schema.found and names.index(schema.found) < names.index(since) and not all_stopped:
            raise ConfigurationError(
                f"Programs of revision {schema.found}, which may run now, cannot work with {schema.needed}: "
                "stop every process, back up, and run `covariance migrate --all-stopped`."
            )
        _upgrade(connection, since)
        return _schema(connection)


def grant(engine: Engine) -> list[str]:
    """Do again what the migration did for roles; returns what must be run by hand first (`apply_roles`)."""
    with transaction(engine, writes=True) as connection:
        return apply_roles(connection)


def check(engine: Engine) -> None:
    """Raise ConfigurationError unless this version can work with the schema."""
    schema = standing(engine)
    if schema.behind:
        raise ConfigurationError(
            "The database does not have this version's schema yet: start `covariance up` or a worker, or, "
            "where those may not change it, run `covariance migrate` as its owner."
        )
    if not schema.usable:
        raise ConfigurationError(schema.obstacle)


def standing(engine: Engine) -> Schema:
    """Where the database stands.

    Raises:
        Retryable: the database is away or busy.
    """
    with transaction(engine, writes=False) as connection:
        return _schema(connection)


def _schema(connection: Connection) -> Schema:
    found = MigrationContext.configure(connection).get_current_revision()
    known = [script.revision for script in _lineage()]
    since = None
    if inspect(connection).has_table(SchemaCompatibility.__tablename__):
        since = connection.execute(select(SchemaCompatibility.compatible_since)).scalar_one_or_none()
    return Schema(
        found=found,
        needed=known[-1],
        behind=found is None or found in known[:-1],
        compatible=found not in (None, *known) and since in known,
        compatible_since=since,
    )


def _upgrade(connection: Connection, since: str) -> None:
    table = Base.metadata.tables[SchemaCompatibility.__tablename__]
    # Beside Alembic's own table, and not by a migration: programs that know no migration of ours read it.
    table.create(connection, checkfirst=True)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(delete(SchemaCompatibility))
    connection.execute(insert(SchemaCompatibility), [{"compatible_since": since}])
    apply_roles(connection)


def _lineage() -> list[Script]:
    """Every migration, the oldest first."""
    return list(ScriptDirectory.from_config(_config()).walk_revisions())[::-1]


def _compatible_since(lineage: list[Script]) -> str:
    """The oldest revision whose programs can work with all of these; who says nothing has broken with it."""
    names = [script.revision for script in lineage]
    said = [getattr(script.module, "compatible_since", script.revision) for script in lineage]
    return max(said, key=names.index)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY).replace("%", "%%"))
    return config
