"""Sockets that are listened on, and how many connections there may be; nothing of DICOM."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from dicom_node.doorman import Doorman
from dicom_node.logs import get_logger
from dicom_node.metrics import REFUSED_CONNECTIONS
from dicom_node.refusals import Refused

log = get_logger("listener")

_PAUSE_SECONDS = 0.1
_SILENCE_SECONDS = 1.0

Serve = Callable[[socket.socket, str], None]
"""Serves one connection from an address, in a thread of its own."""


class Connections:
    """All connections that are open, over one listener or several: so many in all and from an address."""

    def __init__(self, *, maximum: int, per_address: int, doorman: Doorman) -> None:
        self._maximum = maximum
        self._per_address = per_address
        self._doorman = doorman
        self._open: dict[socket.socket, socket.socket] = {}
        self._addresses: dict[socket.socket, str] = {}
        self._from: Counter[str] = Counter()
        self._closing = False
        self._refused = 0
        self._told_at = float("-inf")
        self._changing = threading.Lock()

    def admit(self, request: socket.socket, address: str) -> bool:
        """Count one more connection in; False where there is no room for it."""
        with self._changing:
            if self._closing:
                return False
            if len(self._open) >= self._maximum:
                REFUSED_CONNECTIONS.labels("maximum").inc()
                self._doorman.refused(Refused.CONNECTIONS, address)
                self._tell(address, "node.maximum_connections are open")
                return False
            if self._from[address] >= self._per_address:
                REFUSED_CONNECTIONS.labels("maximum_per_address").inc()
                self._doorman.refused(Refused.CONNECTIONS_FROM_THERE, address)
                self._tell(address, "node.maximum_connections_per_address are open from there")
                return False
            self._open[request] = request
            self._addresses[request] = address
            self._from[address] += 1
            return True

    def _tell(self, address: str, why: str) -> None:
        # A flood of connections must not become a flood of lines.
        self._refused += 1
        now = time.monotonic()
        if now - self._told_at >= _SILENCE_SECONDS:
            log.warning("connections_refused", count=self._refused, address=address, why=why)
            self._refused, self._told_at = 0, now

    def secured(self, request: socket.socket, connection: socket.socket) -> None:
        """An admitted connection goes on as another object: TLS has taken its descriptor over."""
        with self._changing:
            self._open[request] = connection
            if self._closing:
                _hang_up(connection)

    def leave(self, request: socket.socket) -> None:
        """Count a connection out, if it was ever in."""
        with self._changing:
            if self._open.pop(request, None) is None:
                return
            address = self._addresses.pop(request)
            self._from[address] -= 1
            if not self._from[address]:
                del self._from[address]

    def hang_up(self) -> None:
        """Admit nobody and let no connection receive any more; answers that are due can still be sent."""
        with self._changing:
            self._closing = True
            for connection in self._open.values():
                _hang_up(connection)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # Not `SSLSocket.shutdown`: it drops the encryption, and an answer would go out in the clear.
        socket.socket.shutdown(connection, socket.SHUT_RD)


class Listener(socketserver.ThreadingTCPServer):
    """Accepts connections and gives each a thread; nothing that a peer does runs in the accept loop."""

    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = False  # server_close waits for them: an object is stored or it is not

    def __init__(self, host: str, port: int, connections: Connections, serve: Serve) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections = connections
        self._serve = serve
        super().__init__((host, port), socketserver.BaseRequestHandler)

    def start(self) -> int:
        """Accept in a thread; return the port."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name="listener").start()
        port: int = self.server_address[1]
        return port

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept one connection."""
        try:
            return super().get_request()
        except OSError as error:
            # Out of descriptors, mostly: the connection still waits, and without a pause we would spin.
            log.error("connection_not_accepted", why=error.strerror)
            time.sleep(_PAUSE_SECONDS)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        return self._connections.admit(request, client_address[0])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread."""
        self._serve(request, client_address[0])

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, served or refused."""
        self._connections.leave(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Log what is a fault of ours; its text may quote a data set, its type cannot."""
        log.error("connection_failed", error=type(sys.exception()).__name__)
