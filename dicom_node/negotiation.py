"""Association negotiation (PS3.8 9.3.2-9.3.4, PS3.7 Annex D), by pynetdicom's PDUs and rules."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from dicom_node import uids
from dicom_node.callers import AllowList, Origin
from dicom_node.wire import PDU_HEADER, PduType, ProtocolError

_IMPLEMENTATION = ImplementationClassUIDNotification
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, AssertionError, struct.error)
"""What pynetdicom's decoders raise on bytes that are no A-ASSOCIATE."""

Rejection = tuple[int, int, int]
"""Result, source, reason (PS3.8 Table 9-21)."""
APPLICATION_CONTEXT_UNKNOWN: Rejection = (1, 1, 2)
CALLING_AE_UNKNOWN: Rejection = (1, 1, 3)
CALLED_AE_UNKNOWN: Rejection = (1, 1, 7)
PROTOCOL_VERSION_UNKNOWN: Rejection = (1, 2, 2)
LIMIT_EXCEEDED: Rejection = (2, 3, 2)


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What both sides have agreed on. `peer_maximum` is in bytes a P-DATA PDU."""

    calling_ae: str
    called_ae: str
    contexts: dict[int, Context]
    peer_maximum: int
    implementation: str = ""
    """Implementation Class UID of the peer (PS3.7 D.3.3.2); empty where it names none."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an acceptor takes."""

    ae_title: str
    callers: AllowList
    contexts: Sequence[PresentationContext] = field(repr=False)
    maximum_pdu: int

    def judge(self, request: Request, origin: Origin) -> Rejection | None:
        """Why a request from there is rejected; None where it is not."""
        if not request.protocol_version & 1:
            return PROTOCOL_VERSION_UNKNOWN
        if request.application_context != _APPLICATION_CONTEXT:
            return APPLICATION_CONTEXT_UNKNOWN
        if not self.callers.admits(request.calling_ae, origin):
            return CALLING_AE_UNKNOWN
        if request.called_ae != self.ae_title:
            return CALLED_AE_UNKNOWN
        return None


class Request:
    """An A-ASSOCIATE-RQ as it came. Raises `ProtocolError` where it is none."""

    def __init__(self, body: bytes) -> None:
        pdu = A_ASSOCIATE_RQ()
        try:
            pdu.decode(PDU_HEADER.pack(PduType.ASSOCIATE_RQ, len(body)) + body)
            self._primitive: Any = pdu.to_primitive()
            self.protocol_version: int = pdu.protocol_version
            self.calling_ae = str(self._primitive.calling_ae_title).strip()
            self.called_ae = str(self._primitive.called_ae_title).strip()
            self.application_context = str(self._primitive.application_context_name)
            self._maximum = int(self._primitive.maximum_length_received or 0)
        except _MALFORMED as error:
            raise ProtocolError("the A-ASSOCIATE-RQ cannot be read") from error
        proposed = [one.context_id for one in self._primitive.presentation_context_definition_list]
        if not proposed or len(set(proposed)) != len(proposed):
            raise ProtocolError("the A-ASSOCIATE-RQ proposes no context, or one identifier twice")

    def reject(self, rejection: Rejection) -> bytes:
        """The A-ASSOCIATE-RJ."""
        pdu = A_ASSOCIATE_RJ()
        pdu.result, pdu.source, pdu.reason_diagnostic = rejection
        return _encoded(pdu)

    def accept(self, policy: Policy) -> tuple[bytes, Terms]:
        """The A-ASSOCIATE-AC, and what it agrees on."""
        answer = A_ASSOCIATE()
        try:
            roles = {
                item.sop_class_uid: (item.scu_role or False, item.scp_role or False)
                for item in self._primitive.user_information
                if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
            }
            results, role_replies = negotiate_as_acceptor(
                self._primitive.presentation_context_definition_list, list(policy.contexts), roles
            )
            answer.application_context_name = _APPLICATION_CONTEXT
            answer.calling_ae_title = self._primitive.calling_ae_title
            answer.called_ae_title = self._primitive.called_ae_title
            answer.result, answer.result_source = 0, 1
            answer.presentation_context_definition_results_list = results
            answer.user_information = [*_user_information(policy.maximum_pdu), *role_replies]
            encoded = _encoded(A_ASSOCIATE_AC(answer))
        except _MALFORMED as error:
            raise ProtocolError("the A-ASSOCIATE-RQ cannot be answered") from error
        return encoded, Terms(
            calling_ae=self.calling_ae,
            called_ae=self.called_ae,
            contexts=_accepted((one, str(one.abstract_syntax)) for one in results),
            peer_maximum=self._maximum,
        )


def supported(abstract_syntax: str, transfer_syntaxes: Sequence[str]) -> PresentationContext:
    """A presentation context that an acceptor takes, as SCP; of storage commitment the peer is the SCP."""
    context = build_context(abstract_syntax, list(transfer_syntaxes))
    if abstract_syntax == uids.STORAGE_COMMITMENT:
        context.scu_role, context.scp_role = False, True
    return context


def request_pdu(
    *, calling_ae: str, called_ae: str, proposals: Sequence[tuple[str, Sequence[str]]], maximum_pdu: int
) -> bytes:
    """The A-ASSOCIATE-RQ for (abstract syntax, transfer syntaxes) proposals; context ids are 1, 3, 5..."""
    request = A_ASSOCIATE()
    request.application_context_name = _APPLICATION_CONTEXT
    request.calling_ae_title = calling_ae
    request.called_ae_title = called_ae
    contexts = [build_context(abstract, list(syntaxes)) for abstract, syntaxes in proposals]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    request.user_information = _user_information(maximum_pdu)
    return _encoded(A_ASSOCIATE_RQ(request))


def read_acceptance(
    body: bytes, *, calling_ae: str, called_ae: str, proposals: Sequence[tuple[str, Sequence[str]]]
) -> Terms:
    """Decode an A-ASSOCIATE-AC. Raises `ProtocolError`."""
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(PDU_HEADER.pack(PduType.ASSOCIATE_AC, len(body)) + body)
        primitive: Any = pdu.to_primitive()
        results = primitive.presentation_context_definition_results_list
        contexts = _accepted((one, proposals[one.context_id // 2][0]) for one in results)
        maximum = int(primitive.maximum_length_received or 0)
        told = [one for one in primitive.user_information if isinstance(one, _IMPLEMENTATION)]
        implementation = str(told[0].implementation_class_uid) if told else ""
    except _MALFORMED as error:
        raise ProtocolError("the A-ASSOCIATE-AC cannot be read") from error
    return Terms(
        calling_ae=calling_ae,
        called_ae=called_ae,
        contexts=contexts,
        peer_maximum=maximum,
        implementation=implementation,
    )


def read_rejection(body: bytes) -> str:
    """Say an A-ASSOCIATE-RJ in words."""
    pdu = A_ASSOCIATE_RJ()
    try:
        pdu.decode(PDU_HEADER.pack(PduType.ASSOCIATE_RJ, len(body)) + body)
        numbers = f"{pdu.result},{pdu.source},{pdu.reason_diagnostic}"
        return f"{pdu.reason_str[0].lower()}{pdu.reason_str[1:]} ({numbers})"
    except _MALFORMED:
        return "no reason that the standard knows"


def rejection_of(body: bytes) -> Rejection | None:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 Table 9-21); None where it cannot be read."""
    if len(body) < 4:
        return None
    return body[1], body[2], body[3]


def _accepted(results: Iterable[tuple[PresentationContext, str]]) -> dict[int, Context]:
    return {
        one.context_id: Context(one.context_id, abstract_syntax, str(one.transfer_syntax[0]))
        for one, abstract_syntax in results
        if one.result == 0
    }


def _user_information(maximum_pdu: int) -> list[Any]:
    length = MaximumLengthNotification()
    length.maximum_length_received = maximum_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = uids.IMPLEMENTATION_CLASS
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = uids.IMPLEMENTATION_VERSION
    return [length, implementation, version]


def _encoded(pdu: Any) -> bytes:
    encoded: bytes = pdu.encode()
    return encoded
