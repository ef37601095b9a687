"""`covariance send`: files to a DICOM peer, here the stand-in PACS."""

from __future__ import annotations

import pytest
from pydicom import dcmwrite

from deploy.pacs import StandInPacs
from dicom_node.server import StorageServer
from dicom_node.settings import NodeSettings
from dicom_node.spool import Spool
from tests.dicom_node.certificates import Authority
from worker.phantom import phantom_dataset


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films" / "below"
    folder.mkdir(parents=True)
    for view in ("PA", "LL"):
        film = phantom_dataset(1, rows=256, columns=210, view=view)
        dcmwrite(folder / f"{view}.dcm", film, enforce_file_format=True)
    return folder.parent


@pytest.fixture
def pacs(tmp_path):
    with StandInPacs(tmp_path / "pacs") as running:
        yield running


def target(pacs) -> str:
    return f"127.0.0.1:{pacs.port}/{pacs.ae_title}"


def test_a_folder_is_sent(invoke, films, pacs):
    """Every DICOM file below a folder arrives, and the exit code is 0."""
    done = invoke("send", films, "--to", target(pacs))
    assert done.exit_code == 0, done.output
    assert len(pacs.held()) == 2
    assert "2 of 2 stored at STANDIN" in done.stderr


def test_a_folder_is_sent_over_tls(invoke, films, tmp_path):
    """With our certificate and the peer's authority the files go over TLS."""
    authority = Authority(tmp_path)
    ours = authority.issue()
    spool = Spool(tmp_path / "spool", minimum_free_bytes=0)
    spool.prepare()
    settings = NodeSettings(
        node={"plain": False}, tls={"enabled": True, "port": 0, **authority.issue().files}
    )
    filed = []
    server = StorageServer(settings, spool, filed.append)
    port = server.start()
    options = ["--tls", ours.authorities, "--certificate", ours.certificate, "--key", ours.key]
    done = invoke("send", films, "--to", f"127.0.0.1:{port}/COVARIANCE", *options)
    server.stop()
    assert done.exit_code == 0, done.output
    assert len(filed) == 2


def test_a_refusal_is_told_by_file(invoke, films, pacs):
    """A file that the peer refuses is named with the status, and the exit code is 1."""
    pacs.refuse_with = 0xA700
    done = invoke("send", films, "--to", target(pacs))
    assert done.exit_code == 1
    assert done.stderr.count("status 0xA700") == 2


def test_what_is_no_dicom_is_told_and_the_rest_is_sent(invoke, films, pacs):
    """A file that is no DICOM fails by itself."""
    (films / "note.txt").write_text("no film")
    cut = next(films.rglob("*.dcm")).read_bytes()[:142]
    (films / "cut.dcm").write_bytes(cut)
    done = invoke("send", films, "--to", target(pacs))
    assert done.exit_code == 1
    for name in ("note.txt", "cut.dcm"):
        assert f"{name}: not a readable DICOM file" in done.stderr
    assert len(pacs.held()) == 2


def test_a_peer_that_is_away_is_one_sentence(invoke, films):
    """Nobody at the other end is exit code 1 and says who was not reached."""
    done = invoke("send", films, "--to", "127.0.0.1:1/AWAY")
    assert done.exit_code == 1
    assert "AWAY at 127.0.0.1:1 cannot be reached" in done.stderr
