"""A job keeps the lane of its study, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest
from alembic import command
from sqlalchemy import text

from dicom_node.errors import Reason
from dicom_node.lanes import Lane
from worker.ledger import open_ledger
from worker.ledger.migrate import _config
from worker.ledger.store import make_engine, transaction

STUDY = "1.2.840.1"


@pytest.fixture
def register(ledger, given):
    """`register(sop, lane)` registers one image of the study that came in that lane."""

    def one(sop, lane):
        return ledger.register(STUDY, [replace(given.spooled(STUDY, sop), lane=lane)])

    return one


@pytest.mark.parametrize("lane", Lane)
def test_a_job_is_announced_in_the_lane_of_its_study(lane, ledger, register, given):
    """Until it is claimed, and again when it was given back; the claim says it too."""
    register("1.2.1", lane)
    assert ledger.announceable() == {STUDY: lane}
    claim = given.try_claim(STUDY)
    assert claim.lane is lane
    ledger.release(claim, retry_in=given.lease * 0, sentence="The disk is full.")
    assert ledger.announceable() == {STUDY: lane}


def test_a_study_that_is_under_way_does_not_lose_its_urgency(ledger, register):
    """A late image from the archive leaves an urgent study where it is; the other way round it hurries it."""
    register("1.2.1", Lane.STAT)
    register("1.2.2", Lane.BACKFILL)
    assert ledger.announceable() == {STUDY: Lane.STAT}


def test_a_late_image_hurries_a_study(ledger, register):
    """An urgent image takes a study out of the backfill."""
    register("1.2.1", Lane.BACKFILL)
    register("1.2.2", Lane.STAT)
    assert ledger.announceable() == {STUDY: Lane.STAT}


def test_a_study_that_is_done_begins_anew(ledger, register, given):
    """What comes to it from the archive later is backfill, although it once was urgent."""
    register("1.2.1", Lane.STAT)
    claim = given.try_claim(STUDY)
    finding = given.finding(claim)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    register("1.2.2", Lane.BACKFILL)
    assert ledger.announceable() == {STUDY: Lane.BACKFILL}


def test_a_second_chance_keeps_the_lane(ledger, register, given):
    """Whether its job was quarantined, or only an image of it."""
    register("1.2.1", Lane.STAT)
    claim = given.try_claim(STUDY)
    finding = given.finding(claim, rejected=["1.2.1"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert ledger.retry(STUDY)
    assert ledger.announceable() == {STUDY: Lane.STAT}


def test_no_backlog_hides_what_is_urgent(ledger, given):
    """However many older jobs of another lane are ready, each lane is looked at by itself."""
    for number in range(3):
        study = f"{STUDY}.{number}"
        ledger.register(study, [replace(given.spooled(study, f"1.2.{number}"), lane=Lane.BACKFILL)])
    for lane in (Lane.STAT, Lane.ROUTINE):
        ledger.register(f"{STUDY}.{lane}", [replace(given.spooled(f"{STUDY}.{lane}", "1.3"), lane=lane)])
    found = ledger.announceable(limit=2)
    assert sorted(found.values()) == [Lane.BACKFILL, Lane.BACKFILL, Lane.ROUTINE, Lane.STAT]


def test_a_late_image_leaves_a_study_that_was_set_aside_as_urgent_as_it_was(ledger, register, given):
    """Its generation takes the place of the one in quarantine, and so of its lane."""
    register("1.2.1", Lane.STAT)
    ledger.quarantine(given.try_claim(STUDY), Reason.DECODER_TIMEOUT, "It took too long.")
    register("1.2.2", Lane.BACKFILL)
    assert ledger.announceable() == {STUDY: Lane.STAT}


def test_scoring_again_is_backfill(ledger, register, given):
    """A selection that is reprocessed and left behind by its worker waits behind today's studies."""
    register("1.2.1", Lane.STAT)
    claim = given.try_claim(STUDY)
    finding = given.finding(claim)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    again = ledger.claim_again(STUDY, worker="w1", lease=given.lease)
    assert again.lane is Lane.BACKFILL
    ledger.release(again, retry_in=given.lease * 0, sentence="The disk is full.")
    assert ledger.announceable() == {STUDY: Lane.BACKFILL}


def test_what_waits_is_told_by_lane(ledger, given, clock):
    """Number and age of each lane; what an earlier version registered is routine."""
    for study, lane in (("1.1", Lane.BACKFILL), ("1.2", Lane.BACKFILL), ("1.3", Lane.STAT)):
        ledger.register(study, [replace(given.spooled(study, f"{study}.1"), lane=lane)])
        clock.pass_by(10)
    ready = ledger.vitals([]).ready
    assert {lane: (one.count, one.seconds) for lane, one in ready.items()} == {
        Lane.STAT: (1, 10.0),
        Lane.ROUTINE: (0, 0.0),
        Lane.BACKFILL: (2, 30.0),
    }


def test_a_worker_of_the_version_before_goes_on(empty_settings, clock, given):
    """Its jobs, from before the migration and from after it, are routine; no row is lost."""
    engine = make_engine(empty_settings.database.url)
    with transaction(engine, writes=True) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        _insert_as_before(connection, "1.1")
    open_ledger(empty_settings, migrate=True).close()
    with transaction(engine, writes=True) as connection:
        _insert_as_before(connection, "1.2")
    engine.dispose()
    with open_ledger(empty_settings, migrate=False, clock=clock) as ledger:
        assert ledger.announceable() == {"1.1": Lane.ROUTINE, "1.2": Lane.ROUTINE}
        assert ledger.vitals([]).ready[Lane.ROUTINE].count == 2
        claim = ledger.claim("1.1", worker="w", lease=given.lease, maximum_attempts=3)
        assert claim.lane is Lane.ROUTINE


def _insert_as_before(connection, study):
    """The rows that version 0.5 writes."""
    values = {
        "study": study,
        "at": "2026-03-01 10:00:00+00:00" if connection.dialect.name != "sqlite" else "",
    }
    values["at"] = values["at"] or "2026-03-01 10:00:00.000000"
    connection.execute(
        text("INSERT INTO studies (study_instance_uid, generation, registered_at) VALUES (:study, 1, :at)"),
        values,
    )
    connection.execute(
        text(
            "INSERT INTO jobs (study_instance_uid, generation, state, attempt, releases, fence, not_before, "
            "created_at) VALUES (:study, 1, 'ready', 0, 0, 0, :at, :at)"
        ),
        values,
    )
