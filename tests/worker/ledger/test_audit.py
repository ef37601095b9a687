"""The audit trail tells all of a job, cannot be altered, and shows it when it was."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from datetime import timedelta
from importlib.metadata import version

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from dicom_node.errors import Reason
from worker.ledger import ChainHead
from worker.ledger.audit import _seal


@pytest.fixture
def unguarded(database, backend):
    """The database after someone with every right has put the triggers out of action."""
    disarm = {
        "sqlite": ["DROP TRIGGER events_refuse_update", "DROP TRIGGER events_refuse_delete"],
        "postgresql": ["ALTER TABLE events DISABLE TRIGGER USER"],
    }
    for statement in disarm[backend]:
        run(database, statement)
    return database


def run(database, statement):
    with database.connect() as connection:
        connection.execute(text(statement))


def test_untouched_trail_is_sound(ledger, given):
    """A trail as it was written is verified to its end."""
    given.scored("1.2", "1.2.1.1")
    found = ledger.verify()
    assert (found.ok, found.first_bad_seq, found.events) == (True, None, 3)
    assert found.head == ledger.status().head


def test_trail_longer_than_a_page(ledger, given, monkeypatch):
    """A trail is verified page by page, and progress is told."""
    monkeypatch.setattr("worker.ledger.audit._PAGE", 4)
    for number in range(4):
        given.scored(f"1.{number}", f"1.{number}.1.1")
    seen = []
    assert ledger.verify(progress=seen.append).events == 12
    assert seen == [4, 8, 12, 12]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE events SET kind = 'x'", "DELETE FROM events", "DELETE FROM events WHERE seq = 2"],
)
def test_database_refuses_changes(ledger, given, database, statement):
    """UPDATE and DELETE of an event are refused by the database itself."""
    given.scored("1.2", "1.2.1.1")
    with pytest.raises(DBAPIError, match="append-only"):
        run(database, statement)


def test_database_refuses_replacement(ledger, given, database, backend):
    """There is no way around the triggers: neither REPLACE nor TRUNCATE."""
    given.scored("1.2", "1.2.1.1")
    around = {
        "sqlite": "REPLACE INTO events SELECT * FROM events WHERE seq = 2",
        "postgresql": "TRUNCATE events",
    }
    with pytest.raises(DBAPIError, match="append-only"):
        run(database, around[backend])


@pytest.mark.parametrize(
    "change",
    [
        "body = replace(body, '0.7773', '0.1773')",
        "at = '2020-01-01T00:00:00.000000+00:00'",
        "kind = 'released'",
        "study_instance_uid = '9.9'",
        "hash = previous",
        "previous = hash",
    ],
)
def test_changed_event_is_found(ledger, given, unguarded, change):
    """A change of any column of an event is found, and the event named."""
    given.scored("1.2", "1.2.1.1")
    run(unguarded, f"UPDATE events SET {change} WHERE seq = 3")
    found = ledger.verify()
    assert (found.ok, found.first_bad_seq) == (False, 3)
    assert "3" in found.sentence


def test_removed_event_is_found(ledger, given, unguarded):
    """An event that was taken out of the middle is found where it is missing."""
    given.scored("1.2", "1.2.1.1")
    run(unguarded, "DELETE FROM events WHERE seq = 2")
    assert ledger.verify().first_bad_seq == 3


def test_resealed_event_is_found(ledger, given, unguarded):
    """An event that was changed and sealed anew no longer carries the one after it."""
    given.scored("1.2", "1.2.1.1")
    with unguarded.connect() as connection:
        event = dict(connection.execute(text("SELECT * FROM events WHERE seq = 2")).mappings().one())
        event["body"] = event["body"].replace("w1", "w2")
        forged = {"body": event["body"], "hash": _seal(event)}
        connection.execute(text("UPDATE events SET body = :body, hash = :hash WHERE seq = 2"), forged)
    assert ledger.verify().first_bad_seq == 3


def test_cut_end_is_found_by_an_expected_head(ledger, given, unguarded):
    """A head that was noted elsewhere shows that the end was cut off; nothing else can."""
    given.scored("1.2", "1.2.1.1")
    noted = ledger.verify().head
    run(unguarded, "DELETE FROM events WHERE seq = 3")
    assert ledger.verify().ok
    found = ledger.verify({noted: "a letter"})
    assert (found.ok, found.first_bad_seq) == (False, 3)


def test_noted_head_stays_valid(ledger, given):
    """A noted head is still right after the trail has grown."""
    given.scored("1.2", "1.2.1.1")
    noted = ledger.verify().head
    given.scored("1.3", "1.3.1.1")
    assert ledger.verify({noted: "a letter"}).ok


def test_rewritten_trail_is_found_by_an_expected_head(ledger, given):
    """A whole trail that was written anew does not end in the head that was noted."""
    given.scored("1.2", "1.2.1.1")
    assert ledger.verify({ChainHead(events=2, hash="0" * 64): "a letter"}).first_bad_seq == 2


def test_the_first_head_that_does_not_fit_is_named(ledger, given):
    """Of many heads that were noted, the earliest that does not fit is named, with where it was noted."""
    given.scored("1.2", "1.2.1.1")
    sound = ledger.verify().head
    wrong = {ChainHead(events=seq, hash=str(seq) * 64): f"note {seq}" for seq in (7, 2, 1)}
    found = ledger.verify({sound: "a letter", ChainHead(): "the start", **wrong})
    assert (found.ok, found.first_bad_seq) == (False, 1)
    assert found.sentence == "Event 1 is not the one that was noted (note 1)."


def test_the_first_head_beyond_the_end_is_named(ledger, given):
    """A cut end is told by the earliest head that was noted beyond it."""
    given.scored("1.2", "1.2.1.1")
    beyond = {ChainHead(events=seq, hash="a" * 64): f"note {seq}" for seq in (9, 5)}
    found = ledger.verify(beyond)
    assert found.sentence == "The chain ends after event 3, but 5 were noted (note 5)."


def test_recorded_event_tells_the_whole_job(ledger, given):
    """The event of a result holds inputs, callers, model, eligibility, scores, outputs and times."""
    finding = given.scored("1.2", "1.2.1.1")
    (told,) = given.events("1.2", "recorded")
    (image,) = told["images"]
    assert image["sop_instance_uid"] == "1.2.1.1"
    assert (image["calling_ae"], image["address"]) == ("MODALITY", "192.0.2.7")
    assert image["received_at"] == "2026-03-01T11:59:30.123456+00:00"
    assert (image["verdict"], image["open_questions"]) == ("eligible", ["PatientAge"])
    assert (image["window"], image["inverted"]) == ("LINEAR 2048/4096", True)
    assert (image["logit"], image["probability"]) == (1.25, 0.7773)
    assert told["model"]["sha256"] == finding.model.sha256
    assert {"name", "version", "engine", "precision", "recipe", "threshold", "operating_point"} <= set(
        told["model"]
    )
    assert (told["decision"], told["attempt"], told["worker"]) == ("positive", 1, "w1")
    assert told["scored_at"] == "2026-03-01T12:00:01.000000+00:00"
    assert {"queued_at", "started_at"} <= set(told)
    assert (told["device_uid"], told["software"]) == (finding.model.device_uid, version("covariance"))
    assert {o["sop_instance_uid"]: o["sha256"] for o in told["outputs"]} == {
        o.sop_instance_uid: o.sha256 for o in given.outputs(finding)
    }


def test_finished_event_tells_the_whole_job(ledger, given):
    """A job without a result tells as much of images, model and times as one with a result."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, by_policy=["1.2.1.1"], rejected=["1.2.1.2"])
    ledger.finish_without_result(claim, finding)
    (told,) = given.events("1.2", "finished_without_result")
    judged, refused = told["images"]
    assert (judged["verdict"], judged["reason"]) == ("ineligible", "NOT_FRONTAL")
    assert (refused["reason"], refused["sentence"]) == ("DECODER_TIMEOUT", "It took too long.")
    assert told["model"]["sha256"] == finding.model.sha256
    assert {"queued_at", "started_at", "scored_at", "device_uid", "software"} <= set(told)


def test_quarantined_event_tells_images_and_model(ledger, given):
    """A quarantined job tells which images it left, with what it would have been scored, and when."""
    claim = given.claimed("1.2", "1.2.1.1")
    model = given.other_model
    ledger.quarantine(claim, Reason.NOT_A_NUMBER, "The network returned no number.", model=model)
    (told,) = given.events("1.2", "quarantined")
    assert (told["model"]["sha256"], told["worker"]) == (model.sha256, "w1")
    assert {"queued_at", "started_at", "device_uid", "software"} <= set(told)
    (image,) = told["images"]
    assert (image["sop_instance_uid"], image["reason"]) == ("1.2.1.1", "NOT_A_NUMBER")
    assert image["sha256"] == claim.instances[0].sha256


def test_event_tells_why_images_were_left_out(ledger, given):
    """The event of a result names the reason of every image that is not part of it."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    finding = given.finding(claim, by_policy=["1.2.1.2"], rejected=["1.2.1.3"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    (told,) = given.events("1.2", "recorded")
    assert {image["sop_instance_uid"]: image["reason"] for image in told["images"]} == {
        "1.2.1.1": None,
        "1.2.1.2": "NOT_FRONTAL",
        "1.2.1.3": "DECODER_TIMEOUT",
    }


def test_patient_stands_as_a_keyed_hash(ledger, given, settings):
    """The patient is in the trail as an HMAC under the site's key, and in no other way."""
    given.scored("1.2", "1.2.1.1")
    key = settings.database.patient_hash_key.get_secret_value().encode()
    expected = hmac.new(key, b"digest-of-nobody", hashlib.sha256).hexdigest()
    (told,) = given.events("1.2", "recorded")
    assert told["images"][0]["patient"] == expected
    everything = json.dumps([event.body for event in given.study("1.2").events])
    assert not re.search("NOBODY|digest-of-nobody", everything)


def test_accession_number_stands_as_a_keyed_hash(ledger, given, settings):
    """Who has the site's key finds a study by its accession number, and nobody reads it."""
    given.scored("1.2", "1.2.1.1")
    key = settings.database.patient_hash_key.get_secret_value().encode()
    (told,) = given.events("1.2", "recorded")
    expected = hmac.new(key, b"ACCESSION-17", hashlib.sha256).hexdigest()
    assert told["images"][0]["accession_number"] == expected
    assert "ACCESSION-17" not in json.dumps([event.body for event in given.study("1.2").events])


def test_trail_follows_a_delivery(ledger, given):
    """From registration to proof every step of a study is an event, with the DIMSE statuses."""
    delivery = given.due("1.2")
    ledger.delivery_retry(delivery.delivery_id, 0xA700, timedelta())
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    ledger.delivery_verified(delivery.delivery_id)
    kinds = [event.kind for event in given.study("1.2").events]
    assert kinds == ["registered", "claimed", "recorded", "not_stored", "stored", "verified"]
    assert given.events("1.2", "not_stored")[0]["last_status"] == 0xA700
    assert given.events("1.2", "stored")[0]["attempts"] == 2
