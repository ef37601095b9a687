"""The elements that DICOM audit messages are built of (PS3.15 A.5.1)."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

APPLICATION = ("110150", "Application")
DESTINATION = ("110152", "Destination Role ID")
SOURCE = ("110153", "Source Role ID")


@dataclass(frozen=True, kw_only=True)
class Us:
    """Who reports: our AE title and the name of this machine."""

    ae_title: str
    host: str


def open_message(what: tuple[str, str], action: str, at: str, outcome: str, sentence: str | None) -> Element:
    """Begin a message with its event: (code, meaning), action, time in ISO 8601, outcome, and why."""
    root = Element("AuditMessage")
    facts = {"EventActionCode": action, "EventDateTime": at, "EventOutcomeIndicator": outcome}
    identification = SubElement(root, "EventIdentification", facts)
    add_code(identification, "EventID", *what)
    if sentence:
        SubElement(identification, "EventOutcomeDescription").text = plain(sentence)
    return root


def add_participant(
    root: Element, ae_title: str, host: str | None, role: tuple[str, str], *, requestor: bool
) -> None:
    """Add who took part; one that said no AE title goes by its address."""
    facts = {"UserID": plain(ae_title or host or "unknown")}
    if ae_title:
        facts["AlternativeUserID"] = f"AETITLES={plain(ae_title)}"
    facts["UserIsRequestor"] = str(requestor).lower()
    if host:
        is_address = ":" in host or host.replace(".", "").isdigit()
        facts |= {"NetworkAccessPointID": plain(host)}
        facts |= {"NetworkAccessPointTypeCode": "2" if is_address else "1"}
    add_code(SubElement(root, "ActiveParticipant", facts), "RoleIDCode", *role)


def add_source(root: Element, us: Us) -> None:
    """Add where the message comes from."""
    source = SubElement(root, "AuditSourceIdentification", {"AuditSourceID": f"{us.ae_title}@{us.host}"})
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process


def add_object(
    root: Element, identity: str, roles: tuple[str, str], code: tuple[str, str, str], name: str
) -> Element:
    """Add what it was about: its type code and role, and the code, the system and the meaning of its id."""
    facts = dict(zip(("ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole"), roles, strict=True))
    element = SubElement(
        root, "ParticipantObjectIdentification", {"ParticipantObjectID": plain(identity)} | facts
    )
    add_code(element, "ParticipantObjectIDTypeCode", code[0], code[2], system=code[1])
    SubElement(element, "ParticipantObjectName").text = name
    return element


def add_detail(element: Element, name: str, value: str) -> None:
    """Add a named value to an object, in base64."""
    encoded = base64.b64encode(value.encode()).decode("ascii")
    SubElement(element, "ParticipantObjectDetail", {"type": name, "value": encoded})


def add_code(
    parent: Element, name: str, code: str, meaning: str, *, system: str = "DCM", before: int | None = None
) -> None:
    """Add a coded value, at the end or before a child."""
    facts = {"csd-code": code, "codeSystemName": system, "originalText": meaning}
    parent.insert(len(parent) if before is None else before, Element(name, facts))


def plain(text: str) -> str:
    """What XML cannot hold becomes a question mark; a caller's AE title may be anything."""
    return "".join(one if " " <= one <= "~" else "?" for one in text)
