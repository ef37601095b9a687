"""The engine alone, on all cores: what the whole way could reach if nothing else took time."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.measure import Figures
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.engines.torch_network import Network
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
    plain = _plain_pytorch(Bundle(settings.bundle), pixels_B1HW)
    figures.add("engine.pytorch.rate", "films/s", plain)
    figures.add("engine.ratio_to_pytorch", "times", [statistics.median(rates) / one for one in plain])


def _plain_pytorch(bundle: Bundle, pixels_B1HW: NDArray[np.float32]) -> list[float]:
    """Films a second of the same network in eager float32 on all cores, film by film as they come."""
    network = Network(bundle.model(), torch.device("cpu"), torch.float32)
    films = torch.from_numpy(pixels_B1HW)
    rates = []
    with torch.inference_mode():
        network(films)
        for _ in range(ROUNDS):
            started = time.monotonic()
            for _ in range(FILMS // 2):
                network(films)
            rates.append(FILMS // 2 / (time.monotonic() - started))
    return rates
