"""Events of the ledger as DICOM audit messages (PS3.15 A.5), for a hospital's audit record repository.

| event of the ledger                                        | message                            | outcome |
|------------------------------------------------------------|------------------------------------|---------|
| registered (one message for each sender)                   | 110104 Instances Transferred, C    | 0       |
| recorded, unchanged, finished_without_result               | 110103 Instances Accessed, R       | 0       |
| quarantined                                                | 110103 Instances Accessed, R       | 4       |
| output_dropped, purged                                     | 110103 Instances Accessed, D       | 0       |
| stored                                                     | 110104 Instances Transferred, R    | 0       |
| not_stored, commitment_failed, not_found                   | 110104 Instances Transferred, R    | 4       |
| failed, parked                                             | 110104 Instances Transferred, R    | 8       |
| the exporter starts or stops                               | 110100 Application Activity, E     | 0       |
| the trail does not fit its checkpoint, or an event its form | 110113 Security Alert, E          | 8       |

Action R where we send: only the receiver knows whether it held the instances (A.5.3.7). Steps inside the
worker (claimed, released, superseded, retried), bytes that came again after a purge (came_again) and
proofs of storage (commitment_requested, commitment_refused, committed, verified) are no messages of the
standard, and stay in the ledger.

No patient leaves us this way. The standard asks for a patient's id and name: here stands the HMAC that
stands in the ledger too, under the site's key, or `withheld`. Studies and instances are UIDs.

The study of each message carries `seq:hash` of its event as a detail: what the repository received last is
a checkpoint of the audit trail, and `covariance audit verify --expect` takes it.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from worker.ledger import Kind, TrailEvent
from worker.settings import Destination

TRANSFERRED = ("110104", "DICOM Instances Transferred")
ACCESSED = ("110103", "DICOM Instances Accessed")
_MESSAGES = {
    Kind.REGISTERED: (TRANSFERRED, "C", "0"),
    Kind.RECORDED: (ACCESSED, "R", "0"),
    Kind.UNCHANGED: (ACCESSED, "R", "0"),
    Kind.FINISHED_WITHOUT_RESULT: (ACCESSED, "R", "0"),
    Kind.QUARANTINED: (ACCESSED, "R", "4"),
    Kind.OUTPUT_DROPPED: (ACCESSED, "D", "0"),
    Kind.PURGED: (ACCESSED, "D", "0"),
    Kind.STORED: (TRANSFERRED, "R", "0"),
    Kind.NOT_STORED: (TRANSFERRED, "R", "4"),
    Kind.COMMITMENT_FAILED: (TRANSFERRED, "R", "4"),
    Kind.NOT_FOUND: (TRANSFERRED, "R", "4"),
    Kind.FAILED: (TRANSFERRED, "R", "8"),
    Kind.PARKED: (TRANSFERRED, "R", "8"),
}
STAY_INSIDE = frozenset(
    (
        Kind.CLAIMED,
        Kind.RELEASED,
        Kind.SUPERSEDED,
        Kind.RETRIED,
        Kind.CAME_AGAIN,
        Kind.COMMITMENT_REQUESTED,
        Kind.COMMITMENT_REFUSED,
        Kind.COMMITTED,
        Kind.VERIFIED,
    )
)
"""Kinds that no message of the standard tells. Every other kind has one."""

_APPLICATION = ("110150", "Application")
_DESTINATION = ("110152", "Destination Role ID")
_SOURCE = ("110153", "Source Role ID")
_PATIENT = ("1", "1")  # person, patient
_STUDY = ("2", "3")  # system object, report
_SECURITY = ("2", "13")  # system object, security resource
_WITHHELD = "withheld"
_MOST_INSTANCES = 200
"""Named in one message, which a receiver must take up to 32,768 bytes of (A.6); more are only counted."""


@dataclass(frozen=True, kw_only=True)
class Us:
    """Who reports."""

    ae_title: str
    host: str


def messages(event: TrailEvent, us: Us, destinations: Mapping[str, Destination]) -> list[bytes]:
    """The messages of one event; none for a kind that stays inside. XML in ASCII, on one line each.

    Raises:
        KeyError, TypeError, ValueError: the event is not of the form that its kind has.
    """
    kind = Kind(event.kind)
    if kind in STAY_INSIDE:
        return []
    body: dict[str, Any] = json.loads(event.body)
    what, action, outcome = _MESSAGES[kind]
    if kind is Kind.REGISTERED:
        return [_close(root, us, event, images) for root, images in _arrivals(event, body, us)]
    root = _open(what, action, event.at, outcome, _why(body))
    if what is TRANSFERRED:
        to = destinations.get(body["destination"])
        _participant(root, us.ae_title, us.host, _SOURCE, requestor=True)
        name, host = (to.ae_title, to.host) if to else (body["destination"], None)
        _participant(root, name, host, _DESTINATION, requestor=False)
    else:
        _participant(root, us.ae_title, us.host, _APPLICATION, requestor=True)
    images = body["images"] if "images" in body else [{"sop_instance_uid": body["sop_instance_uid"]}]
    return [_close(root, us, event, images)]


def application_activity(us: Us, at: str, *, starts: bool) -> bytes:
    """The exporter starts or stops (A.5.3.1)."""
    root = _open(("110100", "Application Activity"), "E", at, "0", None)
    kind = ("110120", "Application Start") if starts else ("110121", "Application Stop")
    _coded(root[0], "EventTypeCode", *kind)
    _participant(root, us.ae_title, us.host, _APPLICATION, requestor=False)
    _source(root, us)
    return tostring(root)


def security_alert(us: Us, at: str, sentence: str) -> bytes:
    """The audit trail is not what it was (A.5.3.11)."""
    root = _open(("110113", "Security Alert"), "E", at, "8", sentence)
    _coded(root[0], "EventTypeCode", "110135", "Object Security Attributes Changed", before=1)
    _participant(root, us.ae_title, us.host, _APPLICATION, requestor=True)
    _source(root, us)
    alert = _object(
        root, "covariance:audit-trail", _SECURITY, ("12", "RFC-3881", "URI"), "Security Audit Log"
    )
    _detail(alert, "Alert Description", sentence)
    return tostring(root)


def _why(body: dict[str, Any]) -> str | None:
    status = body.get("last_status")
    return body.get("sentence") or (f"Status 0x{status:04X}." if status else None)


def _arrivals(
    event: TrailEvent, body: dict[str, Any], us: Us
) -> Iterator[tuple[Element, list[dict[str, Any]]]]:
    sender = itemgetter("calling_ae", "called_ae", "address")
    for (calling, called, address), images in groupby(sorted(body["images"], key=sender), key=sender):
        root = _open(*_MESSAGES[Kind.REGISTERED][:2], event.at, "0", None)
        _participant(root, calling, address, _SOURCE, requestor=True)
        _participant(root, called, us.host, _DESTINATION, requestor=False)
        yield root, list(images)


def _open(what: tuple[str, str], action: str, at: str, outcome: str, sentence: str | None) -> Element:
    root = Element("AuditMessage")
    facts = {"EventActionCode": action, "EventDateTime": at, "EventOutcomeIndicator": outcome}
    identification = SubElement(root, "EventIdentification", facts)
    _coded(identification, "EventID", *what)
    if sentence:
        SubElement(identification, "EventOutcomeDescription").text = _plain(sentence)
    return root


def _close(root: Element, us: Us, event: TrailEvent, images: list[dict[str, Any]]) -> bytes:
    _source(root, us)
    study_code = ("110180", "DCM", "Study Instance UID")
    study = _object(root, event.study_instance_uid or _WITHHELD, _STUDY, study_code, _WITHHELD)
    _detail(study, "Ledger Event", event.kind)
    _detail(study, "Ledger Head", f"{event.seq}:{event.hash}")
    description = SubElement(study, "ParticipantObjectDescription")
    classes = Counter(image.get("sop_class_uid") for image in images)
    for sop_class, count in classes.items():
        told = {"UID": _plain(sop_class)} if sop_class else {}
        element = SubElement(description, "SOPClass", told | {"NumberOfInstances": str(count)})
        for image in images if len(images) <= _MOST_INSTANCES else ():
            if image.get("sop_class_uid") == sop_class:
                SubElement(element, "Instance", {"UID": _plain(image["sop_instance_uid"])})
    patients = {image["patient"] for image in images if image.get("patient")} or {_WITHHELD}
    for patient in sorted(patients):
        _object(root, patient, _PATIENT, ("2", "RFC-3881", "Patient Number"), _WITHHELD)
    return tostring(root)


def _participant(
    root: Element, ae_title: str, host: str | None, role: tuple[str, str], *, requestor: bool
) -> None:
    facts = {
        "UserID": _plain(ae_title),
        "AlternativeUserID": f"AETITLES={_plain(ae_title)}",
        "UserIsRequestor": str(requestor).lower(),
    }
    if host:
        is_address = ":" in host or host.replace(".", "").isdigit()
        facts |= {"NetworkAccessPointID": _plain(host)}
        facts |= {"NetworkAccessPointTypeCode": "2" if is_address else "1"}
    _coded(SubElement(root, "ActiveParticipant", facts), "RoleIDCode", *role)


def _source(root: Element, us: Us) -> None:
    source = SubElement(root, "AuditSourceIdentification", {"AuditSourceID": f"{us.ae_title}@{us.host}"})
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process


def _object(
    root: Element, identity: str, roles: tuple[str, str], code: tuple[str, str, str], name: str
) -> Element:
    facts = dict(zip(("ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole"), roles, strict=True))
    element = SubElement(
        root, "ParticipantObjectIdentification", {"ParticipantObjectID": _plain(identity)} | facts
    )
    _coded(element, "ParticipantObjectIDTypeCode", code[0], code[2], system=code[1])
    SubElement(element, "ParticipantObjectName").text = name
    return element


def _detail(element: Element, name: str, value: str) -> None:
    encoded = base64.b64encode(value.encode()).decode("ascii")
    SubElement(element, "ParticipantObjectDetail", {"type": name, "value": encoded})


def _coded(
    parent: Element, name: str, code: str, meaning: str, *, system: str = "DCM", before: int | None = None
) -> None:
    facts = {"csd-code": code, "codeSystemName": system, "originalText": meaning}
    parent.insert(len(parent) if before is None else before, Element(name, facts))


def _plain(text: str) -> str:
    """What XML cannot hold becomes a question mark; a caller's AE title may be anything."""
    return "".join(one if " " <= one <= "~" else "?" for one in text)
