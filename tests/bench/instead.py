"""Instead of CoVariance: Orthanc receives, and a script polls it and scores in plain PyTorch."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.films import write_studies
from tests.bench.ingest import Receiver, send
from tests.bench.measure import Figures, cpu_seconds, free_port, running, wait_until

STUDIES = 24
IDLE_STUDIES = 10
_FILM_TO_COUNT = 2  # the film and its capture


def run(figures: Figures, work: Path) -> None:
    """Throughput with CPU, then latency when idle; ratios to the whole way, if that was measured."""
    folder = work / "instead"
    folder.mkdir()
    with _orthanc(folder) as (orthanc, http_port):
        command = [sys.executable, "-m", "tests.bench.polling_script", str(http_port)]
        with running(command, folder / "script.log") as script:

            def scored(studies: int, seconds: float) -> None:
                wait_until(
                    lambda: _instances(http_port) == _FILM_TO_COUNT * studies,
                    seconds=seconds,
                    what=f"{studies} studies have their capture",
                    pause=0.02,
                )

            send(orthanc, [write_studies(folder / "films", 1, salt="script-warm")[0]])
            scored(1, 120)
            films = [study[0] for study in write_studies(folder / "films", STUDIES, salt="script-load")]
            before, started = [cpu_seconds(one) for one in (orthanc.process, script)], time.monotonic()
            send(orthanc, [films])
            scored(1 + STUDIES, 600)
            rate = figures.add(
                "instead.script.10mb.rate", "studies/s", [STUDIES / (time.monotonic() - started)]
            )
            after = [cpu_seconds(one) for one in (orthanc.process, script)]
            for name, used in zip(
                ("orthanc", "script"), (b - a for a, b in zip(before, after, strict=True)), strict=True
            ):
                figures.add(f"instead.script.10mb.cpu.{name}", "ms/study", [1000 * used / STUDIES])
            latencies = []
            idle = write_studies(folder / "films", IDLE_STUDIES, salt="script-idle")
            for number, study in enumerate(idle, start=1):
                send(orthanc, [study])
                last_response = time.monotonic()
                scored(1 + STUDIES + number, 60)
                latencies.append(time.monotonic() - last_response)
            p50 = figures.add("instead.script.latency.idle.p50", "s", [statistics.median(latencies)])
    ours = figures.found
    if "end_to_end.10mb.rate" in ours:
        figures.add(
            "end_to_end.10mb.ratio_to_script", "times", [float(ours["end_to_end.10mb.rate"]["value"]) / rate]
        )
        figures.add("latency.idle.ratio_to_script", "times", [float(ours["latency.idle.p50"]["value"]) / p50])
    shutil.rmtree(folder)


def _instances(http_port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/statistics", timeout=30) as response:
        return int(json.loads(response.read())["CountInstances"])


@contextmanager
def _orthanc(folder: Path) -> Iterator[tuple[Receiver, int]]:
    """Orthanc as Debian ships it, fsync on, with its REST server."""
    port, http_port, file = free_port(), free_port(), folder / "orthanc.json"
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "SyncStorageArea": True,
        "KeepAlive": True,
        "TcpNoDelay": True,
    }
    file.write_text(json.dumps(settings))
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    with running([program, str(file)], folder / "log", port=http_port) as process:
        yield Receiver(port=port, ae_title="ORTHANC", process=process), http_port
