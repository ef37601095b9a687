"""An association as its acceptor, from the first PDU to the last, in one thread and without polling.

P-DATA of a C-STORE goes from the socket's buffer to the spool in large pieces: a data set is never
held whole. Everything else on the wire is small and bounded.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from dicom_node import metrics, wire
from dicom_node.callers import Origin
from dicom_node.dimse import MAXIMUM_COMMAND_BYTES, RESPONSE, Command, Field, Operation
from dicom_node.doorman import Doorman
from dicom_node.logs import get_logger
from dicom_node.negotiation import (
    CALLED_AE_UNKNOWN,
    CALLING_AE_UNKNOWN,
    LIMIT_EXCEEDED,
    Context,
    Policy,
    Rejection,
    Request,
    Terms,
)
from dicom_node.refusals import Refused
from dicom_node.status import Status
from dicom_node.wire import ConnectionLost, Control, NothingSaid, PduType, ProtocolError, Wire, p_data

log = get_logger("association")


class Reception(Protocol):
    """A request while its data set arrives."""

    def write(self, fragment: memoryview) -> None:
        """Take a part of the data set; the view is valid during the call only."""

    def finish(self) -> Status:
        """The data set is complete: the status to answer."""

    def discard(self) -> None:
        """The rest will never come."""


Begin = Callable[[Command, Context, Terms], Reception]
"""Starts the reception of a request that is followed by a data set."""


class Seats:
    """So many associations at the same time, and no more."""

    def __init__(self, count: int) -> None:
        self._free = threading.BoundedSemaphore(count)

    @contextlib.contextmanager
    def take(self) -> Iterator[bool]:
        """Take a seat for the length of the context; False where none is free."""
        seated = self._free.acquire(blocking=False)
        try:
            yield seated
        finally:
            if seated:
                self._free.release()


class Acceptor:
    """One connection of a peer that requests an association."""

    def __init__(
        self,
        connection: Wire,
        *,
        policy: Policy,
        seats: Seats,
        begin: Begin,
        origin: Origin,
        doorman: Doorman,
    ) -> None:
        self._wire = connection
        self._policy = policy
        self._seats = seats
        self._begin_reception = begin
        self._origin = origin
        self._doorman = doorman
        self._command = bytearray()
        self._command_context = 0
        self._terms: Terms
        self._request: Command | None = None
        self._reception: Reception | None = None

    def serve(self) -> None:
        """Serve until the peer releases, aborts, is lost or breaks the protocol."""
        try:
            self._negotiate_and_serve()
        except ProtocolError as error:
            metrics.ABORTED.labels("protocol").inc()
            log.warning("association_aborted", address=self._origin.address, why=str(error))
            self._abort()
        except NothingSaid:
            log.debug("port_checked", address=self._origin.address)
        except ConnectionLost as error:
            metrics.ABORTED.labels("lost").inc()
            log.warning("association_lost", address=self._origin.address, why=str(error))
            self._abort()
        finally:
            if self._reception is not None:
                self._reception.discard()
            self._wire.close()

    def _abort(self) -> None:
        with contextlib.suppress(ConnectionLost):
            self._wire.send(wire.ABORT_BY_PROVIDER)

    def _negotiate_and_serve(self) -> None:
        kind, length = self._wire.read_header()
        if kind is not PduType.ASSOCIATE_RQ:
            raise ProtocolError("the first PDU is no A-ASSOCIATE-RQ")
        request = Request(self._wire.take(length))
        if rejection := self._policy.judge(request, self._origin):
            self._reject(request, rejection)
            return
        with self._seats.take() as seated:
            if not seated:
                self._reject(request, LIMIT_EXCEEDED)
                return
            answer, self._terms = request.accept(self._policy)
            self._wire.send(answer)
            self._wire.expect_data_sets()
            with metrics.ASSOCIATIONS.track_inprogress():
                self._serve_established()

    def _reject(self, request: Request, rejection: Rejection) -> None:
        metrics.rejected(rejection)
        # Titles are printable: a request with control characters in one cannot be read (`Request`).
        log.warning(
            "association_rejected",
            address=self._origin.address,
            certificate=self._origin.certificate,
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            rejection=rejection,
        )
        if reason := self._refused(request, rejection):
            self._doorman.refused(
                reason, self._origin.address, calling_ae=request.calling_ae, called_ae=request.called_ae
            )
        self._wire.send(request.reject(rejection))
        self._wire.await_close()

    def _refused(self, request: Request, rejection: Rejection) -> Refused | None:
        # Who speaks another protocol was not understood: that is no matter of who it is.
        if rejection == LIMIT_EXCEEDED:
            return Refused.ASSOCIATIONS
        if rejection == CALLED_AE_UNKNOWN:
            return Refused.CALLED_TITLE
        if rejection == CALLING_AE_UNKNOWN:
            return self._policy.callers.objection(request.calling_ae, self._origin)
        return None

    def _serve_established(self) -> None:
        while True:
            kind, length = self._wire.read_header()
            if kind is PduType.P_DATA:
                self._read_p_data(length)
            elif kind is PduType.RELEASE_RQ:
                self._wire.take(length)
                self._wire.send(wire.RELEASE_RP)
                self._wire.await_close()
                return
            elif kind is PduType.ABORT:
                return
            else:
                raise ProtocolError(f"a PDU of type {kind.name} within an association")

    def _read_p_data(self, length: int) -> None:
        for context_id, control, size in self._wire.pdvs(length):
            context = self._terms.contexts.get(context_id)
            if context is None:
                raise ProtocolError("a PDV names a presentation context that was not accepted")
            last = bool(control & Control.LAST)
            if control & Control.COMMAND:
                self._read_command(size, context, last=last)
            else:
                self._read_data_set(size, context, last=last)

    def _read_command(self, length: int, context: Context, *, last: bool) -> None:
        if self._reception is not None:
            raise ProtocolError("a command within a data set")
        if len(self._command) + length > MAXIMUM_COMMAND_BYTES:
            raise ProtocolError("a command set that is too long")
        self._command += self._wire.take(length)
        if not last:
            return
        request = Command.decode(bytes(self._command))
        self._command.clear()
        self._request, self._command_context = request, context.context_id
        if request.has_data_set:
            self._reception = self._begin_reception(request, context, self._terms)
        else:
            self._answer_without_data_set(request)

    def _read_data_set(self, length: int, context: Context, *, last: bool) -> None:
        reception = self._reception
        if reception is None or context.context_id != self._command_context:
            raise ProtocolError("a data set that no command announced")
        while length:
            fragment = self._wire.some(length)
            reception.write(fragment)
            length -= len(fragment)
        if last:
            status = reception.finish()
            self._reception = None
            self._respond(status)

    def _answer_without_data_set(self, request: Command) -> None:
        operation = request.number(Field.COMMAND) or 0
        if operation == Operation.C_ECHO_RQ:
            self._respond(Status.SUCCESS)
        elif operation == Operation.C_STORE_RQ:
            self._respond(Status.CANNOT_UNDERSTAND)
        elif operation != Operation.C_CANCEL_RQ and not operation & RESPONSE:
            self._respond(Status.UNRECOGNISED_OPERATION)

    def _respond(self, status: Status) -> None:
        if self._request is not None:
            response = self._request.response(status).encode()
            self._wire.send(
                p_data(self._command_context, Control.COMMAND, response, self._terms.peer_maximum)
            )


class Refusal:
    """Lets a data set pass by, and answers with a status."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def write(self, fragment: memoryview) -> None:
        """Take nothing."""

    def finish(self) -> Status:
        """The status decided beforehand."""
        return self._status

    def discard(self) -> None:
        """Nothing was kept."""
