"""How long a study spends where: one place that a station is timed at, by whoever runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from structlog.contextvars import get_contextvars

from dicom_node import tracing
from worker.metrics import STATION_SECONDS

Station = Literal[
    "register", "claim", "decode", "infer", "explain", "encode", "keep", "record", "store", "commit"
]


@contextmanager
def station(name: Station, study_instance_uid: str | None = None) -> Iterator[None]:
    """Time what happens within, ended well or not.

    The study is the one that is given, or the one that the logs of this thread are bound to.
    """
    began = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        STATION_SECONDS.labels(name).observe(seconds)
        study = study_instance_uid or get_contextvars().get("study")
        if study is not None:
            error = sys.exception()
            tracing.span(name, study, seconds=seconds, error=type(error).__name__ if error else "")
