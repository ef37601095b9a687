"""Security alerts (PS3.15 A.5.3.11): peers that were refused, and an audit trail that is not what it was."""

from __future__ import annotations

from xml.etree.ElementTree import tostring

from pydantic import ValidationError

from dicom_node.refusals import Refusal, RefusalWindow, Refused
from worker.audit_elements import (
    APPLICATION,
    SOURCE,
    Us,
    add_code,
    add_detail,
    add_object,
    add_participant,
    add_source,
    open_message,
)
from worker.ledger import TrailEvent

_ALERT = ("110113", "Security Alert")
_SECURITY = ("2", "13")  # system object, security resource
_REASONS = {
    Refused.UNKNOWN_TITLE: "unknown AE title",
    Refused.WRONG_ADDRESS: "AE title from another address",
    Refused.WRONG_CERTIFICATE: "AE title with another certificate, or none",
    Refused.CALLED_TITLE: "asked for another AE title",
    Refused.HANDSHAKE: "TLS handshake failed",
    Refused.CERTIFICATE: "certificate not accepted",
    Refused.REVOKED: "certificate revoked",
    Refused.NO_VALID_LIST: "no revocation list that is good",
    Refused.ASSOCIATIONS: "too many associations",
    Refused.CONNECTIONS: "too many connections",
    Refused.CONNECTIONS_FROM_THERE: "too many connections from there",
}


def refusal_alert(event: TrailEvent, us: Us) -> bytes:
    """A window of refusals as one message: who was refused takes part, and why is told of our node.

    Raises:
        ValueError: the event is no window of refusals.
    """
    try:
        window = RefusalWindow.model_validate_json(event.body)
    except ValidationError:
        raise ValueError("no window of refusals") from None
    sentence = f"{window.count} refused from {window.since:%H:%M:%S} to {window.until:%H:%M:%S} UTC."
    # Nobody got in: a failure is minor where what keeps us safe worked.
    root = open_message(_ALERT, "E", window.until.isoformat(), "4", sentence)
    add_code(root[0], "EventTypeCode", "110126", "Node Authentication", before=1)
    add_participant(root, us.ae_title, us.host, APPLICATION, requestor=False)
    for calling, address in dict.fromkeys((one.calling_ae, one.address) for one in window.refusals):
        add_participant(root, calling, address, SOURCE, requestor=False)
    add_source(root, us)
    node = f"{us.ae_title}@{us.host}"
    alert = add_object(root, node, _SECURITY, ("110182", "DCM", "Node ID"), us.ae_title)
    for one in window.refusals:
        add_detail(alert, "Alert Description", _told(one))
    for reason, count in window.others.items():
        add_detail(alert, "Alert Description", f"{count} x {_REASONS[reason]}, from others")
    add_detail(alert, "Ledger Event", event.kind)
    add_detail(alert, "Ledger Head", f"{event.seq}:{event.hash}")
    return tostring(root)


def _told(one: Refusal) -> str:
    titles = f", {one.calling_ae or '-'} to {one.called_ae or '-'}" if one.calling_ae or one.called_ae else ""
    return f"{one.count} x {_REASONS[one.reason]}, {one.address}{titles}"


def security_alert(us: Us, at: str, sentence: str) -> bytes:
    """The audit trail is not what it was."""
    root = open_message(_ALERT, "E", at, "8", sentence)
    add_code(root[0], "EventTypeCode", "110135", "Object Security Attributes Changed", before=1)
    add_participant(root, us.ae_title, us.host, APPLICATION, requestor=True)
    add_source(root, us)
    alert = add_object(
        root, "covariance:audit-trail", _SECURITY, ("12", "RFC-3881", "URI"), "Security Audit Log"
    )
    add_detail(alert, "Alert Description", sentence)
    return tostring(root)
