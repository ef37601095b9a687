"""A ledger and a spool of their own, a clock that tests move, and results that wait to be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset

from dicom_node import uids
from dicom_node.spool import Spool
from tests.worker.ledger.conftest import finding_of, spooled
from worker.findings import KeptOutput, Role
from worker.ledger import Claim, Ledger, Recorded
from worker.settings import Settings


class Clock:
    """The time, as the test has it, from now on."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def settings_in(folder: Path, **sections: Any) -> Settings:
    """Settings with all files below a folder."""
    places = {
        "spool": {"path": folder / "spool", "minimum_free_bytes": 0},
        "database": {"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},
    }
    return Settings(**{**places, **sections})


def claimed(ledger: Ledger, study: str, *, worker: str = "w1", lease: float = 60.0) -> Claim:
    """Register an image of the study and claim its job."""
    ledger.register(study, [spooled(study, f"{study}.1.1")])
    claim = ledger.claim(study, worker=worker, lease=timedelta(seconds=lease), maximum_attempts=3)
    assert claim is not None
    return claim


def written(
    ledger: Ledger, spool: Spool, study: str, destinations: Sequence[str] = ("pacs",), *, heatmaps: int = 1
) -> list[KeptOutput]:
    """Record a result of the study: small objects in two series, their bytes in the outbox."""
    claim = claimed(ledger, study)
    finding = finding_of(claim)
    kept = [
        _kept(spool, study, role, n)
        for role in (Role.SR, Role.SC)
        for n in range(heatmaps if role is Role.SC else 1)
    ]
    assert ledger.record(claim, finding, kept, destinations) is Recorded.RECORDED
    return kept


def _kept(spool: Spool, study: str, role: Role, number: int) -> KeptOutput:
    sop_class = uids.SECONDARY_CAPTURE if role is Role.SC else uids.COMPREHENSIVE_3D_SR
    content = Dataset()
    content.SOPClassUID, content.SOPInstanceUID = sop_class, uids.derive_uid(study, role, str(number))
    content.StudyInstanceUID, content.SeriesInstanceUID = study, uids.derive_uid(study, role, "series")
    content.Modality = role.upper()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = uids.EXPLICIT_VR_LITTLE_ENDIAN
    file = BytesIO()
    content.save_as(file, enforce_file_format=True)
    return KeptOutput(
        role=role,
        sop_class_uid=sop_class,
        sop_instance_uid=content.SOPInstanceUID,
        series_instance_uid=content.SeriesInstanceUID,
        sha256=hashlib.sha256(file.getvalue()).hexdigest(),
        path=spool.outbox.keep(study, content.SOPInstanceUID, file.getvalue()),
    )
