"""`covariance conformance`: the DICOM conformance statement (PS3.2) of the live configuration."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from string import Template

from pydicom.uid import UID

from dicom_node import uids
from dicom_node.requestor import MAXIMUM_PDU_BYTES
from dicom_node.server import contexts_of
from dicom_node.status import Status
from worker.settings import Destination, Settings

_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_URGENCY = {
    "calling_ae": "calling AE title",
    "station_ae": "Station AE Title (0008,0055)",
    "station_name": "Station Name (0008,1010)",
    "procedure_priority": "Requested Procedure Priority (0040,1003)",
    "dimse_priority": "Priority (0000,0700) of the C-STORE",
}
_BOTH = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)
_STATEMENT = Template("""\
# DICOM Conformance Statement: CoVariance $version

Written by `covariance conformance` from the configuration in force. Research software, not a medical
device.

## 1 Conformance statement overview

CoVariance receives radiographs, scores them, and writes structured reports and secondary captures back.

$classes

## 2 Table of contents

- 1 Overview
- 3 Introduction
- 4 Networking
- 5 Media interchange
- 6 Transformation of DICOM to CDA
- 7 Character sets
- 8 Security
- 9 Annexes

## 3 Introduction

For those who connect CoVariance to a PACS or a modality. It says what associations negotiate; that two
systems work together is for a test to show: `covariance doctor` begins it.

## 4 Networking

### 4.1 Implementation model

Two application entities share one AE title. *NODE* accepts associations: it keeps what it is sent, and
answers success only when that is durable on its disk. *DELIVER* opens associations: it sends results, asks
for storage commitment or queries for proof, and tries again without an end.

AE title: `$ae_title`

### 4.2 AE specifications

#### 4.2.1 NODE: associations that are accepted

$listener

Associations are rejected with 1,1,3 (calling AE title not recognised), 1,1,7 (called AE title not
recognised), 1,1,2 (application context), 1,2,2 (protocol version) and 2,3,2 (local limit exceeded).

Presentation contexts that are accepted:

$accepted

Of storage commitment the node takes N-EVENT-REPORT on associations that the peer opens, with the peer in
the role of SCP (role selection).

What decides which study is scored first (`lanes.rules`): $urgency.

Statuses of C-STORE:

$statuses

#### 4.2.2 DELIVER: associations that are opened

$sender

$proposed

Answers to C-STORE: 0000 and Bxxx store; 0111 counts as stored until proof says otherwise; A7xx and 0213 are
tried again; 0122 and 0124 set the object aside; any other status does so after it was given $refusals times
in a row, with the same pauses between.

### 4.3 Network interfaces

TCP/IP as the operating system has it, IPv4 and IPv6.

### 4.4 Configuration

All parameters are in one TOML file, described in `deploy/covariance.toml`. AE titles, ports, SOP classes
and destinations are among them; callers and certificates are taken up without a restart.

## 5 Media interchange

None.

## 6 Transformation of DICOM to CDA

None.

## 7 Support of character sets

All of the standard. Identifiers are copied byte for byte with the Specific Character Set of the film. Text
of our own is ASCII.

## 8 Security

BCP 195 TLS Profile (PS3.15 B.12) for the listener: $tls; both sides show a certificate. Revocation lists:
$crl. Destinations are reached over TLS where `destinations.tls` is set. Audit messages (PS3.15 A.5) go over
TLS syslog where `audit.syslog_host` is set.

## 9 Annexes

### 9.1 Objects that are made

| IOD | content |
|---|---|
| Comprehensive 3D SR | TID 1500: a measurement group a film (probability, presence, heatmap), an evaluation |
| Secondary Capture Image | the film with its class activation map, RGB, Explicit VR Little Endian |
| Key Object Selection | TID 2010, (113001, DCM) or (113037, DCM), after `covariance recall`, IHE IOCM |

Patient and study attributes are those of the film, byte for byte. Study Instance UID is the film's; all
other UIDs are under 2.25 and derived from the images and the model: the same result is the same object.

### 9.2 Private attributes and extensions

None in what is sent. No object is changed that was received.
""")


def statement(settings: Settings) -> str:
    """The whole statement as Markdown."""
    tls = settings.tls
    return _STATEMENT.substitute(
        version=version("covariance"),
        classes=_lines(_classes(settings)),
        ae_title=settings.node.ae_title,
        listener=_lines(_listener(settings)),
        accepted=_lines(_contexts(accepted(settings))),
        urgency=_urgency(settings),
        statuses=_lines(_statuses()),
        sender=_lines(_sender(settings)),
        proposed="\n\n".join(_proposals(settings)),
        refusals=settings.delivery.permanent_attempts,
        tls="on" if tls.enabled else "off",
        crl="looked up" if tls.crl else "not used",
    )


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


def _classes(settings: Settings) -> Iterator[str]:
    yield from _head("SOP class", "UID", "user of service (SCU)", "provider of service (SCP)")
    sent = {uid for one in settings.destinations for uid, _ in proposed(one)} or {
        uids.COMPREHENSIVE_3D_SR,
        uids.SECONDARY_CAPTURE,
        uids.STORAGE_COMMITMENT,
    }
    taken = dict.fromkeys(uid for uid, _ in accepted(settings))
    for uid in (*taken, *sorted(sent - taken.keys())):
        scp = "no (takes reports)" if uid == uids.STORAGE_COMMITMENT else "yes" if uid in taken else "no"
        scu = "yes" if uid in sent or uid == uids.VERIFICATION else "no"
        aside = ", kept and not analysed" if uid in settings.node.set_aside_sop_classes else ""
        yield f"| {_name(uid)} | {uid} | {scu} | {scp}{aside} |"


def _listener(settings: Settings) -> Iterator[str]:
    node, tls = settings.node, settings.tls
    ports = [f"{node.host}:{node.port}"] * node.plain + [f"{node.host}:{tls.port} (TLS)"] * tls.enabled
    callers = dict.fromkeys((*node.allowed_callers, *(one.ae_title for one in node.callers)))
    yield from _head("parameter", "value")
    yield "| Application context | 1.2.840.10008.3.1.1.1 |"
    yield f"| Implementation class UID | {uids.IMPLEMENTATION_CLASS} |"
    yield f"| Implementation version name | {uids.IMPLEMENTATION_VERSION} |"
    yield f"| Ports | {', '.join(ports)} |"
    yield f"| Calling AE titles | {', '.join(callers) or 'any'} |"
    yield f"| Associations at the same time | {node.maximum_associations} |"
    yield f"| Largest PDU received, bytes | {node.maximum_pdu_bytes} |"
    yield f"| Largest data set, bytes | {node.maximum_object_bytes} |"
    yield "| Asynchronous operations window | not supported: one operation at a time |"
    yield f"| Seconds without a PDU until an abort | {node.network_timeout:g} |"
    yield "| SOP class extended negotiation | none |"


def _urgency(settings: Settings) -> str:
    named = {name for rule in settings.lanes.rules for name in rule.model_fields_set}
    return ", ".join(told for name, told in _URGENCY.items() if name in named) or "the order of arrival"


def _statuses() -> Iterator[str]:
    yield from _head("status", "meaning")
    for status, meaning in (
        (Status.SUCCESS, "the object is durable on the disk"),
        (Status.OUT_OF_RESOURCES, "no room, or larger than the largest data set; send it again"),
        (Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "class or instance differ between command and data set"),
        (Status.CANNOT_UNDERSTAND, "no valid study, series or instance UID can be read"),
    ):
        yield f"| {status:04X} | {meaning} |"


def _sender(settings: Settings) -> Iterator[str]:
    delivery = settings.delivery
    yield from _head("parameter", "value")
    yield f"| Largest PDU offered, bytes | {MAXIMUM_PDU_BYTES} |"
    yield "| Asynchronous operations window | not proposed |"
    yield f"| Objects over one association, at most | {delivery.batch} |"
    yield f"| Seconds to wait for an answer | {delivery.timeout:g} |"
    yield "| Tries | without an end, the pause doubled each time up to `delivery.backoff_cap` |"


def _proposals(settings: Settings) -> Iterator[str]:
    for one in settings.destinations:
        yield f"Proposed to {one.ae_title} at {one.host}:{one.port}{' over TLS' if one.tls else ''}:"
        yield _lines(_contexts(proposed(one), role="SCU"))
    if not settings.destinations:
        yield "No destination is configured."


def _contexts(pairs: list[tuple[str, str]], role: str = "") -> Iterator[str]:
    yield from _head("abstract syntax", "UID", "transfer syntax", "UID", "role")
    for uid, syntax in pairs:
        mine = role or ("SCU" if uid == uids.STORAGE_COMMITMENT else "SCP")
        yield f"| {_name(uid)} | {uid} | {_name(syntax)} | {syntax} | {mine} |"


def _head(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(lines)


def _name(uid: str) -> str:
    return str(UID(uid).name)
