"""The commands of deploy/runbooks/access.md make what the node takes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from dicom_node.tls import ClientTls
from tests.dicom_node.build import Listening
from tests.dicom_node.test_revocation import is_admitted

RUNBOOK = Path(__file__).parents[2] / "deploy" / "runbooks" / "access.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE)


def test_what_the_runbook_says_works(
    listen: Callable[..., Listening], program: Callable[[str], str], tmp_path: Path
) -> None:
    """A peer that is made as written is let in by a node that is; revoked as written it is not."""
    program("openssl")
    authority, peer, revoke = BLOCKS

    def follow(commands: str) -> str:
        run = ["sh", "-e", "-c", commands]
        return subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    follow(authority)
    follow(peer.replace("ct1", "node").replace("DNS:node.hospital.example", "IP:127.0.0.1"))
    fingerprint = follow(peer).strip().partition("=")[2]
    files = {name: tmp_path / file for name, file in (("certificate", "node.pem"), ("key", "node.key"))}
    tls = {"enabled": True, "port": 0, "authorities": tmp_path / "authorities.pem", **files}
    modality = ClientTls(
        authorities=tmp_path / "authorities.pem", certificate=tmp_path / "ct1.pem", key=tmp_path / "ct1.key"
    )
    callers = [{"ae_title": "MODALITY", "certificate_sha256": fingerprint}]
    assert is_admitted(listen(callers=callers, tls=tls), modality)
    assert follow(revoke).startswith("nextUpdate=")
    assert not is_admitted(listen(callers=callers, tls={**tls, "crl": tmp_path / "revoked.pem"}), modality)
