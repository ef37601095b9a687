"""A result is written once, with all that hangs on it, and takes the place of the one before."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from worker.ledger import Recorded


def test_record_writes_result_outputs_and_deliveries(ledger, given):
    """A recorded study has its decision, both objects, and each object due at each destination."""
    given.scored("1.2", "1.2.1.1", destinations=["pacs", "archive"])
    result = given.study("1.2").results[0]
    assert (result.decision, result.probability) == ("positive", 0.7773)
    assert {output.role for output in result.outputs} == {"sr", "sc"}
    assert all({d.destination for d in output.deliveries} == {"pacs", "archive"} for output in result.outputs)


def test_image_keeps_its_score(ledger, given):
    """A scored image shows the exact logit and probability."""
    given.scored("1.2", "1.2.1.1")
    image = given.study("1.2").images[0]
    assert (image.disposition, image.logit, image.probability) == ("scored", 1.25, 0.7773)


def test_recording_twice_writes_once(ledger, given):
    """A worker that does not know whether its write arrived may write again."""
    claim = given.claimed("1.2", "1.2.1.1")
    finding = given.finding(claim)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    before = given.study("1.2")
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.UNCHANGED
    assert given.study("1.2") == before


def test_same_input_set_leaves_the_result(ledger, given):
    """A late lateral view changes no score: the result stands, and the view has its reason."""
    given.scored("1.2", "1.2.1.1")
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.2"])
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.UNCHANGED
    study = given.study("1.2")
    assert [result.superseded_at for result in study.results] == [None]
    assert [job.state for job in study.jobs] == ["done", "done"]


def test_later_result_supersedes(ledger, given, clock):
    """The result of a newer generation takes the place of the older one."""
    given.scored("1.2", "1.2.1.1")
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    assert [result.superseded_at for result in given.study("1.2").results] == [clock.now, None]


def test_superseded_result_is_not_sent(ledger, given):
    """What of a superseded result is not stored yet is cancelled; what is stored stays."""
    delivery = given.stored("1.2")
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    older = given.study("1.2").results[0]
    assert {o.deliveries[0].state for o in older.outputs if o.role == "sc"} == {"cancelled"}
    assert given.delivery(delivery).state == "stored"


def test_other_model_makes_another_result(ledger, given):
    """The same images scored by another model are another result."""
    given.scored("1.2", "1.2.1.1")
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.2"], model=given.other_model)
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.RECORDED


def test_other_threshold_makes_another_result(ledger, given):
    """The same images and weights under another threshold are another result, and image rows follow it."""
    given.scored("1.2", "1.2.1.1")
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.2"], model=given.other_threshold)
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.RECORDED
    assert [result.decision for result in given.study("1.2").results] == ["positive", "negative"]


def test_superseded_result_may_come_again(ledger, given):
    """What is found again after another result was in force is in force again, as a result of its own."""
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    finding = given.finding(claim, rejected=["1.2.1.2"], by_policy=["1.2.1.3"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    ledger.retry("1.2")
    claim = given.try_claim("1.2")
    finding = given.finding(claim, by_policy=["1.2.1.3"])
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.RECORDED
    assert [result.superseded_at is None for result in given.study("1.2").results] == [False, False, True]


def test_unchanged_result_keeps_its_images(ledger, given):
    """Where a result stands, the rows of its images stand: only what was undecided is decided."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.2"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    finding = given.finding(claim, rejected=["1.2.1.2", "1.2.1.3"])
    assert ledger.record(claim, finding, given.outputs(finding), ["pacs"]) is Recorded.UNCHANGED
    assert given.ends("1.2") == {
        "1.2.1.1": ("scored", None),
        "1.2.1.2": ("by_policy", "NOT_FRONTAL"),
        "1.2.1.3": ("quarantined", "DECODER_TIMEOUT"),
    }


def test_result_without_destinations(ledger, given):
    """Where no destination is configured the outputs are kept."""
    given.scored("1.2", "1.2.1.1", destinations=[])
    assert ledger.outputs_to_drop() == []


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("images", ["study_instance_uid", "sop_instance_uid", "sha256"]),
        ("jobs", ["study_instance_uid", "generation"]),
        ("results", ["study_instance_uid", "configuration", "input_set_hash", "generation"]),
        ("outputs", ["sop_instance_uid"]),
        ("deliveries", ["output_id", "destination"]),
    ],
)
def test_database_refuses_doubles(given, database, table, columns):
    """What must be unique is so even for a writer that does not ask first."""
    given.scored("1.2", "1.2.1.1")
    with database.connect() as connection:
        row = connection.execute(text(f"SELECT * FROM {table}")).mappings().first()
        twin = dict(row) | {"id": 1000}
        values = ", ".join(f":{name}" for name in twin)
        with pytest.raises(IntegrityError) as refused:
            connection.execute(text(f"INSERT INTO {table} ({', '.join(twin)}) VALUES ({values})"), twin)
    assert all(column in str(refused.value.orig) for column in columns)
