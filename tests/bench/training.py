"""`make bench-train`: what training costs at each freeze point, and what keeping the frozen part saves."""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tests.bench.measure import Figures
from training.device import Device, best_device, ready_to_train
from training.films import datasets
from training.networks.densenet import DenseNet121
from training.networks.freeze import Frozen
from training.sweep.systems import report_systems
from worker.phantom import radiograph

RESULT = Path("build/bench-train.json")
ROUNDS = 3


def main() -> None:
    asked = _arguments()
    console, figures, device = Console(width=110), Figures(), best_device()
    torch.manual_seed(0)
    films_BHW = (torch.rand(asked.batch, asked.size, asked.size) * 255).to(torch.uint8)
    model = DenseNet121()
    device.place(model)
    forward = _rate(device, len(films_BHW), lambda: _forward(model, films_BHW, device))
    figures.add("train.forward.rate", "films/s", forward)
    figures.add("train.load.rate", "films/s", _loading(asked.size))
    table = Table("trainable", "films/s", "films/s, cached", "gain", "train / forward")
    for system in report_systems():
        if system.network != "densenet-121":
            continue
        with console.status(f"{system.title} ..."):
            plain, cached = _training(system.trainable, films_BHW, device)
        name = f"train.{system.trainable:03d}"
        rate = figures.add(f"{name}.rate", "films/s", plain)
        kept = figures.add(f"{name}.cached.rate", "films/s", cached) if cached else None
        gain = f"{kept / rate:.1f}" if kept else "-"
        share = (kept or rate) / sorted(forward)[len(forward) // 2]
        table.add_row(
            str(system.trainable), f"{rate:.1f}", f"{kept:.1f}" if kept else "-", gain, f"{share:.2f}"
        )
    console.print(f"{device.name}, {device.precision}, batch {asked.batch}, {asked.size} pixels")
    console.print(table)
    loading, passing = (figures.found[f"train.{name}.rate"]["value"] for name in ("load", "forward"))
    console.print(f"Forward {passing:.1f} films/s; reading and shrinking films, once, {loading:.1f} films/s.")
    figures.write(RESULT)
    console.print(f"Written to {RESULT}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320, help="side of the films in pixels")
    parser.add_argument("--batch", type=int, default=16 if torch.cuda.is_available() else 4)
    return parser.parse_args()


def _rate(device: Device, films: int, work: Callable[[], None]) -> list[float]:
    work()  # the first time allocates
    rates = []
    for _ in range(ROUNDS):
        started = time.monotonic()
        work()
        if device.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(films / (time.monotonic() - started))
    return rates


@torch.inference_mode()
def _forward(model: nn.Module, films_BHW: Tensor, device: Device) -> None:
    model.eval()
    with device.autocast():
        model(device.pixels(films_BHW))


def _training(trainable: int, films_BHW: Tensor, device: Device) -> tuple[list[float], list[float]]:
    """Films per second with everything computed anew, and with the frozen part kept (empty: none is)."""
    frozen = Frozen(DenseNet121(), trainable)
    device.place(frozen)
    frozen.train()
    optimiser = torch.optim.Adam([p for p in frozen.parameters() if p.requires_grad])

    def step(network: nn.Module, taken: Callable[[], Tensor]) -> None:
        optimiser.zero_grad(set_to_none=True)
        with device.autocast():
            loss = network(taken()).float().square().mean()
        loss.backward()
        optimiser.step()

    plain = _rate(device, len(films_BHW), lambda: step(frozen, lambda: device.pixels(films_BHW)))
    if not frozen.cached:
        return plain, []
    with torch.no_grad(), device.autocast():
        kept = frozen.prefix(device.pixels(films_BHW))
    return plain, _rate(device, len(films_BHW), lambda: step(frozen.suffix, lambda: kept))


def _loading(size: int) -> list[float]:
    """Films per second from JPEG to the network's size, without the digest's cache."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        film_HW = cv2.normalize(radiograph(7, rows=640, columns=512), None, 0, 255, cv2.NORM_MINMAX)
        content = cv2.imencode(".jpg", film_HW.astype("uint8"))[1].tobytes()
        (data / "film.jpg").write_bytes(content)
        record = {"file": "film.jpg", "target": "covid", "split": "train", "patient_group": "1"}
        record |= dict.fromkeys(("origin", "licence", "licence_class", "label", "view"), "")
        record |= {"srcbal": "0", "seedlike": "0", "sha256": hashlib.sha256(content).hexdigest()}
        with (data / datasets.CATALOGUE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(record))
            writer.writeheader()
            writer.writerows([record] * 50)
        rates = []
        for attempt in range(ROUNDS):
            rows = datasets.read_rows(data, guarded=False)
            started = time.monotonic()
            datasets.load_plain(data, rows, size, data / str(attempt))
            rates.append(len(rows) / (time.monotonic() - started))
    return rates


with ready_to_train():
    main()
