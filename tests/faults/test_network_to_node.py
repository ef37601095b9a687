"""What networks do between a sender and the node: who tries again finds the node as it was."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

from dicom_node.store_scu import Peer, PeerUnavailable, SendItem, StoreAssociation
from tests.dicom_node.build import as_part10, data_set_bytes, encoded, eventually, film
from tests.faults import proxy
from tests.faults.proxy import Proxy

TIMEOUT = 2.0
PIXELS = 400_000
IN_MID_PDU = 100_000
FAULTS = {
    "reset in mid-PDU": proxy.reset_after(IN_MID_PDU),
    "black hole": proxy.black_hole,
    "black hole in mid-PDU": proxy.black_hole_after(IN_MID_PDU),
    "response lost": proxy.STORE_RESPONSE_LOST,
    "1 byte/s": proxy.trickle,
}


@pytest.fixture
def node(listen):
    return listen(network_timeout=TIMEOUT)


@pytest.fixture
def sent(tmp_path):
    """A film, and its file."""
    content = film(PixelData=os.urandom(PIXELS))
    return content, as_part10(content, tmp_path / "film.dcm")


def with_storescu(program, port, content, path):
    patience = str(round(TIMEOUT))
    command = [program("storescu"), "-xe", "-aec", "COVARIANCE", "-ta", patience, "-td", patience]
    done = subprocess.run(
        [*command, "-to", patience, "127.0.0.1", str(port), str(path)],
        env={**os.environ, "TCP_NODELAY": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode == 0


def with_our_requestor(program, port, content, path):
    peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="MODALITY", timeout=TIMEOUT)
    item = SendItem(
        sop_class_uid=content.SOPClassUID,
        sop_instance_uid=content.SOPInstanceUID,
        transfer_syntax_uid=content.file_meta.TransferSyntaxUID,
        path=path,
    )
    try:
        with StoreAssociation(peer, [item]) as association:
            return association.send(item).status == 0x0000
    except PeerUnavailable:
        return False


@pytest.mark.parametrize("send", [with_storescu, with_our_requestor])
@pytest.mark.parametrize("fault", FAULTS)
def test_sender_tries_again_and_the_node_holds_one(node, sent, program, send, fault):
    """A sender that hears no answer sends again after the fault: one file, as it was sent, one ring."""
    content, path = sent
    with Proxy(node.port, fault=FAULTS[fault]) as between:
        assert not send(program, between.port, content, path)
        assert node.answers_echo()
        eventually(lambda: not node.parts)
        assert len(node.files) == (fault == "response lost")
        between.heal()
        assert send(program, between.port, content, path)
    (instance,) = node.spool.instances(content.StudyInstanceUID)
    received = data_set_bytes(instance.path)
    assert received.endswith(content.PixelData)
    assert hashlib.sha256(received).hexdigest() == instance.sha256
    assert [one.path for one in node.filed] == [instance.path]
    assert node.parts == []


@pytest.mark.parametrize("send", [with_storescu, with_our_requestor])
def test_slow_network_is_no_fault(node, sent, program, send):
    """Bytes that come late, but within the time that a PDU has, are taken."""
    content, path = sent
    with Proxy(node.port, fault=proxy.delay(TIMEOUT / 20)) as between:
        assert send(program, between.port, content, path)
    (file,) = node.files
    assert data_set_bytes(file).endswith(encoded(content)[-PIXELS:])
