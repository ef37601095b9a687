"""What a process that is started by itself has loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dicom_node.store_scu import Peer, echo
from tests.deploy.conftest import clean_environment
from tests.integration.system import COVARIANCE, accepts, eventually, free_port


@pytest.fixture
def node(tmp_path):
    """A node, as `covariance node` runs it: its process and its port."""
    port, file = free_port(), tmp_path / "covariance.toml"
    file.write_text(
        f'[node]\nport = {port}\n[spool]\npath = "{tmp_path / "spool"}"\n[queue]\nurl = "redis://127.0.0.1:1/0"\n'
    )
    command = [COVARIANCE, "--config", str(file), "node"]
    with subprocess.Popen(command, env=clean_environment()) as process:
        try:
            eventually(lambda: accepts(port), what="the node listens")
            yield process, port
        finally:
            process.terminate()


def test_the_node_has_no_array_library_in_its_memory(node):
    """It is there for headers: no arrays, no pictures, no HTTP, no certificates that nobody asked for."""
    process, port = node
    echo(Peer(ae_title="COVARIANCE", host="127.0.0.1", port=port, calling_ae="TEST", timeout=20.0, tls=None))
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert "pydantic_core" in loaded
    for package in ("/numpy/", "/PIL/", "/cryptography/", "/charset_normalizer/"):
        assert package not in loaded
