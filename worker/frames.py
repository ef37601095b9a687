"""Messages over a socket to a child process: a length, then that many bytes, all before a deadline.

Nothing is unpickled: whoever sends a message cannot run code with it, nor make its reader wait or
allocate beyond what the reader allows.
"""

from __future__ import annotations

import socket
import time

_LENGTH_BYTES = 4


class FrameError(Exception):
    """The other end announced a message that is longer than allowed."""


def send_frame(end: socket.socket, *parts: bytes | memoryview) -> None:
    """Send one message made of `parts`. Raises OSError when the other end is gone."""
    length = sum(len(part) for part in parts)
    end.sendall(length.to_bytes(_LENGTH_BYTES, "big"))
    for part in parts:
        end.sendall(part)


def receive_frame(end: socket.socket, *, longest: int, seconds: float | None = None) -> memoryview:
    """Receive one whole message.

    Args:
        end: a stream socket.
        longest: most bytes that are taken.
        seconds: for all of the message; None waits for ever.

    Raises:
        TimeoutError: the message was not here in time, or only a part of it.
        EOFError, OSError: the other end is gone.
        FrameError: the message is longer than `longest`.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_exactly(end, _LENGTH_BYTES, deadline), "big")
    if length > longest:
        raise FrameError
    content = _exactly(end, length, deadline)
    end.settimeout(None)
    return content


def _exactly(end: socket.socket, count: int, deadline: float | None) -> memoryview:
    buffer = memoryview(bytearray(count))
    taken = 0
    while taken < count:
        if deadline is not None:
            # Not for each part: a byte now and then would put the end off for ever.
            end.settimeout(max(deadline - time.monotonic(), 1e-3))
        received = end.recv_into(buffer[taken:])
        if received == 0:
            raise EOFError
        taken += received
    return buffer.toreadonly()
