"""What strangers say to the port, and what they hear. Nothing of it is ever kept."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass

import pytest

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.negotiation import request_pdu
from dicom_node.wire import PDV_HEADER, RELEASE_RQ, PduType
from tests.dicom_node.build import encoded, film, store_request
from tests.hostile.build import (
    ECHO,
    ECHOES,
    MARK,
    PROPOSALS,
    REPORTS,
    REQUEST,
    Node,
    command,
    converse,
    data_set,
    pdu,
    pdv,
)
from tests.hostile.conftest import GROWTH_BYTES, MEGABYTE
from tests.integration.system import eventually

ASSOCIATED = "accepted"
FILM = film(PatientName=f"{MARK}^NAME", PatientID=MARK)
STORE = command(store_request(FILM))
ECHO_RQ = command(ECHO, context=ECHOES, has_data_set=False)


def request(*, calling: str = "MODALITY", called: str = "COVARIANCE", proposals=PROPOSALS) -> bytes:
    return request_pdu(calling_ae=calling, called_ae=called, proposals=proposals, maximum_pdu=16_384)


def titled(raw: bytes) -> bytes:
    """A request whose calling AE title is these bytes."""
    return REQUEST.replace(b"MODALITY        ", raw.ljust(16), 1)


def with_item(item: bytes, request: bytes = REQUEST) -> bytes:
    """A request with one more item at its end."""
    return pdu(PduType.ASSOCIATE_RQ, request[6:] + item)


def with_contexts(*ids: int) -> bytes:
    """A request that proposes the first context under these ids."""
    at = REQUEST.index(b"\x20\0")
    length = 4 + struct.unpack_from(">H", REQUEST, at + 2)[0]
    one, rest = REQUEST[at : at + length], REQUEST[REQUEST.index(b"\x50\0") :]
    contexts = b"".join(one[:4] + bytes([number]) + one[5:] for number in ids)
    return pdu(PduType.ASSOCIATE_RQ, REQUEST[6:at] + contexts + rest)


def maximum_length(length: int) -> bytes:
    """A request of a peer that takes P-DATA of so many bytes."""
    return REQUEST.replace(
        b"\x51\0\0\4" + struct.pack(">L", 16_384), b"\x51\0\0\4" + struct.pack(">L", length)
    )


@dataclass(frozen=True, kw_only=True)
class Said:
    """Bytes from a stranger, and all the answers to them."""

    name: str
    said: bytes
    heard: tuple[str, ...]


def before(name: str, said: bytes, *heard: str) -> Said:
    """Said instead of a request for an association."""
    return Said(name=name, said=said, heard=heard)


def within(name: str, said: bytes, *heard: str) -> Said:
    """Said within an association."""
    return Said(name=name, said=REQUEST + said, heard=(ASSOCIATED, *heard))


TABLE = [
    # No association
    before("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "aborted"),
    before(
        "TLS on the plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(508), "aborted"
    ),
    before("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", "aborted"),
    before("noise", b"\xff" * 5000, "aborted"),
    before("a request of 4 GiB", pdu(1, b"", 0xFFFF_FFFF), "aborted"),
    before("a request of 300 MB", pdu(1, b"", 300_000_000), "aborted"),
    before("a request of 4 bytes", pdu(1, b"abcd"), "aborted"),
    before("a request of zeros", pdu(1, bytes(1000)), "aborted"),
    before("an unknown PDU type", pdu(9, bytes(4)), "aborted"),
    before("data before an association", ECHO_RQ, "aborted"),
    before("a release before an association", RELEASE_RQ, "aborted"),
    before("an acceptance", pdu(PduType.ASSOCIATE_AC, REQUEST[6:]), "aborted"),
    before("a rejection", pdu(PduType.ASSOCIATE_RJ, b"\0\1\1\1"), "aborted"),
    before("an abort", pdu(PduType.ABORT, bytes(4)), "aborted"),
    # Titles
    before("an unknown calling AE title", request(calling="STRANGER"), "rejected 1,1,3"),
    before("a wrong called AE title", request(called="ORTHANC"), "rejected 1,1,7"),
    before("both titles wrong", request(calling="STRANGER", called="ORTHANC"), "rejected 1,1,3"),
    before("a path for a title", titled(b"../../etc/passwd"), "rejected 1,1,3"),
    before("a title with a backslash", titled(b"MODA\\ITY"), "aborted"),
    before("a title with a newline", titled(b"MODA\nITY"), "aborted"),
    before("a title with a NUL", titled(b"MODALITY\0"), "aborted"),
    before("a title with an escape", titled(b"\x1b[2JMODALITY"), "aborted"),
    before("a title of blanks", titled(b""), "aborted"),
    before("a title that is no text", titled(b"MODALIT\xff\xff\xff"), "aborted"),
    # Negotiation
    before("an unknown protocol version", REQUEST[:6] + b"\0\2" + REQUEST[8:], "rejected 1,2,2"),
    before(
        "an unknown application context",
        REQUEST.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2"),
        "rejected 1,1,2",
    ),
    before("no context", with_contexts(), "aborted"),
    before("one context id twice", with_contexts(1, 3, 1), "aborted"),
    before("200 contexts", with_contexts(*range(1, 201)), "aborted"),
    before("a context id that is even", with_contexts(2), "aborted"),
    before("an item of 64 KB", with_item(b"\x58\0\xff\xff" + MARK.encode() * 10_000), "aborted"),
    before("an item longer than its PDU", with_item(b"\x50\0\xff\xff" + bytes(10)), "aborted"),
    Said(
        name="only what is not taken",
        said=request(proposals=[("1.2.840.10008.5.1.4.1.1.4", [uids.EXPLICIT_VR_LITTLE_ENDIAN])]) + STORE,
        heard=(ASSOCIATED, "aborted"),
    ),
    Said(
        name="a deflated data set",
        said=request(proposals=[(uids.COMPUTED_RADIOGRAPHY, ["1.2.840.10008.1.2.1.99"])]) + STORE,
        heard=(ASSOCIATED, "aborted"),
    ),
    Said(name="a peer that takes 1 byte", said=maximum_length(1) + ECHO_RQ, heard=(ASSOCIATED, "0000")),
    Said(name="a peer without a maximum", said=maximum_length(0) + ECHO_RQ, heard=(ASSOCIATED, "0000")),
    # Within an association
    within("a PDU of 4 GiB", pdu(4, b"", 0xFFFF_FFFF), "aborted"),
    within("a PDU of one byte more than offered", pdu(4, b"", 262_145), "aborted"),
    within("an unknown PDU type in an association", pdu(9, bytes(4)), "aborted"),
    within("a second request", REQUEST, "aborted"),
    within("a release with a tail of 1 GiB", pdu(PduType.RELEASE_RQ, b"", 1 << 30), "aborted"),
    within("a PDV longer than its PDU", pdu(4, PDV_HEADER.pack(500, 1, 3)), "aborted"),
    within("a PDV of no length", pdu(4, PDV_HEADER.pack(0, 1, 3)), "aborted"),
    within("a PDV without a header", pdu(4, b"abc"), "aborted"),
    within("a context that was not accepted", pdv(ECHO.encode(), context=99), "aborted"),
    within("garbage for a command", pdv(os.urandom(100)), "aborted"),
    within("a command without a command field", pdv(Command({Field.MESSAGE_ID: 1}).encode()), "aborted"),
    within("an element of 4 GiB in a command", pdv(b"\0\0\2\0\xff\xff\xff\xffabcd"), "aborted"),
    within("a command of 20 kB", pdv(bytes(20_000)), "aborted"),
    within(
        "a UID in a command that is no text",
        STORE.replace(str(FILM.SOPInstanceUID).encode()[:4], b"\xe9\xff\n\xe9", 1) + data_set(encoded(FILM)),
        "aborted",
    ),
    within("a data set that nobody announced", data_set(b"abcd"), "aborted"),
    within("a data set in another context", STORE + data_set(encoded(FILM), context=ECHOES), "aborted"),
    within("a command within a data set", STORE + ECHO_RQ, "aborted"),
    within("a C-STORE without a data set", command(store_request(FILM), has_data_set=False), "C000"),
    within(
        "a query with a name in it",
        command(Command({Field.COMMAND: Operation.C_FIND_RQ})) + data_set(f"{MARK}^NAME".encode()),
        "0211",
    ),
    within(
        "a commitment report that is none",
        command(Command({Field.COMMAND: Operation.N_EVENT_REPORT_RQ, Field.EVENT_TYPE: 1}), context=REPORTS)
        + data_set(f"{MARK}^NAME".encode() * 20, context=REPORTS),
        "0110",
    ),
    within("a data set that is longer than is kept", STORE + data_set(bytes(9 * MEGABYTE)), "A700"),
    within("a release in mid-data-set", STORE + pdv(bytes(8000), control=0) + RELEASE_RQ, "released"),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_what_is_said_and_heard(case: Said, node: Node) -> None:
    """The answers are those of the table and no more, nothing is kept, and the next caller is served."""
    files = node.files
    assert converse(node, case.said, len(case.heard)) == case.heard
    assert node.is_well()
    assert node.files == files


@dataclass(frozen=True, kw_only=True)
class Stalled:
    """A peer that says something and then no more."""

    name: str
    said: bytes
    heard: tuple[str, ...]


STALLED = [
    Stalled(name="silence", said=b"", heard=("aborted",)),
    Stalled(name="3 bytes", said=REQUEST[:3], heard=("aborted",)),
    Stalled(name="half a request", said=REQUEST[:100], heard=("aborted",)),
    Stalled(name="a request only", said=REQUEST, heard=(ASSOCIATED, "aborted")),
    Stalled(name="half a command", said=REQUEST + STORE[:40], heard=(ASSOCIATED, "aborted")),
    Stalled(
        name="half a data set",
        said=REQUEST + STORE + pdv(bytes(8000), control=0),
        heard=(ASSOCIATED, "aborted"),
    ),
]


@pytest.mark.parametrize("case", STALLED, ids=lambda case: case.name)
def test_who_says_no_more_is_hung_up(case: Stalled, hasty: Node) -> None:
    """When the time of a PDU is over the association ends, wherever it stood, and nothing is kept."""
    with hasty.connect() as peer:
        peer.sendall(case.said)
        heard = b""
        while piece := peer.recv(4096):
            heard += piece
    assert heard.endswith(pdu(PduType.ABORT, b"\0\0\2\0"))
    assert hasty.is_well()
    assert hasty.files == []


def test_a_byte_now_and_then_is_hung_up(hasty: Node) -> None:
    """Bytes that trickle within a data set do not extend the time that their PDU has."""
    gone = threading.Event()

    def listen(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while peer.recv(4096):
                pass
        gone.set()

    with hasty.connect() as peer:
        peer.sendall(REQUEST + STORE + struct.pack(">BxLLBB", 4, 8006, 8002, 1, 0))
        threading.Thread(target=listen, args=(peer,), daemon=True).start()
        with contextlib.suppress(OSError):
            for _ in range(8000):
                if gone.wait(0.1):
                    break
                peer.sendall(b"\0")
        assert gone.is_set()
    assert hasty.is_well()
    assert hasty.files == []


@pytest.mark.parametrize(
    ("title", "heard"),
    [
        (b"../../etc/passwd", (ASSOCIATED, "0000")),  # a title of the default repertoire, and never a path
        (b"MODA\\ITY", ("aborted",)),
        (b"MODA\nITY", ("aborted",)),
        (b"MODALITY\0", ("aborted",)),
        (b"", ("aborted",)),
    ],
    ids=repr,
)
def test_titles_where_anyone_may_send(title: bytes, heard: tuple[str, ...], hasty: Node) -> None:
    """Without a list of callers, a title that PS3.5 6.2 does not allow gets no association."""
    assert converse(hasty, titled(title) + ECHO_RQ, len(heard)) == heard
    assert hasty.is_well()


def test_a_data_set_that_never_ends(node: Node) -> None:
    """Past the size that is kept, nothing more of an object lies on the disk or in memory."""
    memory, fragment = node.memory(), pdv(bytes(16_000), control=0)
    with node.connect() as peer:
        peer.sendall(REQUEST + STORE)
        for _ in range(64):
            peer.sendall(fragment * 65)
        eventually(lambda: not node.parts, what="the part is dropped while its sender still sends")
        assert node.memory() - memory < GROWTH_BYTES
    assert node.is_well()


def test_who_goes_before_the_answer(node: Node) -> None:
    """An object that arrived whole is kept, although nobody waits for its status; so is no half of it."""
    sent = film(PatientName=f"{MARK}^NAME", PatientID=MARK)
    with node.connect() as peer:
        peer.sendall(REQUEST + command(store_request(sent)) + data_set(encoded(sent)))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        peer.recv(4096)  # accepted; what follows is not read
    eventually(lambda: node.spool.instances(sent.StudyInstanceUID), what="the object is kept")
    assert node.is_well()


def test_two_hundred_connections(node: Node) -> None:
    """Two hundred peers that say half a request cost nothing that is not given back."""
    descriptors, threads = node.descriptors(), node.threads()
    peers = []
    for _ in range(200):
        peers.append(node.connect())
        with contextlib.suppress(ConnectionError):  # one too many is hung up
            peers[-1].sendall(REQUEST[:50])
    assert node.program.process.poll() is None
    for peer in peers:
        peer.close()
    eventually(lambda: node.descriptors() <= descriptors + 2, what="the descriptors are given back")
    eventually(lambda: node.threads() <= threads + 2, what="the threads end")
    assert node.is_well()


def test_memory_is_flat(node: Node) -> None:
    """After all of this the node is hardly larger than it was after its first good objects."""
    assert node.memory() - node.baseline < GROWTH_BYTES


def test_nothing_is_told(node: Node, hasty: Node) -> None:
    """Neither node wrote a name, an id or a value anywhere but into its spool, and both heard much."""
    for one in (node, hasty):
        told = dict(one.told())
        assert "association_aborted" in "".join(told.values())
        assert [path for path, text in told.items() if MARK in text.upper()] == []
