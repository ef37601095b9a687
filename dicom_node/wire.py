"""PDUs over one TCP connection (PS3.8 9.3): read in large pieces, every PDU bounded and with a deadline."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from struct import Struct

from dicom_node import tls
from dicom_node.errors import CovarianceError, Retryable

PDU_HEADER = Struct(">BxL")  # type, length of what follows
PDV_HEADER = Struct(">LBB")  # length of what follows, presentation context, control
MAXIMUM_ASSOCIATE_BYTES = 131_072  # 128 contexts of every transfer syntax fit in half of it
BUFFER_BYTES = 1_048_576
_SMALL_BUFFER_BYTES = 16_384
ARTIM_SECONDS = 5.0  # PS3.8 9.1.4


class PduType(IntEnum):
    """PDU types of PS3.8 Table 9-11 and following."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class Control(IntFlag):
    """The message control header of a PDV (PS3.8 E.2)."""

    COMMAND = 1
    LAST = 2


RELEASE_RQ = PDU_HEADER.pack(PduType.RELEASE_RQ, 4) + bytes(4)
RELEASE_RP = PDU_HEADER.pack(PduType.RELEASE_RP, 4) + bytes(4)
ABORT_BY_USER = PDU_HEADER.pack(PduType.ABORT, 4) + bytes(4)
ABORT_BY_PROVIDER = PDU_HEADER.pack(PduType.ABORT, 4) + b"\0\0\2\0"


class ConnectionLost(Retryable):
    """The peer closed, reset or aborted the association, or was silent for too long."""


class NothingSaid(ConnectionLost):
    """The peer closed the connection before its first byte: a health check or a load balancer."""


class ProtocolError(CovarianceError):
    """The peer sent what is no DICOM, or breaks what was negotiated: the association is to be aborted."""


class Wire:
    """One connection that speaks PDUs.

    `timeout` is in seconds: a PDU that is not complete that long after the one before it is a lost
    connection, so that a peer which sends a byte now and then cannot hold a thread for ever.
    `lifetime`, in seconds too, ends a connection in the same way however busy it is.
    `maximum_pdu` is what we offered: a longer P-DATA PDU is a protocol error, before any of it is kept.
    """

    def __init__(
        self, connection: socket.socket, *, timeout: float, maximum_pdu: int, lifetime: float = math.inf
    ) -> None:
        self.connection = connection
        self.timeout = timeout
        self.maximum_pdu = maximum_pdu
        # Debian's peers write header and body apart; with Nagle on, each response stalls 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(min(timeout, lifetime))
        self._end_of_life = time.monotonic() + lifetime
        self._deadline = 0.0
        self._heard = False
        # Small, until somebody is known: thousands of bytes for a connection that says nothing, no million.
        self._buffer = memoryview(bytearray(_SMALL_BUFFER_BYTES))
        self._start = self._end = 0

    def expect_data_sets(self) -> None:
        """Read in large pieces from now on."""
        rest = self._buffer[self._start : self._end]
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def read_header(self) -> tuple[PduType, int]:
        """Read the header of the next PDU: its type, and how many bytes of it follow."""
        self._deadline = min(time.monotonic() + self.timeout, self._end_of_life)
        kind, length = PDU_HEADER.unpack(self.take(PDU_HEADER.size))
        if not PduType.ASSOCIATE_RQ <= kind <= PduType.ABORT:
            raise ProtocolError(f"PDU type {kind} does not exist")
        limit = {PduType.P_DATA: self.maximum_pdu, PduType.ASSOCIATE_RQ: MAXIMUM_ASSOCIATE_BYTES}
        limit[PduType.ASSOCIATE_AC] = MAXIMUM_ASSOCIATE_BYTES
        if length > limit.get(kind, 4):
            raise ProtocolError(f"PDU of type {kind} announces {length} bytes, more than was offered")
        return PduType(kind), length

    def pdvs(self, length: int) -> Iterator[tuple[int, Control, int]]:
        """Walk the PDVs of a P-DATA PDU of `length` bytes: context id, control, and size.

        The `size` bytes of each must be read before the next one is asked for.
        """
        while length:
            if length < PDV_HEADER.size:
                raise ProtocolError("a P-DATA PDU ends within a PDV")
            item, context_id, control = PDV_HEADER.unpack(self.take(PDV_HEADER.size))
            if not 2 <= item <= length - 4:
                raise ProtocolError("a PDV is longer than its PDU")
            # Only the two lowest bits are to be looked at (PS3.8 E.2).
            yield context_id, Control(control & 3), item - 2
            length -= item + 4

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes."""
        if self._end - self._start >= count:
            piece = bytes(self._buffer[self._start : self._start + count])
            self._start += count
            return piece
        pieces = bytearray()
        while len(pieces) < count:
            pieces += self.some(count - len(pieces))
        return bytes(pieces)

    def some(self, limit: int) -> memoryview:
        """Read between 1 and `limit` bytes; the view is valid until the next read."""
        if self._start == self._end:
            self._fill()
        stop = min(self._end, self._start + limit)
        view = self._buffer[self._start : stop]
        self._start = stop
        return view

    def _fill(self) -> None:
        try:
            count = self.connection.recv_into(self._buffer)
        except OSError as error:
            raise ConnectionLost(tls.in_words(error)) from error
        if count == 0:
            raise (ConnectionLost if self._heard else NothingSaid)("the peer closed the connection")
        self._heard = True
        if (now := time.monotonic()) > self._deadline:
            over = now > self._end_of_life
            raise ConnectionLost(f"the {'association' if over else 'PDU'} was not complete in time")
        self._start, self._end = 0, count

    def send(self, *pieces: bytes | memoryview) -> None:
        """Write all the pieces in one go."""
        try:
            self.connection.sendall(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except OSError as error:
            raise ConnectionLost(tls.in_words(error)) from error

    def await_close(self) -> None:
        """Wait a little for the peer to close first: a close of ours could overtake our last PDU."""
        self.connection.settimeout(ARTIM_SECONDS)
        with contextlib.suppress(OSError):
            self.connection.recv_into(self._buffer)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def p_data(context_id: int, control: Control, content: bytes, maximum: int) -> bytes:
    """Frame one command or data set as P-DATA PDUs of at most `maximum` bytes (PS3.8 9.3.5).

    `control` is `Control.COMMAND` or `Control(0)`; the last fragment is marked as such. A maximum of 0 is
    that of a peer without one (PS3.8 D.1). Fragments are of even length: DCMTK takes no others.
    """
    room = max((maximum or BUFFER_BYTES) - PDV_HEADER.size, 2) & ~1
    pdus = bytearray()
    for start in range(0, max(len(content), 1), room):
        fragment = content[start : start + room]
        last = Control.LAST if start + room >= len(content) else Control(0)
        pdus += PDU_HEADER.pack(PduType.P_DATA, PDV_HEADER.size + len(fragment))
        pdus += PDV_HEADER.pack(len(fragment) + 2, context_id, control | last)
        pdus += fragment
    return bytes(pdus)
