"""`covariance demo` from the first to the last line."""

from __future__ import annotations

import json

import cv2
import pytest
from pydicom import dcmwrite

from deploy.pacs import StandInPacs
from deploy.up import usable_port
from dicom_node.errors import ConfigurationError
from worker.phantom import phantom_dataset, radiograph

SIZE = {"rows": 640, "columns": 520}


@pytest.fixture
def films(tmp_path):
    """A study with two films, a picture, and a file that is neither."""
    folder = tmp_path / "films"
    folder.mkdir()
    for view in ("PA", "LL"):
        film = phantom_dataset(1, view=view, **SIZE)
        dcmwrite(folder / f"{view}.dcm", film, enforce_file_format=True)
    (folder / "note.txt").write_text("no film")
    cv2.imwrite(str(folder / "film.png"), radiograph(2, bits=8, **SIZE).astype("uint8"))
    return folder


def test_every_result_is_committed(covariance, films, tmp_path):
    """Films of one's own are scored and proven: exit code 0, an overlay a frontal film, a table."""
    done = covariance("demo", "--studies", str(films), seconds=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 studies are in the PACS, proven" in done.stdout
    assert "Left out, no DICOM, PNG or JPEG that can be read: 1" in done.stdout
    assert len(list((tmp_path / "build" / "demo" / "overlays").glob("*.png"))) == 2
    status = covariance("--config", "build/demo/covariance.toml", "status", "--json")
    state = json.loads(status.stdout)
    assert state["images"] == {"pending": 0, "scored": 2, "by_policy": 1, "quarantined": 0}
    assert state["deliveries"] == {"pacs": {"committed": 4}}


def test_without_proof_nothing_is_called_proven(covariance, films):
    """With `--verify none` stored is the end, and the demo says neither proven nor committed."""
    done = covariance("demo", "--studies", str(films / "film.png"), "--verify", "none", seconds=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 studies are in the PACS, without proof" in done.stdout
    assert "committed" not in done.stdout


def test_a_result_that_is_not_committed_fails_the_demo(covariance, films, tmp_path):
    """A PACS that stores and never commits: exit code 1, and the table says no proof."""
    with StandInPacs(tmp_path / "pacs") as pacs:
        pacs.silent = True
        port = usable_port("127.0.0.1", 0)
        target = f"127.0.0.1:{pacs.port}/{pacs.ae_title}"
        done = covariance(
            *("demo", "--studies", str(films / "film.png"), "--pacs", target, "--patience", "10"),
            seconds=280,
            COVARIANCE_NODE__PORT=str(port),
            COVARIANCE_NODE__HOST="127.0.0.1",
        )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 of 1 studies are in the PACS" in done.stdout


def test_a_folder_with_other_things_is_left_alone(covariance, tmp_path):
    """The demo removes nothing that it has not made."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    done = covariance("demo", "--folder", "mine")
    assert done.returncode == 2
    assert (tmp_path / "mine" / "precious").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COVARIANCE_DATABASE__URL", "postgresql://hospital/ledger"),
        ("COVARIANCE_QUEUE__URL", "redis://hospital/0"),
        ("COVARIANCE_SPOOL__PATH", "/srv/hospital"),
    ],
)
def test_the_demo_does_not_join_a_real_site(tmp_path, monkeypatch, variable, value):
    """A variable goes before the demo's own file: its phantoms would get into a hospital's ledger."""
    from deploy.demo import _configure
    from dicom_node.settings import CONFIGURATION_FILE, NodeSection
    from dicom_node.store_scu import Peer

    monkeypatch.setenv(CONFIGURATION_FILE, "")
    peer = Peer(ae_title="STANDIN", host="127.0.0.1", port=1, calling_ae="US")
    _configure(tmp_path, NodeSection(), peer, verify="commitment")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match="must not touch a real site"):
        _configure(tmp_path, NodeSection(), peer, verify="commitment")
