from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.negotiation import Request, request_pdu
from dicom_node.requestor import PeerUnavailable
from dicom_node.status import Status
from dicom_node.wire import Control, ProtocolError, p_data
from tests.dicom_node.build import CR_EXPLICIT, Listening, encoded, eventually, film, send_raw, store_request

PROPOSALS = [(uids.COMPUTED_RADIOGRAPHY, [uids.EXPLICIT_VR_LITTLE_ENDIAN])]
REQUEST = request_pdu(calling_ae="MODALITY", called_ae="COVARIANCE", proposals=PROPOSALS, maximum_pdu=16_384)


def connect(node: Listening) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.port), timeout=20)


def associated(node: Listening) -> socket.socket:
    """A bare socket over which an association has been accepted."""
    peer = connect(node)
    peer.sendall(REQUEST)
    kind, length = struct.unpack(">BxL", peer.recv(6, socket.MSG_WAITALL))
    assert kind == 2
    peer.recv(length, socket.MSG_WAITALL)
    return peer


def is_hung_up(peer: socket.socket) -> bool:
    """Whether the other side ends the connection, with an A-ABORT before or without."""
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(4096):
            pass
    return True


def test_echoscu_is_answered(node: Listening, program: Callable[[str], str]) -> None:
    """DCMTK's C-ECHO succeeds."""
    command = [program("echoscu"), "-aec", "COVARIANCE", "127.0.0.1", str(node.port)]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


def test_rejects_an_unknown_caller(listen: Callable[..., Listening]) -> None:
    """With a list of callers, whoever is not on it is rejected with 1,1,3."""
    node = listen(allowed_callers=("CT1", "CR2"))
    node.requestor(calling="CR2").release()
    with pytest.raises(PeerUnavailable, match=r"calling AE title not recognised \(1,1,3\)"):
        node.requestor(calling="MODALITY")


def test_rejects_a_wrong_called_title(node: Listening) -> None:
    """Who asks for another AE is rejected with 1,1,7."""
    with pytest.raises(PeerUnavailable, match=r"called AE title not recognised \(1,1,7\)"):
        node.requestor(called="ORTHANC")


def test_the_log_names_who_was_rejected(listen: Callable[..., Listening]) -> None:
    """Both AE titles stand in the log: without them nobody knows which modality to mend."""
    node = listen(allowed_callers=("CT1",))
    with capture_logs() as logs, pytest.raises(PeerUnavailable):
        node.requestor(calling="CR2", called="NODE2")
    (told,) = [line for line in logs if line["event"] == "association_rejected"]
    assert (told["calling_ae"], told["called_ae"]) == ("CR2", "NODE2")


def test_rejects_one_association_too_many(listen: Callable[..., Listening]) -> None:
    """At the limit the next one is rejected with 2,3,2, and taken when a seat is free again."""
    node = listen(maximum_associations=1)
    first = node.requestor()
    with pytest.raises(PeerUnavailable, match=r"local limit exceeded \(2,3,2\)"):
        node.requestor()
    first.release()

    def is_taken() -> bool:
        with contextlib.suppress(PeerUnavailable):
            node.requestor().release()
            return True
        return False

    eventually(is_taken)


def test_accepts_only_what_is_configured(node: Listening) -> None:
    """A class or syntax that is not taken is refused in its context, the others stand."""
    mr, deflated = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1.99"
    sr_in_jpeg = (uids.COMPREHENSIVE_3D_SR, uids.TRANSFER_SYNTAXES[5])
    with node.requestor(
        CR_EXPLICIT, (mr, CR_EXPLICIT[1]), (uids.COMPUTED_RADIOGRAPHY, deflated), sr_in_jpeg
    ) as association:
        accepted = [
            (one.abstract_syntax, one.transfer_syntax) for one in association._terms.contexts.values()
        ]
    assert accepted == [CR_EXPLICIT]


def test_sets_aside_what_a_router_sends_along(node: Listening) -> None:
    """A CT image is accepted, so that a router's whole study does not fail."""
    assert node.store(film(SOPClassUID=uids.CT_IMAGE)) == Status.SUCCESS


@pytest.mark.parametrize("end", ["abort", "reset", "close"])
def test_an_end_in_mid_data_set_leaves_nothing(end: str, node: Listening) -> None:
    """However a peer goes away before the last fragment, no file stays and the node goes on."""
    peer = associated(node)
    command = store_request(film()).numbered(1, has_data_set=True).encode()
    peer.sendall(p_data(1, Control.COMMAND, command, 16_384))
    peer.sendall(struct.pack(">BxLLBB", 4, 8006, 8002, 1, 0) + bytes(8000))
    eventually(lambda: node.parts)
    if end == "abort":
        peer.sendall(struct.pack(">BxL4x", 7, 4))
    if end == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    eventually(lambda: not node.parts)
    assert node.files == []
    assert node.answers_echo()


def test_a_stop_in_mid_data_set_leaves_nothing(node: Listening) -> None:
    """A node that is stopped does not wait for a data set to end."""
    peer = associated(node)
    command = store_request(film()).numbered(1, has_data_set=True).encode()
    peer.sendall(p_data(1, Control.COMMAND, command, 16_384) + struct.pack(">BxLLBB", 4, 8006, 8002, 1, 0))
    eventually(lambda: node.parts)
    node.server.stop()
    assert node.parts == []
    peer.close()


def test_a_silent_peer_is_hung_up(listen: Callable[..., Listening]) -> None:
    """A connection that says nothing is closed when the time-out is over."""
    node = listen(network_timeout=0.3)
    assert is_hung_up(connect(node))


def test_a_trickling_peer_is_hung_up(listen: Callable[..., Listening]) -> None:
    """A byte now and then does not extend the time that a PDU has."""
    node = listen(network_timeout=0.5)
    peer = connect(node)
    gone = threading.Event()
    threading.Thread(target=lambda: (is_hung_up(peer), gone.set()), daemon=True).start()
    with contextlib.suppress(OSError):
        for byte in REQUEST:
            if gone.wait(0.1):
                break
            peer.sendall(bytes([byte]))
    assert gone.is_set()


def test_half_open_connections_take_no_seat(listen: Callable[..., Listening]) -> None:
    """Peers that never finish their request do not keep others out."""
    node = listen(maximum_associations=2)
    peers = [connect(node) for _ in range(20)]
    for peer in peers:
        peer.sendall(REQUEST[:5])
    assert node.answers_echo()
    for peer in peers:
        peer.close()


def test_answers_operations_that_it_does_not_know(node: Listening) -> None:
    """A C-FIND or N-ACTION is answered 0211 and the association goes on."""
    with node.requestor() as association:
        for operation in (Operation.C_FIND_RQ, Operation.N_ACTION_RQ, Operation.N_EVENT_REPORT_RQ):
            command = Command({Field.COMMAND: operation, Field.AFFECTED_SOP_CLASS: uids.COMPUTED_RADIOGRAPHY})
            assert send_raw(association, command, b"abcd") == Status.UNRECOGNISED_OPERATION
        sent = film()
        assert send_raw(association, store_request(sent), encoded(sent)) == Status.SUCCESS


def test_takes_fragments_however_they_are_packed(node: Listening) -> None:
    """Command and data set in one PDU, and a data set in PDVs of one byte, arrive whole."""
    sent = film()
    content = encoded(sent)
    command = store_request(sent).numbered(7, has_data_set=True).encode()
    peer = associated(node)
    pdvs = struct.pack(">LBB", len(command) + 2, 1, 3) + command
    pdvs += b"".join(struct.pack(">LBBB", 3, 1, 0, byte) for byte in content[:-1])
    pdvs += struct.pack(">LBBB", 3, 1, 2, content[-1])
    for start in range(0, len(pdvs), 7):
        if start == 0:
            peer.sendall(struct.pack(">BxL", 4, len(pdvs)))
        peer.sendall(pdvs[start : start + 7])
    kind, length = struct.unpack(">BxL", peer.recv(6, socket.MSG_WAITALL))
    response = Command.decode(peer.recv(length, socket.MSG_WAITALL)[6:])
    assert kind == 4
    assert response.number(Field.STATUS) == Status.SUCCESS
    assert response.number(Field.RESPONDED_TO) == 7
    peer.close()
    assert len(node.files) == 1


def test_a_release_is_answered(node: Listening) -> None:
    """A-RELEASE-RQ brings A-RELEASE-RP."""
    peer = associated(node)
    peer.sendall(struct.pack(">BxL4x", 5, 4))
    assert peer.recv(10, socket.MSG_WAITALL) == struct.pack(">BxL4x", 6, 4)
    peer.close()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_request_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever bytes of an A-ASSOCIATE-RQ change, decoding ends with a request or `ProtocolError`."""
    body = bytearray(REQUEST[6:])
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ProtocolError):
        Request(bytes(body))


def test_the_same_context_twice_is_no_request() -> None:
    """Presentation context identifiers are unique in a request."""
    double = request_pdu(calling_ae="A", called_ae="B", proposals=PROPOSALS * 2, maximum_pdu=16_384).replace(
        b"\x03\0\0\0\x30", b"\x01\0\0\0\x30"
    )
    with pytest.raises(ProtocolError):
        Request(double[6:])
