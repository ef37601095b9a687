"""The whole way: studies in, results committed by a PACS stand-in on the same machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from tests.bench.films import write_studies
from tests.bench.measure import PEER_ENVIRONMENT, Figures, cpu_seconds, free_port, running, wait_until
from worker.ledger import DeliveryState, Ledger, open_ledger
from worker.settings import Settings

STUDIES = 240
IDLE_STUDIES = 30
ENCODED = {"jpeg_lossless": JPEGLosslessSV1, "jpeg2000_lossless": JPEG2000Lossless}
ENCODED_STUDIES = 60
QUIET = 0.5
COVARIANCE = str(Path(sys.executable).with_name("covariance"))


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Node, worker, deliverer, broker and PACS stand-in, each a process."""

    port: int
    processes: dict[str, subprocess.Popen[bytes]]
    ledger: Ledger

    def cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(process) for name, process in self.processes.items()}


@contextmanager
def stack(folder: Path, *, forget: bool = False) -> Iterator[Stack]:
    """Everything in processes of its own; `forget` keeps no bytes at the PACS."""
    port, pacs, broker = free_port(), free_port(), free_port()
    file = folder / "covariance.toml"
    file.write_text(f"""
[node]
port = {port}
[spool]
path = "{folder / "spool"}"
minimum_free_bytes = 0
[assembly]
quiet_seconds = {QUIET}
[queue]
url = "redis://127.0.0.1:{broker}/0"
[database]
url = "sqlite:///{folder / "ledger.sqlite3"}"
[worker]
engine_cache = "{folder / "engine"}"
[[destinations]]
name = "pacs"
ae_title = "STANDIN"
host = "127.0.0.1"
port = {pacs}
""")
    settings = Settings(
        spool={"path": folder / "spool"},  # type: ignore[arg-type]
        database={"url": f"sqlite:///{folder / 'ledger.sqlite3'}"},  # type: ignore[arg-type]
    )
    commands = {
        "broker": (["redis-server", "--port", str(broker), "--dir", str(folder), "--save", ""], broker),
        "pacs": (
            [sys.executable, "-m", "tests.bench.standin", str(folder / "pacs"), str(pacs), str(port)]
            + ["--forget"] * forget,
            pacs,
        ),
        "node": ([COVARIANCE, "--config", str(file), "node"], port),
        "worker": ([COVARIANCE, "--config", str(file), "worker"], None),
        "deliver": ([COVARIANCE, "--config", str(file), "deliver"], None),
    }
    with ExitStack() as all_of_it:
        ledger = all_of_it.enter_context(open_ledger(settings, migrate=True))
        processes = {
            name: all_of_it.enter_context(running(command, folder / f"{name}.log", port=port))
            for name, (command, port) in commands.items()
        }
        yield Stack(port=port, processes=processes, ledger=ledger)


def send(port: int, files: list[Path], *proposal: str) -> float:
    """Send over one association; return the time of the last response.

    `proposal`: storescu's word for the transfer syntax that it proposes, where it is compressed.
    """
    command = ["storescu", *proposal, "-aec", "COVARIANCE", "127.0.0.1", str(port), *map(str, files)]
    subprocess.run(command, check=True, env=PEER_ENVIRONMENT)
    return time.time()


def committed(ledger: Ledger) -> int:
    """Studies whose SR and heatmap are both committed (each of ours has one film)."""
    states = ledger.status().deliveries.get("pacs", {})
    return states.get(DeliveryState.COMMITTED, 0) // 2


def run(figures: Figures, work: Path) -> None:
    """Throughput with CPU per station, then latency when idle."""
    folder = work / "end-to-end"
    folder.mkdir()
    with stack(folder) as system:
        warm = write_studies(folder / "films", 2, salt="warm")
        send(system.port, [file for study in warm for file in study])
        wait_until(lambda: committed(system.ledger) == 2, seconds=120, what="the first studies are committed")

        films = write_studies(folder / "films", STUDIES, salt="load")
        before, started = system.cpu(), time.monotonic()
        send(system.port, [study[0] for study in films])
        wait_until(
            lambda: committed(system.ledger) == 2 + STUDIES,
            seconds=300,
            what="all are committed",
            pause=0.25,  # each look costs what a tenth of a study costs, on the same two cores
        )
        seconds = time.monotonic() - started
        after = system.cpu()
        rate = figures.add("end_to_end.10mb.rate", "studies/s", [STUDIES / seconds])
        alone = float(figures.found["engine.alone.rate"]["value"])
        figures.add("end_to_end.10mb.share_of_engine_alone", "share", [rate / alone])
        for name in after:
            figures.add(
                f"end_to_end.10mb.cpu.{name}", "ms/study", [1000 * (after[name] - before[name]) / STUDIES]
            )

        node = psutil.Process(system.processes["node"].pid).memory_info().rss
        figures.add("end_to_end.10mb.memory.node", "MB", [node / 1e6])

        encoded = 0
        for name, syntax in ENCODED.items():
            films = write_studies(folder / "films", ENCODED_STUDIES, salt=name, transfer_syntax=syntax)
            encoded += ENCODED_STUDIES
            started = time.monotonic()
            send(system.port, [study[0] for study in films], "-xs" if name == "jpeg_lossless" else "-xv")
            wait_until(
                lambda done=2 + STUDIES + encoded: committed(system.ledger) == done,
                seconds=300,
                what="all are committed",
                pause=0.25,
            )
            rate = ENCODED_STUDIES / (time.monotonic() - started)
            figures.add(f"end_to_end.{name}.rate", "studies/s", [rate])

        latencies = []
        for number, study in enumerate(write_studies(folder / "films", IDLE_STUDIES, salt="idle"), start=1):
            last_response = send(system.port, study)
            done = 2 + STUDIES + encoded + number
            wait_until(
                lambda done=done: committed(system.ledger) == done, seconds=60, what="the study is committed"
            )
            latencies.append(time.time() - last_response - QUIET)
        cuts = statistics.quantiles(latencies, n=100, method="inclusive")
        spread = [min(latencies), max(latencies)]
        for name, value in (("p50", cuts[49]), ("p95", cuts[94]), ("p99", cuts[98])):
            figures.add(f"latency.idle.{name}", "s", [value])
            figures.found[f"latency.idle.{name}"].update(low=round(spread[0], 3), high=round(spread[1], 3))
