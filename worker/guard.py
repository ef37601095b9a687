"""Decoding in guarded child processes: a bomb, a hang or a crash costs one image, not the worker.

The children are the parallelism too. They start once, take one file at a time over a socket of their
own, and end with it: when the worker goes, however it goes, the socket closes. What a child says is
checked as data (`worker.answers`): the film that it reads may have taken it over.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import resource
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict
from structlog.contextvars import bound_contextvars

from dicom_node.errors import Reason, Retryable
from dicom_node.logs import get_logger
from dicom_node.memory import keep_buffers
from dicom_node.spool import SpooledInstance
from worker import metrics
from worker.answers import LONGEST_ANSWER, Answer, AnswerError, decode_answer, encode_answer
from worker.findings import Reading, Rejected
from worker.frames import FrameError, receive_frame, send_frame
from worker.settings import EligibilitySection, Settings

log = get_logger("guard")

_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0
_LONGEST_REQUEST = 65_536
_COMMAND = (sys.executable, "-m", __name__)


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True)

    memory_bytes: int
    seconds: float
    eligibility: EligibilitySection


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True)

    path: Path
    sop_instance_uid: str
    sha256: str


class _ChildError(Exception):
    """The child is of no use any more. `looked`: it had the file by then, and looked at what is in it."""

    def __init__(self, *, looked: bool) -> None:
        super().__init__()
        self.looked = looked


class _HungError(_ChildError):
    """The child did not answer in time."""


class _DiedError(_ChildError):
    """The child ended instead of answering, or answered what no sound child does."""


class _Child:
    """One decoder process, seen from the worker."""

    def __init__(self, limits: _Limits) -> None:
        self._limits = limits
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C in a terminal reaches its whole process group: a film in hand would be "crashed".
                start_new_session=True,
            )
        self._ready = False

    def ask(self, request: _Request) -> Reading | Rejected:
        """Have one file read. Raises Retryable; _HungError or _DiedError, and the child is of no use.

        An empty frame comes first, once the child has the bytes: what keeps it until then is the machine's.
        """
        looked = False
        try:
            if not self._ready:
                self._tell(self._limits)
                self._hear(_START_SECONDS)
                self._ready = True
            self._tell(request)
            first = self._hear(self._limits.seconds)
            looked = not first
            answer = decode_answer(first or self._hear(self._limits.seconds))
        except TimeoutError:
            raise _HungError(looked=looked) from None
        except (EOFError, OSError, FrameError, AnswerError):
            raise _DiedError(looked=looked) from None
        if isinstance(answer, Retryable):
            raise answer
        if answer.sop_instance_uid != request.sop_instance_uid:
            raise _DiedError(looked=looked)
        return answer

    def _tell(self, message: BaseModel) -> None:
        send_frame(self._socket, message.model_dump_json().encode())

    def _hear(self, seconds: float) -> memoryview:
        return receive_frame(self._socket, longest=LONGEST_ANSWER, seconds=seconds)

    def end(self, *, at_once: bool) -> None:
        """Close the socket, at which the child exits; kill it when it does not."""
        self._socket.close()
        try:
            self.process.wait(0 if at_once else _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            # One that waits for a disk dies when that answers; whoever replaces it cannot wait as long.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_SECONDS)


class Decoders:
    """A pool of decoder children; `read` may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        worker = settings.worker
        self._limits = _Limits(
            memory_bytes=worker.decoder_memory_bytes,
            seconds=worker.decoder_timeout,
            eligibility=settings.eligibility,
        )
        self._children = [_Child(self._limits) for _ in range(worker.decoders)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(worker.decoders):
            self._idle.put(slot)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the children that stand now."""
        return tuple(child.process.pid for child in self._children)

    def read(self, instance: SpooledInstance) -> Reading | Rejected:
        """Read one spooled file in a child.

        Returns:
            What the child made of it; DECODER_TIMEOUT or DECODER_CRASHED when it made nothing.

        Raises:
            Retryable: the file is there and the machine does not give it to us, or starts no decoder.
        """
        request = _Request(
            path=instance.path, sop_instance_uid=instance.sop_instance_uid, sha256=instance.sha256
        )
        slot = self._idle.get()
        try:
            # In a thread of its own: the study that its caller is bound to is not known here.
            with bound_contextvars(study=instance.study_instance_uid):
                return self._read(slot, request)
        finally:
            self._idle.put(slot)

    def _read(self, slot: int, request: _Request) -> Reading | Rejected:
        # A child may also be killed by something else (the kernel, an operator): one more try tells.
        looked = False
        for _ in range(2):
            try:
                return self._children[slot].ask(request)
            except _HungError as error:
                self._replace(slot, "hung")
                if not error.looked:
                    raise Retryable(
                        "A decoder did not start, or got no file from the disk, in time."
                    ) from None
                sentence = f"Decoding took longer than {self._limits.seconds:g} s."
                return _rejected(request, Reason.DECODER_TIMEOUT, sentence)
            except _DiedError as error:
                self._replace(slot, "died")
                looked = error.looked
        if not looked:
            raise Retryable("A decoder ended twice before it had the file.")
        return _rejected(request, Reason.DECODER_CRASHED, "The decoder crashed on this file, twice.")

    def _replace(self, slot: int, why: str) -> None:
        self._children[slot].end(at_once=True)
        metrics.DECODERS_REPLACED.labels(why).inc()
        log.warning("decoder_replaced", why=why, exit_status=self._children[slot].process.returncode)
        self._children[slot] = _Child(self._limits)

    def close(self) -> None:
        """End the children."""
        for child in self._children:
            child.end(at_once=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rejected(request: _Request, reason: Reason, sentence: str) -> Rejected:
    return Rejected(sop_instance_uid=request.sop_instance_uid, reason=reason, sentence=sentence)


def _serve(end: socket.socket) -> None:
    """The child: read files until the socket closes."""
    # The worker decides when this process ends, by the socket; a service manager signals both.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    # pydicom quotes values of the data set when it complains.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Late, so that the worker itself does not load the codecs.
    import cv2  # noqa: PLC0415

    from worker.decode import read_film  # noqa: PLC0415

    cv2.setNumThreads(1)
    keep_buffers()
    limits = _Limits.model_validate_json(bytes(receive_frame(end, longest=_LONGEST_REQUEST)))
    _limit_memory(limits.memory_bytes)
    send_frame(end)
    while True:
        request = _Request.model_validate_json(bytes(receive_frame(end, longest=_LONGEST_REQUEST)))

        def has_file() -> None:
            signal.setitimer(signal.ITIMER_REAL, limits.seconds + _GRACE_SECONDS)
            send_frame(end)

        # Should the worker die meanwhile, nobody else would end a decoder that hangs in native code.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + _GRACE_SECONDS)
        try:
            answer: Answer = read_film(
                request.path,
                limits.eligibility,
                sop_instance_uid=request.sop_instance_uid,
                sha256=request.sha256,
                on_loaded=has_file,
            )
        except Retryable as error:
            answer = error
        signal.setitimer(signal.ITIMER_REAL, 0)
        send_frame(end, *encode_answer(answer))


def _limit_memory(budget: int) -> None:
    """Let the address space grow by `budget` bytes, and write no core dump: it would hold a film."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + budget
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        _serve(socket.socket(fileno=int(sys.argv[1])))
