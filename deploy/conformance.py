"""`covariance conformance`: the DICOM conformance statement (PS3.2) of the live configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import groupby

from pydicom.uid import UID

from dicom_node import uids
from dicom_node.requestor import MAXIMUM_PDU_BYTES
from dicom_node.server import contexts_of
from dicom_node.status import Status
from worker.settings import Destination, Settings

_WIDTH = 118
_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_BOTH = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)
_URGENCY = {
    "calling_ae": "calling AE title",
    "station_ae": "Station AE Title (0008,0055)",
    "station_name": "Station Name (0008,1010)",
    "procedure_priority": "Requested Procedure Priority (0040,1003)",
    "dimse_priority": "Priority (0000,0700) of the C-STORE",
}
_CHARACTER_SETS = "Identifiers are copied byte for byte with the Specific Character Set of the film."


def statement(settings: Settings) -> str:
    """The whole statement as Markdown."""
    parts = (_overview, _introduction, _model, _acceptor, _initiator, _interfaces, _configuration, _rest)
    lines = [line for part in parts for line in (*part(settings), "")]
    return "\n".join(_wrapped(lines)).rstrip() + "\n"


def _wrapped(lines: Sequence[str]) -> Iterator[str]:
    """The lines with the paragraphs among them set anew."""
    for is_prose, group in groupby(lines, lambda line: bool(line) and line[0] not in "#|-"):
        together = list(group)
        yield from textwrap.wrap(" ".join(together), _WIDTH) if is_prose else together


def accepted(settings: Settings) -> list[tuple[str, str]]:
    """(SOP class, transfer syntax) that the listener takes."""
    node = settings.node
    contexts = contexts_of(node.sop_classes, node.set_aside_sop_classes)
    return [
        (str(context.abstract_syntax), str(syntax))
        for context in contexts
        for syntax in context.transfer_syntax
    ]


def proposed(destination: Destination) -> list[tuple[str, str]]:
    """(SOP class, transfer syntax) that are proposed to a destination."""
    explicit = uids.EXPLICIT_VR_LITTLE_ENDIAN
    found = [(uids.COMPREHENSIVE_3D_SR, explicit), (uids.SECONDARY_CAPTURE, explicit)]
    if destination.rejection_notes:
        found.append((uids.KEY_OBJECT_SELECTION, explicit))
    if destination.verify == "commitment":
        found += [(uids.STORAGE_COMMITMENT, syntax) for syntax in _BOTH]
    if destination.verify == "find":
        found += [(_FIND, syntax) for syntax in _BOTH]
    return found


def _overview(settings: Settings) -> Iterator[str]:
    yield f"# DICOM Conformance Statement: CoVariance {version('covariance')}"
    yield ""
    yield "Written by `covariance conformance` from the configuration in force. Research software, not a"
    yield "medical device."
    yield ""
    yield "## 1 Conformance statement overview"
    yield ""
    yield "CoVariance receives radiographs, scores them, and writes structured reports and"
    yield "secondary captures back."
    yield ""
    yield "| SOP class | UID | user of service (SCU) | provider of service (SCP) |"
    yield "|---|---|---|---|"
    node = settings.node
    sent = {uid for one in settings.destinations for uid, _ in proposed(one)} or {
        uids.COMPREHENSIVE_3D_SR,
        uids.SECONDARY_CAPTURE,
        uids.STORAGE_COMMITMENT,
    }
    taken = dict.fromkeys(uid for uid, _ in accepted(settings))
    for uid in (*taken, *sorted(sent - taken.keys())):
        scp = "no (takes reports)" if uid == uids.STORAGE_COMMITMENT else "yes" if uid in taken else "no"
        scu = "yes" if uid in sent or uid == uids.VERIFICATION else "no"
        aside = ", kept and not analysed" if uid in node.set_aside_sop_classes else ""
        yield f"| {_name(uid)} | {uid} | {scu} | {scp}{aside} |"
    yield ""
    yield "## 2 Table of contents"
    yield ""
    for line in (
        "1 Overview",
        "3 Introduction",
        "4 Networking",
        "5 Media interchange",
        "6 Transformation of DICOM to CDA",
        "7 Character sets",
        "8 Security",
        "9 Annexes",
    ):
        yield f"- {line}"


def _introduction(_: Settings) -> Iterator[str]:
    yield "## 3 Introduction"
    yield ""
    yield "For those who connect CoVariance to a PACS or a modality. It says what associations"
    yield "negotiate; that two"
    yield "systems work together is for a test to show: `covariance doctor` begins it."


def _model(settings: Settings) -> Iterator[str]:
    yield "## 4 Networking"
    yield ""
    yield "### 4.1 Implementation model"
    yield ""
    yield "Two application entities share one AE title. *NODE* accepts associations: it keeps"
    yield "what it is sent, and"
    yield "answers success only when that is durable on its disk. *DELIVER* opens associations:"
    yield "it sends results,"
    yield "asks for storage commitment or queries for proof, and tries again without an end."
    yield ""
    yield f"AE title: `{settings.node.ae_title}`"


def _acceptor(settings: Settings) -> Iterator[str]:
    node, tls = settings.node, settings.tls
    yield "### 4.2 AE specifications"
    yield ""
    yield "#### 4.2.1 NODE: associations that are accepted"
    yield ""
    ports = [f"{node.host}:{node.port}"] * node.plain + [f"{node.host}:{tls.port} (TLS)"] * tls.enabled
    callers = dict.fromkeys((*node.allowed_callers, *(one.ae_title for one in node.callers)))
    yield from _table(
        ("Application context", "1.2.840.10008.3.1.1.1"),
        ("Implementation class UID", uids.IMPLEMENTATION_CLASS),
        ("Implementation version name", uids.IMPLEMENTATION_VERSION),
        ("Ports", ", ".join(ports)),
        ("Calling AE titles", ", ".join(callers) or "any"),
        ("Associations at the same time", node.maximum_associations),
        ("Largest PDU received, bytes", node.maximum_pdu_bytes),
        ("Largest data set, bytes", node.maximum_object_bytes),
        ("Asynchronous operations window", "not supported: one operation at a time"),
        ("Seconds without a PDU until an abort", f"{node.network_timeout:g}"),
        ("SOP class extended negotiation", "none"),
    )
    yield ""
    yield "Associations are rejected with 1,1,3 (calling AE title not recognised), 1,1,7 (called AE title not"
    yield "recognised), 1,1,2 (application context), 1,2,2 (protocol version) and 2,3,2 (local"
    yield "limit exceeded)."
    yield ""
    yield "Presentation contexts that are accepted:"
    yield ""
    yield "| abstract syntax | UID | transfer syntax | UID | role |"
    yield "|---|---|---|---|---|"
    for uid, syntax in accepted(settings):
        role = "SCU" if uid == uids.STORAGE_COMMITMENT else "SCP"
        yield f"| {_name(uid)} | {uid} | {_name(syntax)} | {syntax} | {role} |"
    yield ""
    yield "Of storage commitment the node takes N-EVENT-REPORT on associations that the peer"
    yield "opens, with the peer in"
    yield "the role of SCP (role selection)."
    yield ""
    named = {name for rule in settings.lanes.rules for name in rule.model_fields_set}
    asked = ", ".join(told for name, told in _URGENCY.items() if name in named)
    yield f"What decides which study is scored first (`lanes.rules`): {asked or 'the order of arrival'}."
    yield ""
    yield "Statuses of C-STORE:"
    yield ""
    yield "| status | meaning |"
    yield "|---|---|"
    for status, meaning in (
        (Status.SUCCESS, "the object is durable on the disk"),
        (Status.OUT_OF_RESOURCES, "no room, or larger than the largest data set; send it again"),
        (Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "class or instance differ between command and data set"),
        (Status.CANNOT_UNDERSTAND, "no valid study, series or instance UID can be read"),
    ):
        yield f"| {status:04X} | {meaning} |"


def _initiator(settings: Settings) -> Iterator[str]:
    yield "#### 4.2.2 DELIVER: associations that are opened"
    yield ""
    yield from _table(
        ("Largest PDU offered, bytes", MAXIMUM_PDU_BYTES),
        ("Asynchronous operations window", "not proposed"),
        ("Objects over one association, at most", settings.delivery.batch),
        ("Seconds to wait for an answer", f"{settings.delivery.timeout:g}"),
        ("Tries", "without an end, the pause doubled each time up to `delivery.backoff_cap`"),
    )
    for one in settings.destinations:
        yield ""
        yield f"Proposed to {one.ae_title} at {one.host}:{one.port}{' over TLS' if one.tls else ''}:"
        yield ""
        yield "| abstract syntax | UID | transfer syntax | UID | role |"
        yield "|---|---|---|---|---|"
        for uid, syntax in proposed(one):
            yield f"| {_name(uid)} | {uid} | {_name(syntax)} | {syntax} | SCU |"
    if not settings.destinations:
        yield ""
        yield "No destination is configured."
    yield ""
    yield "Answers to C-STORE: 0000 and Bxxx store; 0111 counts as stored until proof says"
    yield "otherwise; A7xx and 0213"
    yield "are tried again; 0122 and 0124 set the object aside; any other status does so after it was given"
    yield f"{settings.delivery.permanent_attempts} times in a row."


def _interfaces(_: Settings) -> Iterator[str]:
    yield "### 4.3 Network interfaces"
    yield ""
    yield "TCP/IP as the operating system has it, IPv4 and IPv6."


def _configuration(_: Settings) -> Iterator[str]:
    yield "### 4.4 Configuration"
    yield ""
    yield "All parameters are in one TOML file, described in `deploy/covariance.toml`. AE"
    yield "titles, ports, SOP classes and"
    yield "destinations are among them; callers and certificates are taken up without a restart."


def _rest(settings: Settings) -> Iterator[str]:
    tls = settings.tls
    yield "## 5 Media interchange"
    yield ""
    yield "None."
    yield ""
    yield "## 6 Transformation of DICOM to CDA"
    yield ""
    yield "None."
    yield ""
    yield "## 7 Support of character sets"
    yield ""
    yield f"All of the standard. {_CHARACTER_SETS} Text of our own is ASCII."
    yield ""
    yield "## 8 Security"
    yield ""
    on = "on" if tls.enabled else "off"
    yield f"BCP 195 TLS Profile (PS3.15 B.12) for the listener: {on}; both sides show"
    yield f"a certificate. Revocation lists: {'looked up' if tls.crl else 'not used'}."
    yield "Destinations are reached over"
    yield "TLS where `destinations.tls` is set. Audit messages (PS3.15 A.5) go over TLS syslog where"
    yield "`audit.syslog_host` is set."
    yield ""
    yield "## 9 Annexes"
    yield ""
    yield "### 9.1 Objects that are made"
    yield ""
    yield "| IOD | content |"
    yield "|---|---|"
    yield (
        "| Comprehensive 3D SR | TID 1500: a measurement group a film (probability, presence, "
        "heatmap), one evaluation |"
    )
    yield (
        "| Secondary Capture Image | the film with its class activation map, RGB, Explicit VR Little Endian |"
    )
    yield (
        "| Key Object Selection | TID 2010, (113001, DCM) or (113037, DCM), after `covariance "
        "recall`, IHE IOCM |"
    )
    yield ""
    yield "Patient and study attributes are those of the film, byte for byte. Study Instance"
    yield "UID is the film's; all"
    yield "other UIDs are under 2.25 and derived from the images and the model: the same result"
    yield "is the same object."
    yield ""
    yield "### 9.2 Private attributes and extensions"
    yield ""
    yield "None in what is sent. No object is changed that was received."


def _table(*rows: tuple[str, object]) -> Sequence[str]:
    return ["| parameter | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _name(uid: str) -> str:
    return str(UID(uid).name)
