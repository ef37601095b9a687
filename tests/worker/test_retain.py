"""Retention: what is proven and old enough leaves the spool, and a crash leaves nothing half done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import event
from structlog.testing import capture_logs

from dicom_node import uids
from dicom_node.spool import Filed, Spool
from tests.dicom_node.build import arrival, encoded, film
from tests.worker.build import Clock, settings_in
from tests.worker.ledger.conftest import Given, spooled
from worker.ledger import Recorded, open_ledger
from worker.retain import Retainer

STUDY = "1.2.840.1"
DAY = 86_400.0


class Site:
    """A spool, a ledger and a retainer over them, and a study that went all the way."""

    def __init__(self, folder, ledger, clock, **retention):
        self.settings = settings_in(folder, retention=retention)
        self.spool = Spool(self.settings.spool.path)
        self.spool.prepare()
        self.ledger = ledger
        self.clock = clock
        self.retainer = Retainer(self.settings, ledger, clock=clock)

    def receive(self, dataset, study=STUDY):
        dataset.StudyInstanceUID = study
        now = replace(arrival(), received_at=self.clock.now)
        syntax = uids.EXPLICIT_VR_LITTLE_ENDIAN
        return self.spool.store(encoded(dataset), transfer_syntax_uid=syntax, arrival=now)

    def prove(self, study=STUDY):
        """Register, score, store and prove what the spool holds of the study."""
        self.ledger.register(study, self.spool.instances(study))
        given = Given(self.ledger)
        claim = given.try_claim(study)
        finding = given.finding(claim)
        recorded = self.ledger.record(claim, finding, given.outputs(finding), ["pacs"])
        assert recorded is Recorded.RECORDED
        for one in self.ledger.due_deliveries("pacs", 100):
            self.ledger.deliveries_sent({one.delivery_id: 0x0000})
            self.ledger.delivery_verified(one.delivery_id)

    def files(self):
        return sorted(path.name for path in (self.spool.root / "studies").glob("*/*"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def site(tmp_path, clock):
    with open_ledger(settings_in(tmp_path), migrate=True, clock=clock) as ledger:
        yield Site(tmp_path, ledger, clock, enabled=True, keep_days=7)


def test_films_go_when_their_time_is_up(site, clock):
    """A proven study is there for keep_days, and then neither its files nor its directory are."""
    site.receive(film())
    site.prove()
    clock.pass_by(6.9 * DAY)
    site.retainer.step()
    assert len(site.files()) == 1
    clock.pass_by(0.2 * DAY)
    site.retainer.step()
    assert list((site.spool.root / "studies").iterdir()) == []


def test_retention_is_off_by_default(site, clock, tmp_path):
    """Without the setting nothing ever goes by itself."""
    site.receive(film())
    site.prove()
    clock.pass_by(10_000 * DAY)
    Retainer(settings_in(tmp_path), site.ledger, clock=clock).step()
    assert len(site.files()) == 1


def test_crash_between_record_and_removal_is_finished(site, clock, tmp_path):
    """Files that were recorded as going, and are still there, go at the next start, retention on or off."""
    site.receive(film())
    site.prove()
    clock.pass_by(8 * DAY)
    assert site.ledger.purge([STUDY], site.retainer._rule()) == 1
    assert len(site.files()) == 1
    Retainer(settings_in(tmp_path), site.ledger, clock=clock).step()
    assert site.files() == []
    assert site.ledger.leaving(limit=10) == []


def test_crash_between_removal_and_its_record_is_finished(site, clock):
    """A file that is gone already is noted as gone."""
    instance, _ = site.receive(film())
    site.prove()
    clock.pass_by(8 * DAY)
    site.ledger.purge([STUDY], site.retainer._rule())
    instance.path.unlink()
    site.retainer.step()
    assert site.ledger.leaving(limit=10) == []


def test_file_that_nobody_has_registered_keeps_its_study(site, clock):
    """While the spool holds an image that the ledger does not know, nothing of its study goes."""
    site.receive(film())
    site.prove()
    clock.pass_by(8 * DAY)
    site.receive(film())
    assert site.retainer.purge() == 0
    assert len(site.files()) == 2


def test_purged_image_may_come_again(site, clock):
    """The node takes the same bytes as new after a purge, they give no work, and they are purged again."""
    dataset = film()
    site.receive(dataset)
    site.prove()
    clock.pass_by(8 * DAY)
    site.retainer.step()
    clock.pass_by(60)
    _, filed = site.receive(dataset)
    assert filed is Filed.NEW
    assert site.ledger.register(STUDY, site.spool.instances(STUDY)).job_ready is False
    assert site.files() != []
    clock.pass_by(8 * DAY)
    site.retainer.step()
    assert site.files() == []
    kinds = [event.kind for event in site.ledger.study(STUDY).events]
    assert kinds[-3:] == ["purged", "came_again", "purged"]


@pytest.mark.parametrize("when", ["before it goes", "when it has gone"])
def test_film_that_comes_again_while_its_purge_is_under_way_stays(site, clock, when):
    """Its sender heard success: the file is the new one's, whichever side of the removal a crash was on."""
    dataset = film()
    first, _ = site.receive(dataset)
    site.prove()
    clock.pass_by(8 * DAY)
    site.ledger.purge([STUDY], site.retainer._rule())
    if when == "when it has gone":
        first.path.unlink()
    clock.pass_by(60)
    _, filed = site.receive(dataset)
    assert filed is (Filed.DUPLICATE if when == "before it goes" else Filed.NEW)
    site.retainer.finish()
    assert len(site.files()) == 1
    site.ledger.register(STUDY, site.spool.instances(STUDY))
    assert [event.kind for event in site.ledger.study(STUDY).events][-1] == "came_again"
    site.retainer.step()
    assert len(site.files()) == 1, "it was received today"


def test_film_that_was_sent_twice_goes(site, clock):
    """A duplicate before the purge is no reason to keep either."""
    dataset = film()
    site.receive(dataset)
    site.prove()
    clock.pass_by(8 * DAY)
    assert site.receive(dataset)[1] is Filed.DUPLICATE
    site.retainer.step()
    assert site.files() == []


def test_stubborn_file_stops_no_other(site, clock):
    """A file that the disk does not let go is logged without its name, and the others go."""
    instance, _ = site.receive(film())
    site.prove()
    site.receive(film(), study="1.2.840.2")
    site.prove("1.2.840.2")
    clock.pass_by(8 * DAY)
    instance.path.unlink()
    (instance.path / "in the way").mkdir(parents=True)
    with capture_logs() as logs:
        site.retainer.step()
    assert {"film_not_removed", "films_purged"} <= {one["event"] for one in logs}
    assert [one.path for one in site.ledger.leaving(limit=10)] == [instance.path]
    assert [path.parent.name for path in (site.spool.root / "studies").glob("*/*")] == [STUDY]


def test_stubborn_files_in_front_keep_back_no_other(site, clock, monkeypatch):
    """However many files the disk does not let go, those that were to go after them go at the same look."""
    monkeypatch.setattr("worker.retain._FILES", 2)
    for number in range(3):
        study = f"1.2.840.{number}"
        instance, _ = site.receive(film(), study=study)
        site.prove(study)
        if number < 2:
            instance.path.unlink()
            (instance.path / "in the way").mkdir(parents=True)
    clock.pass_by(8 * DAY)
    with capture_logs() as logs:
        site.retainer.step()
    assert len(site.ledger.leaving(limit=10)) == 2
    assert len(site.files()) == 2
    assert [one.get("studies") for one in logs if one["event"] == "film_not_removed"] == [2]


def test_first_purge_comes_before_the_last_study_is_looked_at(site, clock, monkeypatch):
    """A page of studies is looked at and let go, then the next, and no study has a SELECT of its own."""
    studies = [f"1.2.840.{number}" for number in range(1, 451)]
    for study in studies:
        site.ledger.register(study, [replace(spooled(study, f"{study}.1"), received_at=clock.now)])
        claim = Given(site.ledger).try_claim(study)
        site.ledger.finish_without_result(claim, Given.finding(claim, by_policy=[f"{study}.1"]))
        clock.pass_by(0.001)
    clock.pass_by(8 * DAY)
    done, selects = [], []
    look, purge = site.retainer._spool.count, site.ledger.purge
    monkeypatch.setattr(site.retainer._spool, "count", lambda study: done.append(study) or look(study))
    monkeypatch.setattr(
        site.ledger, "purge", lambda page, *told: done.append(len(page)) or purge(page, *told)
    )

    @event.listens_for(site.ledger._engine, "before_cursor_execute")
    def note(connection, cursor, statement, *_):
        if statement.startswith("SELECT") and "FROM images" in statement:
            selects.append(statement)

    assert site.retainer.purge() == 450
    assert done == [*studies[:200], 200, *studies[200:400], 200, *studies[400:], 50]
    assert len(selects) <= 1 + 4 * 3


def test_only_received_objects_are_removed(site):
    """Whatever path the ledger holds, nothing outside the studies of the spool is ever removed."""
    outside = site.spool.root / "outbox" / "1.2.3"
    outside.mkdir()
    letter = outside / f"1.2.3_{'a' * 64}.dcm"
    letter.touch()
    with pytest.raises(ValueError, match="only received objects"):
        site.spool.remove({letter: site.clock.now})
    assert letter.exists()
