from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from dicom_node import uids
from dicom_node.status import Status
from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation, echo
from tests.dicom_node.build import Listening, as_part10, data_set_bytes, eventually, film

Serve = Callable[..., int]


def peer_at(port: int, **values: object) -> Peer:
    return Peer(
        **{"ae_title": "PACS", "host": "127.0.0.1", "port": port, "calling_ae": "COVARIANCE", "timeout": 10.0}
        | values
    )


def item(content: Dataset, folder: Path) -> SendItem:
    return SendItem(
        sop_class_uid=content.SOPClassUID,
        sop_instance_uid=content.SOPInstanceUID,
        transfer_syntax_uid=content.file_meta.TransferSyntaxUID,
        path=as_part10(content, folder / f"{content.SOPInstanceUID}.dcm"),
    )


@pytest.fixture
def storescp(program: Callable[[str], str], tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """DCMTK's storescp, keeping the data sets as they come; its port and folder."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        program("storescp"),
        "+B",
        "+xa",
        "-od",
        str(folder),
        str(port),
    ]
    with subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}) as process:

        def listens() -> bool:
            with contextlib.suppress(PeerUnavailable):
                echo(peer_at(port))
                return True
            return False

        eventually(listens)
        yield port, folder
        process.terminate()


@pytest.mark.parametrize("size", [0, 100, 131_060, 524_288, 3_000_000])
def test_storescp_holds_the_same_bytes(size: int, storescp: tuple[int, Path], tmp_path: Path) -> None:
    """Whatever its size, what DCMTK keeps is what stands in our file."""
    port, folder = storescp
    sent = item(film(PixelData=os.urandom(size)), tmp_path)
    with StoreAssociation(peer_at(port), [sent]) as association:
        assert association.send(sent).status == Status.SUCCESS
    (kept,) = folder.iterdir()
    assert data_set_bytes(kept) == data_set_bytes(sent.path)


@pytest.mark.parametrize("maximum", [0, 4096, 16_382, 16_383, 131_072, 1_048_576])
def test_fills_pdus_as_the_peer_wants_them(maximum: int, serve: Serve, tmp_path: Path) -> None:
    """No PDU is longer than the peer allows, and data sets that just fill one arrive whole."""
    received: list[bytes] = []
    longest: list[int] = []

    def keep(event: evt.Event) -> int:
        received.append(event.request.DataSet.getvalue())
        return 0

    ae = AE("PACS")
    ae.maximum_pdu_size = maximum
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY, uids.EXPLICIT_VR_LITTLE_ENDIAN)
    port = serve(
        ae, [(evt.EVT_C_STORE, keep), (evt.EVT_DATA_RECV, lambda event: longest.append(len(event.data) - 6))]
    )
    base = len(data_set_bytes(item(film(PixelData=b""), tmp_path).path))
    payload = (min(maximum or 1_048_576, 524_282) - 6) & ~1
    items = [
        item(film(PixelData=bytes(2 * payload - base + offset)), tmp_path)
        for offset in range(-2, 4, 2)
        if 2 * payload - base + offset >= 0
    ]
    with StoreAssociation(peer_at(port), items) as association:
        assert [association.send(one).status for one in items] == [0] * len(items)
    assert received == [data_set_bytes(one.path) for one in items]
    assert max(longest) <= (maximum or 1_048_576)
    assert not any(length % 2 for length in longest)


def test_our_own_node_takes_what_we_send(node: Listening, tmp_path: Path) -> None:
    """Sender and receiver of this package understand each other in every syntax."""
    items = [item(film(transfer_syntax=syntax), tmp_path) for syntax in uids.TRANSFER_SYNTAXES]
    with StoreAssociation(peer_at(node.port, ae_title="COVARIANCE"), items) as association:
        assert {association.send(one).status for one in items} == {Status.SUCCESS}
    assert len(node.files) == len(items)


@pytest.mark.parametrize("status", [0xA700, 0xB000, 0x0122, 0xC123])
def test_brings_the_status_of_the_peer(status: int, serve: Serve, tmp_path: Path) -> None:
    """Every status comes through, and the association goes on."""
    ae = AE("PACS")
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY)
    port = serve(ae, [(evt.EVT_C_STORE, lambda _: status)])
    sent = item(film(), tmp_path)
    with StoreAssociation(peer_at(port), [sent]) as association:
        assert [association.send(sent).status for _ in range(2)] == [status, status]


def test_a_class_that_the_peer_refuses_is_not_sent(serve: Serve, tmp_path: Path) -> None:
    """Without an accepted context the outcome is 0122, for that object only."""
    ae = AE("PACS")
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY)
    port = serve(ae, [(evt.EVT_C_STORE, lambda _: 0)])
    items = [item(film(SOPClassUID=uids.SECONDARY_CAPTURE), tmp_path), item(film(), tmp_path)]
    with StoreAssociation(peer_at(port), items) as association:
        assert [association.send(one).status for one in items] == [Status.SOP_CLASS_NOT_SUPPORTED, 0]


def test_a_file_that_is_gone_cannot_be_sent(serve: Serve, tmp_path: Path) -> None:
    """An object without its file is 0112, and the next one is sent."""
    ae = AE("PACS")
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY)
    port = serve(ae, [(evt.EVT_C_STORE, lambda _: 0)])
    items = [item(film(), tmp_path) for _ in range(2)]
    items[0].path.unlink()
    with StoreAssociation(peer_at(port), items) as association:
        assert [association.send(one).status for one in items] == [Status.NO_SUCH_OBJECT_INSTANCE, 0]


def test_an_abort_leaves_the_outcome_unknown(serve: Serve, tmp_path: Path) -> None:
    """A peer that aborts instead of answering: unknown, and so is everything after."""
    ae = AE("PACS")
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY)

    def abort(event: evt.Event) -> int:
        event.assoc.abort()
        return 0

    port = serve(ae, [(evt.EVT_C_STORE, abort)])
    sent = item(film(), tmp_path)
    with StoreAssociation(peer_at(port), [sent]) as association:
        assert [association.send(sent).status for _ in range(2)] == [None, None]


def test_silence_leaves_the_outcome_unknown(serve: Serve, tmp_path: Path) -> None:
    """A peer that does not answer in time: unknown."""
    ae = AE("PACS")
    ae.add_supported_context(uids.COMPUTED_RADIOGRAPHY)
    over = threading.Event()

    def wait(_: evt.Event) -> int:
        over.wait(30)
        return 0

    port = serve(ae, [(evt.EVT_C_STORE, wait)])
    sent = item(film(), tmp_path)
    with StoreAssociation(peer_at(port, timeout=0.3), [sent]) as association:
        assert association.send(sent).status is None
    over.set()


def test_says_why_there_is_no_association(node: Listening) -> None:
    """Refused connections and rejections are told in words, and can be tried again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = listener.getsockname()[1]
    with pytest.raises(PeerUnavailable, match=r"PACS at 127.0.0.1:\d+ cannot be reached: Connection refused"):
        StoreAssociation(peer_at(closed), [])
    with pytest.raises(PeerUnavailable, match="rejects the association: called AE title not recognised"):
        StoreAssociation(peer_at(node.port), [])


def test_echo_says_nothing_where_all_is_well(node: Listening) -> None:
    """C-ECHO to a peer that answers returns; to one that speaks no DICOM it raises."""
    echo(peer_at(node.port, ae_title="COVARIANCE"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(
            target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400\r\n"), daemon=True
        ).start()
        with pytest.raises(PeerUnavailable, match="does not answer an association request"):
            echo(peer_at(listener.getsockname()[1]))
