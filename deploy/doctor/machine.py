"""The machine: disk and spool, and the clock."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import statistics
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
from sqlalchemy import make_url

from deploy import broker
from deploy.doctor.check import Check, fail, ok, warn
from dicom_node.errors import Retryable
from worker.ledger.store import make_engine, transaction
from worker.settings import Settings

_WRITTEN_BYTES = 16_777_216
_SLOW_BYTES_A_SECOND = 20e6
"""Two large films a second."""
_SLOW_FSYNC = 0.05
"""Seconds; each film costs two of them."""
_FSYNCS = 15
_VOLATILE = {"tmpfs", "ramfs"}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"}
_OFF, _FAR_OFF = timedelta(seconds=2), timedelta(minutes=5)
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # larger than struct timex on any machine; all zero: read only


def disk(settings: Settings) -> Iterator[Check]:
    """Room, speed and the time of an fsync where the spool is."""
    place = _nearest(settings.spool.path)
    free, least = shutil.disk_usage(place).free, settings.spool.minimum_free_bytes
    room = f"{free / 1e9:.1f} GB free at {place}, spool.minimum_free_bytes is {least / 1e9:.1f} GB"
    if free < least:
        yield fail("disk", f"{room}: every C-STORE is answered A700.", "Free space: `covariance purge`.")
    elif free < 5 * least:
        yield warn(
            "disk", f"{room}.", "Free space before it is reached: `covariance purge` says what may go."
        )
    else:
        yield ok("disk", f"{room}.")
    kind = _file_system(place)
    if kind in _VOLATILE:
        yield warn("disk", f"{place} is {kind}: a power cut empties it.", "Set spool.path to a real disk.")
    elif kind in _NETWORK:
        yield warn(
            "disk",
            f"{place} is {kind}, where an fsync is worth what the server makes of it.",
            "Export it with `sync`, and mount it `hard`.",
        )
    yield from _speed(place)


def _speed(place: Path) -> Iterator[Check]:
    path = place / f".doctor-{uuid.uuid4().hex}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        started = time.perf_counter()
        content = memoryview(os.urandom(_WRITTEN_BYTES))
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
        speed = _WRITTEN_BYTES / (time.perf_counter() - started)
        seconds = [_one_fsync(descriptor) for _ in range(_FSYNCS)]
    finally:
        os.close(descriptor)
        path.unlink()
    median, longest = statistics.median(seconds), max(seconds)
    told = f"{speed / 1e6:.0f} MB/s written and synchronised, fsync {median * 1e3:.1f} ms"
    told += f" (longest {longest * 1e3:.0f} ms)."
    if speed < _SLOW_BYTES_A_SECOND or median > _SLOW_FSYNC:
        yield warn("disk speed", told, "A modality waits for this: use a faster disk for spool.path.")
    else:
        yield ok("disk speed", told)


def _one_fsync(descriptor: int) -> float:
    os.pwrite(descriptor, os.urandom(4096), 0)
    started = time.perf_counter()
    os.fsync(descriptor)
    return time.perf_counter() - started


def spool(settings: Settings) -> Iterator[Check]:
    """Whether the spool is one file system, ours, and closed to others."""
    root = settings.spool.path.absolute()
    if not root.is_dir():
        place = _nearest(root)
        if root.exists() or not os.access(place, os.W_OK):
            yield fail("spool", f"{place} cannot be written.", "Set spool.path to a place of ours.")
        else:
            yield ok("spool", f"{root} is not there yet: the node makes it.")
        return
    parts = [one for one in (root, *root.iterdir()) if one.is_dir()]
    closed = [one for one in parts if not os.access(one, os.R_OK | os.W_OK | os.X_OK)]
    if closed:
        yield fail(
            "spool", f"{closed[0]} cannot be written by user {os.getuid()}.", "`chown` it to our user."
        )
    elif len({one.stat().st_dev for one in parts}) > 1:
        yield fail(
            "spool",
            f"{root} lies on several file systems: a rename within it is not atomic.",
            "Mount one file system at spool.path, and nothing below.",
        )
    elif root.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mode = stat.S_IMODE(root.stat().st_mode)
        yield warn(
            "spool",
            f"{root} has mode {mode:04o}: others on this machine can read films.",
            f"`chmod 700 {root}`.",
        )
    else:
        yield ok("spool", f"{root} can be written, is private and one file system.")


def clock(settings: Settings) -> Iterator[Check]:
    """The clock against the kernel's judgement, the database's and the broker's."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _TIME_ERROR:
        yield warn(
            "clock",
            "The kernel says that nothing keeps the clock right.",
            "Run chrony or systemd-timesyncd on the host: reports and audit bear its time.",
        )
    else:
        yield ok("clock", "The clock is kept right, as the kernel says.")
    for name, theirs in _other_clocks(settings):
        off = abs(theirs - datetime.now(UTC))
        told = f"{off.total_seconds():.1f} s between our clock and that of the {name}"
        if off > _FAR_OFF:
            yield fail("clock", f"{told}.", "Set the clocks by one NTP server before anything is scored.")
        elif off > _OFF:
            yield warn("clock", f"{told}.", "Set both by the same NTP server.")
        else:
            yield ok("clock", f"{told}.")


def _other_clocks(settings: Settings) -> Iterator[tuple[str, datetime]]:
    if make_url(settings.database.url).get_backend_name() == "postgresql":
        engine = make_engine(settings.database.url)
        try:
            with transaction(engine, writes=False) as connection:
                yield "database", connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
        except Retryable:
            pass  # its own check says so
        finally:
            engine.dispose()
    url = broker.reachable(settings).queue.url
    if url.startswith(("redis://", "rediss://")):
        try:
            with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
                seconds, microseconds = client.time()
        except (redis.RedisError, OSError):
            return
        yield "broker", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)


def _nearest(path: Path) -> Path:
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def _file_system(place: Path) -> str:
    """The type of the file system that holds a place, as the kernel names it; empty where it does not."""
    real, best, kind = str(place.resolve()), "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, found = line.split()[1:3]
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, found
    return kind
