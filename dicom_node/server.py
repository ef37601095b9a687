"""The listener: Storage SCP, C-ECHO and receiver of storage-commitment reports on one port."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from typing import Any

from pynetdicom.presentation import PresentationContext

from dicom_node import uids
from dicom_node.association import Acceptor, Reception, Refusal, Seats
from dicom_node.commitment import ReportReception
from dicom_node.dimse import Command, Field, Operation
from dicom_node.logs import get_logger
from dicom_node.negotiation import Context, Policy, Terms, supported
from dicom_node.receive import OnFiled, StoreReception
from dicom_node.settings import NodeSettings
from dicom_node.spool import Spool
from dicom_node.status import Status
from dicom_node.wire import Wire

log = get_logger("server")

_UNNEGOTIATED = 64
"""Connections above `maximum_associations` that may wait for an answer (a rejection, mostly)."""


class StorageServer:
    """Receives objects and reports from the network; each connection has one thread.

    `on_filed` hears of every object that is new to the spool, after it is durable and before its sender
    is answered; it must not block.
    """

    def __init__(self, settings: NodeSettings, spool: Spool, on_filed: OnFiled) -> None:
        node = settings.node
        self._settings = node
        self._spool = spool
        self._on_filed = on_filed
        self._policy = Policy(
            ae_title=node.ae_title.strip(),
            callers=frozenset(caller.strip() for caller in node.allowed_callers),
            contexts=_contexts(node.sop_classes, node.set_aside_sop_classes),
            maximum_pdu=node.maximum_pdu_bytes,
        )
        self._seats = Seats(node.maximum_associations)
        self._listener: _Listener | None = None

    def start(self) -> int:
        """Listen; return the port. Raises `OSError` where the address cannot be had."""
        node = self._settings
        limit = node.maximum_associations + _UNNEGOTIATED
        self._listener = _Listener(node.host, node.port, limit, self._serve)
        threading.Thread(target=self._listener.serve_forever, args=(0.1,), name="listener").start()
        port: int = self._listener.server_address[1]
        log.info("listening", host=node.host, port=port, ae_title=node.ae_title)
        return port

    def stop(self) -> None:
        """Stop listening, let what is on its way to the disk end, and close every association."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.hang_up()
            self._listener.server_close()
            self._listener = None

    def _serve(self, connection: socket.socket, address: str) -> None:
        node = self._settings
        channel = Wire(connection, timeout=node.network_timeout, maximum_pdu=node.maximum_pdu_bytes)

        def begin(command: Command, context: Context, terms: Terms) -> Reception:
            return self._begin(command, context, terms, address)

        Acceptor(channel, policy=self._policy, seats=self._seats, begin=begin, address=address).serve()

    def _begin(self, command: Command, context: Context, terms: Terms, address: str) -> Reception:
        operation = command.number(Field.COMMAND)
        if operation == Operation.C_STORE_RQ:
            return StoreReception(
                self._spool,
                command=command,
                context=context,
                arrival=(terms.calling_ae, terms.called_ae, address),
                maximum_bytes=self._settings.maximum_object_bytes,
                on_filed=self._on_filed,
            )
        if operation == Operation.N_EVENT_REPORT_RQ and context.abstract_syntax == uids.STORAGE_COMMITMENT:
            return ReportReception(context.transfer_syntax, self._spool.reports.keep)
        return Refusal(Status.UNRECOGNISED_OPERATION)


def _contexts(images: tuple[str, ...], others: tuple[str, ...]) -> tuple[PresentationContext, ...]:
    uncompressed = uids.TRANSFER_SYNTAXES[:3]
    contexts = [supported(uids.VERIFICATION, uncompressed), supported(uids.STORAGE_COMMITMENT, uncompressed)]
    for sop_class in (*images, *others):
        # A report has no pixels: compressed syntaxes would only be refused later.
        syntaxes = uncompressed if sop_class == uids.COMPREHENSIVE_3D_SR else uids.TRANSFER_SYNTAXES
        contexts.append(supported(sop_class, syntaxes))
    return tuple(contexts)


class _Listener(socketserver.ThreadingTCPServer):
    """Accepts connections and gives each a thread; nothing that a peer does runs in the accept loop."""

    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = False  # server_close waits for them: an object is stored or it is not

    def __init__(
        self, host: str, port: int, maximum: int, serve: Callable[[socket.socket, str], None]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._serve = serve
        self._maximum = maximum
        self._open: set[socket.socket] = set()
        self._changing = threading.Lock()
        super().__init__((host, port), socketserver.BaseRequestHandler)

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002
        """Whether there is room for one more connection."""
        return len(self._open) < self._maximum

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread."""
        with self._changing:
            self._open.add(request)
        try:
            self._serve(request, client_address[0])
        finally:
            with self._changing:
                self._open.discard(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Log what is a fault of ours; its text may quote a data set, its type cannot."""
        log.error("connection_failed", error=type(sys.exception()).__name__)

    def hang_up(self) -> None:
        """Let no connection receive any more; answers that are due can still be sent."""
        with self._changing:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
