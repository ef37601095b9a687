"""A model is withdrawn, and every result of it with it."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.errors import Permanent, Reason
from worker.findings import KeptOutput, Role
from worker.ledger import JobState, PurgeRule, Selection

DIGEST = "a" * 64


def notice(study, role=Role.REJECTION):
    sop = uids.derive_uid(study, role)
    return KeptOutput(
        role=role,
        sop_class_uid=uids.KEY_OBJECT_SELECTION,
        sop_instance_uid=sop,
        series_instance_uid=uids.derive_uid(sop),
        sha256=hashlib.sha256(sop.encode()).hexdigest(),
        path=Path(f"/spool/outbox/{study}/{sop}.dcm"),
    )


def test_every_result_of_the_model_is_found_and_no_other(ledger, given):
    """Results in force and superseded ones, by the digest of their model."""
    given.scored("1.2", "1.2.1.1")
    given.scored("1.2", "1.2.1.2")  # a late image: the first result is superseded
    claim = given.claimed("1.3", "1.3.1.1")
    finding = given.finding(claim, model=given.other_model)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert [(one.study_instance_uid, one.generation) for one in ledger.results_of(DIGEST)] == [
        ("1.2", 1),
        ("1.2", 2),
    ]
    assert ledger.models() == {DIGEST: 2, "b" * 64: 1}


def test_results_are_read_in_pages(ledger, given, monkeypatch):
    """However many a model has, each is told once, in order, and with its own objects."""
    monkeypatch.setattr("worker.ledger.recalls._PAGE", 2)
    studies = [f"1.2.{number}" for number in range(1, 6)]
    for study in studies:
        given.stored(study)
    found = list(ledger.results_of(DIGEST))
    assert [one.study_instance_uid for one in found] == studies
    told = [{each.sop_instance_uid for each in one.objects} for one in found]
    mine = [{each.sop_instance_uid for each in given.study(study).results[0].outputs} for study in studies]
    assert told == mine


def test_what_waits_of_a_recalled_model_is_not_sent(ledger, given):
    """From the recall of the model on, though its results are marked one by one; notices are sent."""
    waiting = given.due("1.2")
    given.stored("1.3")
    ledger.recall_model(DIGEST, "Wrong labels.")
    assert ledger.due_deliveries("pacs", 10) == []
    assert ledger.still_due([waiting.delivery_id]) == set()
    (result,) = (one for one in ledger.results_of(DIGEST) if one.study_instance_uid == "1.3")
    ledger.recall(result, {"pacs": notice("1.3")})
    (due,) = ledger.due_deliveries("pacs", 10)
    assert due.role is Role.REJECTION
    assert ledger.still_due([waiting.delivery_id, due.delivery_id]) == {due.delivery_id}


def test_a_destination_that_may_hold_an_object_is_named(ledger, given):
    """What is due may be on its way, and what was cancelled may have come just before, unrecorded."""
    given.scored("1.2", "1.2.1.1", destinations=["pacs", "other"])
    given.scored("1.2", "1.2.1.2", destinations=["pacs"])
    first, second = ledger.results_of(DIGEST)
    assert (set(first.destinations), second.destinations) == ({"pacs", "other"}, ("pacs",))


def test_a_recalled_result_is_not_in_force(ledger, given):
    """It is superseded, what waits is cancelled, its notice is due, and the trail tells it."""
    delivery = given.stored("1.2")
    (result,) = ledger.results_of(DIGEST)
    note = notice("1.2")
    assert ledger.recall(result, {"pacs": note})
    assert not ledger.recall(result, {"pacs": note})
    (record,) = given.study("1.2").results
    assert record.recalled_at == record.superseded_at is not None
    assert given.delivery(delivery).state == "stored"
    (due,) = ledger.due_deliveries("pacs", 10)
    assert (due.role, due.sop_instance_uid) == (Role.REJECTION, note.sop_instance_uid)
    (event,) = given.events("1.2", "recalled")
    assert delivery.sop_instance_uid in event["objects"]
    assert ledger.verify().ok


def test_a_notice_that_the_destination_lost_is_sent_again(ledger, given):
    """Its result is superseded, and it is needed all the same."""
    given.stored("1.2")
    (result,) = ledger.results_of(DIGEST)
    ledger.recall(result, {"pacs": notice("1.2")})
    (due,) = ledger.due_deliveries("pacs", 10)
    ledger.deliveries_sent({due.delivery_id: 0})
    ledger.delivery_missing(due.delivery_id, timedelta())
    assert [one.sop_instance_uid for one in ledger.due_deliveries("pacs", 10)] == [due.sop_instance_uid]


def test_nothing_of_a_recalled_model_is_recorded(ledger, given):
    """A worker that still has it is refused with a reason, and writes nothing."""
    assert ledger.recall_model(DIGEST, "Wrong labels.")
    assert not ledger.recall_model(DIGEST, "Again.")
    assert ledger.recalled_models() == {DIGEST: "Wrong labels."}
    claim = given.claimed("1.2", "1.2.1.1")
    finding = given.finding(claim)
    with pytest.raises(Permanent) as refused:
        ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert refused.value.reason is Reason.MODEL_RECALLED
    assert given.study("1.2").results == ()


def test_the_model_is_told_whole(ledger, given):
    """What a notice names is taken from the audit trail."""
    finding = given.scored("1.2", "1.2.1.1")
    (result,) = ledger.results_of(DIGEST)
    assert ledger.model_of(result) == finding.model


def test_recalled_studies_are_selected_until_they_are_scored_again(ledger, given):
    """`recalled` is who has no result in force because of a recall."""
    given.scored("1.2", "1.2.1.1")
    given.scored("1.3", "1.3.1.1")
    ledger.recall(next(ledger.results_of(DIGEST)), {})
    selection = Selection(recalled=True)
    assert [one.study_instance_uid for one in ledger.select_studies(selection)] == ["1.2"]
    claim = ledger.claim_again("1.2", worker="w", lease=timedelta(seconds=60))
    assert claim.generation == 2
    assert given.try_claim("1.2") is None  # no worker can come between
    finding = given.finding(claim, model=given.other_model)
    ledger.record(claim, finding, given.outputs(finding), ["pacs"])
    assert ledger.select_studies(selection) == []
    assert given.study("1.2").jobs[-1].state is JobState.DONE


def test_a_selection_narrows_down(ledger, given, clock):
    """By study, sender, model and time."""
    given.scored("1.2", "1.2.1.1")
    given.scored("1.3", "1.3.1.1")

    def found(**values):
        return {one.study_instance_uid for one in ledger.select_studies(Selection(**values))}

    assert found() == {"1.2", "1.3"}
    assert found(studies=("1.3",)) == {"1.3"}
    assert found(calling_ae="MODALITY") == {"1.2", "1.3"}
    assert found(calling_ae="OTHER") == set()
    assert found(model="aaaa") == {"1.2", "1.3"}
    assert found(model="%") == set()
    assert found(received_before=clock.now) == {"1.2", "1.3"}
    assert found(received_from=clock.now) == set()


def test_a_study_that_is_being_scored_is_left_alone(ledger, given):
    """Its job does not rest."""
    given.claimed("1.2", "1.2.1.1")
    (one,) = ledger.select_studies(Selection())
    assert one.obstacle == "it is about to be scored"
    assert ledger.claim_again("1.2", worker="w", lease=timedelta(seconds=60)) is None


def test_quarantine_is_released_by_reason(ledger, given):
    """Images of that reason are read again, and others stay where they are."""
    claim = given.claimed("1.2", "1.2.1.1", "1.2.1.2")
    finding = given.finding(claim, rejected=["1.2.1.2"])
    ledger.record(claim, finding, given.outputs(finding), [])
    ledger.quarantine(given.claimed("1.3", "1.3.1.1"), Reason.NOT_A_NUMBER, "No number.")
    assert {one.sop_instance_uid for one in ledger.quarantined()} == {"1.2.1.2", "1.3.1.1"}
    assert ledger.release_quarantine(reason=Reason.FILE_MISSING) == []
    assert ledger.release_quarantine(reason=Reason.DECODER_TIMEOUT) == ["1.2"]
    assert given.ends("1.2")["1.2.1.2"] == ("pending", None)
    assert given.ends("1.3")["1.3.1.1"] == ("quarantined", Reason.NOT_A_NUMBER)
    assert ledger.release_quarantine() == ["1.3"]
    assert ledger.quarantined() == []


def test_films_of_a_recalled_study_stay(ledger, given, clock):
    """Proven results let films go; a recall keeps them until the study is scored again."""
    given.scored("1.2", "1.2.1.1")
    for due in ledger.due_deliveries("pacs", 10):
        ledger.deliveries_sent({due.delivery_id: 0})
        ledger.delivery_verified(due.delivery_id)
    rule = PurgeRule(received_before=clock.now)
    assert [one.study_instance_uid for one in ledger.purgeable(rule)] == ["1.2"]
    ledger.recall(next(ledger.results_of(DIGEST)), {})
    assert ledger.purgeable(rule) == []
