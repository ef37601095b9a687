"""One machine, one command: broker, node, worker and deliverer as children of one supervisor.

The supervisor holds no state and touches no study: killing it, or any child, costs time only.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger

log = get_logger("stack")

CONFIGURATION_EXIT = 2
"""Exit code of a child whose settings cannot work: starting it again is no use."""
DRAINED_EXIT = 3
"""Exit code of a child that was drained and is to stay down (`worker.drain`, which is too heavy to load)."""
_LOOK_SECONDS = 0.05
_STEADY_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0

Report = Callable[[str, str], None]
"""Takes the name of a program and one line that it wrote; called from several threads."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One child process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool] | None = None
    """Asked until true. None: the program takes `--ready-fd N` and writes a line there when it serves."""
    stop_seconds: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""


class _Child:
    """A program while it runs, and when to start it again."""

    def __init__(self, program: Program, report: Report, longest_pause: float) -> None:
        self.program = program
        self.ready = False
        self._has_served = False
        self._report = report
        self._longest_pause = longest_pause
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_fd: int | None = None
        self._started = 0.0
        self._start_at = 0.0
        self._failures = 0

    def look(self) -> None:
        """Start the program if it does not run and its pause is over; see whether it serves.

        Raises:
            ConfigurationError: it has ended because its settings cannot work, and it never served with them.
        """
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._try_to_start()
        elif (code := self._process.poll()) is not None:
            self.end()
            self._plan_restart(code)
        elif not self.ready:
            self.ready = self._serves()
            self._has_served |= self.ready

    def _try_to_start(self) -> None:
        try:
            self._start()
        except OSError as error:
            self._close_ready_fd()
            if not self._has_served:
                raise
            # No memory, process or descriptor just now: that one is missing takes none of the others down.
            self._failures += 1
            pause = min(2.0 ** (self._failures - 1), self._longest_pause)
            self._start_at = time.monotonic() + pause
            why = error.strerror or type(error).__name__
            log.error("child_not_started", program=self.program.name, why=why, again_in=pause)

    def _start(self) -> None:
        command = list(self.program.command)
        self._ready_fd, write_end = os.pipe()
        if self.program.is_ready is None:
            command += ["--ready-fd", str(write_end)]
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(self.program.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                # Ctrl-C is for the supervisor: it stops the others in order.
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        self._started = time.monotonic()
        threading.Thread(target=self._pass_on, args=(self._process,), daemon=True).start()

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
        with process.stdout as lines:
            for line in lines:
                # The pipe is emptied even where nobody takes its lines: a child must not die of its log.
                with contextlib.suppress(Exception):
                    self._report(self.program.name, line.decode(errors="replace").rstrip("\n"))

    def _serves(self) -> bool:
        if self.program.is_ready is not None:
            return self.program.is_ready()
        assert self._ready_fd is not None  # noqa: S101
        readiness = select.poll()  # select() fails on a descriptor over 1024
        readiness.register(self._ready_fd, select.POLLIN)
        return bool(readiness.poll(0)) and os.read(self._ready_fd, 1) != b""

    def _plan_restart(self, code: int) -> None:
        if code == DRAINED_EXIT:
            # Somebody wants it to stay down, until the whole is started again.
            self._start_at = math.inf
            log.info("child_drained", program=self.program.name)
            return
        misconfigured = code == CONFIGURATION_EXIT
        if misconfigured and not self._has_served:
            raise ConfigurationError(
                f"The {self.program.name} cannot work with these settings; its message stands above."
            )
        steady = time.monotonic() - self._started > _STEADY_SECONDS
        self._failures = 1 if steady else self._failures + 1
        # These settings have worked: what fails now (a full disk, a database away) may pass, and the node
        # must not go down with it.
        pause = self._longest_pause
        if not misconfigured:
            pause = min(2.0 ** (self._failures - 1), pause)
        self._start_at = time.monotonic() + pause
        log.warning("child_ended", program=self.program.name, code=code, restart_in=pause)

    def end(self) -> None:
        """Stop the process, and with it everything that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self.program.stop_seconds)
        except subprocess.TimeoutExpired:
            log.warning("child_killed", program=self.program.name)
        # The session of a child is its process group: decoders of a worker that was killed go with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.ready = False
        self._close_ready_fd()

    def _close_ready_fd(self) -> None:
        if self._ready_fd is not None:
            os.close(self._ready_fd)
            self._ready_fd = None


class Stack:
    """Supervises programs: starts them, starts again what dies, and leaves nothing behind."""

    def __init__(
        self, programs: Sequence[Program], *, report: Report, longest_pause: float = _LONGEST_PAUSE_SECONDS
    ) -> None:
        """Take the programs in the order in which they are started; they are stopped in reverse.

        Args:
            programs: what to run.
            report: takes what they print.
            longest_pause: seconds before a program that fails again and again is started again.
        """
        self._children = [_Child(program, report, longest_pause) for program in programs]

    def run(self, on_ready: Callable[[], None]) -> None:
        """Supervise until SIGTERM, SIGINT or SIGHUP; `on_ready` is called once, when all serve.

        Raises:
            ConfigurationError: a program has never served and cannot work with its settings; the others are
                stopped.
        """
        announced = False
        with stopped_by(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as stop:
            try:
                while not stop.wait(_LOOK_SECONDS):
                    for child in self._children:
                        child.look()
                    if not announced and all(child.ready for child in self._children):
                        announced = True
                        with contextlib.suppress(OSError):
                            on_ready()
            finally:
                for child in reversed(self._children):
                    child.end()


@contextlib.contextmanager
def stopped_by(*numbers: signal.Signals) -> Iterator[threading.Event]:
    """An event that any of these signals sets, however many of them come and whatever they interrupt.

    No handler may set it itself: the lock of an event is not reentrant, and a second signal, or one that
    comes while the main thread waits, would wait for ever for what it has interrupted. A SimpleQueue may be
    filled by a handler, and a thread sets the event. To be called from the main thread.
    """
    stop, told = threading.Event(), queue.SimpleQueue[bool]()

    def pass_on() -> None:
        if told.get():
            stop.set()

    before = {number: signal.signal(number, lambda *_: told.put(True)) for number in numbers}
    passing = threading.Thread(target=pass_on, name="signals", daemon=True)
    passing.start()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        told.put(False)
        passing.join()


def announce_ready(ready_fd: int | None) -> None:
    """Tell the supervisor that this process serves: a line on the descriptor that it named."""
    if ready_fd is not None:
        os.write(ready_fd, b"\n")
        os.close(ready_fd)


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the supervisor is gone, even by SIGKILL (Linux, prctl(2)).

    It survives an exec. On other systems an orphan has to be stopped by hand.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)
