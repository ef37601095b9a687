"""What peers reported: storage-commitment reports, from the association that brought them to the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dicom_node.commitment import CommitmentReport
from dicom_node.durable import Workbench
from dicom_node.failpoints import reach
from dicom_node.logs import get_logger
from dicom_node.uids import require_uids

log = get_logger("reports")


class Reports:
    """Reports as `<transaction>.json`."""

    def __init__(self, directory: Path, workbench: Workbench) -> None:
        self._directory = directory
        self._workbench = workbench

    def keep(self, report: CommitmentReport) -> None:
        """Keep a report durably. Raises `SpoolFull`, `OSError`."""
        require_uids(report.transaction_uid)
        content = {
            "transaction": report.transaction_uid,
            "committed": report.committed,
            "failed": [{"uid": uid, "reason": reason} for uid, reason in report.failed],
        }
        self._workbench.write(self._path(report.transaction_uid), json.dumps(content).encode())
        reach("reports.after_keep")

    def waiting(self) -> Iterator[CommitmentReport]:
        """Every report that has not been dropped. One that is damaged is put aside: a request that is
        not answered is made again. One that the disk does not give is there next time."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield _read(path)
            except FileNotFoundError:
                continue  # another deliverer took it
            except OSError as error:
                log.error("report_unreadable", report=path.name, error=type(error).__name__)
            except (ValueError, LookupError, TypeError) as error:
                log.error("report_damaged", report=path.name, error=type(error).__name__)
                path.rename(path.with_suffix(".bad"))

    def drop(self, transaction_uid: str) -> None:
        """Remove a report that has been acted upon."""
        require_uids(transaction_uid)
        self._path(transaction_uid).unlink(missing_ok=True)

    def _path(self, transaction_uid: str) -> Path:
        return self._directory / f"{transaction_uid}.json"


def _read(path: Path) -> CommitmentReport:
    content = json.loads(path.read_bytes())
    if content["transaction"] != path.stem:
        raise ValueError("the report is not that of its name")
    return CommitmentReport(
        transaction_uid=content["transaction"],
        committed=tuple(content["committed"]),
        failed=tuple((entry["uid"], entry["reason"]) for entry in content["failed"]),
    )
