"""The port with TLS, and who is not let in there."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicom_node import uids
from dicom_node.errors import ConfigurationError
from dicom_node.requestor import PeerUnavailable
from dicom_node.status import Status
from dicom_node.wire import ABORT_BY_PROVIDER, Control, p_data
from tests.dicom_node.build import (
    CR_EXPLICIT,
    Listening,
    as_part10,
    encoded,
    eventually,
    film,
    send_raw,
    store_request,
)
from tests.dicom_node.certificates import Authority, Identity
from tests.dicom_node.test_association import REQUEST, is_hung_up

Program = Callable[[str], str]
Logs = list[MutableMapping[str, Any]]


@pytest.fixture(scope="module")
def modality(authority: Authority) -> Identity:
    return authority.issue()


@pytest.fixture
def secure(listen: Callable[..., Listening], authority: Authority) -> Listening:
    """A node that listens with TLS, too."""
    return listen(tls={"enabled": True, "port": 0, **authority.issue().files})


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Identity:
    """Somebody with a certificate of another authority, who trusts ours."""
    other = Authority(tmp_path_factory.mktemp("other")).issue()
    return Identity(other.certificate, other.key, authority.file)


def dcmtk(command: list[str], node: Listening, *files: Path) -> int:
    """The exit code of a sender of DCMTK that calls the port with TLS."""
    where = ["-aec", "COVARIANCE", "127.0.0.1", str(node.server.tls_port)]
    return subprocess.run([*command, *where, *map(str, files)], timeout=60, check=False).returncode


def handshake(node: Listening, one: Identity, **context_values: object) -> ssl.SSLSocket:
    context = one.client.context()
    for name, value in context_values.items():
        setattr(context, name, value)
    bare = socket.create_connection(("127.0.0.1", node.server.tls_port), timeout=20)
    return context.wrap_socket(bare, server_hostname="127.0.0.1")


def associated(node: Listening, one: Identity) -> ssl.SSLSocket:
    """A bare socket with TLS over which an association has been accepted."""
    peer = handshake(node, one)
    peer.sendall(REQUEST)
    answer = peer.recv()
    assert answer[0] == 2
    assert len(answer) == 6 + struct.unpack(">L", answer[2:6])[0]
    return peer


def refusals(logs: Logs) -> list[str]:
    return [line["why"] for line in logs if line["event"] == "tls_refused"]


def is_served(node: Listening, one: Identity) -> bool:
    """Whether an object is stored over TLS."""
    sent = film()
    with node.requestor(tls=one.client) as association:
        return send_raw(association, store_request(sent), encoded(sent)) == Status.SUCCESS


def test_storescu_stores_over_tls(
    secure: Listening, modality: Identity, program: Program, tmp_path: Path
) -> None:
    """DCMTK's storescu with a certificate of ours is served as it is on the plain port."""
    sent = film()
    file = as_part10(sent, tmp_path / "film.dcm")
    assert dcmtk([program("storescu"), *modality.for_dcmtk], secure, file) == 0
    assert [one.sop_instance_uid for one in secure.filed] == [sent.SOPInstanceUID]
    assert secure.answers_echo(), "the plain port is closed"


def test_a_large_object_comes_whole(secure: Listening, modality: Identity) -> None:
    """A data set of megabytes goes through TLS in whatever pieces, and is the same."""
    sent = film(Rows=1500, Columns=1500)
    sent.PixelData = bytes(range(250)) * 18_000
    content = encoded(sent)
    with secure.requestor(tls=modality.client) as association:
        assert send_raw(association, store_request(sent), content) == Status.SUCCESS
    (file,) = secure.files
    assert file.read_bytes().endswith(content)


@pytest.mark.parametrize(
    ("newest", "spoken"),
    [(ssl.TLSVersion.MAXIMUM_SUPPORTED, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")],
)
def test_speaks_the_newest_version_that_the_peer_knows(
    secure: Listening, modality: Identity, newest: ssl.TLSVersion, spoken: str
) -> None:
    """TLS 1.3 where the peer has it, else 1.2."""
    with handshake(secure, modality, maximum_version=newest) as peer:
        assert peer.version() == spoken


def test_an_old_version_is_refused(secure: Listening, modality: Identity, program: Program) -> None:
    """A peer that speaks TLS 1.1 only gets no handshake, and the log says why."""
    where = f"127.0.0.1:{secure.server.tls_port}"
    old = [program("openssl"), "s_client", "-connect", where, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    with capture_logs() as logs:
        done = subprocess.run(old, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        assert done.returncode != 0
        eventually(lambda: refusals(logs))
    assert refusals(logs) == ["TLS failed: unsupported protocol"]
    assert is_served(secure, modality)


def test_a_peer_without_a_certificate_is_refused(
    secure: Listening, modality: Identity, program: Program
) -> None:
    """Encryption alone is not enough."""
    with capture_logs() as logs:
        assert dcmtk([program("echoscu"), "+tla", "-ic"], secure) != 0
        eventually(lambda: refusals(logs))
    assert refusals(logs) == ["TLS failed: peer did not return a certificate"]
    assert is_served(secure, modality)


def test_an_untrusted_certificate_is_refused(
    secure: Listening, modality: Identity, stranger: Identity, program: Program
) -> None:
    """A certificate of another authority is not let in."""
    with capture_logs() as logs:
        assert dcmtk([program("echoscu"), *stranger.for_dcmtk], secure) != 0
        eventually(lambda: refusals(logs))
    (why,) = refusals(logs)
    assert why.startswith("the certificate of the peer is not accepted: unable to get local issuer")
    assert is_served(secure, modality)


def test_an_expired_certificate_is_refused(
    secure: Listening, modality: Identity, authority: Authority, program: Program
) -> None:
    """A certificate that was good once is not let in."""
    with capture_logs() as logs:
        assert dcmtk([program("echoscu"), *authority.issue(expired=True).for_dcmtk], secure) != 0
        eventually(lambda: refusals(logs))
    assert refusals(logs) == ["the certificate of the peer is not accepted: certificate has expired"]
    assert is_served(secure, modality)


@pytest.mark.parametrize("first", [REQUEST, b"GET / HTTP/1.1\r\n\r\n"], ids=["DICOM", "HTTP"])
def test_plain_text_is_refused(secure: Listening, modality: Identity, first: bytes) -> None:
    """What is not encrypted is hung up on, and the log says why."""
    with capture_logs() as logs, socket.create_connection(("127.0.0.1", secure.server.tls_port), 20) as peer:
        peer.sendall(first)
        assert is_hung_up(peer)
    assert refusals(logs) == ["the peer does not speak TLS"]
    assert is_served(secure, modality)


def test_silent_peers_block_nobody(
    listen: Callable[..., Listening], authority: Authority, modality: Identity
) -> None:
    """Peers that connect and say nothing keep nobody from the port, and are hung up on in time."""
    files = authority.issue().files
    node = listen(tls={"enabled": True, "port": 0, "handshake_timeout": 3.0, **files})
    with capture_logs() as logs:
        silent = [socket.create_connection(("127.0.0.1", node.server.tls_port), 20) for _ in range(20)]
        # One after the other they would take a minute: longer than the others wait.
        assert is_served(node, modality)
        for peer in silent:
            assert peer.recv(1) == b""
            peer.close()
    assert refusals(logs) == ["the peer was silent for too long"] * 20


def test_a_trickling_handshake_is_hung_up(listen: Callable[..., Listening], authority: Authority) -> None:
    """A byte now and then does not extend the time that a handshake has."""
    files = authority.issue().files
    node = listen(tls={"enabled": True, "port": 0, "handshake_timeout": 0.5, **files})
    with socket.create_connection(("127.0.0.1", node.server.tls_port), 0.1) as peer:
        peer.sendall(struct.pack(">BHH", 22, 0x0301, 500))

        def is_over() -> bool:
            try:
                peer.sendall(b"\1")
                return peer.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        eventually(is_over)


def test_a_stop_does_not_wait_for_a_handshake(secure: Listening) -> None:
    """A node is stopped while peers are silent."""
    with capture_logs() as logs, socket.create_connection(("127.0.0.1", secure.server.tls_port), 20):
        secure.server.stop()
    assert "the peer was silent for too long" not in refusals(logs)


@pytest.mark.parametrize("end", ["cut", "reset", "stop"])
def test_an_end_in_mid_data_set_leaves_nothing(end: str, secure: Listening, modality: Identity) -> None:
    """However a connection with TLS ends before the last fragment, no file stays."""
    peer = associated(secure, modality)
    command = store_request(film()).numbered(1, has_data_set=True).encode()
    peer.sendall(p_data(1, Control.COMMAND, command, 16_384))
    peer.sendall(struct.pack(">BxLLBB", 4, 8006, 8002, 1, 0) + bytes(8000))
    eventually(lambda: secure.parts)
    if end == "stop":
        secure.server.stop()
        # Decrypted: what is due after the hang-up does not go out in the clear.
        assert peer.recv() == ABORT_BY_PROVIDER
    if end == "reset":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    eventually(lambda: not secure.parts)
    assert secure.files == []


def test_only_the_port_with_tls_may_be_open(
    listen: Callable[..., Listening], authority: Authority, modality: Identity
) -> None:
    """Without the plain port the node serves over TLS alone."""
    node = listen(plain=False, tls={"enabled": True, "port": 0, **authority.issue().files})
    assert node.port == node.server.tls_port
    assert is_served(node, modality)
    with pytest.raises(PeerUnavailable):
        node.requestor()


def test_a_caller_is_bound_to_its_certificate(
    listen: Callable[..., Listening], authority: Authority, modality: Identity
) -> None:
    """Another certificate, though it is trusted, and the plain port are rejected with 1,1,3."""
    bound = {"ae_title": "MODALITY", "certificate_sha256": modality.fingerprint}
    node = listen(callers=[bound], tls={"enabled": True, "port": 0, **authority.issue().files})
    assert is_served(node, modality)
    for tls in (authority.issue().client, None):
        with pytest.raises(PeerUnavailable, match=r"\(1,1,3\)"):
            node.requestor(tls=tls)


def test_the_log_tells_the_fingerprint_of_who_was_rejected(
    listen: Callable[..., Listening], authority: Authority, modality: Identity
) -> None:
    """An operator can copy the certificate to allow from the log."""
    node = listen(allowed_callers=("CT1",), tls={"enabled": True, "port": 0, **authority.issue().files})
    with capture_logs() as logs, pytest.raises(PeerUnavailable):
        node.requestor(tls=modality.client)
    (told,) = [line for line in logs if line["event"] == "association_rejected"]
    assert told["certificate"] == modality.fingerprint


@pytest.mark.parametrize("missing", ["certificate", "key", "authorities"])
def test_a_file_that_cannot_be_used_is_one_sentence(
    missing: str, listen: Callable[..., Listening], authority: Authority, tmp_path: Path
) -> None:
    """A node does not start with half of its files; the sentence names the file."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"broken\.pem"):
        listen(tls={"enabled": True, "port": 0, **authority.issue().files, missing: broken})


def test_a_key_with_a_password_is_refused(
    listen: Callable[..., Listening], authority: Authority, program: Program
) -> None:
    """Nobody is there to type it: the sentence says so, and nothing waits at the terminal."""
    one = authority.issue()
    locked = one.key.with_suffix(".locked")
    make = [program("openssl"), "rsa", "-aes256", "-passout", "pass:x", "-in", one.key, "-out", locked]
    if b"EC PRIVATE" in one.key.read_bytes():
        make[1] = "ec"
    subprocess.run(make, check=True, capture_output=True)
    with pytest.raises(ConfigurationError, match="has a password"):
        listen(tls={"enabled": True, "port": 0, **one.files, "key": locked})


def test_tls_and_plain_share_the_contexts(secure: Listening, modality: Identity) -> None:
    """The same classes are accepted on both ports."""
    mr = ("1.2.840.10008.5.1.4.1.1.4", uids.EXPLICIT_VR_LITTLE_ENDIAN)
    with secure.requestor(CR_EXPLICIT, mr, tls=modality.client) as association:
        assert association.context_for(CR_EXPLICIT[0]) is not None
        assert association.context_for(mr[0]) is None
