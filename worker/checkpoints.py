"""Checkpoints: heads of the audit trail in a file that is kept elsewhere than the trail.

Who can rewrite the database can rewrite the whole chain, or cut off its end; then it no longer fits the
heads that were noted. A line is one head. The file is only ever appended to, so that it may lie where
nothing else is allowed (`chattr +a`, a share of another machine).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from dicom_node.durable import synchronise
from dicom_node.errors import Retryable
from dicom_node.logs import get_logger
from worker import metrics
from worker.ledger import ChainHead, Ledger
from worker.ledger.store import Clock, utcnow

log = get_logger("checkpoint")

_TAIL_BYTES = 4096
"""What is read for the last line: a few dozen of them."""


class Checkpoint(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: AwareDatetime
    events: int = Field(ge=0)
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def head(self) -> ChainHead:
        """What was noted."""
        return ChainHead(events=self.events, hash=self.hash)


class CheckpointFile:
    """The file; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[list[Checkpoint], int]:
        """All checkpoints, oldest first, and how many lines are none: the power failed while one was written.

        Raises:
            Retryable: the file is there and cannot be read.
        """
        lines, _ = self._lines(None)
        found = [one for one in map(_checkpoint, lines) if one is not None]
        return found, len(lines) - len(found)

    def last(self) -> Checkpoint | None:
        """The newest checkpoint; of a file of years only the end is read.

        Raises:
            Retryable: the file is there and cannot be read.
        """
        for size in (_TAIL_BYTES, None):
            lines, whole = self._lines(size)
            # The first of a part may be the end of a line.
            mine = lines if whole else lines[1:]
            newest = next((one for one in map(_checkpoint, reversed(mine)) if one is not None), None)
            if newest is not None or whole:
                return newest
        return None

    def _lines(self, size: int | None) -> tuple[list[bytes], bool]:
        """The lines in the last `size` bytes (None: in all), and whether that is the whole file."""
        try:
            with self.path.open("rb") as file:
                length = file.seek(0, os.SEEK_END)
                start = 0 if size is None else max(length - size, 0)
                file.seek(start)
                return file.read().splitlines(), start == 0
        except FileNotFoundError:
            return [], True
        except OSError as error:
            raise self._away("read", error) from None

    def append(self, head: ChainHead, at: datetime) -> Checkpoint:
        """Add a line and return it; when this returns it is on the disk.

        Raises:
            Retryable: the file cannot be written.
        """
        checkpoint = Checkpoint(at=at, events=head.events, hash=head.hash)
        line = checkpoint.model_dump_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _append(self.path, line)
            synchronise(self.path.parent)
        except OSError as error:
            raise self._away("written", error) from None
        return checkpoint

    def _away(self, what: str, error: OSError) -> Retryable:
        return Retryable(f"The checkpoints {self.path} cannot be {what}: {error.strerror}.")


def _checkpoint(line: bytes) -> Checkpoint | None:
    try:
        return Checkpoint.model_validate_json(line)
    except ValidationError:
        return None


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # What a power cut left of a line must not spoil ours.
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpointer:
    """Notes the head every so often, and looks whether the trail still holds the last one that was noted."""

    def __init__(
        self,
        path: Path,
        ledger: Ledger,
        *,
        seconds: float = 0.0,
        alarm: Callable[[str], object] = lambda _: None,
        clock: Clock = utcnow,
    ) -> None:
        self._file = CheckpointFile(path)
        self._ledger = ledger
        self._seconds = seconds
        self._alarm = alarm
        self._clock = clock
        self._due = 0.0

    def step(self) -> Checkpoint | None:
        """Note the head when it is time and has moved; return the newest checkpoint that fits the trail.

        A trail that does not hold the last checkpoint is an alarm each time, and nothing is noted: a new
        head beside it would make the forgery look like the truth.

        Raises:
            Retryable: database or file are away.
        """
        if time.monotonic() < self._due:
            return None
        last = self._file.last()
        if last is not None and not self._ledger.holds(last.head):
            sentence = f"The audit trail no longer holds event {last.events} as it was noted at {last.at}."
            log.error("audit_trail_broken", events=last.events, noted_at=str(last.at))
            self._alarm(sentence)
            metrics.CHECKPOINT_FITS.set(0)
            last = None
        else:
            head = self._ledger.head()
            if last is None or head != last.head:
                last = self._file.append(head, self._clock())
            metrics.CHECKPOINT_FITS.set(1)
        metrics.CHECKPOINT_TIME.set_to_current_time()
        self._due = time.monotonic() + self._seconds
        return last
