"""Receiving over TLS 1.3 beside plain: the same node, sender and films, in turn."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.films import write_studies
from tests.bench.measure import (
    PEER_ENVIRONMENT,
    Figures,
    accepts,
    cpu_seconds,
    free_port,
    running,
    wait_until,
)
from tests.dicom_node.certificates import Authority, Identity

ROUNDS = 3
OBJECTS = 48
ASSOCIATIONS = (1, 4)
COVARIANCE = str(Path(sys.executable).with_name("covariance"))


@dataclass(frozen=True, kw_only=True)
class Node:
    """Our node with both ports open, fsync on, without broker or database behind it."""

    ports: dict[str, int]
    process: subprocess.Popen[bytes]


@contextmanager
def node(folder: Path, identity: Identity) -> Iterator[Node]:
    """A node in a process of its own."""
    ports = {"plain": free_port(), "tls": free_port()}
    files = "\n".join(f'{name} = "{path}"' for name, path in identity.files.items())
    file = folder / "covariance.toml"
    file.write_text(
        f"[node]\nport = {ports['plain']}\n[tls]\nenabled = true\nport = {ports['tls']}\n{files}\n"
        f'[spool]\npath = "{folder / "spool"}"\nminimum_free_bytes = 0\n'
        '[queue]\nurl = "redis://127.0.0.1:1/0"\n[assembly]\nquiet_seconds = 3600\ncap_seconds = 7200\n'
    )
    with running([COVARIANCE, "--config", str(file), "node"], folder / "log", port=ports["plain"]) as process:
        wait_until(lambda: accepts(ports["tls"]), seconds=60, what="the port with TLS listens")
        yield Node(ports=ports, process=process)


def speaks(port: int, modality: Identity) -> str | None:
    """The version of TLS that is agreed on there."""
    with (
        socket.create_connection(("127.0.0.1", port), 20) as bare,
        modality.client.secure(bare, "127.0.0.1") as secure,
    ):
        return secure.version()


def send(port: int, options: list[str], lanes: list[list[Path]]) -> float:
    """Send with DCMTK's storescu, one association a lane at the same time; return the seconds."""
    started = time.monotonic()
    command = ["storescu", *options, "-aec", "COVARIANCE", "127.0.0.1", str(port)]
    senders = [subprocess.Popen([*command, *map(str, lane)], env=PEER_ENVIRONMENT) for lane in lanes]
    failures = [sender.wait() for sender in senders]
    if any(failures):
        raise RuntimeError("storescu could not send everything")
    return time.monotonic() - started


def run(figures: Figures, work: Path) -> None:
    """Measure 10 MB CRs over both ports, and how much of the speed without TLS is left with it."""
    films = [study[0] for study in write_studies(work / "films", OBJECTS, salt="secure")]
    keys = work / "keys"
    keys.mkdir()
    authority = Authority(keys)
    identity, modality = authority.issue(), authority.issue()
    options = {"plain": [], "tls": modality.for_dcmtk}
    for associations in ASSOCIATIONS:
        rates: dict[str, list[float]] = {name: [] for name in options}
        cpu: dict[str, list[float]] = {name: [] for name in options}
        lanes = [films[lane::associations] for lane in range(associations)]
        for turn in range(ROUNDS):
            for name in sorted(options, reverse=bool(turn % 2)):
                folder = work / f"{name}-{associations}-{turn}"
                folder.mkdir()
                with node(folder, identity) as receiver:
                    if (version := speaks(receiver.ports["tls"], modality)) != "TLSv1.3":
                        raise RuntimeError(f"the node speaks {version}, not TLS 1.3")
                    before = cpu_seconds(receiver.process)
                    seconds = send(receiver.ports[name], options[name], lanes)
                    used = cpu_seconds(receiver.process) - before
                rates[name].append(OBJECTS / seconds)
                cpu[name].append(1000 * used / OBJECTS)
                shutil.rmtree(folder)
        where = f"secure.10mb.x{associations}"
        for name in options:
            figures.add(f"{where}.{name}", "instances/s", rates[name])
            figures.add(f"{where}.{name}.cpu", "ms/instance", cpu[name])
        # Turn by turn, so that a machine that slows down slows both sides of a ratio.
        ratios = [tls / plain for tls, plain in zip(rates["tls"], rates["plain"], strict=True)]
        figures.add(f"{where}.ratio_tls_to_plain", "times", ratios)
    shutil.rmtree(work / "films")
