"""A second chance for everything lets the workers write in between."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from dicom_node.errors import Reason

STUDIES = [f"1.2.{number:03}" for number in range(250)]


@pytest.fixture
def set_aside(ledger, given):
    """Many studies, every second with a quarantined job, the others ended with a quarantined image."""
    for number, study in enumerate(STUDIES):
        claim = given.claimed(study, f"{study}.1")
        if number % 2:
            ledger.quarantine(claim, Reason.NOT_A_NUMBER, "No number.")
        else:
            ledger.finish_without_result(claim, given.finding(claim, rejected=[f"{study}.1"]))


@pytest.fixture
def transactions(ledger, clock, set_aside):
    """The writing transactions from here on; no two at the same time of the clock."""
    begun = []

    def note(connection, cursor, statement, *_):
        if statement == "BEGIN IMMEDIATE" or "pg_advisory_xact_lock" in statement:
            clock.pass_by(1)
            begun.append(clock.now.isoformat(timespec="microseconds"))

    event.listen(ledger._engine, "before_cursor_execute", note)
    yield begun
    event.remove(ledger._engine, "before_cursor_execute", note)


def retried(database):
    """How many studies were retried in each transaction, in their order."""
    with database.connect() as connection:
        rows = connection.execute(text("SELECT at FROM events WHERE kind = 'retried' ORDER BY seq"))
        return list(Counter(rows.scalars()).values())


@pytest.mark.parametrize("backend", ["sqlite"])
def test_retry_of_all_is_many_transactions(ledger, database, transactions):
    """A hundred studies at a time hold the one lock; the number is that of all."""
    assert ledger.retry() == 250
    assert len(transactions) == 3
    assert retried(database) == [100, 100, 50]
    assert ledger.retry() == 0
    assert len(transactions) == 3


@pytest.mark.parametrize("backend", ["sqlite"])
def test_release_of_all_is_many_transactions(ledger, database, transactions):
    """A hundred studies at a time hold the one lock; all are named, in order."""
    assert ledger.release_quarantine() == STUDIES
    assert len(transactions) == 3
    assert retried(database) == [100, 100, 50]


def test_retry_of_all_finds_each_kind_of_work(ledger, given):
    """Quarantined jobs, ended studies with quarantined images, and deliveries that failed are found alike."""
    ledger.quarantine(given.claimed("1.1", "1.1.1"), Reason.NOT_A_NUMBER, "No number.")
    claim = given.claimed("1.2", "1.2.1")
    ledger.finish_without_result(claim, given.finding(claim, rejected=["1.2.1"]))
    ledger.delivery_failed(given.due("1.3").delivery_id, 0xC000, "Refused.")
    given.scored("1.4", "1.4.1")
    assert ledger.retry() == 3
    assert [len(given.events(study, "retried")) for study in ("1.1", "1.2", "1.3", "1.4")] == [1, 1, 1, 0]
    assert ledger.retry() == 0


def test_a_study_that_is_held_without_an_image_is_listed_and_released(ledger, given):
    """Scored anew by a worker whose model was recalled meanwhile: its images stand, and its job is held."""
    given.scored("1.2", "1.2.1.1")
    claim = ledger.claim_again("1.2", worker="w1", lease=timedelta(seconds=60))
    ledger.quarantine(claim, Reason.MODEL_RECALLED, "The model was recalled.")
    assert given.ends("1.2") == {"1.2.1.1": ("scored", None)}
    (held,) = ledger.quarantined_studies()
    assert (held.study_instance_uid, held.reason) == ("1.2", Reason.MODEL_RECALLED)
    assert ledger.quarantined() == []
    assert ledger.release_quarantine(reason=Reason.DECODER_TIMEOUT) == []
    assert ledger.release_quarantine(reason=Reason.MODEL_RECALLED) == ["1.2"]
    assert ledger.quarantined_studies() == []
    assert given.try_claim("1.2")
