"""The durable store on disk: what came in, what is to go out, and what peers reported. It is the truth.

    incoming/*.part                                  being written; stale ones are swept at start
    studies/<study>/<object>_<sha256>.dcm            Part 10 files: the data set exactly as received
    reports/<transaction>.json                       storage-commitment reports
    outbox/<study>/<object>_<sha256>.dcm             our outputs until the PACS has committed to them

Everything appears by rename after its bytes are on the disk, and the directory is synchronised after.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.commitment import CommitmentReport
from dicom_node.durable import Part, make_directory, sweep, synchronise
from dicom_node.errors import Retryable
from dicom_node.file_meta import HEAD_BYTES, Head, Provenance, read_head, write_head
from dicom_node.header import Identity, read_identity
from dicom_node.logs import get_logger
from dicom_node.uids import is_valid_uid

log = get_logger("spool")

_NAME = re.compile(r"([0-9.]{1,64})_([0-9a-f]{64})\.dcm")
"""SOPInstanceUID and digest: of its data set for what was received, of the file for our outputs."""
_REMEMBERED_STUDIES = 10_000
_CLOCK_TICK_NS = 1_000_000_000


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
        self._durable: set[str] = set()
        self._looked_into: dict[str, tuple[int, SpooledStudy | None]] = {}

    def prepare(self) -> None:
        """Make the directories, and sweep the temporary files of processes that are gone."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._incoming, self._studies, self._reports, self._outbox):
            make_directory(directory)
        sweep(self._incoming)

    # What came in

    def receive(self) -> Incoming:
        """Open a place for an object about to arrive. Raises `SpoolFull`, `OSError`."""
        # The head is written when the series is known.
        return Incoming(self._open_part(start=HEAD_BYTES), self._file)

    def store(
        self, data_set: bytes, *, transfer_syntax_uid: str, arrival: Arrival
    ) -> tuple[SpooledInstance, Filed]:
        """Keep one encoded data set. Raises `UnreadableDataSet`, `SpoolFull`, `OSError`."""
        with self.receive() as incoming:
            incoming.write(data_set)
            return incoming.file(incoming.identity(transfer_syntax_uid), transfer_syntax_uid, arrival)

    def studies(self) -> Iterator[SpooledStudy]:
        """Every study that has objects, from the file system's times alone.

        A study whose directory has not changed is not looked into again, so that this may be asked
        every few seconds of a spool that holds many thousands.
        """
        now_ns = time.time_ns()
        for directory in os.scandir(self._studies):
            changed_ns = directory.stat().st_mtime_ns
            known = self._looked_into.get(directory.name)
            if known is None or known[0] != changed_ns:
                known = (changed_ns, _look_into(directory))
                # Within one tick of its clock a directory may change without a new time.
                if now_ns - changed_ns > _CLOCK_TICK_NS:
                    self._looked_into[directory.name] = known
            if known[1] is not None:
                yield known[1]

    def instances(self, study_instance_uid: str) -> list[SpooledInstance]:
        """The objects of a study, oldest first; none where the study is unknown.

        An object whose head has rotted is one that only its name and its file's time tell of: whoever
        reads it finds out what is wrong with it, and no other object waits for it.

        Raises:
            OSError: a file is there and the machine does not give it to us.
        """
        directory = self._studies / study_instance_uid
        if not is_valid_uid(study_instance_uid) or not directory.is_dir():
            return []
        found, strays = [], 0
        for path in directory.iterdir():
            if (name := _NAME.fullmatch(path.name)) is not None:
                found.append(_read_instance(path, *name.groups()))
            else:
                strays += 1
        if strays:
            log.warning("files_not_ours_ignored", study=study_instance_uid, files=strays)
        return sorted(found, key=lambda instance: (instance.received_at, instance.path.name))

    def _file(self, part: Part, name: str, study_instance_uid: str) -> tuple[Path, Filed]:
        """Give a part its name in its study, durably; exactly one of equal parts is `NEW`."""
        directory = self._study_directory(study_instance_uid)
        path = directory / name
        prefix = name[: name.index("_") + 1]
        part.synchronise()
        with self._filing:
            known = [entry.name for entry in os.scandir(directory) if entry.name.startswith(prefix)]
            if name in known:
                filed = Filed.DUPLICATE
            else:
                # Rename after fsync: a 0x0000 we cannot honour loses an image.
                part.rename(path)
                filed = Filed.CONFLICT if known else Filed.NEW
        # A duplicate waits for it as well: who came first may not be that far.
        synchronise(directory)
        return path, filed

    def _study_directory(self, study_instance_uid: str) -> Path:
        directory = self._studies / study_instance_uid
        # Another thread may have made it and not be done: whoever has not seen it durable synchronises.
        if study_instance_uid not in self._durable or not directory.is_dir():
            make_directory(directory)
            if len(self._durable) >= _REMEMBERED_STUDIES:
                self._durable.clear()
            self._durable.add(study_instance_uid)
        return directory

    # What is to go out

    def keep_output(
        self, study_instance_uid: str, sop_instance_uid: str, content: bytes, *, sha256: str | None = None
    ) -> Path:
        """Keep the exact bytes of an output; who knows their SHA-256 saves reading them once more.

        The name holds their digest: two workers that made an output twice do not overwrite each other.
        """
        _require_uids(study_instance_uid, sop_instance_uid)
        directory = self._outbox / study_instance_uid
        make_directory(directory)
        path = directory / f"{sop_instance_uid}_{sha256 or hashlib.sha256(content).hexdigest()}.dcm"
        self._write(path, content)
        return path

    def drop_output(self, path: Path) -> None:
        """Remove an output that every destination has committed to; one that is gone is fine."""
        if path.parent.parent != self._outbox:
            raise ValueError("only outputs may be dropped")
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def outputs(self, *, kept_before: datetime) -> Iterator[Path]:
        """The outputs that were kept before a moment."""
        for path in self._outbox.glob("*/*.dcm"):
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                if _NAME.fullmatch(path.name) and path.stat().st_mtime < kept_before.timestamp():
                    yield path

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

    def _open_part(self, *, start: int = 0) -> Part:
        space = os.statvfs(self._incoming)
        if space.f_bavail * space.f_frsize < self._minimum_free_bytes:
            raise SpoolFull("less space is free in the spool than spool.minimum_free_bytes")
        return Part(self._incoming, start=start)

    def _write(self, path: Path, content: bytes) -> None:
        part = self._open_part()
        try:
            part.append(content)
            part.synchronise()
            part.rename(path)
        finally:
            part.discard()
        synchronise(path.parent)


class Incoming:
    """An object while it arrives. Leaving its context without `file` leaves nothing behind."""

    def __init__(self, part: Part, file: Callable[[Part, str, str], tuple[Path, Filed]]) -> None:
        self._part = part
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, content: bytes | memoryview) -> None:
        """Append to the data set. Raises `OSError`."""
        self._part.append(content)
        self._digest.update(content)
        self.size += len(content)

    def identity(self, transfer_syntax_uid: str) -> Identity:
        """Which object has arrived. Raises `UnreadableDataSet`."""
        return read_identity(
            lambda offset, count: self._part.read(HEAD_BYTES + offset, count), self.size, transfer_syntax_uid
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
        self._part.overwrite(write_head(head), 0)
        name = f"{identity.sop_instance_uid}_{sha256}.dcm"
        path, filed = self._file(self._part, name, identity.study_instance_uid)
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


def _look_into(directory: os.DirEntry[str]) -> SpooledStudy | None:
    times = [entry.stat().st_mtime_ns for entry in os.scandir(directory) if _NAME.fullmatch(entry.name)]
    if not times:
        return None
    return SpooledStudy(
        study_instance_uid=directory.name, instances=len(times), first_ns=min(times), last_ns=max(times)
    )


def _read_instance(path: Path, sop_instance_uid: str, sha256: str) -> SpooledInstance:
    with path.open("rb") as file:
        content = file.read(HEAD_BYTES)
        state = os.fstat(file.fileno())
    head, received_at = _head(content, sop_instance_uid, datetime.fromtimestamp(state.st_mtime, UTC))
    return SpooledInstance(
        study_instance_uid=path.parent.name,
        series_instance_uid=head.provenance.series,
        sop_instance_uid=sop_instance_uid,
        sop_class_uid=head.sop_class_uid,
        transfer_syntax_uid=head.transfer_syntax_uid,
        sha256=sha256,
        path=path,
        size=max(state.st_size - HEAD_BYTES, 0),
        calling_ae=head.calling_ae,
        called_ae=head.called_ae,
        address=head.provenance.address,
        received_at=received_at,
    )


def _head(content: bytes, sop_instance_uid: str, filed_at: datetime) -> tuple[Head, datetime]:
    """The head and its time; where it has rotted, one without facts and the time at which it was filed."""
    try:
        head = read_head(content)
        received_at = datetime.fromisoformat(head.provenance.received_at).astimezone(UTC)
        facts = [head.sop_class_uid, head.transfer_syntax_uid, head.calling_ae, head.called_ae]
        facts += [head.provenance.series, head.provenance.address]
        if head.sop_instance_uid == sop_instance_uid and all(fact.isprintable() for fact in facts):
            return head, received_at
    except Exception:  # noqa: BLE001, S110 (whatever a parser makes of rotten bytes)
        pass
    log.warning("head_unreadable", object=sop_instance_uid)
    nothing = Provenance(series="", address="", received_at="")
    return Head(
        sop_class_uid="",
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid="",
        calling_ae="",
        called_ae="",
        provenance=nothing,
    ), filed_at


def _require_uids(*values: str) -> None:
    for value in values:
        if not is_valid_uid(value):
            raise ValueError("what names a file must be a valid UID")
