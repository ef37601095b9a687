"""Events of the ledger as DICOM audit messages (PS3.15 A.5), for a hospital's audit record repository.

| event of the ledger                                         | message                         | outcome |
|-------------------------------------------------------------|---------------------------------|---------|
| registered (one message for each sender)                    | 110104 Instances Transferred, C | 0       |
| recorded, unchanged, finished_without_result                | 110103 Instances Accessed, R    | 0       |
| quarantined                                                 | 110103 Instances Accessed, R    | 4       |
| output_dropped, purged                                      | 110103 Instances Accessed, D    | 0       |
| stored                                                      | 110104 Instances Transferred, R | 0       |
| not_stored, commitment_failed, not_found                    | 110104 Instances Transferred, R | 4       |
| failed, parked                                              | 110104 Instances Transferred, R | 8       |
| the exporter starts or stops                                | 110100 Application Activity, E  | 0       |
| refused                                                     | 110113 Security Alert, E        | 4       |
| the trail does not fit its checkpoint, or an event its form | 110113 Security Alert, E        | 8       |

Action R where we send: only the receiver knows whether it held the instances (A.5.3.7). Steps inside the
worker (claimed, released, superseded, retried), decisions of people (recalled, model_activated), bytes
that came again after a purge (came_again) and proofs of storage (commitment_requested, commitment_refused,
committed, verified) are no messages of the standard, and stay in the ledger.

No patient leaves us this way. The standard asks for a patient's id and name: here stands the HMAC that
stands in the ledger too, under the site's key, or `withheld`. Studies and instances are UIDs.

The study of each message carries `seq:hash` of its event as a detail: what the repository received last is
a checkpoint of the audit trail, and `covariance audit verify --expect` takes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from worker.audit_alerts import refusal_alert
from worker.audit_elements import (
    APPLICATION,
    DESTINATION,
    SOURCE,
    Us,
    add_code,
    add_detail,
    add_object,
    add_participant,
    add_source,
    open_message,
    plain,
)
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
        Kind.HASTENED,
        Kind.RECALLED,
        Kind.MODEL_ACTIVATED,
        Kind.CAME_AGAIN,
        Kind.COMMITMENT_REQUESTED,
        Kind.COMMITMENT_REFUSED,
        Kind.COMMITTED,
        Kind.VERIFIED,
    )
)
"""Kinds that no message of the standard tells. Every other kind has one."""
ALERTS = frozenset((Kind.REFUSED,))
"""Kinds of no study, which are told as security alerts."""

_PATIENT = ("1", "1")  # person, patient
_STUDY = ("2", "3")  # system object, report
_WITHHELD = "withheld"
_MOST_INSTANCES = 200
"""Named in one message, which a receiver must take up to 32,768 bytes of (A.6); more are only counted."""


def messages(event: TrailEvent, us: Us, destinations: Mapping[str, Destination]) -> list[bytes]:
    """The messages of one event; none for a kind that stays inside. XML in ASCII, on one line each.

    Raises:
        KeyError, TypeError, ValueError: the event is not of the form that its kind has.
    """
    kind = Kind(event.kind)
    if kind in STAY_INSIDE:
        return []
    if kind in ALERTS:
        return [refusal_alert(event, us)]
    body: dict[str, Any] = json.loads(event.body)
    what, action, outcome = _MESSAGES[kind]
    if kind is Kind.REGISTERED:
        return [_close(root, us, event, images) for root, images in _arrivals(event, body, us)]
    root = open_message(what, action, event.at, outcome, _why(body))
    if what is TRANSFERRED:
        to = destinations.get(body["destination"])
        add_participant(root, us.ae_title, us.host, SOURCE, requestor=True)
        name, host = (to.ae_title, to.host) if to else (body["destination"], None)
        add_participant(root, name, host, DESTINATION, requestor=False)
    else:
        add_participant(root, us.ae_title, us.host, APPLICATION, requestor=True)
    images = body["images"] if "images" in body else [{"sop_instance_uid": body["sop_instance_uid"]}]
    return [_close(root, us, event, images)]


def application_activity(us: Us, at: str, *, starts: bool) -> bytes:
    """The exporter starts or stops (A.5.3.1)."""
    root = open_message(("110100", "Application Activity"), "E", at, "0", None)
    kind = ("110120", "Application Start") if starts else ("110121", "Application Stop")
    add_code(root[0], "EventTypeCode", *kind)
    add_participant(root, us.ae_title, us.host, APPLICATION, requestor=False)
    add_source(root, us)
    return tostring(root)


def _why(body: dict[str, Any]) -> str | None:
    status = body.get("last_status")
    return body.get("sentence") or (f"Status 0x{status:04X}." if status else None)


def _arrivals(
    event: TrailEvent, body: dict[str, Any], us: Us
) -> Iterator[tuple[Element, list[dict[str, Any]]]]:
    sender = itemgetter("calling_ae", "called_ae", "address")
    for (calling, called, address), images in groupby(sorted(body["images"], key=sender), key=sender):
        root = open_message(*_MESSAGES[Kind.REGISTERED][:2], event.at, "0", None)
        add_participant(root, calling, address, SOURCE, requestor=True)
        add_participant(root, called, us.host, DESTINATION, requestor=False)
        yield root, list(images)


def _close(root: Element, us: Us, event: TrailEvent, images: list[dict[str, Any]]) -> bytes:
    add_source(root, us)
    study_code = ("110180", "DCM", "Study Instance UID")
    study = add_object(root, event.study_instance_uid or _WITHHELD, _STUDY, study_code, _WITHHELD)
    add_detail(study, "Ledger Event", event.kind)
    add_detail(study, "Ledger Head", f"{event.seq}:{event.hash}")
    description = SubElement(study, "ParticipantObjectDescription")
    classes = Counter(image.get("sop_class_uid") for image in images)
    for sop_class, count in classes.items():
        told = {"UID": plain(sop_class)} if sop_class else {}
        element = SubElement(description, "SOPClass", told | {"NumberOfInstances": str(count)})
        for image in images if len(images) <= _MOST_INSTANCES else ():
            if image.get("sop_class_uid") == sop_class:
                SubElement(element, "Instance", {"UID": plain(image["sop_instance_uid"])})
    patients = {image["patient"] for image in images if image.get("patient")} or {_WITHHELD}
    for patient in sorted(patients):
        add_object(root, patient, _PATIENT, ("2", "RFC-3881", "Patient Number"), _WITHHELD)
    return tostring(root)
