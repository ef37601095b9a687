"""Storage SCU: many objects over one association, each sent as it stands in its file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_node import uids
from dicom_node.commitment import request_commitment
from dicom_node.dimse import Command, Field, Operation
from dicom_node.file_meta import data_set_offset
from dicom_node.negotiation import Context, Terms
from dicom_node.requestor import MAXIMUM_PROPOSALS, Peer, PeerUnavailable, Requestor
from dicom_node.status import Status
from dicom_node.wire import PDU_HEADER, PDV_HEADER, ConnectionLost, Control, PduType, ProtocolError

__all__ = ["Peer", "PeerUnavailable", "SendItem", "SendOutcome", "StoreAssociation", "echo"]

_BATCH_BYTES = 524_288
_HEADERS = PDU_HEADER.size + PDV_HEADER.size
_MEDIUM = 0  # priority, PS3.7 9.3.1.1


@dataclass(frozen=True, kw_only=True)
class SendItem:
    """An object to be sent: a Part 10 file, and what it holds."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class SendOutcome:
    """What the peer answered; a status of None means that there was no answer and nobody knows."""

    sop_instance_uid: str
    status: int | None


class StoreAssociation(Requestor):
    """One association for the objects of `items` (for their classes and syntaxes, to be exact).

    After an abort or a lost connection every further outcome is unknown (None).

    Raises:
        PeerUnavailable: there is no association.
    """

    def __init__(self, peer: Peer, items: Iterable[SendItem], *, commitment: bool = False) -> None:
        wanted = dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items)
        proposals: list[tuple[str, Sequence[str]]] = [(pair[0], [pair[1]]) for pair in wanted]
        if commitment or not proposals:
            syntaxes = [uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN]
            proposals.insert(0, (uids.STORAGE_COMMITMENT if commitment else uids.VERIFICATION, syntaxes))
        super().__init__(peer, proposals[:MAXIMUM_PROPOSALS])

    def send(self, item: SendItem) -> SendOutcome:
        """Send one object; its data set is not touched.

        The peer's refusal of its class and syntax counts as status 0122, a file that is gone as 0112.
        """
        context = self.context_for(item.sop_class_uid, item.transfer_syntax_uid)
        status: int | None
        if not self.is_open:
            status = None
        elif context is None:
            status = Status.SOP_CLASS_NOT_SUPPORTED
        else:
            status = self._send(item, context)
        return SendOutcome(sop_instance_uid=item.sop_instance_uid, status=status)

    def _send(self, item: SendItem, context: Context) -> int | None:
        request = Command(
            {
                Field.AFFECTED_SOP_CLASS: item.sop_class_uid,
                Field.COMMAND: Operation.C_STORE_RQ,
                Field.PRIORITY: _MEDIUM,
                Field.AFFECTED_SOP_INSTANCE: item.sop_instance_uid,
            }
        )
        try:
            descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return Status.NO_SUCH_OBJECT_INSTANCE
        try:
            message_id = self.send_command(context, request, has_data_set=True)
            self._send_data_set(descriptor, context.context_id)
            return self.response(message_id).command.number(Field.STATUS)
        except (ConnectionLost, ProtocolError, OSError):
            self.abort()
            return None
        except BaseException:
            self.abort()  # in mid data set there is no other way back
            raise
        finally:
            os.close(descriptor)

    def _send_data_set(self, descriptor: int, context_id: int) -> None:
        """Read the file into a row of framed PDUs, and write the row in one go."""
        offset, end = data_set_offset(descriptor), os.fstat(descriptor).st_size
        pdu = min(self.peer_maximum, _BATCH_BYTES - PDU_HEADER.size) + PDU_HEADER.size
        payload = pdu - _HEADERS
        row = memoryview(bytearray(pdu * max(_BATCH_BYTES // pdu, 1)))
        slots = [row[start + _HEADERS : start + pdu] for start in range(0, len(row), pdu)]
        for start in range(0, len(row), pdu):
            _frame(row, start, payload, context_id, Control(0))
        while True:
            count = min(os.preadv(descriptor, slots, offset), end - offset)
            offset += count
            full, rest = divmod(count, payload)
            if offset < end and rest:
                raise ConnectionLost("the file ended early")
            if offset >= end:
                if full and not rest:
                    full, rest = full - 1, payload
                _frame(row, full * pdu, rest, context_id, Control.LAST)
                self.send_pdus(row[: full * pdu + _HEADERS + rest])
                return
            self.send_pdus(row[: full * pdu])

    def request_commitment(self, transaction_uid: str, references: Iterable[tuple[str, str]]) -> int | None:
        """Ask the peer to commit to (SOP class, SOP instance) pairs; its report comes to our listener."""
        return request_commitment(self, transaction_uid, references)


def _frame(row: memoryview, start: int, size: int, context_id: int, control: Control) -> None:
    PDU_HEADER.pack_into(row, start, PduType.P_DATA, size + PDV_HEADER.size)
    PDV_HEADER.pack_into(row, start + PDU_HEADER.size, size + 2, context_id, control)


def echo(peer: Peer) -> Terms:
    """Ask a peer whether it is there (C-ECHO); return what was agreed on.

    Raises:
        PeerUnavailable: with what is wrong; a `PeerRejects` where it rejects the association.
    """
    request = Command({Field.AFFECTED_SOP_CLASS: uids.VERIFICATION, Field.COMMAND: Operation.C_ECHO_RQ})
    with Requestor(peer, [(uids.VERIFICATION, [uids.IMPLICIT_VR_LITTLE_ENDIAN])]) as association:
        context = association.context_for(uids.VERIFICATION)
        status = None if context is None else association.ask(context, request)
        if status != Status.SUCCESS:
            raise PeerUnavailable(f"{peer.ae_title} accepts an association and does not answer C-ECHO")
        return association.terms
