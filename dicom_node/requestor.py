"""An association as its requestor: one connection, one request at a time, no threads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dicom_node import wire
from dicom_node.dimse import RESPONSE, Command, Field
from dicom_node.errors import ConfigurationError, Retryable
from dicom_node.negotiation import (
    Context,
    Rejection,
    Terms,
    read_acceptance,
    read_rejection,
    rejection_of,
    request_pdu,
)
from dicom_node.status import Status
from dicom_node.tls import ClientTls, in_words
from dicom_node.wire import ConnectionLost, Control, PduType, ProtocolError, Wire, p_data

MAXIMUM_PDU_BYTES = 131_072
MAXIMUM_PROPOSALS = 128  # odd numbers up to 255, PS3.8 9.3.2.2
_MAXIMUM_MESSAGE_BYTES = 4_194_304

Proposals = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A remote application entity, and who we say we are. `timeout` in seconds without an answer.

    `tls` is how it is reached over TLS; None reaches it in the clear.
    """

    ae_title: str
    host: str
    port: int
    calling_ae: str
    timeout: float = 30.0
    tls: ClientTls | None = None


class PeerUnavailable(Retryable):
    """No association with the peer: the sentence says why."""


class PeerRejects(PeerUnavailable):
    """The peer answered A-ASSOCIATE-RJ; `rejection` is None where that cannot be read."""

    def __init__(self, sentence: str, rejection: Rejection | None) -> None:
        super().__init__(sentence)
        self.rejection = rejection


@dataclass(frozen=True)
class Message:
    """A complete message of the peer."""

    context: Context
    command: Command
    data_set: bytes


class Requestor:
    """One association. A context manager: released at the end, aborted after an error.

    Raises `PeerUnavailable` where the peer cannot be reached or does not want us.
    """

    def __init__(self, peer: Peer, proposals: Proposals) -> None:
        self._peer = peer
        self._message_id = 0
        self.is_open = False
        self._fragments = self._read_fragments()
        self._wire = _connect(peer)
        try:
            self._negotiate(proposals)
        except (ConnectionLost, ProtocolError) as error:
            self._wire.close()
            raise PeerUnavailable(f"{_name(peer)} does not answer an association request: {error}") from error
        except PeerUnavailable:
            self._wire.close()
            raise
        self.is_open = True

    def _negotiate(self, proposals: Proposals) -> None:
        peer = self._peer
        names = {"calling_ae": peer.calling_ae, "called_ae": peer.ae_title}
        self._wire.send(request_pdu(proposals=proposals, maximum_pdu=MAXIMUM_PDU_BYTES, **names))
        kind, length = self._wire.read_header()
        body = self._wire.take(length)
        if kind is PduType.ASSOCIATE_RJ:
            sentence = f"{_name(peer)} rejects the association: {read_rejection(body)}"
            raise PeerRejects(sentence, rejection_of(body))
        if kind is not PduType.ASSOCIATE_AC:
            raise PeerUnavailable(f"{_name(peer)} answers an association request with {kind.name}")
        self._terms = read_acceptance(body, proposals=proposals, **names)

    @property
    def terms(self) -> Terms:
        """What both sides have agreed on."""
        return self._terms

    @property
    def peer_maximum(self) -> int:
        """Longest P-DATA PDU that the peer takes, in bytes; what it leaves open is bounded by us.

        Even, and so are the fragments in it: DCMTK takes no others.
        """
        offered = self._terms.peer_maximum or wire.BUFFER_BYTES
        return min(max(offered, 1024), wire.BUFFER_BYTES) & ~1

    def context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> Context | None:
        """The accepted context of a class, in a certain syntax if one is named; None where there is none."""
        for context in self._terms.contexts.values():
            if context.abstract_syntax == abstract_syntax and transfer_syntax in (
                None,
                context.transfer_syntax,
            ):
                return context
        return None

    def ask(self, context: Context, request: Command, data_set: bytes | None = None) -> int | None:
        """Send a request and wait for its response: the status, or None where there is no answer."""
        try:
            response = next(self.exchange(context, request, data_set))
        except (ConnectionLost, ProtocolError):
            self.abort()
            return None
        return response.command.number(Field.STATUS)

    def exchange(
        self, context: Context, request: Command, data_set: bytes | None = None
    ) -> Iterator[Message]:
        """Send a request and yield its responses, as many as there come.

        Raises `ConnectionLost`, `ProtocolError`.
        """
        message_id = self.send_command(context, request, has_data_set=data_set is not None)
        if data_set is not None:
            self.send_pdus(p_data(context.context_id, Control(0), data_set, self.peer_maximum))
        while True:
            yield self.response(message_id)

    def send_command(self, context: Context, request: Command, *, has_data_set: bool) -> int:
        """Send the command set of a request; return its message id."""
        if not self.is_open:
            raise ConnectionLost("the association has ended")
        self._message_id = self._message_id % 0xFFFF + 1
        numbered = request.numbered(self._message_id, has_data_set=has_data_set).encode()
        self.send_pdus(p_data(context.context_id, Control.COMMAND, numbered, self.peer_maximum))
        return self._message_id

    def send_pdus(self, pdus: bytes | memoryview) -> None:
        """Send PDUs that are framed already."""
        self._wire.send(pdus)

    def response(self, message_id: int) -> Message:
        """Read the next response to a request. Raises `ConnectionLost`, `ProtocolError`."""
        while True:
            message = self._read_message()
            if (message.command.number(Field.COMMAND) or 0) & RESPONSE:
                break
            # Reports belong on an association to our listener, where they are kept durably.
            refusal = message.command.response(Status.UNRECOGNISED_OPERATION).encode()
            self._wire.send(p_data(message.context.context_id, Control.COMMAND, refusal, self.peer_maximum))
        if message.command.number(Field.RESPONDED_TO) != message_id:
            raise ProtocolError("a response to what was not asked")
        return message

    def _read_message(self) -> Message:
        context, encoded = self._collect(Control.COMMAND)
        command = Command.decode(encoded)
        data_set = self._collect(Control(0))[1] if command.has_data_set else b""
        return Message(context, command, data_set)

    def _collect(self, kind: Control) -> tuple[Context, bytes]:
        content = bytearray()
        for context, control, fragment in self._fragments:
            if control & Control.COMMAND != kind:
                raise ProtocolError("command and data set are not in order")
            content += fragment
            if len(content) > _MAXIMUM_MESSAGE_BYTES:
                raise ProtocolError("a message that is too long")
            if control & Control.LAST:
                return context, bytes(content)
        raise ConnectionLost("the association has ended")

    def _read_fragments(self) -> Iterator[tuple[Context, Control, bytes]]:
        while True:
            kind, length = self._wire.read_header()
            if kind is PduType.ABORT:
                raise ConnectionLost("the peer aborted the association")
            if kind is not PduType.P_DATA:
                raise ProtocolError(f"a PDU of type {kind.name} within an association")
            for context_id, control, size in self._wire.pdvs(length):
                context = self._terms.contexts.get(context_id)
                if context is None:
                    raise ProtocolError("a PDV names a presentation context that was not accepted")
                yield context, control, self._wire.take(size)

    def release(self) -> None:
        """End the association in order, or abort it where the peer does not take part."""
        if not self.is_open:
            return
        try:
            self._wire.send(wire.RELEASE_RQ)
            while True:
                kind, length = self._wire.read_header()
                self._wire.take(length)
                if kind in (PduType.RELEASE_RP, PduType.ABORT):
                    break
        except (ConnectionLost, ProtocolError):
            self.abort()
        self.is_open = False
        self._wire.close()

    def abort(self) -> None:
        """End the association at once."""
        if self.is_open:
            self.is_open = False
            with contextlib.suppress(ConnectionLost):
                self._wire.send(wire.ABORT_BY_USER)
            self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()


def _connect(peer: Peer) -> Wire:
    try:
        connection = socket.create_connection((peer.host, peer.port), timeout=peer.timeout)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise PeerUnavailable(f"{_name(peer)} cannot be reached: {why}") from error
    if peer.tls is not None:
        try:
            connection = peer.tls.secure(connection, peer.host)
        except (OSError, ConfigurationError) as error:
            connection.close()
            why = in_words(error) if isinstance(error, OSError) else str(error)
            raise PeerUnavailable(f"{_name(peer)} cannot be reached over TLS: {why}") from error
    return Wire(connection, timeout=peer.timeout, maximum_pdu=MAXIMUM_PDU_BYTES)


def _name(peer: Peer) -> str:
    return f"{peer.ae_title} at {peer.host}:{peer.port}"
