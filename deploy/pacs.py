"""A stand-in PACS for the demo and for tests: it stores, finds and commits, and shows nothing to anyone.

Not an archive. It keeps what it is sent in a folder, answers C-FIND at image level, and proves what it
holds by storage commitment (PS3.4 Annex J), with the report on an association of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from dicom_node import uids
from dicom_node.logs import get_logger
from dicom_node.status import Status

log = get_logger("standin")

_STORED = (
    uids.COMPUTED_RADIOGRAPHY,
    uids.DIGITAL_XRAY_FOR_PRESENTATION,
    uids.DIGITAL_XRAY_FOR_PROCESSING,
    uids.CT_IMAGE,
    uids.SECONDARY_CAPTURE,
    uids.COMPREHENSIVE_3D_SR,
    uids.KEY_OBJECT_SELECTION,
)
"""Few: pynetdicom copies every supported class for each association."""
_PENDING = 0xFF00  # PS3.4 C.4.1.1.4
_ALL_COMMITTED, _SOME_FAILED = 1, 2  # event types, PS3.4 J.3.3.1
_EVENT_REPORT_SECONDS = 10.0
_PDU_BYTES = 262_144


@dataclass(frozen=True, kw_only=True)
class Held:
    """An object that the stand-in holds."""

    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    modality: str
    path: Path


class StandInPacs:
    """Storage, query and storage commitment over one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "STANDIN",
        host: str = "127.0.0.1",
        port: int = 0,
        peers: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """Prepare, without listening.

        Args:
            folder: where objects are kept, one directory a study.
            ae_title: our AE title.
            host: address to listen on.
            port: TCP port; 0 takes a free one.
            peers: AE title -> host and port of those who are sent commitment reports.
        """
        self.ae_title = ae_title
        self.host = host
        self.port = port
        self.refuse_with: int | None = None
        """Answer every C-STORE with this status, and keep nothing."""
        self.delay_seconds = 0.0
        """Wait this long before a C-STORE is answered."""
        self.silent = False
        """Accept commitment requests and never report."""
        self._folder = folder
        self._peers = dict(peers or {})
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._reports = ThreadPoolExecutor(1, "commitment")
        self._server: Any = None

    def start(self) -> int:
        """Listen, and return the port."""
        entity = AE(ae_title=self.ae_title)
        for sop_class in _STORED:
            entity.add_supported_context(sop_class, list(uids.TRANSFER_SYNTAXES))
        for service in (Verification, StudyRootQueryRetrieveInformationModelFind, StorageCommitmentPushModel):
            entity.add_supported_context(service)
        entity.maximum_pdu_size = _PDU_BYTES
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
        ]
        self._server = entity.start_server((self.host, self.port), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])
        return self.port

    def stop(self) -> None:
        """Stop listening and end the associations."""
        self._reports.shutdown(cancel_futures=True)
        if self._server is not None:
            self._server.shutdown()

    def held(self, study_instance_uid: str | None = None) -> list[Held]:
        """What it holds, of one study or of all."""
        with self._lock:
            found = list(self._held.values())
        return [one for one in found if study_instance_uid in (None, one.study_instance_uid)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _store(self, event: evt.Event) -> int:
        time.sleep(self.delay_seconds)
        if self.refuse_with is not None:
            return self.refuse_with
        header = event.dataset
        uid = str(event.request.AffectedSOPInstanceUID)
        path = self._folder / str(header.StudyInstanceUID) / f"{uid}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{threading.get_ident()}.part")
        with temporary.open("wb") as file:
            file.write(event.encoded_dataset())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        one = Held(
            sop_class_uid=str(event.request.AffectedSOPClassUID),
            study_instance_uid=str(header.StudyInstanceUID),
            series_instance_uid=str(header.SeriesInstanceUID),
            sop_instance_uid=uid,
            modality=str(header.get("Modality", "")),
            path=path,
        )
        with self._lock:
            self._held[uid] = one
        return Status.SUCCESS

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        for one in self.held(str(query.StudyInstanceUID)):
            if not _wanted(one.series_instance_uid, query.get("SeriesInstanceUID")):
                continue
            if not _wanted(one.sop_instance_uid, query.get("SOPInstanceUID")):
                continue
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            answer.StudyInstanceUID = one.study_instance_uid
            answer.SeriesInstanceUID = one.series_instance_uid
            answer.SOPInstanceUID = one.sop_instance_uid
            answer.SOPClassUID = one.sop_class_uid
            yield _PENDING, answer

    def _commit(self, event: evt.Event) -> tuple[int, None]:
        if not self.silent:
            asker = str(event.assoc.requestor.ae_title).strip()
            self._reports.submit(self._report, asker, event.action_information)
        return Status.SUCCESS, None

    def _report(self, asker: str, request: Dataset) -> None:
        if asker not in self._peers:
            log.warning("commitment_peer_unknown", peer=asker)
            return
        report, event_type = self._judge(request)
        entity = AE(ae_title=self.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _EVENT_REPORT_SECONDS
        contexts = [build_context(StorageCommitmentPushModel)]
        # We act as the SCP although we open the association (PS3.4 J.2, PS3.7 D.3.3.4).
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
        host, port = self._peers[asker]
        association = entity.associate(host, port, contexts, ae_title=asker, ext_neg=roles)
        if not association.is_established:
            log.warning("commitment_report_not_sent", peer=asker)
            return
        try:
            association.send_n_event_report(
                report, event_type, StorageCommitmentPushModel, uids.STORAGE_COMMITMENT_INSTANCE
            )
        finally:
            association.release()

    def _judge(self, request: Dataset) -> tuple[Dataset, int]:
        """The report on a request: what it holds under the class that was named, and what it does not."""
        committed, failed = [], []
        for item in request.ReferencedSOPSequence:
            one = self._held.get(str(item.ReferencedSOPInstanceUID))
            answer = Dataset()
            answer.ReferencedSOPClassUID = item.ReferencedSOPClassUID
            answer.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID
            if one is not None and one.path.exists():
                committed.append(answer)
            else:
                answer.FailureReason = int(Status.NO_SUCH_OBJECT_INSTANCE)
                failed.append(answer)
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        if committed:
            report.ReferencedSOPSequence = committed
        if failed:
            report.FailedSOPSequence = failed
        return report, _SOME_FAILED if failed else _ALL_COMMITTED


def _wanted(uid: str, query: object) -> bool:
    """UID matching: an empty key is universal, a list holds alternatives (PS3.4 C.2.2.2.2)."""
    if not query:
        return True
    return uid in ([query] if isinstance(query, str) else list(query))  # type: ignore[call-overload]
