"""The acceptor of an association: whatever it hears, it ends, keeps no part, and answers in whole PDUs."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from dicom_node import uids
from dicom_node.association import Acceptor, Reception, Refusal, Seats
from dicom_node.callers import AllowList, Origin
from dicom_node.commitment import CommitmentReport, ReportReception
from dicom_node.dimse import Command, Field, Operation
from dicom_node.doorman import Doorman
from dicom_node.negotiation import Context, Policy, Terms, supported
from dicom_node.receive import StoreReception
from dicom_node.routing import Router
from dicom_node.settings import LaneRule
from dicom_node.spool import Spool
from dicom_node.status import Status
from dicom_node.wire import PDU_HEADER, PduType, Wire

_SYNTAXES = uids.TRANSFER_SYNTAXES[:3]
_CLASSES = (uids.VERIFICATION, uids.COMPUTED_RADIOGRAPHY, uids.STORAGE_COMMITMENT)
_ROUTER = Router([LaneRule(lane="stat", station_name="FUZZ", procedure_priority="STAT")])
_POLICY = Policy(
    ae_title="COVARIANCE",
    callers=AllowList((), ()),
    contexts=[supported(one, _SYNTAXES) for one in _CLASSES],
    maximum_pdu=16_384,
)


class Tape:
    """A connection whose peer has said everything already and then closed."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self.heard = bytearray()
        self.is_closed = False

    def recv_into(self, buffer: Any) -> int:
        piece, self._said = self._said[: len(buffer)], self._said[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)

    def sendall(self, content: bytes) -> None:
        self.heard += content

    def setsockopt(self, *_: int) -> None: ...

    def settimeout(self, _: float | None) -> None: ...

    def close(self) -> None:
        self.is_closed = True


@cache
def _spool() -> Spool:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    spool = Spool(Path(folder.name))
    spool.prepare()
    spool.folder = folder  # type: ignore[attr-defined]  # it goes when the process does
    return spool


def _keep(report: CommitmentReport) -> None:
    assert uids.is_valid_uid(report.transaction_uid)


def _begin(command: Command, context: Context, terms: Terms) -> Reception:
    operation = command.number(Field.COMMAND)
    if operation == Operation.C_STORE_RQ:
        return StoreReception(
            _spool(),
            command=command,
            context=context,
            arrival=(terms.calling_ae, terms.called_ae, "127.0.0.1"),
            maximum_bytes=100_000,
            router=_ROUTER,
            on_filed=lambda _: None,
        )
    if operation == Operation.N_EVENT_REPORT_RQ:
        return ReportReception(context.transfer_syntax, _keep)
    return Refusal(Status.UNRECOGNISED_OPERATION)


def one_input(content: bytes) -> None:
    """Serve one connection."""
    tape = Tape(content)
    connection: Any = tape
    wire = Wire(connection, timeout=60.0, maximum_pdu=16_384)
    Acceptor(
        wire,
        policy=_POLICY,
        seats=Seats(1),
        begin=_begin,
        origin=Origin(address="127.0.0.1"),
        doorman=Doorman(lambda _: None),
    ).serve()
    assert tape.is_closed
    assert not list(_spool().root.glob("incoming/*"))
    heard = bytes(tape.heard)
    while heard:
        kind, length = PDU_HEADER.unpack_from(heard)
        assert PduType(kind)
        assert len(heard) >= PDU_HEADER.size + length
        heard = heard[PDU_HEADER.size + length :]
