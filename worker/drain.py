"""Draining: workers are told over the broker to take no more studies, to finish theirs, and to end."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from celery.worker.control import control_command

from dicom_node.logs import get_logger

log = get_logger("drain")

DRAIN = "covariance_drain"
"""Name of the remote command; `stay_down` says that no supervisor is to start the worker again."""
DRAINED_EXIT = 3
"""Exit code of a worker that is to stay down."""

_stays_down = threading.Event()


@control_command(name=DRAIN, args=[("stay_down", bool)])  # type: ignore[untyped-decorator]
def drain(state: Any, stay_down: bool = True) -> dict[str, str]:  # noqa: ARG001 (the protocol of Celery)
    """Within a worker: end as on SIGTERM, after the studies in progress."""
    if stay_down:
        _stays_down.set()
    log.info("draining", stays_down=stay_down)
    os.kill(os.getpid(), signal.SIGTERM)
    return {"ok": "draining"}


def stays_down() -> bool:
    """Whether this process was told to end and stay down."""
    return _stays_down.is_set()
