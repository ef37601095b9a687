"""Which engine serves: the one of the settings, after it has shown that it is the model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Literal

from dicom_node.logs import get_logger
from worker import metrics
from worker.bundle import Bundle
from worker.engines import DeviceLost, DeviceUnavailable, Engine
from worker.engines.batching import MicroBatcher
from worker.engines.buckets import buckets_up_to
from worker.engines.openvino import OpenVinoEngine
from worker.engines.tensorrt.cuda import driver_is_here
from worker.engines.tensorrt.library import MODULES
from worker.parity import replay_golden
from worker.settings import EngineName, WorkerSection

log = get_logger("engine")

Use = Literal["serving", "shadow"]


def open_engine(bundle: Bundle, settings: WorkerSection, *, use: Use = "serving") -> Engine:
    """Open the engine and replay the golden cases; without its GPU go on on the CPU, if that is allowed.

    `use`: what the metrics say that the bundle is for.

    Raises:
        ConfigurationError: it cannot run here, or does not agree with the model.
    """
    wanted = candidates(settings.engine)
    try:
        return open_first(wanted, bundle, settings, use=use)
    except (DeviceUnavailable, DeviceLost) as error:
        if settings.fallback != "cpu" or "openvino" in wanted:
            raise DeviceUnavailable(str(error)) from None
        log.warning("engine_falls_back", wanted=wanted, why=str(error))
    engine = open_named("openvino", bundle, settings, use=use)
    # It stands in every result that comes of it.
    engine.name = f"{engine.name} in place of {wanted[0]}"
    return engine


def open_first(
    wanted: Sequence[EngineName], bundle: Bundle, settings: WorkerSection, *, use: Use = "serving"
) -> Engine:
    """Open the first engine that has its device here.

    Raises:
        ConfigurationError: none has (`DeviceUnavailable`), or it does not agree with the model.
        DeviceLost: it began to run, and failed.
    """
    *others, last = wanted
    for name in others:
        try:
            return open_named(name, bundle, settings, use=use)
        except DeviceUnavailable as error:
            log.warning("engine_passed_over", engine=name, why=str(error))
    return open_named(last, bundle, settings, use=use)


def open_named(name: EngineName, bundle: Bundle, settings: WorkerSection, *, use: Use = "serving") -> Engine:
    """Open one engine, and no other in its place, and let it pass the parity gate.

    Raises:
        ConfigurationError: it cannot run here (`DeviceUnavailable`), or does not agree with the model.
        DeviceLost: it began to run, and failed.
    """
    metrics.PARITY_PASSED.labels(use).set(0)
    metrics.PARITY_TIME.labels(use).set_to_current_time()
    metrics.PARITY_TOLERANCE.labels(use).set(bundle.manifest.golden.logit_tolerance)
    engine = _OPENERS[name](bundle, settings)
    try:
        worst = replay_golden(bundle, engine)
    except BaseException:
        engine.close()
        raise
    metrics.PARITY_PASSED.labels(use).set(1)
    metrics.PARITY_TIME.labels(use).set_to_current_time()
    metrics.PARITY_LOGIT.labels(use).set(worst)
    log.info("engine_ready", engine=engine.name, precision=engine.precision, worst_logit=round(worst, 5))
    return engine


def candidates(wanted: Literal["auto"] | EngineName) -> tuple[EngineName, ...]:
    """The engines to try for a setting, in order; for `auto` told without loading any."""
    if wanted != "auto":
        return (wanted,)
    found: list[EngineName] = []
    if driver_is_here():
        if _installed("cuda") and any(_installed(module) for module in MODULES):
            found.append("tensorrt")
        if _installed("torch") and _installed("onnx"):
            found.append("torch")
    return tuple(found) or ("openvino",)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _openvino(bundle: Bundle, settings: WorkerSection) -> Engine:
    return OpenVinoEngine(bundle, settings)


def _tensorrt(bundle: Bundle, settings: WorkerSection) -> Engine:
    from worker.engines.tensorrt.engine import open_tensorrt  # noqa: PLC0415 (only where it is wanted)

    return _batched(lambda: open_tensorrt(bundle, settings), settings)


def _torch(bundle: Bundle, settings: WorkerSection) -> Engine:
    try:
        from worker.engines.torch import open_torch  # noqa: PLC0415 (torch takes seconds to load)
    except ImportError:
        raise DeviceUnavailable(
            "torch or onnx is not installed here: `make install EXTRAS=training`, or set another engine."
        ) from None
    return _batched(lambda: open_torch(bundle, settings), settings)


def _batched(open_here: Callable[[], Engine], settings: WorkerSection) -> Engine:
    return MicroBatcher(
        open_here,
        # As large as what the engine was built for: no bucket serves that the parity gate has not tried.
        max_batch=buckets_up_to(settings.max_batch)[-1],
        max_wait=settings.max_wait_ms / 1000,
        callers=settings.concurrency,
    )


_OPENERS: dict[EngineName, Callable[[Bundle, WorkerSection], Engine]] = {
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "torch": _torch,
}
