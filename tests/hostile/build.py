"""A node as a process of its own, conversations with it, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dicom_node import uids
from dicom_node.dimse import Command, Field, Operation
from dicom_node.negotiation import request_pdu
from dicom_node.settings import NodeSettings
from dicom_node.spool import Spool
from dicom_node.wire import PDU_HEADER, PDV_HEADER, RELEASE_RQ, Control, PduType, p_data
from tests.dicom_node.build import Listening
from tests.integration.system import COVARIANCE, Program, eventually

MARK = "SECRET"
"""In every identifier and in every other value that a test makes up."""
PATIENCE_SECONDS = 60.0
ECHO_SECONDS = 1.0
ECHO_TRIES = 5
"""The best of so many counts: the machine that tests is busy with other things, too."""

PROPOSALS = [
    (uids.COMPUTED_RADIOGRAPHY, [uids.EXPLICIT_VR_LITTLE_ENDIAN]),
    (uids.VERIFICATION, [uids.IMPLICIT_VR_LITTLE_ENDIAN]),
    (uids.STORAGE_COMMITMENT, [uids.IMPLICIT_VR_LITTLE_ENDIAN]),
]
IMAGES, ECHOES, REPORTS = 1, 3, 5  # ids of the presentation contexts
REQUEST = request_pdu(calling_ae="MODALITY", called_ae="COVARIANCE", proposals=PROPOSALS, maximum_pdu=16_384)
ECHO = Command({Field.AFFECTED_SOP_CLASS: uids.VERIFICATION, Field.COMMAND: Operation.C_ECHO_RQ})


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """A PDU of any type that announces any length."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def pdv(content: bytes, *, context: int = IMAGES, control: int = Control.COMMAND | Control.LAST) -> bytes:
    """A P-DATA PDU with one fragment."""
    return pdu(PduType.P_DATA, PDV_HEADER.pack(len(content) + 2, context, control) + content)


def command(request: Command, *, context: int = IMAGES, has_data_set: bool = True) -> bytes:
    """A command as P-DATA."""
    encoded = request.numbered(1, has_data_set=has_data_set).encode()
    return p_data(context, Control.COMMAND, encoded, 16_384)


def data_set(content: bytes, *, context: int = IMAGES) -> bytes:
    """A data set as P-DATA."""
    return p_data(context, Control(0), content, 16_384)


@dataclass
class Node(Listening):
    """`covariance node`, seen from outside."""

    program: Program | None = None
    baseline: int = 0
    """Bytes that the process took after its first good objects."""

    @property
    def pid(self) -> int:
        return self.program.process.pid

    def memory(self) -> int:
        """Resident bytes of the process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def echo_seconds(self) -> float:
        """How long an association with a C-ECHO takes; endless where it is not answered."""
        began = time.monotonic()
        answers = converse(self, REQUEST + command(ECHO, context=ECHOES, has_data_set=False), 2)
        return time.monotonic() - began if answers == ("accepted", "0000") else float("inf")

    def is_well(self) -> bool:
        """Whether it lives, holds no part of an object, and answers the next C-ECHO in time."""
        eventually(lambda: not self.parts, what="no part of an object is left")
        return self.program.process.poll() is None and any(
            self.echo_seconds() < ECHO_SECONDS for _ in range(ECHO_TRIES)
        )

    def told(self) -> Iterator[tuple[Path, str]]:
        """All that the process wrote outside of its spool."""
        folder = self.spool.root.parent
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_relative_to(self.spool.root):
                yield path, path.read_text(errors="replace")


def start_node(folder: Path, **node: object) -> Node:
    """Run `covariance node` on a free port, its broker out of reach; it is to be stopped by the caller."""
    tables = {
        "node": {"port": 0, "allowed_callers": ["MODALITY"], **node},
        "spool": {"path": str(folder / "spool"), "minimum_free_bytes": 0},
        "queue": {"url": "redis://127.0.0.1:1/0"},
        "log": {"style": "json", "level": "DEBUG"},
    }
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file = folder / "covariance.toml"
    file.write_text("\n".join(lines) + "\n")
    program = Program([COVARIANCE, "--config", str(file), "node"], folder / "node.log").start()

    def port() -> int | None:
        for line in program.output.read_text().splitlines():
            if '"listening"' in line:
                return int(json.loads(line)["port"])
        assert program.process.poll() is None, program.output.read_text()
        return None

    return Node(
        server=None,
        spool=Spool(folder / "spool"),
        port=eventually(port, what="the node listens"),
        settings=NodeSettings(**tables),
        program=program,
    )


def converse(node: Node, said: bytes, count: int) -> tuple[str, ...]:
    """Say something, and hear `count` answers; then release what is still open, and hear what else comes.

    An answer is one of `accepted`, `rejected 1,1,3`, `aborted`, `released`, and a status such as `C000`.
    """
    with node.connect() as peer:
        with contextlib.suppress(ConnectionError):  # hung up while we still spoke
            peer.sendall(said)
        heard = _listen(peer, b"", count)
        was_open = _is_open(_answers(heard))
        with contextlib.suppress(OSError):
            if was_open:
                peer.sendall(RELEASE_RQ)
                heard = _listen(peer, heard, count + 1)
            peer.shutdown(socket.SHUT_WR)
        answers = _answers(_listen(peer, heard, None))
    return answers[:-1] if was_open and answers[-1] == "released" else answers


def _is_open(answers: tuple[str, ...]) -> bool:
    return bool(answers) and not answers[-1].startswith(("rejected", "aborted", "released"))


def _listen(peer: socket.socket, heard: bytes, count: int | None) -> bytes:
    with contextlib.suppress(ConnectionError):
        while count is None or len(_answers(heard)) < count:
            piece = peer.recv(65_536)
            if not piece:
                break
            heard += piece
    return heard


def _answers(heard: bytes) -> tuple[str, ...]:
    found, response = [], b""
    while len(heard) >= PDU_HEADER.size:
        kind, length = PDU_HEADER.unpack_from(heard)
        body, heard = heard[PDU_HEADER.size :][:length], heard[PDU_HEADER.size + length :]
        if len(body) < length:
            break
        if kind == PduType.P_DATA:
            # Our node answers in commands only, one PDV a PDU.
            response += body[PDV_HEADER.size :]
            if body[5] & Control.LAST:
                found.append(f"{Command.decode(response).number(Field.STATUS):04X}")
                response = b""
        else:
            found.append(_WORDS[kind].format(*body[1:4]))
    return tuple(found)


_WORDS = {
    PduType.ASSOCIATE_AC: "accepted",
    PduType.ASSOCIATE_RJ: "rejected {},{},{}",
    PduType.ABORT: "aborted",
    PduType.RELEASE_RP: "released",
}
