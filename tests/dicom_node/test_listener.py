"""How many connections there may be, and that descriptors over 1024 do no harm."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.requestor import PeerUnavailable
from dicom_node.status import Status
from dicom_node.wire import Control, p_data
from tests.dicom_node.build import Listening, as_part10, eventually, film, store_request
from tests.dicom_node.certificates import Authority
from tests.dicom_node.test_association import associated, connect, is_hung_up

ECHO = Command({Field.AFFECTED_SOP_CLASS: uids.VERIFICATION, Field.COMMAND: Operation.C_ECHO_RQ})
ECHO_PDU = p_data(1, Control.COMMAND, ECHO.numbered(1, has_data_set=False).encode(), 16_384)


def is_taken(node: Listening) -> bool:
    try:
        node.requestor().release()
    except PeerUnavailable:
        return False
    return True


@pytest.mark.parametrize("setting", ["maximum_connections", "maximum_connections_per_address"])
def test_one_connection_too_many_is_closed(setting: str, listen: Callable[..., Listening]) -> None:
    """Over the cap a connection is closed at once, and told; when one goes, the next is served."""
    node = listen(**{setting: 3})
    with capture_logs() as logs:
        open_ones = [connect(node) for _ in range(3)]
        assert is_hung_up(connect(node))
        (told,) = [line for line in logs if line["event"] == "connections_refused"]
    assert told["why"].startswith(f"node.{setting} are open")
    assert told["address"] == "127.0.0.1"
    open_ones[0].close()
    eventually(lambda: is_taken(node))


def test_another_address_is_served_when_one_is_full(listen: Callable[..., Listening]) -> None:
    """Who floods us from one address keeps the others in."""
    node = listen(maximum_connections_per_address=2)
    flood = [connect(node) for _ in range(10)]
    other = socket.create_connection(("127.0.0.1", node.port), 20, source_address=("127.0.0.2", 0))
    other.sendall(b"GET / HTTP/1.1\r\n")
    assert other.recv(10)[:1] == b"\7", "no A-ABORT: it was not served"
    for peer in flood:
        peer.close()


def test_a_flood_is_few_lines(listen: Callable[..., Listening]) -> None:
    """Hundreds of refused connections do not fill the log; their number is told."""
    node = listen(maximum_connections=1)
    held = connect(node)
    with capture_logs() as logs:
        refused = 0

        def is_told_again() -> bool:
            nonlocal refused
            refused += is_hung_up(connect(node))
            return len(logs) > 1

        eventually(is_told_again, 60)
    assert [line["event"] for line in logs] == ["connections_refused"] * 2
    assert [line["count"] for line in logs] == [1, refused - 1]
    assert refused > 10
    held.close()


def test_connections_count_over_both_ports(listen: Callable[..., Listening], authority: Authority) -> None:
    """The cap in all is for the plain port and the one with TLS together."""
    node = listen(maximum_connections=2, tls={"enabled": True, "port": 0, **authority.issue().files})
    first = connect(node)
    second = socket.create_connection(("127.0.0.1", node.server.tls_port), 20)
    # Two listeners, two threads: the second must have been counted before the third knocks at the first.
    eventually(lambda: len(node.server._connections._open) == 2)
    assert is_hung_up(connect(node))
    assert is_hung_up(socket.create_connection(("127.0.0.1", node.server.tls_port), 20))
    first.close()
    second.close()


def test_a_busy_association_ends_at_last(listen: Callable[..., Listening]) -> None:
    """A peer that always completes a PDU in time is aborted all the same when its time is over."""
    node = listen(association_timeout=0.5)
    peer = associated(node)
    with capture_logs() as logs:

        def is_over() -> bool:
            try:
                peer.sendall(ECHO_PDU)
                return peer.recv(4096)[:1] in (b"", b"\7")
            except OSError:
                return True

        eventually(is_over)
        eventually(lambda: logs)
    assert logs[0]["why"] == "the association was not complete in time"
    peer.close()


def test_a_check_of_the_port_is_no_matter(listen: Callable[..., Listening]) -> None:
    """Who connects and goes without a byte is a health check: no warning; who goes in mid-word is told of."""
    node = listen(plain=True)

    def events(said: bytes) -> list[tuple[str, str]]:
        with capture_logs() as logs:
            peer = connect(node)
            peer.sendall(said)
            peer.close()
            eventually(lambda: bool(logs))
            return [(line["log_level"], line["event"]) for line in logs]

    assert events(b"") == [("debug", "port_checked")]
    assert events(b"\1\0") == [("warning", "association_lost")]


def test_an_object_that_never_ends_is_cut(listen: Callable[..., Listening]) -> None:
    """A data set in PDUs of one byte holds its seat until the time is over, and leaves no file."""
    node = listen(association_timeout=0.5, maximum_associations=1)
    peer = associated(node)
    peer.sendall(
        p_data(1, Control.COMMAND, store_request(film()).numbered(1, has_data_set=True).encode(), 16_384)
    )
    byte = p_data(1, Control(0), b"x", 16_384).replace(b"\1\2x", b"\1\0x")

    def is_over() -> bool:
        try:
            peer.sendall(byte)
        except OSError:
            return True
        return is_taken(node)

    eventually(is_over)
    assert node.parts == []
    peer.close()


def test_an_idle_association_ends(listen: Callable[..., Listening]) -> None:
    """Who is associated and says nothing gives its seat back."""
    node = listen(network_timeout=0.3, maximum_associations=1)
    peer = associated(node)
    assert is_hung_up(peer)
    eventually(lambda: is_taken(node))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process, and the node in it, has 1100 files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the hard limit of open files is under 2048")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for descriptor in held:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_over_1024_do_no_harm(
    listen: Callable[..., Listening], authority: Authority, program: Callable[[str], str], tmp_path: Path
) -> None:
    """C-ECHO and C-STORE work, in the clear and over TLS, with sockets that select() cannot take."""
    node = listen(tls={"enabled": True, "port": 0, **authority.issue().files})
    options = authority.issue().for_dcmtk
    for port, tls in ((node.port, []), (node.server.tls_port, options)):
        where = ["-aec", "COVARIANCE", "127.0.0.1", str(port)]
        file = as_part10(film(), tmp_path / f"{port}.dcm")
        for command in (["echoscu", *tls, *where], ["storescu", *tls, *where, str(file)]):
            command[0] = program(command[0])
            assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert len(node.files) == 2
    # Our sending side, too.
    assert is_taken(node)
    with node.requestor((uids.VERIFICATION, uids.IMPLICIT_VR_LITTLE_ENDIAN)) as association:
        assert association._wire.connection.fileno() > 1024
        context = association.context_for(uids.VERIFICATION)
        assert context is not None
        assert association.ask(context, ECHO) == Status.SUCCESS
