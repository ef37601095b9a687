"""How a worker ends when its device is lost: in order, so that its studies go to another at once.

After a CUDA error nothing on the device can be trusted any more in this process. A new one may well work,
and if it finds no device, `worker.fallback` says what then.
"""

from __future__ import annotations

import os
import signal
import threading

from dicom_node.logs import get_logger
from worker.engines import DeviceLost

log = get_logger("worker")

GRACE_SECONDS = 30.0
"""How long the process may take to end by itself; a driver that hangs would never let it."""
EXIT_CODE = 1
"""As after every other failure: the supervisor starts the worker again."""


class Ending:
    """Ends this process once, whichever of its threads notices first."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._lock = threading.Lock()
        self.cause: DeviceLost | None = None
        """What ends the process; None while nothing does."""

    def begin(self, cause: DeviceLost) -> None:
        """Take no more studies, give back those in hand, and end."""
        with self._lock:
            if self.cause is not None:
                return
            self.cause = cause
        log.error("worker_ends", why=str(cause))
        timer = threading.Timer(self._grace_seconds, os._exit, (EXIT_CODE,))
        timer.daemon = True
        timer.start()
        # Celery stops in order at a SIGTERM, and only its main thread can.
        os.kill(os.getpid(), signal.SIGTERM)
