"""What stands behind the programs: database and broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, make_url, text

from deploy import broker
from deploy.configuration import without_secrets
from deploy.doctor.check import Check, fail, ok, warn
from dicom_node.dispatch import QUEUES, Dispatcher, celery_app
from dicom_node.errors import Retryable
from dicom_node.lanes import Lane
from worker.ledger import migrate
from worker.ledger.roles import APP, READ
from worker.ledger.store import make_engine, transaction
from worker.settings import Settings

_WORKERS_SECONDS = 2.0
_LONG_QUEUE = 1000


def database(settings: Settings) -> Iterator[Check]:
    """Whether the ledger answers, has the schema of this version, and cannot be forged by us."""
    url = make_url(settings.database.url)
    shown = without_secrets(settings.database.url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        # To look must not make it.
        yield warn("database", f"{url.database} is not there yet.", "A worker makes it at its first start.")
        return
    engine = make_engine(settings.database.url)
    try:
        schema = migrate.standing(engine)
        yield ok("database", f"{shown} answers.")
        yield _schema(schema)
        if url.get_backend_name() == "postgresql" and schema.found is not None:
            yield _roles(engine)
    except Retryable as error:
        advice = "Start it, or correct database.url; films are received and wait in the spool meanwhile."
        yield fail("database", f"{shown}: {error}", advice)
    finally:
        engine.dispose()


def _schema(schema: migrate.Schema) -> Check:
    if schema.found == schema.needed:
        return ok("migrations", f"The schema is at {schema.found}, the newest.")
    if schema.compatible:
        return ok(
            "migrations",
            f"The schema is at revision {schema.found}, of a newer version; {schema.needed} works with it.",
        )
    if schema.found is None:
        return warn(
            "migrations",
            "The database has no schema yet.",
            "A worker makes it at its first start; on PostgreSQL: `covariance audit roles` as the owner.",
        )
    if schema.behind:
        return fail(
            "migrations",
            f"The schema is at {schema.found}, and this version needs {schema.needed}.",
            "Start a worker, or as the owner `covariance audit roles`; back up first.",
        )
    return fail("migrations", schema.obstacle, "See runbook 10, upgrade and roll back.")


def _roles(engine: Engine) -> Check:
    with transaction(engine, writes=False) as connection:
        known = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
        owns = _may_change_the_trail(connection)
    if missing := sorted({APP, READ} - known):
        return warn(
            "roles",
            f"The role {missing[0]} is missing.",
            "Run `covariance audit roles` as the owner.",
        )
    if owns:
        return warn(
            "roles",
            "This login may change the audit trail: it owns the tables, or is a superuser.",
            f"Log in as a member of {APP}: `covariance audit roles` says how.",
        )
    return ok("roles", f"This login is a member of {APP} at most: the server keeps the audit trail from it.")


def _may_change_the_trail(connection: Connection) -> bool:
    right = text("SELECT has_table_privilege('events', 'UPDATE') OR has_table_privilege('events', 'DELETE')")
    return bool(connection.execute(right).scalar_one())


def queue(settings: Settings) -> Iterator[Check]:
    """Whether the broker answers, and how much waits there."""
    reachable = broker.reachable(settings)
    shown = without_secrets(reachable.queue.url)
    if broker.is_embedded(settings.queue) and reachable is settings:
        yield warn(
            "broker",
            f"The embedded broker does not run in {settings.queue.embedded_path}.",
            "Start it: `covariance up`; studies wait in the spool until then.",
        )
        return
    dispatcher = Dispatcher(reachable)
    depths = dispatcher.depths()
    dispatcher.close()
    yield from _deaf(reachable) if depths is not None and settings.lanes.rules else ()
    if depths is None:
        advice = "Start it, or correct queue.url; studies wait in the spool and are announced again."
        yield fail("broker", f"{shown} does not answer.", advice)
        return
    told = ", ".join(f"{depth} {lane}" for lane, depth in depths.items())
    # A long backfill is as it is meant to be.
    if depths[Lane.STAT] + depths[Lane.ROUTINE] > _LONG_QUEUE:
        yield warn("broker", f"Messages wait at {shown}: {told}.", "Start more workers.")
    else:
        yield ok("broker", f"{shown} answers, messages that wait: {told}.")


def _deaf(settings: Settings) -> Iterator[Check]:
    """Workers of a version without lanes: what a rule calls urgent would wait beside them."""
    told = celery_app(settings).control.inspect(timeout=_WORKERS_SECONDS).active_queues() or {}
    deaf = sorted(
        worker
        for worker, queues in told.items()
        if not {queue["name"] for queue in queues} >= set(QUEUES.values())
    )
    if deaf:
        advice = "Upgrade them, or take the rules out of [lanes] until then."
        yield fail("broker", f"These workers do not hear every lane: {', '.join(deaf)}.", advice)
    else:
        yield ok("broker", f"Every worker that answers hears every lane: {len(told)}.")
