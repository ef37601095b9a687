"""A modality that sends as much as it is told to, and remembers what was answered with 0x0000."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count
from pathlib import Path

from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from dicom_node.uids import COMPUTED_RADIOGRAPHY, EXPLICIT_VR_LITTLE_ENDIAN
from worker.phantom import phantom_dataset

_ROOT = "1.2.826.0.1.3680043.10.543"
_NUMBER = 1_000_000_000


class Sender:
    """Each study is one small film of its own patient; its bytes are a template with other UIDs."""

    def __init__(self, port: int, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._peer = Peer(
            ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="LOAD", timeout=120.0
        )
        template = phantom_dataset(7, rows=320, columns=320)
        template.StudyInstanceUID, template.SeriesInstanceUID, template.SOPInstanceUID = _uids(0)
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.PatientID = f"PHANTOM-{_NUMBER}"
        file = BytesIO()
        template.save_as(file, enforce_file_format=True)
        self._template = file.getvalue()
        self._numbers = count(1)
        self._lock = threading.Lock()
        self.acknowledged: set[str] = set()
        self.broken: list[str] = []

    def send(self, studies: int, *, lanes: int) -> None:
        """Send studies over so many associations at the same time; return when all are answered."""
        shares = [studies // lanes + (lane < studies % lanes) for lane in range(lanes)]
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lambda share: self._associate([self._film() for _ in range(share)]), shares))

    def send_at_once(self, associations: int) -> None:
        """Open so many associations, and only when all are open send one study over each."""
        together = threading.Barrier(associations, timeout=60)
        with ThreadPoolExecutor(associations) as pool:
            list(pool.map(lambda _: self._associate([self._film()], together), range(associations)))

    def _associate(self, items: list[SendItem], together: threading.Barrier | None = None) -> None:
        try:
            with StoreAssociation(self._peer, items) as association:
                if together is not None:
                    together.wait()
                for item in items:
                    self._note(item, association.send(item).status)
                    item.path.unlink()
        except (PeerUnavailable, threading.BrokenBarrierError) as error:
            with self._lock:
                self.broken.append(f"an association was refused: {error}")
            if together is not None:
                together.abort()

    def _note(self, item: SendItem, status: int | None) -> None:
        with self._lock:
            if status == 0:
                self.acknowledged.add(item.sop_instance_uid)
            else:
                self.broken.append(f"an object was answered with {status}")

    def _film(self) -> SendItem:
        with self._lock:
            number = next(self._numbers)
        content = self._template.replace(str(_NUMBER).encode(), str(_NUMBER + number).encode())
        path = self._folder / f"{number}.dcm"
        path.write_bytes(content)
        return SendItem(
            sop_class_uid=COMPUTED_RADIOGRAPHY,
            sop_instance_uid=_uids(number)[2],
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            path=path,
        )


def _uids(number: int) -> tuple[str, str, str]:
    """Of study, series and object; as long for every number, so that they can be replaced in place."""
    study = f"{_ROOT}.{_NUMBER + number}"
    return study, f"{study}.1", f"{study}.1.1"
