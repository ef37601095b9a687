"""The durable store on disk: what came in, what is to go out, and what peers reported. It is the truth.

    incoming/*.part                                  being written; stale ones are swept at start
    studies/<study>/<object>_<sha256>.dcm            Part 10 files: the data set exactly as received
    reports/<transaction>.json                       storage-commitment reports
    refusals/<window>.json                           who was refused, until the ledger has it
    outbox/<study>/<object>_<sha256>.dcm             our outputs until the PACS has committed to them
    filing.lock                                      held while an object gets its name or is removed

Everything appears by rename after its bytes are on the disk, and the directory is synchronised after.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.durable import Mutex, Part, SpoolFull, Workbench, make_directory, synchronise
from dicom_node.failpoints import reach
from dicom_node.file_meta import HEAD_BYTES
from dicom_node.incoming import Arrival, Filed, Incoming, SpooledInstance, read_instance, succeed
from dicom_node.logs import get_logger
from dicom_node.outbox import Outbox
from dicom_node.refusals import Refusals
from dicom_node.reports import Reports
from dicom_node.uids import is_valid_uid

__all__ = ["Arrival", "Filed", "Spool", "SpoolFull", "SpooledInstance", "SpooledStudy"]

log = get_logger("spool")

_NAME = re.compile(r"([0-9.]{1,64})_([0-9a-f]{64})\.dcm")
"""SOPInstanceUID, and digest of the data set as it was received."""
_REMEMBERED_STUDIES = 10_000
_CLOCK_TICK_NS = 1_000_000_000


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
        self._workbench = Workbench(root / "incoming", minimum_free_bytes)
        self._studies = root / "studies"
        self.outbox = Outbox(root / "outbox", self._workbench)
        self.reports = Reports(root / "reports", self._workbench)
        self.refusals = Refusals(root / "refusals", self._workbench)
        self._filing = Mutex(root / "filing.lock")
        self._durable: set[str] = set()
        self._looked_into: dict[str, tuple[int, SpooledStudy | None]] = {}

    def prepare(self) -> None:
        """Make the directories, and sweep the temporary files of processes that are gone."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("incoming", "studies", "reports", "refusals", "outbox"):
            make_directory(self.root / name)
        self._workbench.sweep()

    def objection(self) -> str | None:
        """Why an object could not be kept now, in one sentence; None where it could."""
        try:
            part = self._workbench.open()
            try:
                part.append(b"\0")
            finally:
                part.discard()
        except SpoolFull:
            return "The spool has less free space than spool.minimum_free_bytes."
        except OSError as error:
            return f"The spool cannot be written: {error.strerror}."
        return None

    def sweep(self, *, before: datetime) -> None:
        """Remove the temporary files of processes that are gone, last written to before a moment."""
        self._workbench.sweep(before=before)

    def now(self) -> datetime:
        """The time on the file system's clock, by which the times of its files are: ours may be a day off."""
        os.utime(self.root)
        return datetime.fromtimestamp(self.root.stat().st_mtime, UTC)

    def receive(self) -> Incoming:
        """Open a place for an object about to arrive. Raises `SpoolFull`, `OSError`."""
        # The head is written when the series is known.
        return Incoming(self._workbench.open(start=HEAD_BYTES), self._file)

    def store(
        self, data_set: bytes, *, transfer_syntax_uid: str, arrival: Arrival
    ) -> tuple[SpooledInstance, Filed]:
        """Keep one encoded data set. Raises `UnreadableDataSet`, `SpoolFull`, `OSError`."""
        with self.receive() as incoming:
            incoming.write(data_set)
            return incoming.file(incoming.identity(transfer_syntax_uid), transfer_syntax_uid, arrival)

    def studies(self) -> Iterator[SpooledStudy]:
        """Every study that has objects, from the file system's times alone; strays are passed over.

        A study whose directory has not changed is not looked into again, so that this may be asked
        every few seconds of a spool that holds many thousands.
        """
        now_ns, seen = time.time_ns(), set[str]()
        for directory in os.scandir(self._studies):
            if not is_valid_uid(directory.name) or not directory.is_dir():
                continue
            seen.add(directory.name)
            try:
                study = self._look_into(directory, now_ns)
            except OSError as error:
                # One directory that the disk does not give back must not hide the studies behind it.
                log.error("study_unreadable", study=directory.name, error=type(error).__name__)
                continue
            if study is not None:
                yield study
        for purged in self._looked_into.keys() - seen:
            del self._looked_into[purged]

    def _look_into(self, directory: os.DirEntry[str], now_ns: int) -> SpooledStudy | None:
        changed_ns = directory.stat().st_mtime_ns
        known = self._looked_into.get(directory.name)
        if known is None or known[0] != changed_ns:
            known = (changed_ns, _look_into(directory))
            # Within one tick of its clock a directory may change without a new time.
            if now_ns - changed_ns > _CLOCK_TICK_NS:
                self._looked_into[directory.name] = known
        return known[1]

    def instances(self, study_instance_uid: str) -> list[SpooledInstance]:
        """The objects of a study, oldest first; none where the study is unknown.

        An object whose head has rotted or cannot be read is one that only its name and its file's time
        tell of: whoever reads it finds out what is wrong with it, and no other object waits for it.

        Raises:
            OSError: the machine does not give us the directory.
        """
        directory = self._studies / study_instance_uid
        if not is_valid_uid(study_instance_uid) or not directory.is_dir():
            return []
        found, strays = [], 0
        for path in directory.iterdir():
            if (name := _NAME.fullmatch(path.name)) is not None:
                found.append(read_instance(path, *name.groups()))
            else:
                strays += 1
        if strays:
            log.warning("files_not_ours_ignored", study=study_instance_uid, files=strays)
        return sorted(found, key=lambda instance: (instance.received_at, instance.path.name))

    def count(self, study_instance_uid: str) -> int:
        """How many objects of a study there are, by their names alone; none where the study is unknown.

        Raises:
            OSError: the machine does not give us the directory.
        """
        if not is_valid_uid(study_instance_uid):
            return 0
        try:
            with os.scandir(self._studies / study_instance_uid) as entries:
                return sum(_NAME.fullmatch(entry.name) is not None for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def remove(self, objects: Mapping[Path, datetime]) -> None:
        """Remove objects of one study, durably; those that are gone are fine.

        Args:
            objects: when each was last received. One that has come again since is another, and stays.

        Raises:
            OSError: the disk does not let one go.
            ValueError: one is not an object of the spool.
        """
        names = {path: _NAME.fullmatch(path.name) for path in objects}
        if any(path.parent.parent != self._studies or name is None for path, name in names.items()):
            raise ValueError("only received objects may be removed")
        for path, name in names.items():
            # Looked at and removed in one: its sender may be about to hear that it is here.
            with self._filing.held(), contextlib.suppress(FileNotFoundError):
                if name and read_instance(path, *name.groups()).last_at == objects[path]:
                    path.unlink()
        for directory in {path.parent for path in objects}:
            with contextlib.suppress(FileNotFoundError):
                synchronise(directory)
            with contextlib.suppress(OSError):  # another object came
                directory.rmdir()

    def _file(self, part: Part, name: str, study_instance_uid: str) -> tuple[Path, Filed]:
        """Give a part its name in its study, durably; exactly one of equal parts is `NEW`."""
        # Before the part is synchronised, so that a journal takes both to the disk at one time.
        self._present(study_instance_uid)
        part.synchronise()
        reach("spool.after_fsync")
        try:
            return self._place(part, name, study_instance_uid)
        except FileNotFoundError:
            # Its last objects were purged at this moment, and the directory went with them.
            return self._place(part, name, study_instance_uid)

    def _place(self, part: Part, name: str, study_instance_uid: str) -> tuple[Path, Filed]:
        directory = self._study_directory(study_instance_uid)
        path = directory / name
        prefix = name[: name.index("_") + 1]
        with self._filing.held():
            known = [entry.name for entry in os.scandir(directory) if entry.name.startswith(prefix)]
            filed = Filed.DUPLICATE if name in known else Filed.CONFLICT if known else Filed.NEW
            if filed is Filed.DUPLICATE:
                # It takes the place of what is here, which may be about to be purged: see `remove`.
                succeed(part, path)
            # Rename after fsync: a 0x0000 we cannot honour loses an image.
            part.rename(path)
            reach("spool.after_rename")
        # A duplicate waits for it as well: who came first may not be that far.
        synchronise(directory)
        reach("spool.after_directory_fsync")
        return path, filed

    def _present(self, study_instance_uid: str) -> Path:
        """The directory of a study, which need not be durable yet."""
        directory = self._studies / study_instance_uid
        if not directory.is_dir():
            # Forgotten first: who finds it made must not take it for the durable one that was purged.
            self._durable.discard(study_instance_uid)
            directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def _study_directory(self, study_instance_uid: str) -> Path:
        directory = self._present(study_instance_uid)
        # Another thread may have made it and not be done: whoever has not seen it durable synchronises.
        if study_instance_uid not in self._durable:
            make_directory(directory)
            if len(self._durable) >= _REMEMBERED_STUDIES:
                self._durable.clear()
            self._durable.add(study_instance_uid)
        return directory


def _look_into(directory: os.DirEntry[str]) -> SpooledStudy | None:
    times = [entry.stat().st_mtime_ns for entry in os.scandir(directory) if _NAME.fullmatch(entry.name)]
    if not times:
        return None
    return SpooledStudy(
        study_instance_uid=directory.name, instances=len(times), first_ns=min(times), last_ns=max(times)
    )
