"""Files that are on the disk when we say so: written aside, synchronised, renamed, directory synchronised."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from dicom_node.errors import Retryable
from dicom_node.failpoints import reach

_MUTEX_SECONDS = 10.0
_WRITEBACK_BYTES = 1_048_576
_SYNC_FILE_RANGE_WRITE = 2  # sync_file_range(2)
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux only


class Part:
    """A temporary file in `directory`; its lock says that its process lives. Raises `OSError` throughout."""

    def __init__(self, directory: Path, *, start: int = 0) -> None:
        self._path = directory / f"{uuid.uuid4().hex}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        self._end = self._announced = os.lseek(self._descriptor, start, os.SEEK_SET)
        self._renamed = False

    def append(self, content: bytes | memoryview) -> None:
        """Write behind what has been written."""
        written = os.write(self._descriptor, content)
        while written < len(content):
            written += os.write(self._descriptor, memoryview(content)[written:])
        self._end += written
        if _sync_file_range is not None and self._end - self._announced >= _WRITEBACK_BYTES:
            # Only a hint that saves a third of the time: the disk works while the rest still arrives.
            _sync_file_range(
                self._descriptor,
                ctypes.c_int64(self._announced),
                ctypes.c_int64(self._end - self._announced),
                _SYNC_FILE_RANGE_WRITE,
            )
            self._announced = self._end

    def overwrite(self, content: bytes, offset: int) -> None:
        """Write at a place of its own."""
        if os.pwrite(self._descriptor, content, offset) != len(content):
            raise OSError("the file system took only a part of a write")

    def read(self, offset: int, count: int) -> bytes:
        """Read back."""
        return os.pread(self._descriptor, count, offset)

    def synchronise(self) -> None:
        """Bring the content to the disk."""
        os.fdatasync(self._descriptor)

    def rename(self, path: Path) -> None:
        """Give the file its name; the directory is still to be synchronised."""
        self._path.rename(path)
        self._renamed = True

    def discard(self) -> None:
        """Close the file, and remove it unless it has its name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._renamed:
                self._path.unlink(missing_ok=True)


class Mutex:
    """Lets in one at a time, of all threads and processes that share the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.Lock()
        self._file: BinaryIO | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for it and hold it. Raises `OSError`, also where another process does not let it go."""
        with self._threads:
            if self._file is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._file = os.fdopen(os.open(self._path, flags, 0o600), "r+b")
            self._lock(self._file, time.monotonic() + _MUTEX_SECONDS)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    @staticmethod
    def _lock(file: BinaryIO, deadline: float) -> None:
        # It is held for the time of a rename: whoever has it longer stands still, and a sender must not.
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, "a lock of the spool is not let go") from None
                time.sleep(0.001)
            else:
                return


class SpoolFull(Retryable):
    """Less space is free than is to be kept: nothing more is taken until there is."""


class Workbench:
    """Where files are written before they have their names, as long as enough space is free."""

    def __init__(self, directory: Path, minimum_free_bytes: int) -> None:
        self._directory = directory
        self._minimum_free_bytes = minimum_free_bytes

    def open(self, *, start: int = 0) -> Part:
        """Begin a file. Raises `SpoolFull`, `OSError`."""
        space = os.statvfs(self._directory)
        if space.f_bavail * space.f_frsize < self._minimum_free_bytes:
            raise SpoolFull("less space is free in the spool than spool.minimum_free_bytes")
        return Part(self._directory, start=start)

    def write(self, path: Path, content: bytes) -> None:
        """Write a whole file durably. Raises `SpoolFull`, `OSError`."""
        part = self.open()
        try:
            part.append(content)
            reach("durable.after_write")
            part.synchronise()
            reach("durable.after_fsync")
            part.rename(path)
            reach("durable.after_rename")
        finally:
            part.discard()
        synchronise(path.parent)

    def sweep(self, *, before: datetime | None = None) -> None:
        """Remove the temporary files of processes that are gone; those last written to before a moment."""
        for path in self._directory.glob("*.part"):
            try:
                if before is not None and path.stat().st_mtime >= before.timestamp():
                    continue
                # For writing, although nothing is written: NFS gives no exclusive lock else (flock(2)).
                with path.open("r+b") as file:
                    # The lock dies with its process: who still writes is left alone.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except (FileNotFoundError, BlockingIOError, PermissionError):
                # Gone, being written, or another account's, of a command that somebody ran as root.
                continue


def make_directory(path: Path) -> None:
    """Make a directory that only we may look into, durably; one that exists is fine, and durable after."""
    path.mkdir(mode=0o700, exist_ok=True)
    synchronise(path.parent)


def synchronise(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
