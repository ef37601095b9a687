"""Figures with their spread, and the CPU time of whole process trees."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# Debian's DCMTK and Orthanc write header and body of a PDU apart and leave Nagle on: without this
# the comparison would be with a stall of 40 ms an object.
PEER_ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


@dataclass
class Figures:
    """What one run of the benchmark has found: name -> value, unit, low, high."""

    found: dict[str, dict[str, float | str]] = field(default_factory=dict)

    def add(self, name: str, unit: str, samples: Sequence[float]) -> float:
        """Keep the median of the samples with the lowest and the highest."""
        value = statistics.median(samples)
        self.found[name] = {
            "value": round(value, 3),
            "unit": unit,
            "low": round(min(samples), 3),
            "high": round(max(samples), 3),
        }
        return value

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.found, indent=2) + "\n")


def cpu_seconds(process: subprocess.Popen[bytes] | psutil.Process) -> float:
    """CPU seconds of the process, its living children and those that it has waited for."""
    total = 0.0
    root = psutil.Process(process.pid)
    for one in (root, *root.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(probe: Callable[[], object], *, seconds: float, what: str, pause: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    command: Sequence[str], log: Path, *, port: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on `port`, ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment or PEER_ENVIRONMENT
        )
    try:
        if port is not None:
            wait_until(lambda: accepts(port), seconds=60, what=f"{Path(command[0]).name} listens")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
