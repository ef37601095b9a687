"""Which engine serves: the one of the settings, after it has shown that it is the model."""

from __future__ import annotations

from dicom_node.logs import get_logger
from worker import metrics
from worker.bundle import Bundle, replay_golden
from worker.engines import Engine
from worker.engines.openvino import OpenVinoEngine
from worker.settings import WorkerSection

log = get_logger("engine")


def open_engine(bundle: Bundle, settings: WorkerSection) -> Engine:
    """Open the engine and replay the golden cases.

    Raises:
        ConfigurationError: it cannot run here, or does not agree with the model.
    """
    metrics.PARITY_PASSED.set(0)
    metrics.PARITY_TIME.set_to_current_time()
    metrics.PARITY_TOLERANCE.set(bundle.manifest.golden.logit_tolerance)
    engine = OpenVinoEngine(bundle, settings)
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
