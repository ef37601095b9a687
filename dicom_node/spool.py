"""The durable store on disk: what came in, what is to go out, and what peers reported. It is the truth.

    incoming/*.part                                  being written; stale ones are swept at start
    studies/<study>/<object>_<sha256>.dcm            Part 10 files: the data set exactly as received
    reports/<transaction>.json                       storage-commitment reports
    outbox/<study>/<object>.dcm                      our outputs until the PACS has committed to them

Everything appears by rename after its bytes are on the disk, and the directory is synchronised after.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.commitment import CommitmentReport
from dicom_node.errors import Retryable
from dicom_node.file_meta import HEAD_BYTES, Head, Provenance, read_head, write_head
from dicom_node.header import Identity, read_identity
from dicom_node.uids import is_valid_uid


class SpoolFull(Retryable):
    """Less space is free than is to be kept: nothing more is taken until there is."""


class Filed(StrEnum):
    """What became of an object that was received."""

    NEW = "new"
    DUPLICATE = "duplicate"
    """The same object with the same bytes is here already: a no-op."""
    CONFLICT = "conflict"
    """The same SOP instance with other content: both are kept, the first wins."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Who sent an object, and when its first byte came."""

    calling_ae: str
    called_ae: str
    address: str
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class SpooledInstance:
    """One received object. `sha256` and `size` (bytes) are of the file's data set, as it was received."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    path: Path
    size: int
    calling_ae: str
    called_ae: str
    address: str
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class SpooledStudy:
    """A study as its directory shows it; times in nanoseconds since the epoch."""

    study_instance_uid: str
    instances: int
    first_ns: int
    last_ns: int


class Spool:
    """The spool below `root`, all on one file system."""

    def __init__(self, root: Path, *, minimum_free_bytes: int = 0) -> None:
        self.root = root
        self._minimum_free_bytes = minimum_free_bytes
        self._incoming = root / "incoming"
        self._studies = root / "studies"
        self._reports = root / "reports"
        self._outbox = root / "outbox"
        self._filing = threading.Lock()

    def prepare(self) -> None:
        """Make the directories, and sweep the temporary files of processes that are gone."""
        for directory in (self.root, self._incoming, self._studies, self._reports, self._outbox):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _synchronise(directory.parent)
        for part in self._incoming.glob("*.part"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), part.open("rb") as file:
                # The lock dies with its process: who still writes is left alone.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    # What came in

    def receive(self) -> Incoming:
        """Open a place for an object about to arrive. Raises `SpoolFull`, `OSError`."""
        return Incoming(self, self._open_part())

    def store(
        self, data_set: bytes, *, transfer_syntax_uid: str, arrival: Arrival
    ) -> tuple[SpooledInstance, Filed]:
        """Keep one encoded data set. Raises `UnreadableDataSet`, `SpoolFull`, `OSError`."""
        with self.receive() as incoming:
            incoming.write(data_set)
            return incoming.file(incoming.identity(transfer_syntax_uid), transfer_syntax_uid, arrival)

    def studies(self) -> Iterator[SpooledStudy]:
        """Every study that has objects, from the file system's times alone."""
        for directory in os.scandir(self._studies):
            times = [
                entry.stat().st_mtime_ns for entry in os.scandir(directory) if entry.name.endswith(".dcm")
            ]
            if times:
                yield SpooledStudy(
                    study_instance_uid=directory.name,
                    instances=len(times),
                    first_ns=min(times),
                    last_ns=max(times),
                )

    def instances(self, study_instance_uid: str) -> list[SpooledInstance]:
        """The objects of a study, oldest first; none where the study is unknown."""
        if not is_valid_uid(study_instance_uid):
            return []
        paths = (self._studies / study_instance_uid).glob("*.dcm")
        found = [_read_instance(path) for path in paths]
        return sorted(found, key=lambda instance: (instance.received_at, instance.path.name))

    def _file(self, part: _Part, name: str, study: str) -> tuple[Path, Filed]:
        """Give a part its name in its study, durably; exactly one of equal parts is `NEW`."""
        directory = self._study_directory(study)
        path = directory / name
        prefix = name[: name.index("_") + 1]
        part.synchronise()
        with self._filing:
            known = [entry.name for entry in os.scandir(directory) if entry.name.startswith(prefix)]
            if name in known:
                part.discard()
                filed = Filed.DUPLICATE
            else:
                # Rename after fsync: a 0x0000 we cannot honour loses an image.
                part.path.rename(path)
                filed = Filed.CONFLICT if known else Filed.NEW
        # A duplicate waits for it as well: who came first may not be that far.
        _synchronise(directory)
        return path, filed

    def _study_directory(self, study: str) -> Path:
        directory = self._studies / study
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            _synchronise(self._studies)
        return directory

    # What is to go out

    def keep_output(self, study_instance_uid: str, sop_instance_uid: str, content: bytes) -> Path:
        """Keep the exact bytes of an output; the same output again replaces itself."""
        _require_uids(study_instance_uid, sop_instance_uid)
        directory = self._outbox / study_instance_uid
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            _synchronise(self._outbox)
        path = directory / f"{sop_instance_uid}.dcm"
        self._write(path, content)
        return path

    def drop_output(self, path: Path) -> None:
        """Remove an output that every destination has committed to; one that is gone is fine."""
        if path.parent.parent != self._outbox:
            raise ValueError("only outputs may be dropped")
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    # What peers reported

    def keep_report(self, report: CommitmentReport) -> None:
        """Keep a storage-commitment report."""
        _require_uids(report.transaction_uid)
        content = {
            "transaction": report.transaction_uid,
            "committed": report.committed,
            "failed": [{"uid": uid, "reason": reason} for uid, reason in report.failed],
        }
        self._write(self._reports / f"{report.transaction_uid}.json", json.dumps(content).encode())

    def reports(self) -> Iterator[CommitmentReport]:
        """Every report that has not been dropped."""
        for path in sorted(self._reports.glob("*.json")):
            content = json.loads(path.read_bytes())
            yield CommitmentReport(
                transaction_uid=content["transaction"],
                committed=tuple(content["committed"]),
                failed=tuple((entry["uid"], entry["reason"]) for entry in content["failed"]),
            )

    def drop_report(self, transaction_uid: str) -> None:
        """Remove a report that has been acted upon."""
        _require_uids(transaction_uid)
        (self._reports / f"{transaction_uid}.json").unlink(missing_ok=True)

    def _open_part(self) -> _Part:
        space = os.statvfs(self._incoming)
        if space.f_bavail * space.f_frsize < self._minimum_free_bytes:
            raise SpoolFull("less space is free in the spool than spool.minimum_free_bytes")
        return _Part(self._incoming / f"{uuid.uuid4().hex}.part")

    def _write(self, path: Path, content: bytes) -> None:
        part = self._open_part()
        try:
            part.write(content)
            part.synchronise()
            part.path.rename(path)
        finally:
            part.discard()
        _synchronise(path.parent)


class _Part:
    """A temporary file; its lock says that its process lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def write(self, content: bytes | memoryview) -> None:
        written = os.write(self.descriptor, content)
        while written < len(content):
            written += os.write(self.descriptor, memoryview(content)[written:])

    def synchronise(self) -> None:
        os.fdatasync(self.descriptor)

    def discard(self) -> None:
        """Close, and remove what has not been renamed."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.path.unlink(missing_ok=True)


class Incoming:
    """An object while it arrives. Leaving its context without `file` leaves nothing behind."""

    def __init__(self, spool: Spool, part: _Part) -> None:
        self._spool = spool
        self._part = part
        self._digest = hashlib.sha256()
        self.size = 0
        os.lseek(part.descriptor, HEAD_BYTES, os.SEEK_SET)  # the head is written when the series is known

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, content: bytes | memoryview) -> None:
        """Append to the data set. Raises `OSError`."""
        self._part.write(content)
        self._digest.update(content)
        self.size += len(content)

    def identity(self, transfer_syntax_uid: str) -> Identity:
        """Which object has arrived. Raises `UnreadableDataSet`."""
        descriptor = self._part.descriptor
        return read_identity(
            lambda offset, count: os.pread(descriptor, count, HEAD_BYTES + offset),
            self.size,
            transfer_syntax_uid,
        )

    def file(
        self, identity: Identity, transfer_syntax_uid: str, arrival: Arrival
    ) -> tuple[SpooledInstance, Filed]:
        """Make the object durable under its name; only after that may its sender hear 0x0000."""
        sha256 = self._digest.hexdigest()
        head = Head(
            sop_class_uid=identity.sop_class_uid,
            sop_instance_uid=identity.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            calling_ae=arrival.calling_ae,
            called_ae=arrival.called_ae,
            provenance=Provenance(
                series=identity.series_instance_uid,
                address=arrival.address,
                received_at=arrival.received_at.astimezone(UTC).isoformat(timespec="microseconds"),
            ),
        )
        os.pwrite(self._part.descriptor, write_head(head), 0)
        name = f"{identity.sop_instance_uid}_{sha256}.dcm"
        path, filed = self._spool._file(self._part, name, identity.study_instance_uid)
        instance = SpooledInstance(
            study_instance_uid=identity.study_instance_uid,
            series_instance_uid=identity.series_instance_uid,
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            sha256=sha256,
            path=path,
            size=self.size,
            calling_ae=arrival.calling_ae,
            called_ae=arrival.called_ae,
            address=arrival.address,
            received_at=arrival.received_at,
        )
        return instance, filed

    def discard(self) -> None:
        """Forget the object, unless it is filed."""
        self._part.discard()


def _read_instance(path: Path) -> SpooledInstance:
    with path.open("rb") as file:
        head = read_head(file.read(HEAD_BYTES))
        size = os.fstat(file.fileno()).st_size - HEAD_BYTES
    return SpooledInstance(
        study_instance_uid=path.parent.name,
        series_instance_uid=head.provenance.series,
        sop_instance_uid=head.sop_instance_uid,
        sop_class_uid=head.sop_class_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        sha256=path.stem.rpartition("_")[2],
        path=path,
        size=size,
        calling_ae=head.calling_ae,
        called_ae=head.called_ae,
        address=head.provenance.address,
        received_at=datetime.fromisoformat(head.provenance.received_at),
    )


def _require_uids(*values: str) -> None:
    for value in values:
        if not is_valid_uid(value):
            raise ValueError("what names a file must be a valid UID")


def _synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
