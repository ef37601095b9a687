"""Data sets, and a listening node to send them to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.file_meta import data_set_offset
from dicom_node.requestor import Peer, Requestor
from dicom_node.server import StorageServer
from dicom_node.settings import NodeSettings
from dicom_node.spool import Arrival, Spool, SpooledInstance
from dicom_node.tls import ClientTls

CR_EXPLICIT = (uids.COMPUTED_RADIOGRAPHY, uids.EXPLICIT_VR_LITTLE_ENDIAN)


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds; fail where it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.01)


def film(*, transfer_syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN, **values: object) -> Dataset:
    """A small CR whose pixels fit its syntax (a made-up code stream where that is compressed)."""
    content = Dataset()
    content.SOPClassUID = uids.COMPUTED_RADIOGRAPHY
    content.SOPInstanceUID = generate_uid()
    content.StudyInstanceUID = generate_uid()
    content.SeriesInstanceUID = generate_uid()
    content.PatientID = "4711"
    content.PatientName = "Secret^Name"
    content.Modality = "CR"
    content.Rows = content.Columns = 64
    content.BitsAllocated, content.BitsStored, content.HighBit = 16, 12, 11
    content.PixelRepresentation, content.SamplesPerPixel = 0, 1
    content.PhotometricInterpretation = "MONOCHROME2"
    pixels = bytes(range(256)) * 32
    content.PixelData = encapsulate([pixels]) if UID(transfer_syntax).is_encapsulated else pixels
    content["PixelData"].VR = "OB" if UID(transfer_syntax).is_encapsulated else "OW"
    content["PixelData"].is_undefined_length = UID(transfer_syntax).is_encapsulated
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = transfer_syntax
    for keyword, value in values.items():
        setattr(content, keyword, value)
    return content


def encoded(content: Dataset) -> bytes:
    """The data set as bytes, in the syntax of its file meta, without preamble and file meta."""
    syntax = content.file_meta.TransferSyntaxUID
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, content)
    return buffer.getvalue()


def arrival() -> Arrival:
    """An arrival from a test."""
    return Arrival(
        calling_ae="MODALITY", called_ae="COVARIANCE", address="127.0.0.1", received_at=datetime.now(UTC)
    )


def as_part10(content: Dataset, path: Path) -> Path:
    """Write a Part 10 file."""
    content.save_as(path, enforce_file_format=True)
    return path


def data_set_bytes(path: Path) -> bytes:
    """What follows the file meta of a Part 10 file."""
    with path.open("rb") as file:
        offset = data_set_offset(file.fileno())
        file.seek(offset)
        return file.read()


def store_request(content: Dataset) -> Command:
    """The command of a C-STORE of this object."""
    return Command(
        {
            Field.AFFECTED_SOP_CLASS: str(content.SOPClassUID),
            Field.COMMAND: Operation.C_STORE_RQ,
            Field.PRIORITY: 0,
            Field.AFFECTED_SOP_INSTANCE: str(content.SOPInstanceUID),
        }
    )


def send_raw(association: Requestor, command: Command, data_set: bytes) -> int | None:
    """Send any command with any bytes after it; the status that comes back."""
    (context, *_) = association._terms.contexts.values()
    return association.ask(context, command, data_set)


@dataclass
class Listening:
    """A node that listens."""

    server: StorageServer
    spool: Spool
    port: int
    settings: NodeSettings
    filed: list[SpooledInstance] = field(default_factory=list)

    @property
    def parts(self) -> list[Path]:
        return list(self.spool.root.glob("incoming/*.part"))

    @property
    def files(self) -> list[Path]:
        return list(self.spool.root.glob("studies/*/*.dcm"))

    def associate(self, *contexts: tuple[str, str], calling: str = "MODALITY", called: str = "COVARIANCE"):
        """An association of pynetdicom to the node."""
        ae = AE(ae_title=calling)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        for abstract, syntax in contexts or [CR_EXPLICIT]:
            ae.add_requested_context(abstract, syntax)
        return ae.associate("127.0.0.1", self.port, ae_title=called)

    def store(self, content: Dataset) -> int:
        """The status of one C-STORE by pynetdicom, on an association of its own."""
        association = self.associate((content.SOPClassUID, content.file_meta.TransferSyntaxUID))
        assert association.is_established
        try:
            return association.send_c_store(content).get("Status")
        finally:
            association.release()

    def requestor(
        self,
        *contexts: tuple[str, str],
        calling: str = "MODALITY",
        called: str = "COVARIANCE",
        tls: ClientTls | None = None,
    ) -> Requestor:
        """An association of our own requestor to the node, which sends whatever it is told to."""
        port = self.port if tls is None else self.server.tls_port
        peer = Peer(ae_title=called, host="127.0.0.1", port=port, calling_ae=calling, timeout=20.0, tls=tls)
        return Requestor(peer, [(abstract, [syntax]) for abstract, syntax in contexts or [CR_EXPLICIT]])

    def answers_echo(self) -> bool:
        """Whether a new association gets its C-ECHO answered."""
        association = self.associate((uids.VERIFICATION, uids.IMPLICIT_VR_LITTLE_ENDIAN))
        try:
            return association.is_established and association.send_c_echo().get("Status") == 0
        finally:
            association.release()
