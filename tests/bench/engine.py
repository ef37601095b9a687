"""The engine alone, on all cores: what the whole way could reach if nothing else took time."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.bench.measure import Figures
from training.bundle.quantise import quantise
from worker.bundle import Bundle
from worker.engines.select import open_engine
from worker.engines.torch_network import Network
from worker.phantom import radiograph
from worker.preprocess import to_batch, to_input
from worker.settings import WorkerSection

ROUNDS = 3
FILMS = 40
_EIGHT_BITS = {"engine": "openvino", "engine_precision": "int8"}


def run(figures: Figures, work: Path) -> None:
    """Films per second from as many threads as a worker has, beside eight bits and plain PyTorch."""
    settings = WorkerSection(engine_cache=work / "engine")
    bundle = Bundle(settings.bundle)
    pixels_B1HW = to_batch([to_input(radiograph(7))])
    eight_bits, directory = settings.model_copy(update=_EIGHT_BITS), work / "eight-bits"
    shutil.copytree(settings.bundle, directory)
    quantise(directory, np.stack([to_input(radiograph(seed, rows=625, columns=512)) for seed in range(8)]))
    alone, cpu = _measure(bundle, settings, pixels_B1HW)
    figures.add("engine.alone.rate", "films/s", alone)
    figures.add("engine.alone.cpu", "ms/film", cpu)
    small, cpu = _measure(Bundle(directory), eight_bits, pixels_B1HW)
    figures.add("engine.int8.rate", "films/s", small)
    figures.add("engine.int8.cpu", "ms/film", cpu)
    figures.add("engine.int8.ratio_to_alone", "times", [a / b for a, b in zip(small, alone, strict=True)])
    plain = _plain_pytorch(bundle, pixels_B1HW)
    figures.add("engine.pytorch.rate", "films/s", plain)
    figures.add("engine.ratio_to_pytorch", "times", [a / b for a, b in zip(alone, plain, strict=True)])


def _measure(
    bundle: Bundle, settings: WorkerSection, pixels_B1HW: NDArray[np.float32]
) -> tuple[list[float], list[float]]:
    engine = open_engine(bundle, settings)
    rates, cpu = [], []
    with ThreadPoolExecutor(settings.concurrency) as threads:
        for _ in range(ROUNDS):
            started, used = time.monotonic(), time.process_time()
            list(threads.map(lambda _: engine.infer(pixels_B1HW), range(FILMS)))
            rates.append(FILMS / (time.monotonic() - started))
            cpu.append(1000 * (time.process_time() - used) / FILMS)
    engine.close()
    return rates, cpu


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
