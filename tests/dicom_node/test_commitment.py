from __future__ import annotations

from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from dicom_node import uids
from dicom_node.commitment import CommitmentReport
from dicom_node.data_set import encode_data_set
from dicom_node.dimse import Command, Field, Operation
from dicom_node.status import Status
from dicom_node.store_scu import Peer, StoreAssociation
from tests.dicom_node.build import Listening, eventually, send_raw

SYNTAX = uids.EXPLICIT_VR_LITTLE_ENDIAN
COMMITMENT = (uids.STORAGE_COMMITMENT, SYNTAX)
REPORT = Command(
    {
        Field.AFFECTED_SOP_CLASS: uids.STORAGE_COMMITMENT,
        Field.COMMAND: Operation.N_EVENT_REPORT_RQ,
        Field.AFFECTED_SOP_INSTANCE: uids.STORAGE_COMMITMENT_INSTANCE,
        Field.EVENT_TYPE: 1,
    }
)


def reference(instance: str, **values: object) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = uids.SECONDARY_CAPTURE
    item.ReferencedSOPInstanceUID = instance
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def endless() -> Dataset:
    """A reference whose FailureReason is no whole number."""
    item = reference("1.2.5")
    item.add_new("FailureReason", "FD", float("inf"))
    return item


def event(**values: object) -> Dataset:
    content = Dataset()
    content.TransactionUID = "1.2.3"
    content.ReferencedSOPSequence = [reference("1.2.4")]
    for keyword, value in values.items():
        setattr(content, keyword, value)
    return content


def test_a_request_comes_back_as_a_report(node: Listening, serve: Callable[..., int]) -> None:
    """An N-ACTION to a PACS ends as a report in the spool, by its N-EVENT-REPORT to our listener."""

    def answer(action: evt.Event) -> tuple[int, None]:
        asked = action.action_information
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence = asked.ReferencedSOPSequence[:1]
        report.FailedSOPSequence = asked.ReferencedSOPSequence[1:]
        report.FailedSOPSequence[0].FailureReason = 0x0112
        pacs = AE("PACS")
        pacs.add_requested_context(*COMMITMENT)
        role = build_role(uids.STORAGE_COMMITMENT, scp_role=True)
        association = pacs.associate("127.0.0.1", node.port, ae_title="COVARIANCE", ext_neg=[role])
        status, _ = association.send_n_event_report(
            report, 2, uids.STORAGE_COMMITMENT, uids.STORAGE_COMMITMENT_INSTANCE
        )
        association.release()
        return status.Status, None

    ae = AE("PACS")
    ae.add_supported_context(*COMMITMENT)
    peer = Peer(
        ae_title="PACS",
        host="127.0.0.1",
        port=serve(ae, [(evt.EVT_N_ACTION, answer)]),
        calling_ae="COVARIANCE",
    )
    references = [(uids.SECONDARY_CAPTURE, "1.2.4"), (uids.SECONDARY_CAPTURE, "1.2.5")]
    with StoreAssociation(peer, [], commitment=True) as association:
        assert association.request_commitment("1.2.3", references) == Status.SUCCESS
    eventually(lambda: list(node.spool.reports.waiting()))
    assert list(node.spool.reports.waiting()) == [
        CommitmentReport(transaction_uid="1.2.3", committed=("1.2.4",), failed=(("1.2.5", 0x0112),))
    ]


def test_a_peer_without_commitment_says_so(node: Listening) -> None:
    """Where the context is not accepted the request is 0122."""
    with node.requestor() as association:
        assert StoreAssociation.request_commitment(association, "1.2.3", []) == Status.SOP_CLASS_NOT_SUPPORTED


def test_keeps_a_report_of_thousands(node: Listening) -> None:
    """A report that is longer than a PDU is kept whole."""
    many = event(ReferencedSOPSequence=[reference(f"1.2.{number}") for number in range(5000)])
    with node.requestor(COMMITMENT) as association:
        assert send_raw(association, REPORT, encode_data_set(many, SYNTAX)) == Status.SUCCESS
    (report,) = node.spool.reports.waiting()
    assert len(report.committed) == 5000


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff" * 500, id="noise"),
        pytest.param(encode_data_set(event(TransactionUID="../../x"), SYNTAX), id="path"),
        pytest.param(
            encode_data_set(event(ReferencedSOPSequence=[reference("1.2/3")]), SYNTAX), id="bad instance"
        ),
        pytest.param(encode_data_set(event(FailedSOPSequence=[Dataset()]), SYNTAX), id="no instance"),
        pytest.param(encode_data_set(event(FailedSOPSequence=[endless()]), SYNTAX), id="infinite reason"),
    ],
)
def test_refuses_what_is_no_report(content: bytes, node: Listening) -> None:
    """A report that cannot be read is answered 0110, and nothing is kept."""
    with node.requestor(COMMITMENT) as association:
        assert send_raw(association, REPORT, content) == Status.PROCESSING_FAILURE
        assert send_raw(association, REPORT, encode_data_set(event(), SYNTAX)) == Status.SUCCESS
    assert len(list(node.spool.reports.waiting())) == 1


def test_refuses_a_report_without_an_end(node: Listening) -> None:
    """More than a report may hold is answered 0213."""
    with node.requestor(COMMITMENT) as association:
        assert send_raw(association, REPORT, bytes(5_000_000)) == Status.RESOURCE_LIMITATION
    assert list(node.spool.reports.waiting()) == []


def test_a_report_that_cannot_be_kept_is_sent_again(node: Listening) -> None:
    """While the spool cannot be written the peer hears a failure, not a success that nobody remembers."""
    reports = node.spool.root / "reports"
    reports.rename(node.spool.root / "away")
    with node.requestor(COMMITMENT) as association:
        assert send_raw(association, REPORT, encode_data_set(event(), SYNTAX)) == Status.PROCESSING_FAILURE
