"""Which engine serves: the one of the settings, after it has shown that it is the model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from dicom_node.errors import ConfigurationError
from dicom_node.logs import get_logger
from worker import metrics
from worker.bundle import Bundle
from worker.engines import DeviceLost, DeviceUnavailable, Engine
from worker.engines.batching import MicroBatcher
from worker.engines.openvino import OpenVinoEngine
from worker.engines.tensorrt.cuda import driver_is_here
from worker.engines.tensorrt.library import MODULES
from worker.parity import replay_golden
from worker.settings import EngineName, WorkerSection

log = get_logger("engine")


def open_engine(bundle: Bundle, settings: WorkerSection) -> Engine:
    """Open the engine and replay the golden cases; without its GPU go on on the CPU, if that is allowed.

    Raises:
        ConfigurationError: it cannot run here, or does not agree with the model.
    """
    name = resolve(settings.engine)
    try:
        return open_named(name, bundle, settings)
    except (DeviceUnavailable, DeviceLost) as error:
        if name == "openvino":
            raise
        if settings.fallback != "cpu":
            raise DeviceUnavailable(str(error)) from None
        log.warning("engine_falls_back", wanted=name, why=str(error))
    engine = open_named("openvino", bundle, settings)
    # It stands in every result that comes of it.
    engine.name = f"{engine.name} in place of {name}"
    return engine


def open_named(name: EngineName, bundle: Bundle, settings: WorkerSection) -> Engine:
    """Open one engine, and no other in its place, and let it pass the parity gate.

    Raises:
        ConfigurationError: it cannot run here (`DeviceUnavailable`), or does not agree with the model.
        DeviceLost: it began to run, and failed.
    """
    metrics.PARITY_PASSED.set(0)
    metrics.PARITY_TIME.set_to_current_time()
    metrics.PARITY_TOLERANCE.set(bundle.manifest.golden.logit_tolerance)
    engine = _OPENERS[name](bundle, settings)
    try:
        worst = replay_golden(bundle, engine)
    except BaseException:
        engine.close()
        raise
    metrics.PARITY_PASSED.set(1)
    metrics.PARITY_TIME.set_to_current_time()
    metrics.PARITY_LOGIT.set(worst)
    log.info("engine_ready", engine=engine.name, precision=engine.precision, worst_logit=round(worst, 5))
    return engine


def resolve(wanted: str) -> EngineName:
    """The engine that `auto` means here, told without loading any; else the one that is wanted."""
    if wanted != "auto":
        return _known(wanted)
    if not driver_is_here():
        return "openvino"
    if _installed("cuda") and any(_installed(module) for module in MODULES):
        return "tensorrt"
    return "torch" if _installed("torch") and _installed("onnx") else "openvino"


def _known(name: str) -> EngineName:
    for known in _OPENERS:
        if name == known:
            return known
    raise ConfigurationError(f"There is no engine {name}: set worker.engine to auto, {', '.join(_OPENERS)}.")


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
            "torch or onnx is not installed here: install covariance[training], or set another worker.engine."
        ) from None
    return _batched(lambda: open_torch(bundle, settings), settings)


def _batched(open_here: Callable[[], Engine], settings: WorkerSection) -> Engine:
    return MicroBatcher(
        open_here,
        max_batch=settings.max_batch,
        max_wait=settings.max_wait_ms / 1000,
        callers=settings.concurrency,
    )


_OPENERS: dict[EngineName, Callable[[Bundle, WorkerSection], Engine]] = {
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "torch": _torch,
}
