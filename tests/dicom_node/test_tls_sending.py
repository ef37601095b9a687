"""Sending over TLS, to DCMTK's storescp and to our own node."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_node.requestor import PeerUnavailable
from dicom_node.status import Status
from dicom_node.store_scu import Peer, SendItem, StoreAssociation, echo
from dicom_node.tls import ClientTls
from tests.dicom_node.build import Listening, as_part10, data_set_bytes, encoded, eventually, film
from tests.dicom_node.certificates import Authority, Identity


def peer_at(port: int, tls: ClientTls | None) -> Peer:
    return Peer(
        ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="MODALITY", timeout=10.0, tls=tls
    )


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Identity:
    return authority.issue()


@pytest.fixture
def storescp(
    program: Callable[[str], str], authority: Authority, ours: Identity, tmp_path: Path
) -> Iterator[tuple[int, Path]]:
    """DCMTK's storescp, which asks for a certificate; its port and folder."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    options = [*authority.issue().for_dcmtk, "+B", "+xa", "-od", str(folder)]
    with subprocess.Popen(
        [program("storescp"), *options, str(port)], env={**os.environ, "TCP_NODELAY": "1"}
    ) as process:

        def listens() -> bool:
            with contextlib.suppress(PeerUnavailable):
                echo(peer_at(port, ours.client))
                return True
            return False

        eventually(listens)
        yield port, folder
        process.terminate()


@pytest.fixture
def node(listen: Callable[..., Listening], authority: Authority) -> Listening:
    return listen(tls={"enabled": True, "port": 0, **authority.issue().files})


def test_storescp_gets_the_same_bytes(storescp: tuple[int, Path], ours: Identity, tmp_path: Path) -> None:
    """A film of megabytes arrives at a real peer over TLS as it was."""
    port, folder = storescp
    sent = film(Rows=1500, Columns=1500)
    sent.PixelData = bytes(range(250)) * 18_000
    item = SendItem(
        sop_class_uid=sent.SOPClassUID,
        sop_instance_uid=sent.SOPInstanceUID,
        transfer_syntax_uid=sent.file_meta.TransferSyntaxUID,
        path=as_part10(sent, tmp_path / "film.dcm"),
    )
    with StoreAssociation(peer_at(port, ours.client), [item]) as association:
        assert association.send(item).status == Status.SUCCESS
    (received,) = folder.iterdir()
    assert data_set_bytes(received) == encoded(sent)


def test_a_peer_that_asks_for_a_certificate_gets_one(storescp: tuple[int, Path], ours: Identity) -> None:
    """Without one there is no association; TLS 1.3 may tell it late, by closing the connection."""
    port, _ = storescp
    bare = replace(ours.client, certificate=None, key=None)
    with pytest.raises(PeerUnavailable, match=r"does not answer an association request|over TLS"):
        echo(peer_at(port, bare))


def test_a_peer_of_another_authority_is_not_trusted(node: Listening, ours: Identity, tmp_path: Path) -> None:
    """Nothing is sent to whom a stranger vouches for."""
    stranger = replace(ours.client, authorities=Authority(tmp_path).file)
    with pytest.raises(PeerUnavailable, match="certificate of the peer is not accepted: "):
        echo(peer_at(node.server.tls_port or 0, stranger))


def test_the_name_of_the_peer_is_checked(
    listen: Callable[..., Listening], authority: Authority, ours: Identity
) -> None:
    """A certificate for another host is not taken, unless that name, or no check, is what was asked for."""
    node = listen(tls={"enabled": True, "port": 0, **authority.issue("pacs.example").files})
    port = node.server.tls_port or 0
    with pytest.raises(PeerUnavailable, match=r"is not accepted: (IP address|Hostname) mismatch"):
        echo(peer_at(port, ours.client))
    echo(peer_at(port, replace(ours.client, server_name="pacs.example")))
    echo(peer_at(port, replace(ours.client, check_name=False)))


def test_a_peer_without_tls_is_one_sentence(node: Listening, ours: Identity) -> None:
    """TLS to a plain port fails soon, in words."""
    with pytest.raises(PeerUnavailable, match="cannot be reached over TLS: "):
        echo(peer_at(node.port, ours.client))


def test_a_file_that_is_away_is_tried_again_later(node: Listening, ours: Identity, tmp_path: Path) -> None:
    """A certificate that is being renewed makes the peer unavailable for now."""
    gone = replace(ours.client, certificate=tmp_path / "gone.pem")
    with pytest.raises(PeerUnavailable, match=r"gone\.pem.*no such file"):
        echo(peer_at(node.server.tls_port or 0, gone))
