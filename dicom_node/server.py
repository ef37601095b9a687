"""Storage SCP, C-ECHO and receiver of storage-commitment reports, on a plain port and on one with TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from pynetdicom.presentation import PresentationContext

from dicom_node import metrics, tls, uids
from dicom_node.association import Acceptor, Reception, Refusal, Seats
from dicom_node.callers import AllowList, Origin
from dicom_node.commitment import CommitmentReport, ReportReception
from dicom_node.dimse import Command, Field, Operation
from dicom_node.doorman import Doorman
from dicom_node.listener import Connections, Listener, Serve
from dicom_node.logs import get_logger
from dicom_node.negotiation import Context, Policy, Terms, supported
from dicom_node.receive import OnFiled, StoreReception
from dicom_node.routing import Router
from dicom_node.settings import NodeSettings
from dicom_node.spool import Spool
from dicom_node.status import Status
from dicom_node.wire import Wire

log = get_logger("server")


@dataclass(frozen=True, kw_only=True)
class _Access:
    """What decides who gets in; replaced as a whole. `tls` is None where only the plain port is open."""

    policy: Policy
    tls: ssl.SSLContext | None


class StorageServer:
    """Receives objects and reports from the network; each connection has one thread.

    `on_filed` hears of every object that is new to the spool, after it is durable and before its sender
    is answered, `on_reported` of every report of a commitment; neither may block.
    Raises `ConfigurationError` where TLS cannot work with its files.
    """

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        on_filed: OnFiled,
        on_reported: Callable[[], None] = lambda: None,
    ) -> None:
        node = settings.node
        self._settings = node
        self._tls = settings.tls
        self._spool = spool
        self._on_filed = on_filed
        self._on_reported = on_reported
        self._router = Router(settings.lanes.rules)
        self._contexts = contexts_of(node.sop_classes, node.set_aside_sop_classes)
        self._access = self._read_access(settings)
        metrics.MAXIMUM_ASSOCIATIONS.set(node.maximum_associations)
        self._seats = Seats(node.maximum_associations)
        self._doorman = Doorman(spool.refusals.keep)
        self._connections = Connections(
            maximum=node.maximum_connections,
            per_address=node.maximum_connections_per_address,
            doorman=self._doorman,
        )
        self._listeners: list[Listener] = []
        self.tls_port: int | None = None
        """The port with TLS, once it is listened on."""

    def start(self) -> int:
        """Listen; return the plain port, or the one with TLS where that is the only one.

        Raises `OSError` where an address cannot be had.
        """
        node = self._settings
        self._doorman.start()
        port = self._listen(node.port, self._serve_plain) if node.plain else None
        if self._tls.enabled:
            self.tls_port = self._listen(self._tls.port, self._serve_tls)
        log.info("listening", host=node.host, port=port, tls_port=self.tls_port, ae_title=node.ae_title)
        return port or self.tls_port or 0

    def _listen(self, port: int, serve: Serve) -> int:
        try:
            listener = Listener(self._settings.host, port, self._connections, serve)
        except OSError:
            self.stop()
            raise
        self._listeners.append(listener)
        return listener.start()

    def reload(self, settings: NodeSettings) -> None:
        """Take up the callers and the files of TLS, for connections that come from now on.

        Raises `ConfigurationError` where they cannot be used; the ones before stay in force.
        """
        self._access = self._read_access(settings)

    def _read_access(self, settings: NodeSettings) -> _Access:
        node = self._settings
        policy = Policy(
            ae_title=node.ae_title.strip(),
            callers=AllowList(settings.node.allowed_callers, settings.node.callers),
            contexts=self._contexts,
            maximum_pdu=node.maximum_pdu_bytes,
        )
        # Whether there is a port with TLS was decided at the start.
        access = _Access(policy=policy, tls=tls.server_context(settings.tls) if self._tls.enabled else None)
        metrics.SENDERS.know(settings.node.caller_titles)
        return access

    def stop(self) -> None:
        """Stop listening, let what is on its way to the disk end, and close every association."""
        for listener in self._listeners:
            listener.shutdown()
        self._connections.hang_up()
        while self._listeners:
            self._listeners.pop().server_close()
        self._doorman.stop()

    def _serve_plain(self, request: socket.socket, address: str) -> None:
        self._serve(request, Origin(address=address), self._access.policy)

    def _serve_tls(self, request: socket.socket, address: str) -> None:
        access = self._access
        if access.tls is None:
            return
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(
                    access.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                )
                self._connections.secured(request, connection)
                connection.settimeout(self._tls.handshake_timeout)  # for all of the handshake
                connection.do_handshake()
            except OSError as error:
                metrics.REFUSED_CONNECTIONS.labels("tls").inc()
                log.warning("tls_refused", address=address, why=tls.in_words(error))
                if reason := tls.refused(error):
                    self._doorman.refused(reason, address)
                return
            origin = Origin(address=address, certificate=tls.fingerprint(connection))
            self._serve(connection, origin, access.policy)

    def _serve(self, connection: socket.socket, origin: Origin, policy: Policy) -> None:
        node = self._settings
        channel = Wire(
            connection,
            timeout=node.network_timeout,
            maximum_pdu=node.maximum_pdu_bytes,
            lifetime=node.association_timeout,
        )

        def begin(command: Command, context: Context, terms: Terms) -> Reception:
            return self._begin(command, context, terms, origin.address)

        Acceptor(
            channel, policy=policy, seats=self._seats, begin=begin, origin=origin, doorman=self._doorman
        ).serve()

    def _begin(self, command: Command, context: Context, terms: Terms, address: str) -> Reception:
        operation = command.number(Field.COMMAND)
        stores = context.abstract_syntax not in (uids.VERIFICATION, uids.STORAGE_COMMITMENT)
        if operation == Operation.C_STORE_RQ and stores:
            return StoreReception(
                self._spool,
                command=command,
                context=context,
                arrival=(terms.calling_ae, terms.called_ae, address),
                maximum_bytes=self._settings.maximum_object_bytes,
                router=self._router,
                on_filed=self._on_filed,
            )
        if operation == Operation.N_EVENT_REPORT_RQ and context.abstract_syntax == uids.STORAGE_COMMITMENT:
            return ReportReception(context.transfer_syntax, self._keep_report)
        return Refusal(Status.UNRECOGNISED_OPERATION)

    def _keep_report(self, report: CommitmentReport) -> None:
        self._spool.reports.keep(report)
        self._on_reported()


def contexts_of(images: tuple[str, ...], others: tuple[str, ...]) -> tuple[PresentationContext, ...]:
    """What the listener takes: the classes of images, and others that are kept and never scored."""
    uncompressed = uids.TRANSFER_SYNTAXES[:3]
    contexts = [supported(uids.VERIFICATION, uncompressed), supported(uids.STORAGE_COMMITMENT, uncompressed)]
    for sop_class in (*images, *others):
        # A report has no pixels: compressed syntaxes would only be refused later.
        syntaxes = uncompressed if sop_class == uids.COMPREHENSIVE_3D_SR else uids.TRANSFER_SYNTAXES
        contexts.append(supported(sop_class, syntaxes))
    return tuple(contexts)
