"""Callers and certificates are taken up while the node runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.errors import ConfigurationError
from dicom_node.reload import Reloader
from dicom_node.requestor import Peer, PeerUnavailable, Requestor
from dicom_node.settings import CONFIGURATION_FILE, NodeSettings
from dicom_node.status import Status
from dicom_node.tls import ClientTls
from tests.dicom_node.build import eventually
from tests.dicom_node.certificates import Authority, Identity

RUN = """
from dicom_node.logs import configure_logs
from dicom_node.main import Node, run_node
from dicom_node.settings import NodeSettings, read_settings
configure_logs(style="json")
run_node(read_settings(NodeSettings), ready=lambda port: print(port, flush=True))
"""
ECHO = Command({Field.AFFECTED_SOP_CLASS: uids.VERIFICATION, Field.COMMAND: Operation.C_ECHO_RQ})


class Running:
    """A node process with TLS only, whose settings and certificates are in a folder."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.crl = ""
        self.show(identity)
        self.configure('allowed_callers = ["CT1"]')
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            env={**os.environ, "COVARIANCE_CONFIG": str(folder / "covariance.toml")},
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
        )
        self.port = int(self.process.stdout.readline())

    def configure(self, callers: str) -> None:
        """Write the settings file, as an operator does."""
        names = ("certificate", "key", "authorities")
        files = "\n".join(f'{name} = "{self.folder / name}"' for name in names)
        self.write(
            "covariance.toml",
            f"[node]\nplain = false\n{callers}\n[tls]\nenabled = true\nport = 0\n{files}\n{self.crl}\n"
            f'[spool]\npath = "{self.folder / "spool"}"\n[queue]\nurl = "redis://127.0.0.1:1/0"\n',
        )

    def show(self, identity: Identity) -> None:
        """Put the node's files in their places."""
        for name, file in identity.files.items():
            self.write(name, file.read_text())

    def write(self, name: str, text: str) -> None:
        part = self.folder / f"{name}.part"
        part.write_text(text)
        part.rename(self.folder / name)

    def associate(self, title: str, tls: ClientTls) -> Requestor:
        peer = Peer(ae_title="COVARIANCE", host="127.0.0.1", port=self.port, calling_ae=title, tls=tls)
        return Requestor(peer, [(uids.VERIFICATION, [uids.IMPLICIT_VR_LITTLE_ENDIAN])])

    def admits(self, title: str, tls: ClientTls) -> bool:
        try:
            self.associate(title, tls).release()
        except PeerUnavailable:
            return False
        return True

    def log(self) -> str:
        return (self.folder / "log").read_text()


def echo(association: Requestor) -> int | None:
    context = association.context_for(uids.VERIFICATION)
    assert context is not None
    return association.ask(context, ECHO)


@pytest.fixture
def running(tmp_path: Path, authority: Authority) -> Iterator[Running]:
    one = Running(tmp_path, authority.issue())
    yield one
    one.process.kill()
    one.process.communicate()


@pytest.fixture(scope="module")
def modality(authority: Authority) -> ClientTls:
    return authority.issue().client


@pytest.mark.parametrize("number", [None, signal.SIGHUP], ids=["by itself", "SIGHUP"])
def test_new_callers_are_taken_up(running: Running, modality: ClientTls, number: int | None) -> None:
    """Who is put on the list may send, who is taken off may not; an association that stands goes on."""
    before = running.associate("CT1", modality)
    assert not running.admits("CR2", modality)
    running.configure('callers = [{ ae_title = "CR2", addresses = ["127.0.0.0/8"] }]')
    if number is not None:
        running.process.send_signal(number)
    eventually(lambda: running.admits("CR2", modality), 60)
    assert not running.admits("CT1", modality)
    assert echo(before) == Status.SUCCESS
    before.release()


def test_a_new_certificate_is_taken_up(running: Running, modality: ClientTls, tmp_path: Path) -> None:
    """A node whose certificate and authority are replaced speaks with the new ones."""
    folder = tmp_path / "new"
    folder.mkdir()
    renewed = Authority(folder)
    newcomer = renewed.issue().client
    before = running.associate("CT1", modality)
    assert not running.admits("CT1", newcomer)
    running.show(renewed.issue())
    eventually(lambda: running.admits("CT1", newcomer), 60)
    assert not running.admits("CT1", modality)
    assert echo(before) == Status.SUCCESS
    before.release()


def test_a_revocation_is_taken_up(running: Running, authority: Authority, modality: ClientTls) -> None:
    """Who is put on the list is refused from the next handshake on, without a restart, and the others not."""
    running.write("revoked", authority.revoke().decode())
    running.crl = f'crl = "{running.folder / "revoked"}"'
    running.configure('allowed_callers = ["CT1"]')
    eventually(lambda: "access_reloaded" in running.log(), 60)
    lost = authority.issue()
    assert running.admits("CT1", lost.client)
    running.write("revoked", authority.revoke(lost.certificate).decode())
    eventually(lambda: not running.admits("CT1", lost.client), 60)
    assert running.admits("CT1", modality)
    assert "the certificate of the peer is revoked" in running.log()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("covariance.toml", "[node", "The settings file cannot be read"),
        ("covariance.toml", '[node]\ncallers = [{ ae_title = "CT1", addresses = ["x"] }]', "node.callers.0"),
        ("certificate", "no certificate", "cannot be used as a certificate"),
        ("key", "no key", "cannot be used as a certificate"),
        ("authorities", "nobody", "holds no certificate"),
        ("authorities", None, "no such file"),
    ],
)
def test_what_cannot_be_used_changes_nothing(
    running: Running, modality: ClientTls, name: str, text: str | None, said: str
) -> None:
    """A broken file is told, and those who were admitted before still are."""
    if text is None:
        (running.folder / name).unlink()
    else:
        running.write(name, text)
    eventually(lambda: said in running.log(), 60)
    assert running.admits("CT1", modality)
    assert not running.admits("CR2", modality)


def test_files_are_read_once_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file is told once, not at every look; asked for, it is read again."""
    file = tmp_path / "covariance.toml"
    file.touch()
    monkeypatch.setenv(CONFIGURATION_FILE, str(file))
    read = 0

    def broken() -> NodeSettings:
        nonlocal read
        read += 1
        raise ConfigurationError("It cannot be used.")

    reloader = Reloader(NodeSettings(), broken, lambda _: None)
    reloader.look()
    assert read == 0
    file.write_text("[node")
    reloader.look()
    reloader.look()
    assert read == 1
    reloader.look(asked=True)
    assert read == 2
