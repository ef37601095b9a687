"""Which received files may go: nothing that anybody may still ask for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event

from dicom_node.errors import Reason
from worker.ledger import PurgeRule, Registration

STUDY = "1.2"
SOP = "1.2.1.1"


@pytest.fixture
def rule(clock):
    return PurgeRule(received_before=clock.now + timedelta(days=1))


def going(ledger, rule):
    return [one.study_instance_uid for one in ledger.purgeable(rule)]


def prove(ledger, study=STUDY):
    """Every output of the study is stored and found at the destination."""
    for one in ledger.due_deliveries("pacs", 100):
        if one.study_instance_uid == study:
            ledger.deliveries_sent({one.delivery_id: 0x0000})
            ledger.delivery_verified(one.delivery_id)


def purged(ledger, given, clock, rule):
    """A study that was scored, proven and purged, its file removed."""
    given.scored(STUDY, SOP)
    prove(ledger)
    assert ledger.purge([STUDY], rule) == 1
    ledger.removed(ledger.leaving(limit=10))
    clock.pass_by(60)


def again(given, clock, sop=SOP):
    """The same content, sent once more, now."""
    return replace(given.spooled(STUDY, sop), received_at=clock.now)


def test_proven_study_goes(ledger, given, rule):
    """A scored study whose outputs are all proven may go, with its number of images and bytes."""
    given.scored(STUDY, SOP, "1.2.1.2")
    prove(ledger)
    (one,) = ledger.purgeable(rule)
    assert (one.images, one.size) == (2, 10_000_000_000)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_purged_images_are_not_read_again(ledger, rule):
    """SQLite reads the images that are still here by their own index, not every image that ever was."""
    asked = []

    @event.listens_for(ledger._engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *_):
        if "FROM images" in statement:
            asked.append((statement, parameters))

    try:
        ledger.purgeable(rule)
    finally:
        event.remove(ledger._engine, "before_cursor_execute", note)
    ((statement, parameters),) = asked
    with ledger._reading() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    steps = [row[3] for row in plan]
    assert "SEARCH images USING INDEX ix_images_kept (received_at<?)" in steps
    assert not [step for step in steps if step.startswith("SCAN images")]


def test_nothing_goes_before_it_is_proven(ledger, given, rule):
    """A result that is due, or stored and not proven, keeps its films."""
    delivery = given.due(STUDY)
    assert going(ledger, rule) == []
    for one in ledger.due_deliveries("pacs", 10):
        ledger.deliveries_sent({one.delivery_id: 0x0000})
    assert going(ledger, rule) == []
    ledger.delivery_verified(delivery.delivery_id)
    assert going(ledger, rule) == []


def test_stored_is_enough_where_no_proof_is_asked_for(ledger, given, rule):
    """At a trusted destination stored is enough; at another one it is not."""
    given.scored(STUDY, SOP)
    ledger.deliveries_sent({one.delivery_id: 0x0000 for one in ledger.due_deliveries("pacs", 10)})
    assert going(ledger, replace(rule, trusted=("other",))) == []
    assert going(ledger, replace(rule, trusted=("pacs",))) == [STUDY]


def test_one_destination_without_proof_keeps_all(ledger, given, rule):
    """A result that one of two PACS has not proven keeps its films."""
    given.scored(STUDY, SOP, destinations=["pacs", "other"])
    prove(ledger)
    assert going(ledger, rule) == []


def test_refused_delivery_keeps_the_films(ledger, given, rule):
    """A delivery that people must look at keeps its films."""
    given.scored(STUDY, SOP)
    first, *others = ledger.due_deliveries("pacs", 10)
    ledger.delivery_failed(first.delivery_id, 0xC000, "Refused.")
    for one in others:
        ledger.deliveries_sent({one.delivery_id: 0x0000})
        ledger.delivery_verified(one.delivery_id)
    assert going(ledger, rule) == []


def test_result_that_goes_nowhere_keeps_the_films(ledger, given, rule):
    """Without a destination nothing is proven, and nothing goes."""
    given.scored(STUDY, SOP, destinations=[])
    assert going(ledger, rule) == []


def test_young_image_keeps_its_study(ledger, given, rule, clock):
    """One image that is not old enough keeps the others of its study."""
    late = replace(given.spooled(STUDY, "1.2.1.2"), received_at=clock.now)
    ledger.register(STUDY, [given.spooled(STUDY, SOP), late])
    claim = given.try_claim(STUDY)
    finding = given.finding(claim)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    prove(ledger)
    assert going(ledger, replace(rule, received_before=clock.now)) == []
    assert going(ledger, rule) == [STUDY]


def test_work_keeps_the_films(ledger, given, rule):
    """A study with a job that is ready, claimed or quarantined keeps its films."""
    given.scored(STUDY, SOP)
    prove(ledger)
    given.registered(STUDY, SOP, "1.2.1.2")
    assert going(ledger, rule) == []
    claim = given.try_claim(STUDY)
    assert going(ledger, rule) == []
    ledger.quarantine(claim, Reason.IDENTITY_CONFLICT, "Two patients.")
    assert going(ledger, rule) == []


def test_quarantined_image_keeps_its_study(ledger, given, rule):
    """A study with a quarantined image stays whole, for a retry reads all of it, unless told otherwise."""
    claim = given.claimed(STUDY, SOP, "1.2.1.2")
    finding = given.finding(claim, rejected=[SOP])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    prove(ledger)
    assert going(ledger, rule) == []
    told = replace(rule, quarantined=True)
    assert going(ledger, told) == [STUDY]
    assert ledger.purge([STUDY], told) == 2
    assert ledger.retry() == 0


def test_second_content_stays_and_keeps_nothing_else(ledger, given, rule):
    """The second content of a UID was never work: it stays, and the study's films go."""
    given.scored(STUDY, SOP)
    prove(ledger)
    ledger.register(STUDY, [given.spooled(STUDY, SOP, "other content")])
    assert ledger.purge([STUDY], rule) == 1
    assert going(ledger, rule) == []
    assert [image.purged_at is None for image in given.study(STUDY).images] == [False, True]


def test_study_by_policy_without_a_result_goes(ledger, given, rule):
    """Where policy left nothing to report there is nothing to prove."""
    claim = given.claimed(STUDY, SOP)
    ledger.finish_without_result(claim, given.finding(claim, by_policy=[SOP]))
    assert going(ledger, rule) == [STUDY]


def test_purge_is_recorded_before_it_is_done(ledger, given, rule):
    """The decision is one audit event with every file of it; the files wait until they are gone."""
    given.scored(STUDY, SOP)
    prove(ledger)
    assert ledger.purge([STUDY], rule) == 1
    (event,) = given.events(STUDY, "purged")
    assert [image["sop_instance_uid"] for image in event["images"]] == [SOP]
    (leaving,) = ledger.leaving(limit=10)
    assert leaving.path.name.startswith(SOP)
    assert ledger.leaving(limit=10, after=leaving) == []
    ledger.removed([leaving])
    assert ledger.leaving(limit=10) == []
    assert ledger.registered(STUDY) == 0
    assert ledger.status().purged == 1
    assert ledger.verify().ok


def test_study_that_changed_meanwhile_is_passed_over(ledger, given, rule):
    """Between the look and the purge an image may come: then nothing is purged."""
    given.scored(STUDY, SOP)
    prove(ledger)
    assert going(ledger, rule) == [STUDY]
    given.registered(STUDY, SOP, "1.2.1.2")
    assert ledger.purge([STUDY], rule) == 0
    assert given.events(STUDY, "purged") == []


def test_purged_image_that_comes_again_is_not_scored_again(ledger, given, rule, clock):
    """The same bytes after a purge give no work, are kept, and may be purged again."""
    purged(ledger, given, clock, rule)
    registration = ledger.register(STUDY, [again(given, clock)])
    assert registration == Registration(new=0, job_ready=False, generation=1)
    assert ledger.registered(STUDY) == 1
    assert len(given.events(STUDY, "came_again")) == 1
    assert ledger.purge([STUDY], rule) == 1


def test_listing_from_before_the_purge_brings_nothing_back(ledger, given, rule, clock):
    """A worker that listed the spool before the file went does not make the ledger believe in it."""
    purged(ledger, given, clock, rule)
    ledger.register(STUDY, [given.spooled(STUDY, SOP)])
    assert ledger.registered(STUDY) == 0


def test_late_image_of_a_purged_study_finds_the_others_purged(ledger, given, rule, clock):
    """The claim says how many of its images are gone."""
    purged(ledger, given, clock, rule)
    ledger.register(STUDY, [again(given, clock, "1.2.1.2")])
    claim = given.try_claim(STUDY)
    assert (claim.generation, len(claim.instances), claim.purged) == (2, 2, 1)


def test_whole_study_that_comes_again_with_a_late_image_is_scored(ledger, given, rule, clock):
    """When the purged images come with the new one, the new generation has all of them."""
    purged(ledger, given, clock, rule)
    ledger.register(STUDY, [again(given, clock), again(given, clock, "1.2.1.2")])
    claim = given.try_claim(STUDY)
    assert (claim.generation, len(claim.instances), claim.purged) == (2, 2, 0)


def test_held_study_goes_on_when_its_images_come_again(ledger, given, rule, clock):
    """A study that was held for want of its purged images is due once they are here, without a retry."""
    purged(ledger, given, clock, rule)
    late = again(given, clock, "1.2.1.2")
    ledger.register(STUDY, [late])
    ledger.quarantine(given.try_claim(STUDY), Reason.FILE_PURGED, "Purged.")
    assert given.ends(STUDY) == {SOP: ("scored", None), "1.2.1.2": ("quarantined", Reason.FILE_PURGED)}
    registration = ledger.register(STUDY, [again(given, clock), late])
    assert registration == Registration(new=0, job_ready=True, generation=3)
    assert given.try_claim(STUDY).purged == 0
    assert given.ends(STUDY)["1.2.1.2"] == ("pending", None)
