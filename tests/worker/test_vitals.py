"""What waits, how long, and whether the trail is as it was written."""

from __future__ import annotations

import sqlite3
import time

import pytest

from dicom_node.errors import Retryable
from dicom_node.lanes import Lane
from dicom_node.spool import Spool
from tests.worker.build import Clock, settings_in, written
from tests.worker.ledger.conftest import spooled
from worker import gpu, metrics
from worker.audit_walk import AuditWalk
from worker.ledger import ChainHead, DeliveryState, open_ledger
from worker.remembered import Remembered
from worker.vitals import Backlog, LedgerVitals


@pytest.fixture
def site(tmp_path):
    """Settings with one destination, an open ledger, its clock and its spool."""
    destination = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
    settings = settings_in(tmp_path, destinations=[destination])
    spool, clock = Spool(settings.spool.path), Clock()
    spool.prepare()
    with open_ledger(settings, migrate=True, clock=clock) as ledger:
        yield settings, ledger, clock, spool


def test_what_waits_has_an_age(site):
    """A study that no worker took and a result that was not sent are as old as they are."""
    _, ledger, clock, spool = site
    written(ledger, spool, "1.2.1")
    clock.pass_by(100)
    ledger.register("1.2.2", [spooled("1.2.2", "1.2.2.1")])
    clock.pass_by(20)
    vitals = ledger.vitals(["pacs"])
    assert (vitals.ready[Lane.ROUTINE].count, vitals.ready[Lane.ROUTINE].seconds) == (1, 20.0)
    assert vitals.deliveries["pacs"][DeliveryState.DUE].count == 2
    assert vitals.unproven("pacs") == 120.0
    assert vitals.head == ledger.head()


def test_where_stored_is_enough_it_is_proven(site):
    """A destination that is not asked for proof owes none."""
    _, ledger, clock, spool = site
    written(ledger, spool, "1.2.1")
    ledger.deliveries_sent({one.delivery_id: 0 for one in ledger.due_deliveries("pacs", limit=10)})
    clock.pass_by(50)
    assert ledger.vitals(["pacs"]).unproven("pacs") == 50.0
    assert ledger.vitals(["pacs"], trusted=["pacs"]).unproven("pacs") == 0.0


def test_a_study_that_nobody_registered_counts_as_waiting(site):
    """While no worker lives, the queue is as old as the oldest study in the spool."""
    settings, ledger, _, _ = site
    collector = LedgerVitals(settings, ledger, lambda: {Lane.STAT: Backlog(studies=3, seconds=700.0)})
    told = {
        (sample.name, sample.labels.get("lane")): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
    assert told["covariance_queue_studies", "stat"] == 3
    assert told["covariance_queue_age_seconds", "stat"] == 700.0
    assert told["covariance_queue_studies", "backfill"] == 0


def test_a_database_that_is_away_is_told(site, tmp_path):
    """The scrape works without the database, and says that it is away."""
    settings, ledger, _, _ = site
    ledger.close()
    file = tmp_path / "ledger.sqlite3"
    file.unlink()
    file.mkdir()
    (up,) = LedgerVitals(settings, ledger, dict).collect()
    assert [sample.value for sample in up.samples] == [0.0]


def test_an_event_that_was_changed_is_seen_by_the_walk(site, tmp_path):
    """Behind the walk as well: the next round finds it, and the gauge falls."""
    _, ledger, _, spool = site
    written(ledger, spool, "1.2.1")
    walk = AuditWalk(ledger, round_seconds=0.0)
    walk.step()
    assert metrics.AUDIT_INTACT._value.get() == 1
    with sqlite3.connect(tmp_path / "ledger.sqlite3") as forger:
        forger.execute("DROP TRIGGER events_refuse_update")
        forger.execute("UPDATE events SET body = '{}' WHERE seq = 2")
    walk.step()
    assert metrics.AUDIT_INTACT._value.get() == 0


def test_a_walk_begins_anew_only_from_its_end(site, monkeypatch):
    """However long it takes, it comes to the last event before it looks at the first again."""
    monkeypatch.setattr("worker.audit_walk._EVENTS", 2)
    _, ledger, _, spool = site
    written(ledger, spool, "1.2.1")
    walk = AuditWalk(ledger, round_seconds=0.0)
    seen = []
    while walk.step():
        seen.append(metrics.AUDIT_VERIFIED._value.get())
        assert len(seen) < 100
    assert seen == [2 * page for page in range(1, len(seen) + 1)]
    assert metrics.AUDIT_VERIFIED._value.get() == ledger.head().events
    walk.step()
    assert metrics.AUDIT_VERIFIED._value.get() == 2


def test_a_walk_goes_on_from_where_it_was(site):
    """Page by page, each only behind the last one; a cut-off end is seen."""
    _, ledger, _, spool = site
    written(ledger, spool, "1.2.1")
    head, pages = ChainHead(), 0
    while (found := ledger.verify_next(head, limit=2)).head != head:
        assert found.ok
        head, pages = found.head, pages + 1
    assert head == ledger.head()
    assert pages > 1
    beyond = ChainHead(events=head.events + 1, hash="0" * 64)
    assert not ledger.verify_next(beyond, limit=2).ok


def test_an_answer_is_remembered_for_a_while(monkeypatch):
    """Two scrapes within the time ask once; what failed is asked again."""
    now = time.monotonic()
    answers = iter([1, Retryable("away"), 2])

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    remembered = Remembered(ask, 3600)
    assert [remembered(), remembered()] == [1, 1]
    monkeypatch.setattr("time.monotonic", lambda: now + 3601)
    with pytest.raises(Retryable):
        remembered()
    assert remembered() == 2


def test_what_nvidia_smi_says_is_read():
    """Percent and MiB become shares and bytes; what a MIG slice does not tell is left out."""
    full, slice_ = gpu.parse("0, 37, 1024, 81559, 41\n1, [N/A], 512, 40960, 39\nbroken\n")
    assert (full.index, full.busy, full.used_bytes, full.celsius) == ("0", 0.37, 1024 * 1_048_576, 41.0)
    assert slice_.busy is None
