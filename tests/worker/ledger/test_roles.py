"""PostgreSQL itself keeps the programs from changing the audit trail; its triggers keep the owner."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from dicom_node.errors import ConfigurationError
from tests.worker.ledger.test_refusals import window
from worker.ledger import Recorded, migrate, open_ledger
from worker.ledger.models import Base
from worker.ledger.roles import APP, READ
from worker.ledger.store import make_engine
from worker.settings import DatabaseSection, Settings


@pytest.fixture
def backend():
    """Roles are PostgreSQL's."""
    return "postgresql"


@pytest.fixture
def login(cluster, url):
    """`login(group)` is the URL of the ledger for a login of that group; it is gone after the test."""
    made = []

    def make(group: str) -> str:
        name = f"member_of_{group}"
        cluster.execute(f"CREATE ROLE {name} LOGIN IN ROLE {group}")
        made.append(name)
        return make_url(url).set(username=name).render_as_string()

    yield make
    for name in made:
        cluster.execute(f"DROP ROLE {name}")


@pytest.fixture
def as_role(login):
    """`as_role(group, statement)` runs one statement as a login of that group."""

    def execute(group: str, statement: str) -> None:
        engine = create_engine(login(group), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    return execute


@pytest.fixture
def without_roles(cluster):
    """The server as it is before anybody has made our roles."""
    for name in (APP, READ):
        cluster.execute(f"ALTER ROLE {name} RENAME TO {name}_aside")
    yield
    for name in (APP, READ):
        cluster.execute(f"ALTER ROLE {name}_aside RENAME TO {name}")


def opened(url: str, *, migrate: bool = False):
    return open_ledger(Settings(database=DatabaseSection(url=url)), migrate=migrate)


def test_a_member_works_through_a_whole_life(login, given):
    """A login of the working role takes a study from its registration to the removal of its outputs."""
    with opened(login(APP), migrate=True) as ledger:
        mine = type(given)(ledger)
        delivery = mine.due("1.2")
        ledger.delivery_retry(delivery.delivery_id, 0xA700, timedelta())
        ledger.deliveries_sent({delivery.delivery_id: 0x0000})
        ledger.request_commitment([delivery.delivery_id], "1.9", timedelta(seconds=1))
        ledger.delivery_verified(delivery.delivery_id)
        ledger.outputs_dropped([delivery.sop_instance_uid])
        claim = mine.claimed("1.3", "1.3.1.1")
        assert ledger.extend(claim, lease=given.lease)
        finding = given.finding(claim, rejected=["1.3.1.1"])
        assert ledger.finish_without_result(claim, finding) is Recorded.RECORDED
        assert ledger.retry() == 1
        assert [ledger.take_refusals(window()) for _ in range(2)] == [True, False]
        ledger.note_read("somebody", 3)
        assert ledger.read_up_to("somebody") == 3
        assert ledger.verify().ok


@pytest.mark.parametrize(
    "statement",
    ["UPDATE events SET kind = 'x'", "DELETE FROM events", "TRUNCATE events", "DROP TABLE events",
     "ALTER TABLE events DISABLE TRIGGER USER", "DROP TRIGGER events_refuse_change ON events",
     "UPDATE alembic_version SET version_num = '1'", "DELETE FROM studies",
     "UPDATE schema_compatibility SET compatible_since = '1'"],
)  # fmt: skip
def test_the_server_refuses_a_member(as_role, given, statement):
    """Whatever changes the audit trail, or what guards it, is not among the working role's rights."""
    given.scored("1.2", "1.2.1.1")
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        as_role(APP, statement)


@pytest.mark.parametrize("table", sorted(table.name for table in Base.metadata.sorted_tables))
def test_the_reading_role_reads(as_role, given, table):
    """A login of the reading role reads every table."""
    as_role(READ, f"SELECT * FROM {table}")


@pytest.mark.parametrize("table", ["events", "studies", "cursors"])
def test_the_reading_role_writes_nothing(as_role, given, table):
    """A login of the reading role adds nothing."""
    with pytest.raises(ProgrammingError, match="permission denied"):
        as_role(READ, f"INSERT INTO {table} DEFAULT VALUES")


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET kind = 'x'", "DELETE FROM events", "TRUNCATE events"]
)
def test_the_triggers_refuse_the_owner(database, given, statement):
    """The owner of the tables has every right, and the triggers refuse all the same."""
    given.scored("1.2", "1.2.1.1")
    with database.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.execute(text(statement))


def test_a_right_given_by_mistake_is_taken_back(as_role, cluster, url, given):
    """Whoever gave the working role more than it needs is corrected by applying the roles again."""
    cluster.execute(f"GRANT DELETE ON events TO {APP}", database=make_url(url).database)
    engine = make_engine(url)
    assert migrate.grant(engine) == []
    engine.dispose()
    with pytest.raises(ProgrammingError, match="permission denied"):
        as_role(APP, "DELETE FROM events")


def test_an_owner_who_may_not_create_roles_migrates(cluster, without_roles):
    """Without the right to create roles the schema stands, and it is said what to run by hand."""
    cluster.execute("CREATE ROLE humble LOGIN", "CREATE DATABASE humble OWNER humble")
    try:
        url = make_url(cluster.url("humble")).set(username="humble").render_as_string()
        with opened(url, migrate=True) as ledger:
            assert ledger.status().studies == 0
        engine = make_engine(url)
        assert migrate.grant(engine) == [f"CREATE ROLE {APP} NOLOGIN", f"CREATE ROLE {READ} NOLOGIN"]
        cluster.execute(*migrate.grant(engine))
        # The owner gives the rights on what is his, and needs no others for it.
        assert migrate.grant(engine) == []
        engine.dispose()
    finally:
        cluster.execute("DROP DATABASE humble", f"DROP ROLE IF EXISTS {APP}, {READ}", "DROP ROLE humble")


def test_a_member_does_not_migrate(cluster, login):
    """A working login on an old schema is told that the owner must bring it up to date."""
    old = make_url(cluster.new_database())
    member = make_url(login(APP)).set(database=old.database).render_as_string()
    with pytest.raises(ConfigurationError, match="needs the owner"):
        opened(member, migrate=True)
