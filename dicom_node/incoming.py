"""An object on its way into the spool, and what is known of it once it lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.durable import Part
from dicom_node.failpoints import reach
from dicom_node.file_meta import HEAD_BYTES, Head, Provenance, read_head, write_head
from dicom_node.header import Identity, read_identity, read_values
from dicom_node.lanes import Lane
from dicom_node.logs import get_logger

log = get_logger("spool")


class Filed(StrEnum):
    """What became of an object that was received."""

    NEW = "new"
    DUPLICATE = "duplicate"
    """The same object with the same bytes is here already: it gives no work."""
    CONFLICT = "conflict"
    """The same SOP instance with other content: both are kept, the first wins."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Who sent an object, when its first byte came, and the lane that it belongs in."""

    calling_ae: str
    called_ae: str
    address: str
    received_at: datetime
    lane: Lane = Lane.ROUTINE


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
    lane: Lane = Lane.ROUTINE
    again_at: datetime | None = None
    """When the same bytes were received once more, last."""

    @property
    def last_at(self) -> datetime:
        """When its sender last heard that it is here: this tells a file from an earlier one of its name."""
        return self.again_at or self.received_at


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
        return read_identity(self._read, self.size, transfer_syntax_uid)

    def values(self, transfer_syntax_uid: str, tags: Collection[int]) -> dict[int, str]:
        """Short texts of the data set, by tag."""
        return read_values(self._read, self.size, transfer_syntax_uid, tags) if tags else {}

    def _read(self, offset: int, count: int) -> bytes:
        return self._part.read(HEAD_BYTES + offset, count)

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
                lane=arrival.lane,
            ),
        )
        self._part.overwrite(write_head(head), 0)
        reach("spool.after_write")
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
            lane=arrival.lane,
        )
        return instance, filed

    def discard(self) -> None:
        """Forget the object, unless it is filed."""
        self._part.discard()


def succeed(part: Part, path: Path) -> None:
    """Have an object that came again say what the first one's head says, and when it came again.

    Raises:
        FileNotFoundError: the first one is gone.
        OSError: the disk does not take it.
    """
    try:
        with path.open("rb") as file:
            first = read_head(file.read(HEAD_BYTES))
    except FileNotFoundError:
        raise
    except Exception:  # noqa: BLE001 (whatever a parser makes of rotten bytes: the new head is a whole one)
        return
    again_at = read_head(part.read(0, HEAD_BYTES)).provenance.received_at
    part.overwrite(write_head(replace(first, provenance=replace(first.provenance, again_at=again_at))), 0)
    part.synchronise()


def read_instance(path: Path, sop_instance_uid: str, sha256: str) -> SpooledInstance:
    """What lies in the spool under a name; of a head that has rotted or cannot be read, the name alone.

    Raises:
        FileNotFoundError: it is gone.
    """
    state, content = path.stat(), b""
    try:
        with path.open("rb") as file:
            content = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        log.error("object_unreadable", object=sop_instance_uid, error=type(error).__name__)
    head, received_at, again_at = _head(
        content, sop_instance_uid, datetime.fromtimestamp(state.st_mtime, UTC)
    )
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
        lane=Lane(head.provenance.lane),
        again_at=again_at,
    )


def _head(
    content: bytes, sop_instance_uid: str, filed_at: datetime
) -> tuple[Head, datetime, datetime | None]:
    """The head and its times; where it has rotted, one without facts and the time at which it was filed."""
    try:
        head = read_head(content)
        received_at = datetime.fromisoformat(head.provenance.received_at).astimezone(UTC)
        again = head.provenance.again_at
        again_at = datetime.fromisoformat(again).astimezone(UTC) if again else None
        facts = [head.sop_class_uid, head.transfer_syntax_uid, head.calling_ae, head.called_ae]
        facts += [head.provenance.series, head.provenance.address]
        if head.sop_instance_uid == sop_instance_uid and all(fact.isprintable() for fact in facts):
            return head, received_at, again_at
    except Exception:  # noqa: BLE001, S110 (whatever a parser makes of rotten bytes)
        pass
    log.warning("head_unreadable", object=sop_instance_uid)
    nothing = Provenance(series="", address="", received_at="")
    return (
        Head(
            sop_class_uid="",
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid="",
            calling_ae="",
            called_ae="",
            provenance=nothing,
        ),
        filed_at,
        None,
    )
