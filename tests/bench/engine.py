"""The engine alone, on all cores: what the whole way could reach if nothing else took time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.measure import Figures
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.phantom import radiograph
from worker.preprocess import to_batch, to_input
from worker.settings import WorkerSection

ROUNDS = 3
FILMS = 40


def run(figures: Figures, work: Path) -> None:
    """Measure films per second from as many threads as a worker has, and CPU time per film."""
    settings = WorkerSection(engine_cache=work / "engine")
    engine = open_engine(Bundle(settings.bundle), settings)
    pixels_B1HW = to_batch([to_input(radiograph(7))])
    rates, cpu = [], []
    with ThreadPoolExecutor(settings.concurrency) as threads:
        for _ in range(ROUNDS):
            started, used = time.monotonic(), time.process_time()
            list(threads.map(lambda _: engine.infer(pixels_B1HW), range(FILMS)))
            rates.append(FILMS / (time.monotonic() - started))
            cpu.append(1000 * (time.process_time() - used) / FILMS)
    engine.close()
    figures.add("engine.alone.rate", "films/s", rates)
    figures.add("engine.alone.cpu", "ms/film", cpu)
