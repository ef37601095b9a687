"""Two versions at one database: where the newer one's migrations only add, the older goes on, and starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, inspect, text

from dicom_node.errors import ConfigurationError
from worker.ledger import migrate, open_ledger
from worker.ledger.store import make_engine, transaction

NEXT = "9001"
_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{head}", None, None
{says}

def upgrade():
    op.add_column("images", sa.Column("of_{revision}", sa.Text(), nullable=True))
"""
LINEAGE = [script.revision for script in migrate._lineage()]
HEAD = LINEAGE[-1]


@pytest.fixture
def newer(tmp_path, monkeypatch) -> Callable[[str | None], AbstractContextManager[None]]:
    """`with newer(compatible_since)`: the code of a version with one migration more."""
    numbers = iter(range(10))

    @contextmanager
    def version(compatible_since: str | None) -> Iterator[None]:
        directory = tmp_path / f"migrations-{next(numbers)}"
        shutil.copytree(migrate._DIRECTORY, directory)
        says = f'compatible_since = "{compatible_since}"' if compatible_since else ""
        file = directory / "versions" / f"{NEXT}_trial.py"
        file.write_text(_MIGRATION.format(revision=NEXT, head=HEAD, says=says))
        with monkeypatch.context() as patch:
            patch.setattr(migrate, "_DIRECTORY", directory)
            yield

    return version


def test_older_programs_go_on_and_start_again(empty_settings, newer, given):
    """One that runs while the newer version migrates goes on, and so does one that starts afterwards."""
    with open_ledger(empty_settings, migrate=True) as running:
        mine = type(given)(running)
        mine.scored("1.1", "1.1.1.1")
        with newer(HEAD):
            open_ledger(empty_settings, migrate=True).close()
        mine.scored("1.2", "1.2.1.1")
    for by_itself in (True, False):
        with open_ledger(empty_settings, migrate=by_itself) as started:
            assert (started.schema().found, started.schema().compatible) == (NEXT, True)
            type(given)(started).scored(f"1.3{by_itself:d}", "1.3.1.1")
            assert started.verify().ok
    with newer(HEAD), open_ledger(empty_settings, migrate=True) as back:
        assert back.status().studies == 4


def test_what_older_programs_cannot_work_with_is_taken_by_nobody_who_starts(empty_settings, newer):
    """It waits for somebody to say that all are stopped; then it is done, and older ones are refused."""
    open_ledger(empty_settings, migrate=True).close()
    for says in (None, NEXT):
        with newer(says), pytest.raises(ConfigurationError, match=r"stop every process.*--all-stopped"):
            open_ledger(empty_settings, migrate=True)
    open_ledger(empty_settings, migrate=True).close()
    with newer(None):
        open_ledger(empty_settings, migrate=True, all_stopped=True).close()
        open_ledger(empty_settings, migrate=False).close()
    for by_itself in (True, False):
        with pytest.raises(ConfigurationError, match=f"revision {NEXT} or newer.*knows {HEAD}"):
            open_ledger(empty_settings, migrate=by_itself)


def test_an_empty_database_takes_every_migration(empty_settings, newer):
    """Nobody runs on a database without a schema."""
    with newer(None):
        open_ledger(empty_settings, migrate=True).close()


def test_what_nobody_knows_is_refused(empty_settings):
    """A revision of a version that left no word on who can work with it is left alone."""
    open_ledger(empty_settings, migrate=True).close()
    engine = make_engine(empty_settings.database.url)
    with transaction(engine, writes=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("DROP TABLE schema_compatibility"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="9999"):
        open_ledger(empty_settings, migrate=True)


def test_every_migration_says_who_can_work_with_it():
    """An earlier revision or itself, and never one before that which an earlier migration has named."""
    said = []
    for script in migrate._lineage():
        assert hasattr(script.module, "compatible_since"), script.revision
        said.append(LINEAGE.index(script.module.compatible_since))
        assert said[-1] <= LINEAGE.index(script.revision)
    assert said == sorted(said)


@pytest.mark.parametrize("revision", LINEAGE[1:])
def test_a_compatible_migration_only_adds(empty_settings, revision):
    """What was there stays as it was, and what is new can be left out by who does not know it."""
    script = next(one for one in migrate._lineage() if one.revision == revision)
    if script.module.compatible_since == revision:
        return  # it says that it breaks
    before = _shape_at(empty_settings, LINEAGE[LINEAGE.index(revision) - 1])
    after = _shape_at(empty_settings, revision)
    for table, shape in before.items():
        assert after[table]["rules"] == shape["rules"], table
        assert shape["columns"].items() <= after[table]["columns"].items(), table
        for name in after[table]["columns"].keys() - shape["columns"].keys():
            _, nullable, default = after[table]["columns"][name]
            assert nullable or default, f"{table}.{name}"


def _shape_at(settings: Any, revision: str) -> dict[str, Any]:
    engine = make_engine(settings.database.url)
    try:
        with transaction(engine, writes=True) as connection:
            config = migrate._config()
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            return _shape(connection)
    finally:
        engine.dispose()


def _shape(connection: Connection) -> dict[str, Any]:
    found = inspect(connection)
    return {
        table: {
            "columns": {
                one["name"]: (str(one["type"]), one["nullable"], one["default"])
                for one in found.get_columns(table)
            },
            "rules": [
                found.get_pk_constraint(table),
                sorted(map(str, found.get_unique_constraints(table))),
                sorted(map(str, found.get_foreign_keys(table))),
                sorted(map(str, found.get_check_constraints(table))),
                sorted(str(one) for one in found.get_indexes(table) if one["unique"]),
            ],
        }
        for table in found.get_table_names()
    }


def test_the_shape_tells_what_breaks(empty_settings):
    """A column that must be given, one that went, and a rule that is new are no additions."""
    before = _shape_at(empty_settings, HEAD)["images"]
    engine = make_engine(empty_settings.database.url)
    with transaction(engine, writes=True) as connection:
        connection.execute(text("ALTER TABLE images DROP COLUMN sentence"))
        connection.execute(text("CREATE UNIQUE INDEX uq_images_path ON images (path)"))
        after = _shape(connection)["images"]
    engine.dispose()
    assert not before["columns"].items() <= after["columns"].items()
    assert before["rules"] != after["rules"]
