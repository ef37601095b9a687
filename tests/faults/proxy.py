"""A TCP proxy that does to a connection what networks do to it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from dicom_node.dimse import Command, Field, Operation
from dicom_node.wire import PDU_HEADER, PDV_HEADER, Control, PduType

_RESPONSE = 0x8000
_LINGER_NOT = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close is a reset
_PIECE = 65_536


class Reset(Exception):
    """Both ends of the connection are to be told that it never was."""


Fault = Callable[[socket.socket, bool], Iterator[bytes]]
"""`fault(source, from_client)` yields the bytes that are passed on of what `source` sends."""


def nothing(source: socket.socket, from_client: bool) -> Iterator[bytes]:
    """Pass on everything."""
    while piece := source.recv(_PIECE):
        yield piece


def reset_after(count: int) -> Fault:
    """Reset both sides after so many bytes of the client."""

    def fault(source: socket.socket, from_client: bool) -> Iterator[bytes]:
        left = count
        for piece in nothing(source, from_client):
            if not from_client:
                yield piece
            elif len(piece) < left:
                left -= len(piece)
                yield piece
            else:
                yield piece[:left]
                raise Reset

    return fault


def black_hole(source: socket.socket, from_client: bool) -> Iterator[bytes]:
    """Swallow everything and answer nothing."""
    for _ in nothing(source, from_client):
        yield b""


def black_hole_after(count: int) -> Fault:
    """Swallow everything, in both directions, that comes after so many bytes of the client."""
    swallowing = threading.Event()

    def fault(source: socket.socket, from_client: bool) -> Iterator[bytes]:
        passed = 0
        for piece in nothing(source, from_client):
            if from_client and passed + len(piece) > count:
                swallowing.set()
            passed += len(piece)
            yield b"" if swallowing.is_set() else piece

    return fault


def without_response(operation: int) -> Fault:
    """Swallow the response to one operation and pass on all else."""

    def fault(source: socket.socket, from_client: bool) -> Iterator[bytes]:
        if from_client:
            yield from nothing(source, from_client)
            return
        while pdu := _pdu(source):
            if _operation(pdu) != operation | _RESPONSE:
                yield pdu

    return fault


def trickle(source: socket.socket, from_client: bool) -> Iterator[bytes]:
    """Pass on a byte a second of what the client sends."""
    for piece in nothing(source, from_client):
        if not from_client:
            yield piece
            continue
        for byte in piece:
            yield bytes([byte])
            time.sleep(1.0)


def delay(seconds: float) -> Fault:
    """Pass on everything, late."""

    def fault(source: socket.socket, from_client: bool) -> Iterator[bytes]:
        for piece in nothing(source, from_client):
            time.sleep(seconds)
            yield piece

    return fault


class Proxy:
    """Between clients and one server. `fault` is what happens to connections that begin from now on."""

    def __init__(self, target: int, *, port: int = 0, fault: Fault = nothing) -> None:
        self.fault = fault
        self.ended = 0
        """Connections whose client has said its last: a fault has had its time."""
        self._target = ("127.0.0.1", target)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, name="proxy")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with contextlib.suppress(OSError):
                    self._join(client)

    def _join(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._open += [client, server]
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # From the first pump on a fault may have closed both: nothing here may touch them any more.
        for source, sink, from_client in ((client, server, True), (server, client, False)):
            passing = (self.fault, source, sink, from_client)
            threading.Thread(target=self._pass_on, args=passing, daemon=True).start()

    def _pass_on(self, fault: Fault, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        try:
            _pump(fault, source, sink, from_client)
        finally:
            self.ended += from_client

    def heal(self) -> None:
        """The fault is over, and what it still held is gone."""
        self.fault = nothing
        for one in self._open:
            _hang_up(one)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.heal()


def _pump(fault: Fault, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
    try:
        for piece in fault(source, from_client):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except Reset:
        for one in (source, sink):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            _hang_up(one)
    except OSError:
        for one in (source, sink):
            _hang_up(one)


def _hang_up(one: socket.socket) -> None:
    # A close alone does not wake the thread that reads here, and then nobody is told.
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RD)
    one.close()


def _pdu(source: socket.socket) -> bytes:
    header = _exactly(source, PDU_HEADER.size)
    return header + _exactly(source, PDU_HEADER.unpack(header)[1]) if header else b""


def _exactly(source: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count and (piece := source.recv(count - len(content))):
        content += piece
    return content


def _operation(pdu: bytes) -> int | None:
    """The command field of a PDU that holds a command."""
    if pdu[0] != PduType.P_DATA:
        return None
    _, _, control = PDV_HEADER.unpack_from(pdu, PDU_HEADER.size)
    if not control & Control.COMMAND:
        return None
    return Command.decode(pdu[PDU_HEADER.size + PDV_HEADER.size :]).number(Field.COMMAND)


STORE_RESPONSE_LOST = without_response(Operation.C_STORE_RQ)
REPORT_RESPONSE_LOST = without_response(Operation.N_EVENT_REPORT_RQ)
