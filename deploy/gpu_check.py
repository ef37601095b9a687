"""`covariance gpu-check`: build, parity and benchmark of every engine that runs on this machine.

What cannot run is named with its reason; no figure is made up for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from dicom_node.errors import ConfigurationError, CovarianceError
from dicom_node.logs import configure_logs
from worker import preprocess
from worker.bundle import Bundle
from worker.engines import DeviceUnavailable, Engine
from worker.engines.select import candidates, open_first, open_named
from worker.engines.tensorrt.cuda import Card, Cuda
from worker.model_store import open_bundle_in_use
from worker.parity import Parity, measure_parity
from worker.settings import EngineName, Settings

ENGINES: tuple[EngineName, ...] = ("tensorrt", "torch", "openvino")
ON_GPU = ENGINES[:2]
_CPU_BATCHES = (1, 8)
_FEWEST_ROUNDS = 5
ROOFLINES = {
    "H100": "compute 141,000-173,000 images/s; memory 69,000 with normalisation fused into the convolutions, "
    "37,000 with a pass of its own, 15,700 eager. Goal: 16,000 from batch 32, 1.5 ms at batch 1."
}
"""Bounds for DenseNet-121 at 224 x 224 (2.83 GMAC an image), calculated, by a word in the card's name."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one batch size reaches, copies to and from the device included."""

    batch: int
    images_per_second: float
    p50_ms: float
    """Median time of one batch."""
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """What came of one engine."""

    wanted: EngineName
    engine: str = ""
    precision: str = ""
    open_seconds: float = 0.0
    """Until it serves: load or build, and pass the parity gate."""
    parity: Parity | None = None
    """Against torch in float32 on the bundle's golden cases; None when it did not run."""
    rates: tuple[Rate, ...] = ()
    why_not: str = ""
    refused: bool = False
    """Whether it runs here and does not agree with the model."""


def build_engine(settings: Settings) -> None:
    """Open the engine of the settings, which fills its cache, and say how it agrees with the model.

    Raises:
        ConfigurationError: it cannot run here, or does not agree.
    """
    configure_logs(level="INFO", style=settings.log.style)
    bundle = open_bundle_in_use(settings.worker)
    started = time.monotonic()
    engine = open_first(candidates(settings.worker.engine), bundle, settings.worker)
    seconds = time.monotonic() - started
    try:
        parity = measure_parity(bundle, engine)
    finally:
        engine.close()
    Console().print(
        f"{engine.name} ({engine.precision}) is ready in {settings.worker.engine_cache} after {seconds:.1f} "
        f"s. From the model it is off by {parity.logit:.4f} in a logit and {parity.cam:.4f} in a map at most."
    )


def check_engines(settings: Settings, *, seconds: float, as_json: bool) -> int:
    """Check each engine, print the table, and return the exit code.

    Args:
        settings: bundle, cache and batch size are taken from there.
        seconds: how long to measure each batch size.
        as_json: print one JSON document, and no table.
    """
    configure_logs(level="ERROR", style=settings.log.style)
    bundle = open_bundle_in_use(settings.worker)
    card, no_card = _card()
    console = Console(stderr=as_json)
    console.print(f"GPU: {_told(card)}" if card else f"No GPU: {no_card}", soft_wrap=True)
    checks = []
    for name in ENGINES:
        console.print(f"[dim]{name} ...[/dim]")
        checks.append(check_engine(name, bundle, settings, seconds=seconds))
    if as_json:
        told = {"card": asdict(card) if card else None, "engines": [asdict(check) for check in checks]}
        print(json.dumps(told, indent=2))  # noqa: T201 (the answer)
    else:
        _print(console, checks, card)
    on_gpu = any(check.rates for check in checks if check.wanted in ON_GPU)
    return 0 if on_gpu and not any(check.refused for check in checks) else 1


def check_engine(name: EngineName, bundle: Bundle, settings: Settings, *, seconds: float) -> EngineCheck:
    """Build, check and measure one engine; what goes wrong is in the answer."""
    section = settings.worker
    if name in ON_GPU:
        # One caller at a time: nothing else can come, and the batcher waits for nobody.
        section = section.model_copy(update={"concurrency": 1})
    started = time.monotonic()
    try:
        engine = open_named(name, bundle, section)
    except CovarianceError as error:
        refused = isinstance(error, ConfigurationError) and not isinstance(error, DeviceUnavailable)
        return EngineCheck(wanted=name, why_not=str(error), refused=refused)
    opened = time.monotonic() - started
    try:
        batches = engine.batches if name in ON_GPU else _CPU_BATCHES
        return EngineCheck(
            wanted=name,
            engine=engine.name,
            precision=engine.precision,
            open_seconds=opened,
            parity=measure_parity(bundle, engine),
            rates=tuple(_measure(engine, bundle, batches, seconds)),
        )
    except CovarianceError as error:
        return EngineCheck(wanted=name, engine=engine.name, why_not=str(error), refused=True)
    finally:
        engine.close()


def _measure(engine: Engine, bundle: Bundle, batches: Iterable[int], seconds: float) -> Iterable[Rate]:
    films_B1HW = preprocess.to_batch(list(bundle.golden()[0]))
    for batch in batches:
        pixels_B1HW = films_B1HW[np.arange(batch) % len(films_B1HW)]
        engine.infer(pixels_B1HW)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < _FEWEST_ROUNDS or time.perf_counter() - began < seconds:
            started = time.perf_counter()
            engine.infer(pixels_B1HW)
            times.append(time.perf_counter() - started)
        p50, p99 = np.percentile(times, (50, 99)) * 1000
        rate = batch * len(times) / (time.perf_counter() - began)
        yield Rate(batch=batch, images_per_second=float(rate), p50_ms=float(p50), p99_ms=float(p99))


def _card() -> tuple[Card | None, str]:
    try:
        return Cuda().card(), ""
    except DeviceUnavailable as error:
        return None, str(error)


def _told(card: Card) -> str:
    memory = card.memory_bytes / 2**30
    return f"{card.name}, SM {card.compute_capability}, {memory:.0f} GiB, driver {card.driver}"


def _print(console: Console, checks: Iterable[EngineCheck], card: Card | None) -> None:
    columns = ("engine", "batch", "images/s", "p50 ms", "p99 ms", "logit off", "map off", "ready s")
    table = Table(*columns, box=None)
    for check in checks:
        if check.parity is None:
            console.print(f"{check.wanted}: not run. {check.why_not}", soft_wrap=True, highlight=False)
            continue
        parity = (f"{check.parity.logit:.4f}", f"{check.parity.cam:.4f}", f"{check.open_seconds:.1f}")
        name = f"{check.engine}, {check.precision}"
        for rate in check.rates:
            figures = (f"{rate.images_per_second:,.1f}", f"{rate.p50_ms:.2f}", f"{rate.p99_ms:.2f}")
            table.add_row(name, str(rate.batch), *figures, *parity)
            name, parity = "", ("", "", "")
    console.print(table)
    if card:
        known = [text for word, text in ROOFLINES.items() if word in card.name]
        console.print(f"Bounds: {known[0]}" if known else "Bounds of this card are not known here.")
    console.print("Off: from torch in float32 at worst, over golden cases and batch sizes.")
