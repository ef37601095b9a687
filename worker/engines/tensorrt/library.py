"""Which TensorRT is installed, and what it says when something goes wrong."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from dicom_node.logs import get_logger
from worker.engines import DeviceUnavailable

log = get_logger("tensorrt")

MODULES = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class Library:
    """TensorRT as a module, with a logger that belongs to it."""

    trt: Any
    logger: Any
    """An `ILogger` that keeps the last error in `last_error`; TensorRT takes one in a process."""
    name: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str

    def start(self, what: str) -> Any:
        """Make a `Builder` or a `Runtime`.

        Raises:
            DeviceUnavailable: TensorRT cannot begin with this driver or card; its binding says TypeError.
        """
        self.logger.last_error = ""
        try:
            return getattr(self.trt, what)(self.logger)
        except (TypeError, RuntimeError):
            why = self.logger.last_error or "it gave no reason"
            raise DeviceUnavailable(
                f"{self.name} {self.version} does not start on this machine ({why}): see whether its CUDA "
                "and the driver fit, or set another worker.engine."
            ) from None


def find_library(*names: str) -> Library:
    """Import the first TensorRT that is here.

    Args:
        names: modules to try; none: `MODULES`.

    Raises:
        DeviceUnavailable: none is installed with its libraries.
    """
    for name in names or MODULES:
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError):
            continue
        # A namespace left behind by an uninstalled package imports, too.
        if hasattr(trt, "Builder"):
            return Library(trt=trt, logger=_logger(trt), name=name, version=str(trt.__version__))
    raise DeviceUnavailable(
        "TensorRT is not installed here: `make install EXTRAS=tensorrt`, or set another worker.engine."
    )


@cache
def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Errors are kept for the sentence that is raised, warnings go to the log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any of its threads."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = " ".join(message.split())
            elif severity == trt.ILogger.WARNING:
                log.debug("tensorrt_warning", message=message)

    return Logger()
