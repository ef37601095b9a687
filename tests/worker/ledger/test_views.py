"""What the ledger tells adds up, and can be printed."""

from __future__ import annotations

import json
from dataclasses import asdict

from dicom_node.errors import Reason


def test_every_image_is_counted_once(ledger, given):
    """Scored, by policy, quarantined and pending together are all that was registered."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2", "1.2.1.3")
    finding = given.finding(claim, by_policy=["1.2.1.2"], rejected=["1.2.1.3"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    echo = given.outputs(finding)[0].sop_instance_uid
    ledger.register("1.2", [given.spooled("1.2", echo), given.spooled("1.2", "1.2.1.1", "other pixels")])
    ledger.quarantine(given.claimed("1.3", "1.3.1.1"), Reason.IDENTITY_CONFLICT, "Two patients.")
    given.registered("1.4", "1.4.1.1")
    status = ledger.status()
    assert status.images == {"pending": 1, "scored": 1, "by_policy": 2, "quarantined": 3}
    assert status.by_policy == {"NOT_FRONTAL": 1, "OWN_OUTPUT": 1}
    assert status.quarantined == {"CONFLICTING_CONTENT": 1, "DECODER_TIMEOUT": 1, "IDENTITY_CONFLICT": 1}
    assert sum(status.images.values()) == sum(ledger.registered(uid) for uid in ("1.2", "1.3", "1.4"))


def test_status_counts_results_in_force(ledger, given):
    """A superseded result is not counted, and one without a decision has a name."""
    given.scored("1.2", "1.2.1.1")
    given.scored("1.2", "1.2.1.1", "1.2.1.2")
    claim = given.claimed("1.3", "1.3.1.1")
    finding = given.finding(claim, by_policy=["1.3.1.1"])
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert ledger.status().results == {"not_analysed": 1, "positive": 1}


def test_status_tells_what_waits_longest(ledger, given, clock):
    """The oldest of each kind of waiting is told in seconds; what does not wait is not told."""
    given.scored("1.2", "1.2.1.1")
    clock.pass_by(100)
    given.registered("1.3", "1.3.1.1")
    clock.pass_by(5)
    ages = ledger.status().oldest_seconds
    assert (ages["due"], ages["ready"], set(ages)) == (105.0, 5.0, {"due", "ready", "pending"})


def test_everything_can_be_printed_as_json(ledger, given):
    """Status, list and record of a study turn into JSON as they are."""
    given.scored("1.2", "1.2.1.1")
    shown = [asdict(ledger.status()), asdict(given.study("1.2")), *map(asdict, ledger.studies())]
    assert json.loads(json.dumps(shown, default=str))[0]["images"]["scored"] == 1


def test_studies_lists_the_newest_first(ledger, given, clock):
    """The list holds the last studies with job, decision and deliveries."""
    for study in ("1.2", "1.3", "1.4"):
        clock.pass_by(1)
        given.registered(study, f"{study}.1.1")
    given.scored("1.4", "1.4.1.1")
    newest, older = ledger.studies(limit=2)
    assert (newest.study_instance_uid, newest.job, newest.decision) == ("1.4", "done", "positive")
    assert (newest.images, newest.deliveries) == (1, {"due": 2})
    assert (older.study_instance_uid, older.job, older.decision) == ("1.3", "ready", None)


def test_a_study_is_found_by_its_end(ledger, given):
    """Of all that there are; two say that the end means more than one, and no character is a pattern."""
    given.registered("1.2.345", "1.2.345.1")
    given.registered("1.2.1345", "1.2.1345.1")
    assert sorted(ledger.studies_that_end("345")) == ["1.2.1345", "1.2.345"]
    assert ledger.studies_that_end("1345") == ["1.2.1345"]
    assert ledger.studies_that_end("2.345") == ["1.2.345"]
    assert ledger.studies_that_end("%") == ledger.studies_that_end("1.2_345") == []


def test_unknown_study_has_no_record(ledger):
    """A study that was never registered is None, not an empty record."""
    assert ledger.study("9.9") is None


def test_volumes_are_counted_alike(ledger, given):
    """Both databases count the studies of a sender, as whole numbers."""
    given.registered("1.2", "1.2.1", "1.2.2")
    given.registered("1.3", "1.3.1")
    assert ledger.volumes([1, 24], weeks=2) == {"MODALITY": {1: [2], 24: [2]}}
    assert ledger.volumes([1, 24], weeks=2, without=["MODALITY"]) == {}
