"""Receiving: our node beside DCMTK's storescp and Orthanc, same sender, same films, in turn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.films import write_studies
from tests.bench.measure import PEER_ENVIRONMENT, Figures, cpu_seconds, free_port, running

ROUNDS = 3
OBJECTS = 48
COVARIANCE = str(Path(sys.executable).with_name("covariance"))


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A running receiver."""

    port: int
    ae_title: str
    process: subprocess.Popen[bytes]


@contextmanager
def covariance(folder: Path) -> Iterator[Receiver]:
    """Our node, fsync on, without broker or database behind it."""
    port = free_port()
    file = folder / "covariance.toml"
    file.write_text(
        f'[node]\nport = {port}\n[spool]\npath = "{folder / "spool"}"\nminimum_free_bytes = 0\n'
        '[queue]\nurl = "redis://127.0.0.1:1/0"\n[assembly]\nquiet_seconds = 3600\ncap_seconds = 7200\n'
    )
    with running([COVARIANCE, "--config", str(file), "node"], folder / "log", port=port) as process:
        yield Receiver(port=port, ae_title="COVARIANCE", process=process)


@contextmanager
def storescp(folder: Path) -> Iterator[Receiver]:
    """DCMTK, one process an association; it does not fsync."""
    port, store = free_port(), folder / "store"
    store.mkdir()
    command = ["storescp", "--fork", "-od", str(store), "-aet", "STORESCP", str(port)]
    with running(command, folder / "log", port=port) as process:
        yield Receiver(port=port, ae_title="STORESCP", process=process)


@contextmanager
def orthanc(folder: Path) -> Iterator[Receiver]:
    """Orthanc as Debian ships it, fsync on (its default), no REST server."""
    port = free_port()
    file = folder / "orthanc.json"
    file.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "DicomAet": "ORTHANC",
                "DicomPort": port,
                "HttpServerEnabled": False,
                "DicomAlwaysAllowStore": True,
                "SyncStorageArea": True,
            }
        )
    )
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    with running([program, str(file)], folder / "log", port=port) as process:
        yield Receiver(port=port, ae_title="ORTHANC", process=process)


RECEIVERS: dict[str, Callable[[Path], object]] = {
    "covariance": covariance,
    "storescp_fork": storescp,
    "orthanc": orthanc,
}


def send(receiver: Receiver, lanes: list[list[Path]]) -> float:
    """Send with DCMTK's storescu, one association a lane at the same time; return the seconds."""
    started = time.monotonic()
    senders = [
        subprocess.Popen(
            ["storescu", "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port), *map(str, lane)],
            env=PEER_ENVIRONMENT,
        )
        for lane in lanes
    ]
    failures = [sender.wait() for sender in senders]
    if any(failures):
        raise RuntimeError("storescu could not send everything")
    return time.monotonic() - started


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, and how."""

    name: str
    size: str
    associations: int
    images: int = 1
    objects: int = OBJECTS


LOADS = (
    Load(name="10mb.x1", size="10mb", associations=1),
    Load(name="10mb.x4", size="10mb", associations=4),
    Load(name="10mb.x8", size="10mb", associations=8),
    Load(name="10mb.pairs.x8", size="10mb", associations=8, images=2),
    Load(name="0.5mb.x4", size="0.5mb", associations=4, objects=400),
)
"""Associations side by side; `pairs` are studies of two images."""


def run(figures: Figures, work: Path) -> None:
    """Measure every load on every receiver, rotating the receivers."""
    for load in LOADS:
        films = work / "films"
        studies = write_studies(
            films, load.objects // load.images, images=load.images, size=load.size, salt=load.name
        )
        lanes = [
            [file for study in studies[lane :: load.associations] for file in study]
            for lane in range(load.associations)
        ]
        _compare(figures, load, lanes, work)
        shutil.rmtree(films)


def _compare(figures: Figures, load: Load, lanes: list[list[Path]], work: Path) -> None:
    rates: dict[str, list[float]] = {name: [] for name in RECEIVERS}
    cpu: dict[str, list[float]] = {name: [] for name in RECEIVERS}
    for turn in range(ROUNDS):
        names = list(RECEIVERS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            folder = work / f"{name}-{load.name}-{turn}"
            folder.mkdir()
            with RECEIVERS[name](folder) as receiver:  # type: ignore[attr-defined]
                before = cpu_seconds(receiver.process)
                seconds = send(receiver, lanes)
                used = cpu_seconds(receiver.process) - before
            rates[name].append(load.objects / seconds)
            cpu[name].append(1000 * used / load.objects)
            shutil.rmtree(folder)
    for name in RECEIVERS:
        figures.add(f"ingest.{load.name}.{name}", "instances/s", rates[name])
        figures.add(f"ingest.{load.name}.{name}.cpu", "ms/instance", cpu[name])
    for peer in ("orthanc", "storescp_fork"):
        # Turn by turn, so that a machine that slows down slows both sides of a ratio.
        ratios = [ours / theirs for ours, theirs in zip(rates["covariance"], rates[peer], strict=True)]
        figures.add(f"ingest.{load.name}.ratio_to_{peer}", "times", ratios)
    less = [ours / theirs for ours, theirs in zip(cpu["covariance"], cpu["orthanc"], strict=True)]
    figures.add(f"ingest.{load.name}.cpu_ratio_to_orthanc", "times", less)
