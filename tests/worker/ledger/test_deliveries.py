"""Every output at every destination ends proven, or set aside for people."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from dicom_node.commitment import CommitmentReport
from worker.ledger.models import Commitment

NOT_SUPPORTED, PROCESSING_FAILURE = 0x0122, 0x0110
NO_SUCH_OBJECT = 0x0112  # PS3.7 C.5.? as in a commitment report's Failure Reason
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000


def request(ledger, clock, delivery, transaction="2.25.1", seconds=60):
    ledger.request_commitment([delivery.delivery_id], transaction, timedelta(seconds=seconds))


def report(transaction="2.25.1", *, committed=(), failed=()):
    return CommitmentReport(
        transaction_uid=transaction,
        committed=tuple(committed),
        failed=tuple((uid, NO_SUCH_OBJECT) for uid in failed),
    )


def test_due_delivery_says_what_to_send(ledger, given):
    """A due delivery names object, class, series, file and digest."""
    finding = given.scored("1.2", "1.2.1.1")
    expected = {(o.sop_instance_uid, o.series_instance_uid, o.sha256, o.path) for o in given.outputs(finding)}
    due = ledger.due_deliveries("pacs", 10)
    assert {(d.sop_instance_uid, d.series_instance_uid, d.sha256, d.path) for d in due} == expected


def test_due_deliveries_are_of_one_destination(ledger, given):
    """A deliverer sees its own destination, and no more than it asked for."""
    given.scored("1.2", "1.2.1.1", destinations=["pacs"])
    given.scored("1.3", "1.3.1.1", destinations=["archive"])
    assert {d.study_instance_uid for d in ledger.due_deliveries("archive", 10)} == {"1.3"}
    assert len(ledger.due_deliveries("archive", 1)) == 1


def test_sent_delivery_is_not_due(ledger, given):
    """What the destination has stored is not sent again; a warning counts as stored."""
    delivery = given.due("1.2")
    ledger.deliveries_sent({delivery.delivery_id: 0xB000})
    now = given.delivery(delivery)
    assert (now.state, now.attempts, now.last_status) == ("stored", 1, 0xB000)
    assert delivery.sop_instance_uid not in {d.sop_instance_uid for d in ledger.due_deliveries("pacs", 10)}


def test_retry_waits(ledger, given, clock):
    """A delivery without success is due after its pause, its attempts counted."""
    delivery = given.due("1.2")
    ledger.delivery_retry(delivery.delivery_id, OUT_OF_RESOURCES, timedelta(seconds=30))
    assert delivery.delivery_id not in {d.delivery_id for d in ledger.due_deliveries("pacs", 10)}
    clock.pass_by(30)
    again = {d.delivery_id: d.attempts for d in ledger.due_deliveries("pacs", 10)}
    assert again[delivery.delivery_id] == 1


def test_long_outage_leaves_one_event(ledger, given, clock):
    """A destination that gives the same answer again and again fills no audit trail."""
    delivery = given.due("1.2")
    for status in (None, None, None, OUT_OF_RESOURCES, OUT_OF_RESOURCES):
        ledger.delivery_retry(delivery.delivery_id, status, timedelta())
    told = [(event["attempts"], event["last_status"]) for event in given.events("1.2", "not_stored")]
    assert told == [(1, None), (4, OUT_OF_RESOURCES)]


def test_refusals_are_counted_in_a_row(ledger, given, clock):
    """Any other outcome between two refusals begins their count anew; attempts go on."""
    delivery = given.due("1.2")

    def counted():
        again = next(d for d in ledger.due_deliveries("pacs", 10) if d.delivery_id == delivery.delivery_id)
        return again.attempts, again.refusals

    for _ in range(2):
        ledger.delivery_retry(delivery.delivery_id, CANNOT_UNDERSTAND, timedelta(), refused=True)
    assert counted() == (2, 2)
    ledger.delivery_retry(delivery.delivery_id, None, timedelta())
    assert counted() == (3, 0)


def test_failed_and_parked_wait_for_people(ledger, given):
    """A refused object is not tried again until people ask for it."""
    failed, parked = given.due("1.2"), given.due("1.3")
    ledger.delivery_failed(failed.delivery_id, 0xC000, "The destination refuses the object.")
    ledger.delivery_parked(parked.delivery_id, 0x0122)
    assert {d.state for d in (given.delivery(failed), given.delivery(parked))} == {"failed", "parked"}
    assert {d.role for d in ledger.due_deliveries("pacs", 10)} == {"sc"}


def test_retry_makes_set_aside_deliveries_due(ledger, given):
    """`retry` makes failed and parked deliveries due with their attempts counted anew."""
    failed, parked = given.due("1.2"), given.due("1.3")
    ledger.delivery_failed(failed.delivery_id, 0xC000, "The destination refuses the object.")
    ledger.delivery_parked(parked.delivery_id, 0x0122)
    assert ledger.retry() == 2
    assert {(d.state, d.attempts) for d in (given.delivery(failed), given.delivery(parked))} == {("due", 0)}


def test_stored_is_to_be_proven(ledger, given, clock):
    """What is stored and not asked about is to be proven; an open request is not made twice."""
    delivery = given.stored("1.2")
    assert [d.delivery_id for d in ledger.stored_unverified("pacs", 10)] == [delivery.delivery_id]
    request(ledger, clock, delivery)
    assert ledger.stored_unverified("pacs", 10) == []


def test_unanswered_request_is_made_again(ledger, given, clock):
    """A commitment request past its deadline is made again."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery, seconds=60)
    clock.pass_by(60)
    assert [d.delivery_id for d in ledger.stored_unverified("pacs", 10)] == [delivery.delivery_id]


def test_silence_is_waited_for_twice_as_long_each_time(ledger, given, clock):
    """Requests to a destination that never reports become rarer, to one an hour."""
    delivery = given.stored("1.2")
    waits = []
    for number in range(8):
        request(ledger, clock, delivery, f"2.25.{number + 1}", seconds=60)
        asked_at = clock.now
        while not ledger.stored_unverified("pacs", 10):
            clock.pass_by(60)
        waits.append((clock.now - asked_at).total_seconds())
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_stored_anew_is_asked_about_without_delay(ledger, given, clock):
    """After an object was sent again the wait for a report is the first one."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery, "2.25.1")
    clock.pass_by(61)
    ledger.commitment_reported(report("2.25.1", failed=[delivery.sop_instance_uid]))
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    request(ledger, clock, delivery, "2.25.2", seconds=60)
    clock.pass_by(60)
    assert [d.delivery_id for d in ledger.stored_unverified("pacs", 10)] == [delivery.delivery_id]


def test_silence_leaves_one_event(ledger, given, clock):
    """A destination that never reports fills no audit trail with our requests."""
    delivery = given.stored("1.2")
    for number in range(3):
        request(ledger, clock, delivery, f"2.25.{number + 1}")
        clock.pass_by(3600)
    assert [e["transaction_uid"] for e in given.events("1.2", "commitment_requested")] == ["2.25.1"]


def test_refused_request_leaves_one_event(ledger, given, clock):
    """The status with which a destination refuses requests is noted once, and once more when it changes."""
    delivery = given.stored("1.2")
    for number, status in enumerate((NOT_SUPPORTED, NOT_SUPPORTED, PROCESSING_FAILURE)):
        transaction = f"2.25.{number + 1}"
        request(ledger, clock, delivery, transaction)
        ledger.commitment_refused(transaction, status)
        clock.pass_by(3600)
    told = [event["status"] for event in given.events("1.2", "commitment_refused")]
    assert told == [NOT_SUPPORTED, PROCESSING_FAILURE]


def test_report_commits(ledger, given, clock):
    """A commitment report proves what it names."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery)
    outcome = ledger.commitment_reported(report(committed=[delivery.sop_instance_uid]))
    assert (outcome.known, outcome.committed, outcome.failed) == (True, 1, 0)
    assert (given.delivery(delivery).state, given.delivery(delivery).proven_at) == ("committed", clock.now)


def test_report_twice_commits_once(ledger, given, clock):
    """A report that comes twice changes nothing the second time."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery)
    answer = report(committed=[delivery.sop_instance_uid])
    ledger.commitment_reported(answer)
    before = given.study("1.2")
    assert ledger.commitment_reported(answer).committed == 0
    assert given.study("1.2") == before


def test_late_report_counts(ledger, given, clock):
    """The answer to an older request still proves storage after a newer one was made."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery, "2.25.1")
    clock.pass_by(61)
    request(ledger, clock, delivery, "2.25.2")
    ledger.commitment_reported(report("2.25.1", committed=[delivery.sop_instance_uid]))
    assert given.delivery(delivery).state == "committed"


def test_report_before_the_store_is_noted(ledger, given, clock):
    """Proof that overtakes the note of the C-STORE is kept, and the note does not undo it."""
    delivery = given.due("1.2")
    request(ledger, clock, delivery)
    ledger.commitment_reported(report(committed=[delivery.sop_instance_uid]))
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    assert given.delivery(delivery).state == "committed"


def test_object_that_is_not_held_is_sent_again(ledger, given, clock):
    """An object that the destination does not hold becomes due again after a pause."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery)
    ledger.commitment_reported(report(failed=[delivery.sop_instance_uid]))
    now = given.delivery(delivery)
    assert now.state == "due"
    assert now.due_at > clock.now


def test_report_of_an_unknown_transaction(ledger, given, clock):
    """A report that nobody asked for proves nothing, even when it names an object of ours."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery, "2.25.1")
    outcome = ledger.commitment_reported(report("2.25.666", committed=[delivery.sop_instance_uid]))
    assert (outcome.known, given.delivery(delivery).state) == (False, "stored")


def test_report_proves_one_destination(ledger, given, clock):
    """Proof by one destination says nothing of another."""
    given.scored("1.2", "1.2.1.1", destinations=["pacs", "archive"])
    for destination in ("pacs", "archive"):
        for one in ledger.due_deliveries(destination, 10):
            ledger.deliveries_sent({one.delivery_id: 0x0000})
    asked = ledger.stored_unverified("archive", 10)
    ledger.request_commitment([d.delivery_id for d in asked], "2.25.1", timedelta(seconds=60))
    ledger.commitment_reported(report(committed=[d.sop_instance_uid for d in asked]))
    assert ledger.status().deliveries == {"archive": {"committed": 2}, "pacs": {"stored": 2}}


def test_found_by_query(ledger, given):
    """An object that a C-FIND found is verified."""
    delivery = given.stored("1.2")
    ledger.delivery_verified(delivery.delivery_id)
    assert given.delivery(delivery).state == "verified"


def test_not_found_by_query_is_sent_again(ledger, given, clock):
    """A stored object that a C-FIND does not find is due again."""
    delivery = given.stored("1.2")
    ledger.delivery_missing(delivery.delivery_id, timedelta())
    assert given.delivery(delivery).state == "due"


def test_outage_does_not_take_back_what_is_stored(ledger, given, clock):
    """A batch that breaks off leaves what was stored before the break as it is."""
    delivery = given.stored("1.2")
    ledger.delivery_retry(delivery.delivery_id, None, timedelta())
    assert (given.delivery(delivery).state, given.delivery(delivery).attempts) == ("stored", 1)


def test_cancelled_in_flight_is_stored(ledger, given):
    """An object that was under way when a newer result came is noted as stored, because it is."""
    delivery = given.due("1.2")
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    assert given.delivery(delivery).state == "stored"


def test_superseded_object_is_not_sent_again(ledger, given, clock):
    """An object of a superseded result that the destination lost is not sent again."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery)
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    ledger.commitment_reported(report(failed=[delivery.sop_instance_uid]))
    assert given.delivery(delivery).state == "cancelled"


def test_bytes_are_kept_until_proven(ledger, given):
    """An output is dropped when every destination has proven it, not before; and only once."""
    given.scored("1.2", "1.2.1.1", destinations=["pacs", "archive"])
    for destination in ("pacs", "archive"):
        assert ledger.outputs_to_drop() == []
        for one in ledger.due_deliveries(destination, 10):
            ledger.deliveries_sent({one.delivery_id: 0x0000})
            ledger.delivery_verified(one.delivery_id)
    droppable = ledger.outputs_to_drop()
    assert len(droppable) == 2
    for output in droppable:
        ledger.outputs_dropped([output.sop_instance_uid])
    assert ledger.outputs_to_drop() == []


def test_refused_bytes_are_kept(ledger, given):
    """The bytes of a refused object stay, so that a retry can send them."""
    for one in (given.due("1.2"), *ledger.due_deliveries("pacs", 10)):
        ledger.delivery_failed(one.delivery_id, 0xC000, "The destination refuses the object.")
    assert ledger.outputs_to_drop() == []


def test_stored_is_enough_at_trusted_destinations(ledger, given):
    """Where no proof is asked for, the bytes go when they are stored."""
    delivery = given.stored("1.2", "pacs")
    assert ledger.outputs_to_drop(trusted=["archive"]) == []
    dropped = [o.sop_instance_uid for o in ledger.outputs_to_drop(trusted=["pacs"])]
    assert dropped == [delivery.sop_instance_uid]


def test_what_a_report_says_twice_over_is_proven_once(ledger, given, clock):
    """An object that one report calls both held and missing is held, and is not sent again."""
    delivery = given.stored("1.2")
    request(ledger, clock, delivery)
    sop = delivery.sop_instance_uid
    outcome = ledger.commitment_reported(report(committed=[sop, sop], failed=[sop]))
    assert (outcome.committed, outcome.failed) == (1, 0)
    assert given.delivery(delivery).state == "committed"
    assert given.events("1.2", "commitment_failed") == []


def test_a_destination_that_never_answers_fills_no_table(ledger, given, clock):
    """Asked every hour for a month it leaves rows of a week, and the answer to one of them counts."""
    delivery = given.stored("1.2")
    asked = 30 * 24
    for number in range(asked):
        request(ledger, clock, delivery, f"2.25.{number}")
        clock.pass_by(3600)
    with ledger._reading() as connection:
        rows = connection.execute(select(Commitment.transaction_uid)).scalars().all()
    assert len(rows) <= 7 * 24 + 2
    assert f"2.25.{asked - 1}" in rows
    oldest = min(rows, key=lambda uid: int(uid.rpartition(".")[2]))
    assert ledger.commitment_reported(report(oldest, committed=[delivery.sop_instance_uid])).committed == 1


@pytest.mark.parametrize("by", ["query", "report"])
def test_a_destination_that_never_shows_what_it_stores_fills_no_trail(ledger, given, clock, by):
    """It is sent to without an end, and the trail, which nothing leaves, tells of it ever more seldom."""
    delivery = given.due("1.2")
    for number in range(200):
        ledger.deliveries_sent({delivery.delivery_id: 0x0000})
        if by == "query":
            ledger.delivery_missing(delivery.delivery_id, timedelta())
        else:
            request(ledger, clock, delivery, f"2.25.{number + 1}")
            ledger.commitment_reported(report(f"2.25.{number + 1}", failed=[delivery.sop_instance_uid]))
    now = given.delivery(delivery)
    assert (now.state, now.attempts) == ("due", 200)
    kind = "not_found" if by == "query" else "commitment_failed"
    assert len(given.events("1.2", kind)) == 3 + 6  # 1, 2, 3, and 4, 8, ... 128
    assert len(given.events("1.2", "stored")) == 1 + 3 + 6
