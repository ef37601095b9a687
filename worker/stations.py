"""How long a study spends where: one place that a station is timed at, by whoever runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from worker.metrics import STATION_SECONDS

Station = Literal[
    "register", "claim", "decode", "infer", "explain", "encode", "keep", "record", "store", "commit"
]


@contextmanager
def station(name: Station) -> Iterator[None]:
    """Time what happens within, ended well or not."""
    began = time.monotonic()
    try:
        yield
    finally:
        STATION_SECONDS.labels(name).observe(time.monotonic() - began)
