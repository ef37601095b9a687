"""Revoked certificates, and lists that are no good."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs

from dicom_node.errors import ConfigurationError
from dicom_node.requestor import PeerUnavailable
from dicom_node.revocation import read_lists
from dicom_node.tls import ClientTls
from tests.dicom_node.build import Listening, eventually
from tests.dicom_node.certificates import Authority

Logs = list[MutableMapping[str, Any]]
Secure = Callable[..., Listening]


@pytest.fixture
def secure(listen: Callable[..., Listening], authority: Authority, tmp_path: Path) -> Secure:
    """`secure(*lists, authorities=file)` is a node with TLS that looks its peers up in these lists."""

    def start(*lists: bytes, authorities: Path = authority.file) -> Listening:
        crl = tmp_path / "revoked.pem"
        crl.write_bytes(b"".join(lists))
        files = {**authority.issue().files, "authorities": authorities}
        return listen(tls={"enabled": True, "port": 0, "crl": crl, **files})

    return start


def is_admitted(node: Listening, tls: ClientTls) -> bool:
    try:
        node.requestor(tls=tls).release()
    except PeerUnavailable:
        return False
    return True


def why(logs: Logs, event: str = "tls_refused") -> list[str]:
    return [line["why"] for line in logs if line["event"] == event]


def test_a_revoked_certificate_is_refused(secure: Secure, authority: Authority) -> None:
    """Who is on the list is refused with one sentence; who is not is served."""
    lost, kept = authority.issue(), authority.issue()
    node = secure(authority.revoke(lost.certificate))
    with capture_logs() as logs:
        assert not is_admitted(node, lost.client)
        eventually(lambda: why(logs))
    assert why(logs) == ["the certificate of the peer is revoked"]
    assert is_admitted(node, kept.client)


def test_a_list_that_ends_lets_nobody_in(secure: Secure, authority: Authority) -> None:
    """A list that ends while the node runs: everybody is refused from then on, and the log says why."""
    node = secure(authority.revoke(until=datetime.now(UTC) + timedelta(seconds=8)))
    modality = authority.issue().client
    assert is_admitted(node, modality)
    with capture_logs() as logs:
        eventually(lambda: not is_admitted(node, modality))
        eventually(lambda: why(logs))
    assert why(logs) == ["whether the certificate of the peer is revoked cannot be known: CRL has expired"]


@pytest.mark.parametrize("side", ["since", "until"])
def test_a_node_starts_with_a_list_that_is_not_valid(secure: Secure, authority: Authority, side: str) -> None:
    """The plain port serves on; over TLS nobody is let in, which is logged as an error at the start."""
    now = datetime.now(UTC)
    dates = {"since": {"since": now + timedelta(hours=1)}, "until": {"until": now - timedelta(minutes=1)}}
    with capture_logs() as logs:
        node = secure(authority.revoke(**dates[side]))
    (sentence,) = why(logs, "revocation_list_not_valid")
    assert sentence.endswith("who was signed by it is refused")
    assert not is_admitted(node, authority.issue().client)
    assert node.answers_echo()


def test_an_authority_without_a_list_lets_nobody_in(
    secure: Secure, authority: Authority, tmp_path: Path
) -> None:
    """Of two authorities one has a list: whom the other signed cannot be looked up, and is refused."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + other.file.read_bytes())
    node = secure(authority.revoke(), authorities=both)
    stranger = other.issue()
    trusting = ClientTls(authorities=authority.file, certificate=stranger.certificate, key=stranger.key)
    assert not is_admitted(node, trusting)
    assert is_admitted(node, authority.issue().client)


def test_lists_of_several_authorities_are_looked_up(
    secure: Secure, authority: Authority, tmp_path: Path
) -> None:
    """Lists stand one after the other in one file."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + other.file.read_bytes())
    lost, kept = other.issue(), other.issue()
    node = secure(authority.revoke(), other.revoke(lost.certificate), authorities=both)
    admitted = [
        is_admitted(node, ClientTls(authorities=authority.file, certificate=one.certificate, key=one.key))
        for one in (lost, kept)
    ]
    assert admitted == [False, True]


@pytest.mark.parametrize("revoked", [False, True])
def test_a_chain_is_looked_up(secure: Secure, authority: Authority, tmp_path: Path, revoked: bool) -> None:
    """Where every authority has a list, one that is itself revoked vouches for nobody any more."""
    between = authority.child(tmp_path / "between")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + between.file.read_bytes())
    root_list = authority.revoke(*[between.file] * revoked)
    node = secure(root_list, between.revoke(), authorities=both)
    one = between.issue()
    tls = ClientTls(authorities=authority.file, certificate=one.certificate, key=one.key)
    assert is_admitted(node, tls) is not revoked


def as_der(pem: bytes) -> bytes:
    return x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda ours, _: as_der(ours.revoke()), "no revocation list in PEM"),
        (lambda *_: b"", "no revocation list in PEM"),
        (lambda *_: b"-----BEGIN X509 CRL-----\nMA==\n-----END X509 CRL-----\n", "cannot be read"),
        (lambda ours, _: ours.revoke() + ours.file.read_bytes(), "something else"),
        (lambda _, other: other.revoke(), "no certificate of that authority"),
        (lambda ours, other: ours.revoke(signed_with=other.private_key), "no certificate of that authority"),
    ],
    ids=["DER", "empty", "broken", "certificate", "another authority", "another key"],
)
def test_what_is_no_list_of_ours_is_refused(
    secure: Secure, authority: Authority, tmp_path: Path, content: Callable[..., bytes], said: str
) -> None:
    """A node does not start with lists that would keep nobody out, or let somebody in."""
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match=said):
        secure(content(authority, Authority(tmp_path / "other")))


def test_a_list_that_is_not_there_is_refused(authority: Authority, tmp_path: Path) -> None:
    """One sentence names the file."""
    with pytest.raises(ConfigurationError, match=r"nowhere\.pem cannot be read: No such file"):
        read_lists(tmp_path / "nowhere.pem", authority.file)
