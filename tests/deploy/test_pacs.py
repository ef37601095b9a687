"""The stand-in PACS, asked by plain pynetdicom peers."""

from __future__ import annotations

import queue

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from deploy.pacs import StandInPacs
from dicom_node.uids import COMPUTED_RADIOGRAPHY, STORAGE_COMMITMENT_INSTANCE
from worker.phantom import phantom_dataset


@pytest.fixture(scope="module")
def film() -> Dataset:
    return phantom_dataset(1, rows=256, columns=210)


@pytest.fixture
def reports():
    """An asker that listens for commitment reports: its port, and a queue of (event type, report)."""
    received: queue.Queue[tuple[int, Dataset]] = queue.Queue()

    def take(event: evt.Event) -> tuple[int, None]:
        received.put((event.event_type, event.event_information))
        return 0x0000, None

    entity = AE(ae_title="ASKER")
    entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)])
    yield server.server_address[1], received
    server.shutdown()


@pytest.fixture
def pacs(tmp_path, reports):
    with StandInPacs(tmp_path, peers={"ASKER": ("127.0.0.1", reports[0])}) as running:
        yield running


@pytest.fixture
def association(pacs):
    entity = AE(ae_title="ASKER")
    contexts = [
        build_context(one)
        for one in (
            COMPUTED_RADIOGRAPHY,
            Verification,
            StudyRootQueryRetrieveInformationModelFind,
            StorageCommitmentPushModel,
        )
    ]
    opened = entity.associate("127.0.0.1", pacs.port, contexts, ae_title=pacs.ae_title)
    assert opened.is_established
    yield opened
    opened.release()


def request_for(*uids: str) -> Dataset:
    request = Dataset()
    request.TransactionUID = "1.2.3.4"
    request.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = COMPUTED_RADIOGRAPHY, uid
        request.ReferencedSOPSequence.append(item)
    return request


def ask_for_commitment(association, *uids: str) -> int:
    status, _ = association.send_n_action(
        request_for(*uids), 1, StorageCommitmentPushModel, STORAGE_COMMITMENT_INSTANCE
    )
    return status.Status


def test_it_keeps_what_it_is_sent(pacs, association, film):
    """A stored object is a file that reads back with the same pixels."""
    assert association.send_c_store(film).Status == 0x0000
    from pydicom import dcmread

    (held,) = pacs.held(film.StudyInstanceUID)
    assert dcmread(held.path).PixelData == film.PixelData


def test_it_finds_at_image_level(pacs, association, film):
    """C-FIND answers with what it holds of the study, series and objects that are asked for."""
    association.send_c_store(film)
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID, query.SeriesInstanceUID = film.StudyInstanceUID, film.SeriesInstanceUID
    query.SOPInstanceUID = [film.SOPInstanceUID, "1.2.3"]
    answers = list(association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind))
    assert [found.SOPInstanceUID for _, found in answers if found] == [film.SOPInstanceUID]


def test_it_commits_to_what_it_holds(association, reports, film):
    """Storage commitment of a stored object is reported as complete, on another association."""
    association.send_c_store(film)
    assert ask_for_commitment(association, film.SOPInstanceUID) == 0x0000
    event_type, report = reports[1].get(timeout=20)
    assert (event_type, report.TransactionUID) == (1, "1.2.3.4")
    assert report.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID


def test_it_does_not_commit_to_what_it_never_saw(association, reports, film):
    """An object that it does not hold is reported as failed with 0112."""
    association.send_c_store(film)
    ask_for_commitment(association, film.SOPInstanceUID, "1.2.3")
    event_type, report = reports[1].get(timeout=20)
    assert event_type == 2
    assert [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in report.FailedSOPSequence] == [
        ("1.2.3", 0x0112)
    ]


def test_it_can_refuse(pacs, association, film):
    """With `refuse_with` it answers that status and keeps nothing."""
    pacs.refuse_with = 0xA700
    assert association.send_c_store(film).Status == 0xA700
    assert pacs.held() == []
