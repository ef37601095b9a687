"""Who was refused is counted, and told in windows that a flood cannot make long."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dicom_node.doorman import Doorman
from dicom_node.refusals import MOST_REFUSALS, RefusalWindow, Refused
from dicom_node.requestor import PeerUnavailable
from dicom_node.spool import Spool
from tests.dicom_node.build import Listening, eventually
from tests.dicom_node.certificates import Authority, Identity
from tests.dicom_node.test_association import REQUEST, connect, is_hung_up

Told = tuple[str, str, str, str, int]


def told(node: Listening) -> list[Told]:
    """What the node wrote until its stop: reason, address, calling and called title, count."""
    node.server.stop()
    return [
        (one.reason, one.address, one.calling_ae, one.called_ae, one.count)
        for window in node.spool.refusals.waiting()
        for one in window.refusals
    ]


def refused(node: Listening, **request: object) -> None:
    with pytest.raises(PeerUnavailable):
        node.requestor(**request)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"allowed_callers": ["CT1"]}, Refused.UNKNOWN_TITLE),
        ({"callers": [{"ae_title": "CR2", "addresses": ["192.0.2.0/24"]}]}, Refused.WRONG_ADDRESS),
        ({"callers": [{"ae_title": "CR2", "certificate_sha256": "ab" * 32}]}, Refused.WRONG_CERTIFICATE),
        ({"ae_title": "OTHER"}, Refused.CALLED_TITLE),
    ],
)
def test_a_rejected_association_is_told(
    listen: Callable[..., Listening], settings: dict[str, object], reason: Refused
) -> None:
    """Why, from where and under which titles; equal ones are counted."""
    node = listen(**settings)
    for _ in range(3):
        refused(node, calling="CR2")
    assert told(node) == [(reason, "127.0.0.1", "CR2", "COVARIANCE", 3)]


def test_the_caps_are_told(listen: Callable[..., Listening]) -> None:
    """Associations and connections over their caps are refusals, too."""
    node = listen(maximum_associations=1, maximum_connections=2)
    seated = node.requestor()
    refused(node)
    # The connection of the one that was refused may still be open for a moment.
    eventually(lambda: len(node.server._connections._open) == 1)
    waiting = connect(node)
    eventually(lambda: len(node.server._connections._open) == 2)
    assert is_hung_up(connect(node))
    waiting.close()
    seated.release()
    assert told(node) == [
        (Refused.ASSOCIATIONS, "127.0.0.1", "MODALITY", "COVARIANCE", 1),
        (Refused.CONNECTIONS, "127.0.0.1", "", "", 1),
    ]


def test_the_cap_per_address_is_told(listen: Callable[..., Listening]) -> None:
    """Who holds too many connections is told with its address."""
    node = listen(maximum_connections_per_address=1)
    held = connect(node)
    eventually(lambda: len(node.server._connections._open) == 1)
    assert is_hung_up(connect(node))
    held.close()
    assert told(node) == [(Refused.CONNECTIONS_FROM_THERE, "127.0.0.1", "", "", 1)]


@pytest.fixture
def stranger(tmp_path: Path, authority: Authority) -> Identity:
    """Somebody whom another authority signed, and who trusts ours."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").issue()
    return Identity(other.certificate, other.key, authority.file)


def test_handshakes_that_fail_are_told(
    listen: Callable[..., Listening], authority: Authority, stranger: Identity, tmp_path: Path
) -> None:
    """No TLS, silence, a certificate of nobody whom we know, one that is revoked: each has its reason."""
    lost = authority.issue()
    crl = tmp_path / "revoked.pem"
    crl.write_bytes(authority.revoke(lost.certificate))
    files = authority.issue().files
    node = listen(tls={"enabled": True, "port": 0, "handshake_timeout": 1.0, "crl": crl, **files})
    for identity in (stranger, lost, lost):
        refused(node, tls=identity.client)
    for first in (REQUEST, b""):
        with socket.create_connection(("127.0.0.1", node.server.tls_port), 20) as peer:
            peer.sendall(first)
            assert is_hung_up(peer)
    assert set(told(node)) == {
        (Refused.CERTIFICATE, "127.0.0.1", "", "", 1),
        (Refused.REVOKED, "127.0.0.1", "", "", 2),
        (Refused.HANDSHAKE, "127.0.0.1", "", "", 2),
    }


def test_who_leaves_by_itself_was_not_refused(listen: Callable[..., Listening], authority: Authority) -> None:
    """A probe that connects and hangs up is no alert, nor is one who is served; then no file is written."""
    node = listen(tls={"enabled": True, "port": 0, **authority.issue().files})
    with capture_logs() as logs:
        socket.create_connection(("127.0.0.1", node.server.tls_port), 20).close()
        eventually(lambda: [line for line in logs if line["event"] == "tls_refused"])
    node.requestor(tls=authority.issue().client).release()
    assert told(node) == []
    assert list(node.spool.root.glob("refusals/*")) == []


class Kept:
    """A doorman whose windows are kept in a list."""

    def __init__(self) -> None:
        self.windows: list[RefusalWindow] = []
        self.doorman = Doorman(self.windows.append)

    def close(self) -> RefusalWindow:
        assert self.doorman.close_window()
        return self.windows[-1]


def test_a_flood_is_bounded_and_counted() -> None:
    """However many come from however many places, a window tells a few and counts all."""
    kept = Kept()
    addresses = [f"10.0.{one}.{other}" for one, other in product(range(20), range(20))]
    for reason in (Refused.UNKNOWN_TITLE, Refused.HANDSHAKE):
        for number, address in enumerate(addresses):
            kept.doorman.refused(reason, address, calling_ae=f"A{number}", called_ae="COVARIANCE")
    window = kept.close()
    assert len(window.refusals) == MOST_REFUSALS
    assert window.count == 2 * len(addresses)
    assert set(window.others) == {Refused.UNKNOWN_TITLE, Refused.HANDSHAKE}


def test_who_makes_up_titles_hides_nobody() -> None:
    """An address that calls itself a thousand names takes a few places, and the next address has its own."""
    kept = Kept()
    for number in range(1000):
        kept.doorman.refused(Refused.UNKNOWN_TITLE, "10.0.0.5", calling_ae=f"A{number}")
    kept.doorman.refused(Refused.UNKNOWN_TITLE, "10.0.0.6", calling_ae="CT1")
    window = kept.close()
    assert len(window.refusals) < MOST_REFUSALS / 2
    assert window.count == 1001
    assert ("10.0.0.6", "CT1", 1) in [(one.address, one.calling_ae, one.count) for one in window.refusals]
    assert not window.others


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_a_stranger_says_is_a_title(calling: str, called: str) -> None:
    """What it calls itself and us is cut to 16 characters of the default repertoire; it reads back."""
    kept = Kept()
    kept.doorman.refused(Refused.UNKNOWN_TITLE, "fe80::1%eth0", calling_ae=calling, called_ae=called)
    window = kept.close()
    assert RefusalWindow.model_validate_json(window.model_dump_json()) == window


def test_an_address_has_one_name() -> None:
    """An IPv4 peer of a socket for both families is named as on any other."""
    kept = Kept()
    for address in ("10.0.0.5", "::ffff:10.0.0.5"):
        kept.doorman.refused(Refused.CONNECTIONS, address)
    assert [(one.address, one.count) for one in kept.close().refusals] == [("10.0.0.5", 2)]


def test_a_full_disk_loses_no_count(tmp_path: Path) -> None:
    """A window that cannot be written waits under its name, and what comes meanwhile is in the next."""
    full, free = (Spool(tmp_path / "spool", minimum_free_bytes=size) for size in (1 << 60, 0))
    free.prepare()
    place = [full]

    def keep(window: RefusalWindow) -> None:
        place[0].refusals.keep(window)

    doorman = Doorman(keep)
    with capture_logs() as logs:
        for _ in range(3):
            doorman.refused(Refused.UNKNOWN_TITLE, "10.0.0.5", calling_ae="CT1")
            assert not doorman.close_window()
    assert [(line["event"], line["error"]) for line in logs] == [("refusals_not_kept", "SpoolFull")] * 3
    place[0] = free
    doorman.stop()
    assert [window.count for window in free.refusals.waiting()] in ([1, 2], [2, 1])


def test_windows_are_written_while_the_node_runs(tmp_path: Path) -> None:
    """A window is written when its time is over, not only at the end."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    doorman = Doorman(spool.refusals.keep, seconds=0.05)
    doorman.start()
    with contextlib.ExitStack() as stack:
        stack.callback(doorman.stop)
        for total in (1, 2):
            doorman.refused(Refused.HANDSHAKE, "10.0.0.5")
            eventually(lambda total=total: sum(one.count for one in spool.refusals.waiting()) == total)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"name":"x"}'])
def test_a_damaged_window_is_put_aside(tmp_path: Path, content: bytes) -> None:
    """It is told, kept beside, and stops none that follow; its words are in no log."""
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    doorman = Doorman(spool.refusals.keep)
    doorman.refused(Refused.HANDSHAKE, "10.0.0.5")
    doorman.stop()
    damaged = spool.root / "refusals" / "20200101T000000Z-0123456789abcdef.json"
    damaged.write_bytes(content)
    with capture_logs() as logs:
        assert [window.count for window in spool.refusals.waiting()] == [1]
    assert [line["event"] for line in logs] == ["refusals_damaged"]
    assert damaged.with_suffix(".bad").exists()
