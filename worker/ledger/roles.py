"""PostgreSQL roles: what the programs may do, and that changing the audit trail is not among it.

Two group roles without a login. `covariance_app` reads and writes what the programs read and write; of
the audit trail it reads and adds to it, no more. `covariance_read` reads. Logins are members:

    CREATE ROLE scorer LOGIN PASSWORD '...' IN ROLE covariance_app

The owner of the tables, who migrates them, could still drop the triggers of the audit trail; so the
programs log in as a member and not as the owner. Roles are of the whole server: those that stand are used.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from dicom_node.logs import get_logger
from worker.ledger.models import Base, Event, SchemaCompatibility

log = get_logger("ledger")

APP, READ = "covariance_app", "covariance_read"
_VERSION_TABLE = "alembic_version"


def make_roles() -> list[str]:
    """The statements that make the roles; they need the right to create roles."""
    return [f"CREATE ROLE {name} NOLOGIN" for name in (APP, READ)]


def grants(schema: str, tables: list[str]) -> list[str]:
    """The statements that give the roles their rights on these tables; the owner may run them again."""
    read_only = (Event.__tablename__, SchemaCompatibility.__tablename__)
    work = [table for table in tables if table not in read_only]
    every = ", ".join([*tables, _VERSION_TABLE])
    return [
        f"GRANT USAGE ON SCHEMA {schema} TO {APP}, {READ}",
        f"REVOKE ALL ON {every} FROM {APP}, {READ}",
        f"GRANT SELECT ON {every} TO {APP}, {READ}",
        f"GRANT INSERT, UPDATE ON {', '.join(work)} TO {APP}",
        f"GRANT INSERT ON {Event.__tablename__} TO {APP}",
        # To read them is what pg_dump wants: the programs' login takes backups.
        f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {APP}",
    ]


def apply_roles(connection: Connection) -> list[str]:
    """Make the roles where that is possible, and give them their rights on every table that stands.

    Returns:
        Statements that somebody with the right to create roles must run first, and then this again; nothing
        when all is done, or on a database without roles.
    """
    if connection.dialect.name != "postgresql":
        return []
    known = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
    for name, statement in zip((APP, READ), make_roles(), strict=True):
        if name in known:
            continue
        try:
            # Another database of the same server may make them at this moment.
            with connection.begin_nested():
                connection.execute(text(statement))
        except DBAPIError:
            known.update(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
            if name not in known:
                log.warning(
                    "roles_not_made", run_by_hand="; ".join(make_roles()), then="covariance audit roles"
                )
                return make_roles()
    ours = {table.name for table in Base.metadata.sorted_tables}
    standing = sorted(ours & set(inspect(connection).get_table_names()))
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    for statement in grants(schema, standing):
        connection.execute(text(statement))
    return []
