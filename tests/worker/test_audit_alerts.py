"""Refused peers as security alerts: their form, what they tell, and that a flood stays one message."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from lxml import etree

from dicom_node.doorman import Doorman
from dicom_node.refusals import RefusalWindow, Refused
from worker.audit_alerts import _REASONS
from worker.audit_elements import Us
from worker.audit_messages import messages
from worker.ledger import Kind, TrailEvent

US = Us(ae_title="COVARIANCE", host="node1")


@pytest.fixture(scope="session")
def schema():
    """PS3.15 A.5.1."""
    return etree.RelaxNG(file=str(Path(__file__).parent / "audit_message.rng"))


def counted(*refusals: tuple[Refused, str, str, str]) -> RefusalWindow:
    """The window of a doorman who refused these: reason, address, calling and called title."""
    windows: list[RefusalWindow] = []
    doorman = Doorman(windows.append)
    for reason, address, calling, called in refusals:
        doorman.refused(reason, address, calling_ae=calling, called_ae=called)
    doorman.stop()
    return windows[0]


def alert_of(window: RefusalWindow | str) -> bytes:
    body = window if isinstance(window, str) else window.model_dump_json()
    at = datetime.now(UTC).isoformat()
    event = TrailEvent(seq=7, at=at, kind=Kind.REFUSED, study_instance_uid=None, body=body, hash="a" * 64)
    (message,) = messages(event, US, {})
    return message


def descriptions(message: etree._Element) -> list[str]:
    values = message.xpath("//ParticipantObjectDetail[@type='Alert Description']/@value")
    return [base64.b64decode(value).decode() for value in values]


def test_refusals_are_a_node_authentication_alert(schema):
    """It has the codes of the standard, a minor failure, and names who was refused and why."""
    window = counted(
        *[(Refused.UNKNOWN_TITLE, "192.0.2.9", "STRANGER", "COVARIANCE")] * 2,
        (Refused.REVOKED, "192.0.2.10", "", ""),
    )
    alert = etree.fromstring(alert_of(window))
    schema.assertValid(alert)
    assert alert.xpath("string(//EventID/@csd-code)") == "110113"
    assert alert.xpath("string(//EventTypeCode/@csd-code)") == "110126"
    assert alert.xpath("string(//@EventOutcomeIndicator)") == "4"
    assert datetime.fromisoformat(alert.xpath("string(//@EventDateTime)")) == window.until
    us, stranger, revoked = alert.findall("ActiveParticipant")
    assert us.get("UserID") == "COVARIANCE"
    assert (stranger.get("UserID"), stranger.get("NetworkAccessPointID")) == ("STRANGER", "192.0.2.9")
    assert revoked.get("UserID") == "192.0.2.10"
    assert {one.get("UserIsRequestor") for one in (stranger, revoked)} == {"false"}
    assert descriptions(alert) == [
        "2 x unknown AE title, 192.0.2.9, STRANGER to COVARIANCE",
        "1 x certificate revoked, 192.0.2.10",
    ]


def test_the_worst_flood_fits(schema):
    """The longest window, of titles that XML must escape, is within what every receiver takes (A.6)."""
    reasons = list(Refused)
    longest = "fe80:1111:2222:3333:4444:5555:6666:{:04x}%eth00000000000000000000"
    flood = [
        (reasons[one % len(reasons)], longest.format(0x1000 + one), "&" * 16, '"' * 16) for one in range(1000)
    ]
    message = alert_of(counted(*flood))
    schema.assertValid(etree.fromstring(message))
    assert len(message) < 32_768
    assert sum(int(one.partition(" ")[0]) for one in descriptions(etree.fromstring(message))) == 1000


def test_every_reason_has_words():
    """A new reason must be given its words."""
    assert set(_REASONS) == set(Refused)


@pytest.mark.parametrize("body", ["[1]", "{}", json.dumps({"name": "x"})])
def test_a_forged_window_is_an_error(body):
    """An event that is no window is not told as one, and the error quotes nothing of it."""
    with pytest.raises(ValueError, match=r"^no window of refusals$"):
        alert_of(body)
