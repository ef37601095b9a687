"""What happened, as DICOM audit messages: their form, what they tell, and what they do not."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lxml import etree

from dicom_node.errors import Reason
from tests.worker.build import settings_in
from tests.worker.ledger.conftest import Given, spooled
from worker.audit_alerts import security_alert
from worker.audit_elements import Us
from worker.audit_messages import _MESSAGES, ALERTS, STAY_INSIDE, application_activity, messages
from worker.ledger import Kind, PurgeRule, open_ledger
from worker.settings import Destination

US = Us(ae_title="COVARIANCE", host="node1")
PACS = {"pacs": Destination(name="pacs", ae_title="ARCHIVE", host="192.0.2.9", port=104)}
AT = "2026-03-01T12:00:00.000000+00:00"


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(settings_in(tmp_path), migrate=True) as opened:
        yield opened


@pytest.fixture
def given(ledger):
    return Given(ledger)


@pytest.fixture
def told(ledger):
    """`told(kind)` is the parsed messages of the last event of that kind."""

    def find(kind: Kind) -> list[etree._Element]:
        event = [one for one in ledger.events_after(0, 1000) if one.kind == kind][-1]
        return [etree.fromstring(message) for message in messages(event, US, PACS)]

    return find


@pytest.fixture(scope="session")
def schema():
    """PS3.15 A.5.1."""
    return etree.RelaxNG(file=str(Path(__file__).parent / "audit_message.rng"))


@pytest.fixture
def whole_life(ledger, given):
    """A ledger in which an event of every kind that has a message happened."""
    delivery = given.due("1.2")
    ledger.delivery_retry(delivery.delivery_id, 0xA700, timedelta())
    ledger.deliveries_sent({delivery.delivery_id: 0x0000})
    ledger.delivery_missing(delivery.delivery_id, timedelta())
    ledger.delivery_failed(delivery.delivery_id, 0xC000, "It is refused.")
    ledger.outputs_dropped([delivery.sop_instance_uid])
    parked = given.due("1.3")
    ledger.delivery_parked(parked.delivery_id, 0x0122)
    claim = given.claimed("1.4", "1.4.1.1", "1.4.1.2")
    finding = given.finding(claim, by_policy=["1.4.1.1"], rejected=["1.4.1.2"])
    ledger.finish_without_result(claim, finding)
    ledger.quarantine(given.claimed("1.5", "1.5.1.1"), Reason.NOT_A_NUMBER, "The network returned no number.")
    return ledger


def one(found: list[etree._Element]) -> etree._Element:
    (only,) = found
    return only


def detail(message: etree._Element, name: str) -> str:
    return base64.b64decode(one(message.xpath(f"//ParticipantObjectDetail[@type='{name}']/@value"))).decode()


def test_every_message_has_the_form_of_the_standard(whole_life, schema):
    """All messages of a ledger, and those of the program itself, are of the structure of PS3.15 A.5.1."""
    every = [m for event in whole_life.events_after(0, 1000) for m in messages(event, US, PACS)]
    every += [application_activity(US, AT, starts=starts) for starts in (True, False)]
    every.append(security_alert(US, AT, "Event 7 is not what it was."))
    assert len(every) > 15
    for message in every:
        schema.assertValid(etree.fromstring(message))


def test_a_purge_is_a_deletion(ledger, given, told, schema):
    """Films that leave the spool are instances accessed to be deleted; each is named."""
    for one_of_two in (given.due("1.2"), *ledger.due_deliveries("pacs", 10)):
        ledger.deliveries_sent({one_of_two.delivery_id: 0x0000})
        ledger.delivery_verified(one_of_two.delivery_id)
    rule = PurgeRule(received_before=datetime.max.replace(tzinfo=UTC), trusted=(), quarantined=False)
    assert ledger.purge(["1.2"], rule) == 1
    message = one(told(Kind.PURGED))
    assert message.xpath("string(//@EventActionCode)") == "D"
    schema.assertValid(message)


def test_every_kind_is_told_or_stays_inside():
    """A new kind of event must be given its message, or be said to have none."""
    assert sorted(Kind) == sorted([*STAY_INSIDE, *_MESSAGES, *ALERTS])


def test_messages_are_one_line_of_ascii(whole_life):
    """No receiver has to know an encoding, nor to escape a line end."""
    for event in whole_life.events_after(0, 1000):
        for message in messages(event, US, PACS):
            assert message.isascii()
            assert b"\n" not in message


def test_an_arrival_names_both_ends(ledger, given, told):
    """What came in is Instances Transferred, created, from the caller and its address to us."""
    given.registered("1.2", "1.2.1.1", "1.2.1.2")
    message = one(told(Kind.REGISTERED))
    assert message.xpath("string(//EventID/@csd-code)") == "110104"
    assert message.xpath("string(//@EventActionCode)") == "C"
    source, destination = message.findall("ActiveParticipant")
    assert (source.get("UserID"), source.get("NetworkAccessPointID")) == ("MODALITY", "192.0.2.7")
    assert source.xpath("string(RoleIDCode/@csd-code)") == "110153"
    assert (destination.get("UserID"), destination.get("NetworkAccessPointID")) == ("COVARIANCE", "node1")
    assert destination.xpath("string(RoleIDCode/@csd-code)") == "110152"
    assert message.xpath("//Instance/@UID") == ["1.2.1.1", "1.2.1.2"]
    assert message.xpath("//SOPClass/@NumberOfInstances") == ["2"]


def test_every_sender_has_a_message(ledger, given, told):
    """Images of one study from two modalities are two transfers."""
    first, second = spooled("1.2", "1.2.1.1"), spooled("1.2", "1.2.1.2")
    ledger.register("1.2", [first, replace(second, calling_ae="OTHER")])
    found = told(Kind.REGISTERED)
    assert [m.find("ActiveParticipant").get("UserID") for m in found] == ["MODALITY", "OTHER"]
    assert [m.xpath("//Instance/@UID") for m in found] == [["1.2.1.1"], ["1.2.1.2"]]


def test_a_result_is_an_access(ledger, given, told):
    """A scored study is Instances Accessed, read, by us."""
    given.scored("1.2", "1.2.1.1")
    message = one(told(Kind.RECORDED))
    assert message.xpath("string(//EventID/@csd-code)") == "110103"
    assert message.xpath("string(//@EventActionCode)") == "R"
    assert message.xpath("//ActiveParticipant/@UserID") == ["COVARIANCE"]


@pytest.mark.parametrize(
    ("kind", "outcome", "why"),
    [
        (Kind.STORED, "0", ""),
        (Kind.NOT_STORED, "4", "Status 0xA700."),
        (Kind.NOT_FOUND, "4", ""),
        (Kind.FAILED, "8", "It is refused."),
        (Kind.QUARANTINED, "4", "The network returned no number."),
    ],
)
def test_the_outcome_is_told(whole_life, told, kind, outcome, why):
    """Success, trouble and failure have the numbers of the standard, and a reason where there is one."""
    message = one(told(kind))
    assert message.xpath("string(//@EventOutcomeIndicator)") == outcome
    assert message.xpath("string(//EventOutcomeDescription)") == why


def test_a_delivery_names_its_destination(whole_life, told):
    """What we send goes to the AE title and the host that the settings have for the destination."""
    source, destination = one(told(Kind.STORED)).findall("ActiveParticipant")
    assert (source.get("UserID"), source.get("UserIsRequestor")) == ("COVARIANCE", "true")
    assert (destination.get("UserID"), destination.get("NetworkAccessPointID")) == ("ARCHIVE", "192.0.2.9")


def test_a_destination_that_was_removed_keeps_its_name(whole_life):
    """An old event of a destination that the settings no longer have is told all the same."""
    event = next(one for one in whole_life.events_after(0, 1000) if one.kind == Kind.STORED)
    (message,) = messages(event, US, {})
    assert etree.fromstring(message).findall("ActiveParticipant")[1].get("UserID") == "pacs"


def test_the_head_is_told(ledger, given, told):
    """Each message carries its place in the chain: the repository's last one is a checkpoint."""
    given.scored("1.2", "1.2.1.1")
    head = ledger.head()
    assert detail(one(told(Kind.RECORDED)), "Ledger Head") == f"{head.events}:{head.hash}"


def test_the_patient_is_withheld(ledger, given, told):
    """A patient is the keyed hash of the ledger, or withheld, and has no name."""
    given.scored("1.2", "1.2.1.1")
    (recorded,) = given.events("1.2", "recorded")
    patient = "//ParticipantObjectIdentification[@ParticipantObjectTypeCode='1']"
    scored, arrived = one(told(Kind.RECORDED)), one(told(Kind.REGISTERED))
    assert scored.xpath(f"{patient}/@ParticipantObjectID") == [recorded["images"][0]["patient"]]
    assert arrived.xpath(f"{patient}/@ParticipantObjectID") == ["withheld"]
    assert {m.xpath(f"string({patient}/ParticipantObjectName)") for m in (scored, arrived)} == {"withheld"}


def test_many_instances_are_counted(ledger, given, told):
    """Too many instances for the 32,768 bytes that every receiver takes are only counted."""
    prefix = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012."
    given.registered("1.2", *(f"{prefix}{number:04}" for number in range(1000)))
    message = one(told(Kind.REGISTERED))
    assert message.xpath("//SOPClass/@NumberOfInstances") == ["1000"]
    assert len(etree.tostring(message)) < 32_768


def test_the_most_instances_that_are_named_fit(ledger, given, told):
    """Two hundred instances with the longest UIDs are named within 32,768 bytes."""
    prefix = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012345."
    given.registered("1.2", *(f"{prefix}{number:03}" for number in range(200)))
    message = one(told(Kind.REGISTERED))
    assert len(message.xpath("//Instance")) == 200
    assert len(etree.tostring(message)) < 32_768


def test_a_hostile_ae_title_makes_no_other_xml(ledger, told, schema):
    """Whatever a caller calls itself stays text within its attribute."""
    image = replace(spooled("1.2", "1.2.1.1"), calling_ae='"/><x>\x00\n')
    ledger.register("1.2", [image])
    message = one(told(Kind.REGISTERED))
    schema.assertValid(message)
    assert message.find("ActiveParticipant").get("UserID") == '"/><x>??'


def test_an_alert_says_what_is_wrong(schema):
    """A security alert describes itself, and names the audit trail as its subject."""
    alert = etree.fromstring(security_alert(US, AT, "Event 7 is not what it was."))
    assert alert.xpath("string(//EventID/@csd-code)") == "110113"
    assert detail(alert, "Alert Description") == "Event 7 is not what it was."
    assert alert.xpath("string(//ParticipantObjectName)") == "Security Audit Log"


def test_a_forged_body_is_an_error(ledger, given):
    """An event whose body is not that of its kind is not told as if it were."""
    given.registered("1.2", "1.2.1.1")
    (event,) = ledger.events_after(0, 10)
    with pytest.raises(KeyError):
        messages(replace(event, body=json.dumps({})), US, PACS)
