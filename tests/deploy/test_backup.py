"""Backup and restore: what was restored goes on as if nothing had been."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import make_url

from deploy.backup import write as writing
from deploy.backup.archive import run_client
from deploy.backup.restore import restore
from deploy.backup.write import _claim, back_up
from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.spool import Spool
from tests.deploy.site import STUDIES, film, scored_folder, site, spool_film  # noqa: F401 (fixtures)
from tests.worker.build import settings_in, written
from tests.worker.ledger.conftest import cluster  # noqa: F401 (a fixture)
from worker.ledger import open_ledger
from worker.ledger.roles import APP
from worker.model_store import ModelStore
from worker.settings import DEFAULT_BUNDLE, Settings


def test_a_restored_site_goes_on(site, tmp_path):  # noqa: F811
    """Results that were due are sent from the restored outbox; a film that came meanwhile is found."""
    spool_film(site.spool, film("1.2.840.79"))  # in the spool, and not yet in the ledger
    back_up(site.settings, tmp_path / "backup")
    shutil.rmtree(site.spool.root)
    for file in tmp_path.glob("ledger.sqlite3*"):
        file.unlink()
    restore(site.settings, tmp_path / "backup")
    site.deliver()
    assert all(len(site.held("plain", study)) == 2 for study in STUDIES)
    with site.ledger() as ledger:
        ledger.register("1.2.840.79", site.spool.instances("1.2.840.79"))
        assert list(ledger.announceable()) == ["1.2.840.79"]
        assert ledger.verify().ok


def test_nothing_that_is_there_is_overwritten(site, tmp_path):  # noqa: F811
    """Neither a backup, nor a spool, nor a ledger."""
    back_up(site.settings, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="is not empty"):
        back_up(site.settings, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="is not empty"):
        restore(site.settings, tmp_path / "backup")
    shutil.rmtree(site.spool.root)
    with pytest.raises(ConfigurationError, match="is there already"):
        restore(site.settings, tmp_path / "backup")


def test_a_damaged_backup_is_refused(site, tmp_path):  # noqa: F811
    """A byte of the ledger, a film that is missing, a backup that was not finished."""
    elsewhere = settings_in(tmp_path / "elsewhere")
    for number, damage in enumerate(("ledger.sqlite3", "film", "backup.json")):
        directory = tmp_path / f"backup{number}"
        back_up(site.settings, directory)
        path = next(directory.rglob("*.dcm")) if damage == "film" else directory / damage
        if damage == "ledger.sqlite3":
            path.write_bytes(path.read_bytes() + b"\0")
        else:
            path.unlink()
        with pytest.raises(ConfigurationError):
            restore(elsewhere, directory)
        assert not (tmp_path / "elsewhere" / "ledger.sqlite3").exists()


def test_a_backup_beside_writers_holds_what_its_ledger_needs(tmp_path):
    """Every output that the copied ledger has as due is in the copied outbox, however busy it was."""
    settings = settings_in(tmp_path / "site")
    spool = Spool(settings.spool.path)
    (tmp_path / "site").mkdir()
    spool.prepare()
    stop = threading.Event()
    with open_ledger(settings, migrate=True) as ledger:
        written(ledger, spool, "1.2.1")

        def work():
            number = 2
            while not stop.is_set():
                written(ledger, spool, f"1.2.{number}")
                for due in ledger.due_deliveries("pacs", 2):
                    ledger.deliveries_sent({due.delivery_id: 0})
                    ledger.delivery_verified(due.delivery_id)
                for output in ledger.outputs_to_drop():
                    spool.outbox.drop(output.path)
                    ledger.outputs_dropped([output.sop_instance_uid])
                number += 1

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(3):
                back_up(settings, tmp_path / f"backup{number}")
        finally:
            stop.set()
            worker.join()
    for number in range(3):
        target = settings_in(tmp_path / f"restored{number}")
        restore(target, tmp_path / f"backup{number}")
        with open_ledger(target, migrate=False) as ledger:
            due = ledger.due_deliveries("pacs", 1000)
            assert due
            assert [one for one in due if not one.path.is_file()] == []


def test_a_ledger_on_postgresql_is_restored(cluster, tmp_path):  # noqa: F811
    """By pg_dump and pg_restore, with its triggers and its rights."""
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    from worker.ledger.store import make_engine, transaction

    old, new = cluster.new_database(), cluster.new_database()

    def at(url: str, folder: str) -> Settings:
        return settings_in(tmp_path / folder, database={"url": url})

    spool = Spool(at(old, "a").spool.path)
    (tmp_path / "a").mkdir()
    spool.prepare()
    with open_ledger(at(old, "a"), migrate=True) as ledger:
        written(ledger, spool, "1.2.3")
        head = ledger.head()
    back_up(at(old, "a"), tmp_path / "backup")
    restore(at(new, "b"), tmp_path / "backup")
    with open_ledger(at(new, "b"), migrate=False) as ledger:
        assert ledger.head() == head
        assert all(one.path.is_file() for one in ledger.due_deliveries("pacs", 10))
    engine = make_engine(new)
    with pytest.raises(DBAPIError, match="append-only"), transaction(engine, writes=True) as connection:
        connection.execute(text("DELETE FROM events"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="holds a ledger already"):
        restore(at(new, "c"), tmp_path / "backup")


def test_what_scores_is_what_scored_before(site, tmp_path, capsys):  # noqa: F811
    """A restored site has the models that were installed, and the one in use; a store that is there stays."""

    def at(folder):
        return settings_in(tmp_path / folder, worker={"models": tmp_path / folder / "models"})

    settings = site.settings.model_copy(
        update={"worker": site.settings.worker.model_copy(update={"models": tmp_path / "models"})}
    )
    store = ModelStore(tmp_path / "models")
    digest = store.install(DEFAULT_BUNDLE).bundle_sha256
    store.activate(digest)
    back_up(settings, tmp_path / "backup")
    assert f"1 installed model, of {tmp_path / 'models'}" in capsys.readouterr().out.replace("\n", " ")
    restore(at("there"), tmp_path / "backup")
    assert ModelStore(tmp_path / "there" / "models").active == digest
    assert [one.fault for one in ModelStore(tmp_path / "there" / "models").bundles()] == [""]
    other = ModelStore(tmp_path / "third" / "models")
    other.activate(None)
    restore(at("third"), tmp_path / "backup")
    assert other.active is None


def test_the_programs_login_may_back_up(cluster, tmp_path):  # noqa: F811
    """In the containers it is a member of covariance_app that takes the backup, not the tables' owner."""
    url = cluster.new_database()
    owner = settings_in(tmp_path / "site", database={"url": url})
    spool = Spool(owner.spool.path)
    (tmp_path / "site").mkdir()
    spool.prepare()
    with open_ledger(owner, migrate=True) as ledger:
        written(ledger, spool, "1.2.3")
        head = ledger.head()
    cluster.execute(f"CREATE ROLE takes_backups LOGIN IN ROLE {APP}")
    try:
        login = make_url(url).set(username="takes_backups").render_as_string(hide_password=False)
        back_up(settings_in(tmp_path / "site", database={"url": login}), tmp_path / "backup")
        there = settings_in(tmp_path / "there", database={"url": cluster.new_database()})
        restore(there, tmp_path / "backup")
        with open_ledger(there, migrate=False) as ledger:
            assert ledger.head() == head
            spool = Spool(there.spool.path)
            spool.prepare()
            written(ledger, spool, "1.2.4")  # its numbers go on behind those restored
    finally:
        cluster.execute("DROP ROLE takes_backups")


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_writers_go_on_while_the_ledger_is_written(backend, tmp_path, request, monkeypatch):
    """They wait for the snapshot alone; what they write then is not in it, and no second name is left."""
    url = request.getfixturevalue("cluster").new_database() if backend == "postgresql" else None
    told = {"database": {"url": url}} if url else {}
    settings = settings_in(tmp_path / "site", **told)
    spool = Spool(settings.spool.path)
    (tmp_path / "site").mkdir()
    spool.prepare()
    snapshot = writing._snapshot

    with open_ledger(settings, migrate=True) as ledger:
        written(ledger, spool, "1.2.840.5")

        @contextmanager
        def slow(*names):
            with snapshot(*names) as write:

                def late(target):
                    assert ledger.recall_model("a" * 64, "While the dump is written.")
                    write(target)

                yield late

        monkeypatch.setattr(writing, "_snapshot", slow)
        back_up(settings, tmp_path / "backup")
    assert list(spool.root.glob("backup-*")) == []
    if url:
        told = {"database": {"url": request.getfixturevalue("cluster").new_database()}}
    elsewhere = settings_in(tmp_path / "elsewhere", **told)
    restore(elsewhere, tmp_path / "backup")
    with open_ledger(elsewhere, migrate=False) as ledger:
        assert ledger.recalled_models() == {}
        assert all(one.path.exists() for one in ledger.due_deliveries("pacs", 10))


def test_a_backup_leaves_another_its_files(tmp_path):
    """Second names of one that runs stay; of one that was killed a day ago and more they go."""
    settings = settings_in(tmp_path / "site")
    spool = Spool(settings.spool.path)
    (tmp_path / "site").mkdir()
    spool.prepare()
    running, killed = (spool.root / f"backup-{name}" for name in ("running", "killed"))
    for one in (running, killed):
        (one / "outbox").mkdir(parents=True)
    os.utime(killed, (0, 0))
    with open_ledger(settings, migrate=True):
        back_up(settings, tmp_path / "backup")
    assert list(spool.root.glob("backup-*")) == [running]


@pytest.mark.parametrize("what", ["back_up", "restore"])
def test_a_full_disk_is_one_sentence_and_it_may_be_run_again(what, tmp_path, monkeypatch):
    """Nothing of the try stands in the way of the next, nor does an empty ledger, as a look leaves it."""
    settings, elsewhere = settings_in(tmp_path / "site"), settings_in(tmp_path / "elsewhere")
    spool = Spool(settings.spool.path)
    (tmp_path / "site").mkdir()
    spool.prepare()
    with open_ledger(settings, migrate=True) as ledger:
        written(ledger, spool, "1.2.840.5")
    if what == "restore":
        back_up(settings, tmp_path / "backup")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "ledger.sqlite3").touch()

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(Retryable, match="No space left on device"):
            back_up(settings, tmp_path / "tried") if what == "back_up" else restore(
                elsewhere, tmp_path / "backup"
            )
    assert list(spool.root.glob("backup-*")) == []
    if what == "restore":
        restore(elsewhere, tmp_path / "backup")
        with open_ledger(elsewhere, migrate=False) as ledger:
            assert len(ledger.due_deliveries("pacs", 10)) == 2


def test_a_ledger_that_is_not_taken_leaves_nothing_and_the_next_try_all(tmp_path, monkeypatch):
    """Films and models were copied by then: of them, too, nothing stays, the model in use included."""

    def at(folder):
        return settings_in(tmp_path / folder, worker={"models": tmp_path / folder / "models"})

    settings, elsewhere = at("site"), at("elsewhere")
    (tmp_path / "site").mkdir()
    Spool(settings.spool.path).prepare()
    with open_ledger(settings, migrate=True):
        pass
    store = ModelStore(tmp_path / "site" / "models")
    digest = store.install(DEFAULT_BUNDLE).bundle_sha256
    store.activate(digest)
    back_up(settings, tmp_path / "backup")
    copy = shutil.copyfile

    def full(source, target):
        if str(target).endswith(".part"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(Retryable, match="No space left on device"):
            restore(elsewhere, tmp_path / "backup")
    assert [one for one in (tmp_path / "elsewhere").rglob("*") if one.is_file()] == []
    restore(elsewhere, tmp_path / "backup")
    assert ModelStore(tmp_path / "elsewhere" / "models").active == digest


@pytest.mark.parametrize("end", ["-wal", "-journal"])
def test_what_lies_beside_an_older_ledger_is_not_played_into_it(site, tmp_path, end):  # noqa: F811
    """Whoever moves only the ledger aside is told of the rest."""
    back_up(site.settings, tmp_path / "backup")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"ledger.sqlite3{end}").write_bytes(b"pages")
    with pytest.raises(ConfigurationError, match=f"{end} is there already"):
        restore(settings_in(tmp_path / "elsewhere"), tmp_path / "backup")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://us:s3cret@db/d",  # pragma: allowlist secret (of no database)
        "postgresql://us@db/d?password=s3cret&a=b",  # pragma: allowlist secret (of no database)
    ],
)
def test_a_password_is_on_no_command_line(url, tmp_path):
    """Whoever has an account on the machine may read it there."""
    told = tmp_path / "told"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$@" >{told}\necho "$PGPASSWORD" >>{told}\n')
    program.chmod(0o755)
    run_client(make_url(url), [str(program)])
    words, password = told.read_text().splitlines()
    assert "us@db/d" in words
    assert "s3cret" not in words
    assert password == "s3cret"  # pragma: allowlist secret (of no database)


def test_a_place_that_takes_nothing_is_named(tmp_path):
    """A directory that cannot be made is one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        _claim(tmp_path / "file" / "backup")
