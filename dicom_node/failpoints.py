"""Named points on the way of an object, at which a test makes a process die, fail or stand still.

They are armed by the environment alone, never by a settings file, and do nothing in production: a point
that is not armed costs one look into an empty dict.

    COVARIANCE_FAILPOINTS="spool.after_fsync=kill;pipeline.after_claim=sleep:5@3;outbox.after_keep=raise~MARK"

`kill` is a SIGKILL to ourselves, `raise` an OSError (EIO), `sleep:SECONDS` a pause. A point acts every time;
with `@N` only the N-th time in a process, with `~FILE` only once for all processes: whoever makes the file
acts. Processes that start with a point armed log one warning, and `covariance config check` prints one.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from dicom_node.settings import armed_failpoints

log = get_logger("failpoints")

POINTS = {
    "spool.after_write": "an object is written, with its head, to its temporary file",
    "spool.after_fsync": "its content is on the disk",
    "spool.after_rename": "it has its name",
    "spool.after_directory_fsync": "its name is on the disk",
    "receive.before_response": "it is announced, and its sender has not heard 0x0000",
    "durable.after_write": "an output, a report or a window is written to its temporary file",
    "durable.after_fsync": "its content is on the disk",
    "durable.after_rename": "it has its name",
    "reports.after_keep": "a commitment report is kept, and its sender has not heard so",
    "pipeline.after_register": "the images of a study are registered",
    "pipeline.after_claim": "its job is claimed",
    "scorer.after_decode": "its images are read",
    "scorer.before_infer": "they are about to go to the engine; `raise` means that its device is lost",
    "pipeline.after_infer": "there is a finding",
    "outbox.after_keep": "an output is kept, and not recorded",
    "pipeline.after_record": "the result is recorded",
    "deliver.before_store": "an output is about to be sent",
    "deliver.after_response": "the destination has answered, and the ledger does not know",
    "deliver.after_record": "the ledger knows what is stored",
    "deliver.before_commitment": "a commitment request is recorded, and not sent",
    "deliver.after_commitment": "it is accepted",
    "office.before_report": "a report waits to be taken",
    "office.after_report": "the ledger has it, and it is not dropped",
    "refusals.after_take": "the ledger has a window of refusals, and its file is not removed",
    "outbox.before_drop": "the bytes of an output are about to be removed",
    "outbox.after_drop": "they are, and the ledger does not know",
}
"""Every point, and what has happened when a process is there."""

_ARMED = re.compile(
    r"(?P<point>[a-z_.]+)=(?P<action>kill|raise|sleep:(?P<seconds>\d+(\.\d+)?))(@(?P<nth>\d+))?(~(?P<file>.+))?"
)


@dataclass(kw_only=True)
class _Trap:
    """What waits at one point."""

    act: Callable[[], None]
    nth: int | None
    marker: Path | None
    _reached: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reached(self) -> None:
        with self._lock:
            self._reached += 1
            if self.nth is not None and self._reached != self.nth:
                return
        if self.marker is not None:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                return
        self.act()


_armed: dict[str, _Trap] = {}


def reach(point: str) -> None:
    """Say that the process is at a point. Raises `OSError` where a test wants it so."""
    trap = _armed.get(point)
    if trap is not None:
        trap.reached()


def arm() -> None:
    """Set the traps that the environment names, in this process, and warn of them.

    Raises:
        ConfigurationError: what it names cannot be understood.
    """
    _armed.clear()
    _armed.update(_parse(armed_failpoints()))
    if _armed:
        log.warning("failpoints_armed", points=sorted(_armed))


def warning() -> str | None:
    """One sentence where points are armed. Raises `ConfigurationError`."""
    points = ", ".join(sorted(_parse(armed_failpoints())))
    return f"COVARIANCE_FAILPOINTS makes processes fail on purpose, at {points}." if points else None


def _parse(text: str) -> dict[str, _Trap]:
    traps = {}
    for part in filter(None, text.split(";")):
        found = _ARMED.fullmatch(part)
        if found is None or found["point"] not in POINTS:
            raise ConfigurationError(
                f"COVARIANCE_FAILPOINTS holds {part!r}: write POINT=kill, raise or sleep:SECONDS, "
                "with a point that dicom_node/failpoints.py names."
            )
        traps[found["point"]] = _Trap(
            act=_action(found["point"], found["action"], float(found["seconds"] or 0)),
            nth=int(found["nth"]) if found["nth"] else None,
            marker=Path(found["file"]) if found["file"] else None,
        )
    return traps


def _action(point: str, action: str, seconds: float) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(errno.EIO, f"failpoint {point}")

    if action == "kill":
        return lambda: os.kill(os.getpid(), signal.SIGKILL)
    return fail if action == "raise" else lambda: time.sleep(seconds)
