"""Storage commitment, push model (PS3.4 Annex J): the request for it, and the report that comes back.

The request goes over the association that stored the objects; the report comes as an N-EVENT-REPORT
on an association of its own, to our listener.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

from dicom_node import uids
from dicom_node.data_set import decode_data_set, encode_data_set
from dicom_node.dimse import Command, Field, Operation
from dicom_node.errors import CovarianceError
from dicom_node.logs import get_logger
from dicom_node.status import Status
from dicom_node.wire import ProtocolError

if TYPE_CHECKING:
    from dicom_node.requestor import Requestor

log = get_logger("commitment")

MAXIMUM_REPORT_BYTES = 4_194_304
_REQUEST = 1  # action type, PS3.4 Table J.3-1
_REASON_UNKNOWN = 0x0110


@dataclass(frozen=True, kw_only=True)
class CommitmentReport:
    """What a peer says of a transaction: the SOP instances it commits to, and (instance, reason) others."""

    transaction_uid: str
    committed: tuple[str, ...]
    failed: tuple[tuple[str, int], ...]


def request_commitment(
    association: Requestor, transaction_uid: str, references: Iterable[tuple[str, str]]
) -> int | None:
    """Ask the peer to commit to (SOP class, SOP instance) pairs; return the status, None for no answer."""
    context = association.context_for(uids.STORAGE_COMMITMENT)
    if context is None:
        return Status.SOP_CLASS_NOT_SUPPORTED
    request = Command(
        {
            Field.REQUESTED_SOP_CLASS: uids.STORAGE_COMMITMENT,
            Field.COMMAND: Operation.N_ACTION_RQ,
            Field.REQUESTED_SOP_INSTANCE: uids.STORAGE_COMMITMENT_INSTANCE,
            Field.ACTION_TYPE: _REQUEST,
        }
    )
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_reference(*pair) for pair in references]
    return association.ask(context, request, encode_data_set(information, context.transfer_syntax))


def parse_report(content: bytes, transfer_syntax_uid: str) -> CommitmentReport:
    """Decode the event information of an N-EVENT-REPORT (PS3.4 Table J.3-2). Raises `ProtocolError`."""
    event = decode_data_set(content, transfer_syntax_uid)
    try:
        report = CommitmentReport(
            transaction_uid=str(event.TransactionUID),
            committed=tuple(str(item.ReferencedSOPInstanceUID) for item in _items(event, "Referenced")),
            failed=tuple(
                (str(item.ReferencedSOPInstanceUID), int(item.get("FailureReason") or _REASON_UNKNOWN))
                for item in _items(event, "Failed")
            ),
        )
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError("the event information lacks what it must hold") from error
    named = (report.transaction_uid, *report.committed, *(uid for uid, _ in report.failed))
    if not all(uids.is_valid_uid(uid) for uid in named):
        raise ProtocolError("the event information holds a UID that is not valid")
    return report


class ReportReception:
    """An N-EVENT-REPORT while its event information arrives."""

    def __init__(self, transfer_syntax_uid: str, keep: Callable[[CommitmentReport], None]) -> None:
        self._transfer_syntax_uid = transfer_syntax_uid
        self._keep = keep
        self._content = bytearray()
        self._too_long = False

    def write(self, fragment: memoryview) -> None:
        """Take a part of the event information."""
        self._too_long |= len(self._content) + len(fragment) > MAXIMUM_REPORT_BYTES
        if not self._too_long:
            self._content += fragment

    def finish(self) -> Status:
        """Keep the report durably; only then the peer hears success."""
        if self._too_long:
            return Status.RESOURCE_LIMITATION
        try:
            report = parse_report(bytes(self._content), self._transfer_syntax_uid)
            self._keep(report)
        except (CovarianceError, OSError) as error:
            log.warning("commitment_report_refused", error=type(error).__name__)
            return Status.PROCESSING_FAILURE
        log.info(
            "commitment_reported",
            transaction=report.transaction_uid,
            committed=len(report.committed),
            failed=len(report.failed),
        )
        return Status.SUCCESS

    def discard(self) -> None:
        """Forget what has arrived."""
        self._content.clear()


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def _items(event: Dataset, kind: str) -> Sequence[Dataset]:
    return event.get(f"{kind}SOPSequence") or []
