"""Logs are events with fields. Names, patient ids and raw values of a data set are never among them."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import Literal, TextIO, cast

import structlog


class _Sink:
    """A stream that takes what it can: a line that cannot be written must end no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(*, level: str = "INFO", style: Literal["json", "console"] = "console") -> None:
    """Set up structured logs on stderr for this process.

    pydicom, pynetdicom and highdicom quote values of the data set, and a value may be a name: their logs
    and all Python warnings, which carry their words under the name of any module, are silent.
    """
    renderer = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Sink(sys.stderr))),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def get_logger(station: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of one station."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(station=station))
