"""Opening, migrating, failing and sharing a database."""

from __future__ import annotations

import multiprocessing
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text

from dicom_node.errors import ConfigurationError, Retryable
from worker.ledger import open_ledger
from worker.ledger.models import Base
from worker.settings import DatabaseSection, Settings


def test_migrations_match_the_models(empty_settings):
    """A database that was migrated from empty is what the models describe, nothing more or less."""
    open_ledger(empty_settings, migrate=True).close()
    engine = create_engine(empty_settings.database.url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrating_again_changes_nothing(empty_settings):
    """A database of this version opens with and without migration."""
    open_ledger(empty_settings, migrate=True).close()
    open_ledger(empty_settings, migrate=True).close()
    open_ledger(empty_settings, migrate=False).close()


def test_unmigrated_database_is_refused(empty_settings):
    """Without migration an empty database is an error in one sentence."""
    with pytest.raises(ConfigurationError, match="schema"):
        open_ledger(empty_settings, migrate=False)


def test_threads_migrate_at_once(empty_settings):
    """Threads that start together on an empty database all end with a ledger."""
    start = threading.Barrier(4)

    def open_one(_: int) -> int:
        start.wait()
        with open_ledger(empty_settings, migrate=True) as ledger:
            return ledger.status().studies

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_one, range(4))) == [0] * 4


def test_processes_migrate_at_once(empty_settings):
    """Processes that start together on an empty database all end with a ledger."""
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(4)

    def open_one() -> None:
        start.wait()
        with open_ledger(empty_settings, migrate=True) as ledger:
            assert ledger.retry() == 0
            assert ledger.verify().ok

    processes = [fork.Process(target=open_one) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_writers_in_many_threads_keep_the_chain(ledger, given):
    """Writers that work at once leave one unbroken chain, and none is turned away."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: given.scored(f"1.{number}", f"1.{number}.1.1"), range(12)))
    assert ledger.verify().events == 36
    assert ledger.verify().ok


def test_two_ledgers_share_a_database(settings, ledger, given):
    """What one process writes the other reads."""
    given.scored("1.2", "1.2.1.1")
    with open_ledger(settings, migrate=False) as other:
        assert other.study("1.2") == ledger.study("1.2")


def test_url_that_names_no_database():
    """A URL that cannot be used is a configuration error in one sentence."""
    for url in ("nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigurationError, match=r"database\.url"):
            open_ledger(Settings(database=DatabaseSection(url=url)), migrate=True)


def test_file_that_is_no_database(tmp_path):
    """A file that is something else is refused and left as it is."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear colleague, " * 500)
    with pytest.raises(ConfigurationError, match="ledger"):
        open_ledger(Settings(database=DatabaseSection(url=f"sqlite:///{path}")), migrate=True)
    assert path.read_text().startswith("Dear colleague")


def test_sqlite_is_made_private_and_durable(tmp_path):
    """A SQLite ledger gets its directory, is readable by us only, and every commit is on the disk."""
    path = tmp_path / "some" / "where" / "ledger.sqlite3"
    with open_ledger(Settings(database=DatabaseSection(url=f"sqlite:///{path}")), migrate=True) as ledger:
        assert path.stat().st_mode & 0o077 == 0
        with ledger._reading() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_database_away_is_retryable_without_values(empty_settings, given, backend, request):
    """A database that goes away is Retryable, in a sentence that quotes no value of the statement."""
    url = make_url(empty_settings.database.url)
    with open_ledger(empty_settings, migrate=True) as ledger:
        if backend == "sqlite":
            ledger.close()
            Path(url.database).unlink()
            Path(url.database).mkdir()
        else:
            request.getfixturevalue("cluster").execute(f"DROP DATABASE {url.database} WITH (FORCE)")
        with pytest.raises(Retryable) as away:
            ledger.register("7.7.7", [given.spooled("7.7.7", "7.7.7.1")])
    assert not re.search(r"7\.7\.7|SELECT|INSERT", str(away.value))


def test_busy_sqlite_is_retryable(tmp_path, monkeypatch):
    """A writer that waits too long for another gives up with Retryable."""
    monkeypatch.setattr("worker.ledger.store.BUSY_SECONDS", 0.05)
    settings = Settings(database=DatabaseSection(url=f"sqlite:///{tmp_path / 'ledger.sqlite3'}"))
    with (
        open_ledger(settings, migrate=True) as ledger,
        ledger._writing(),
        pytest.raises(Retryable, match="SQLITE_BUSY"),
    ):
        ledger.retry("1.2")


def test_a_writer_whose_machine_stands_still_keeps_no_other_from_writing(cluster, monkeypatch):
    """PostgreSQL ends its transaction, and with it the lock that all writers share; it hears of it."""
    monkeypatch.setattr("worker.ledger.store._SILENT_SECONDS", 1)
    settings = Settings(database=DatabaseSection(url=cluster.new_database()))
    with open_ledger(settings, migrate=True) as frozen, open_ledger(settings, migrate=False) as other:

        def stand_still():
            with frozen._writing() as writer:
                other.recall_model("a" * 64, "While the first is silent.")
                writer.execute(text("SELECT 1"))

        with pytest.raises(Retryable):
            stand_still()
        assert other.recalled_models() == {"a" * 64: "While the first is silent."}


def test_read_only_postgresql_is_retryable(cluster):
    """A server that takes no writing for now, in a fail-over or on a full disk, is Retryable."""
    settings = Settings(database=DatabaseSection(url=cluster.new_database()))
    name = make_url(settings.database.url).database
    with open_ledger(settings, migrate=True) as ledger:
        ledger.close()  # the next connection is a new one
        cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        with pytest.raises(Retryable, match="25006"):
            ledger.retry("1.2")
        ledger.close()
        cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        assert ledger.retry() == 0
