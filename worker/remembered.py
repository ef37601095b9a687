"""An answer that is asked for again only after a while, however often it is wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Asks at most once in `seconds`; safe to share between threads, of which one asks."""

    def __init__(self, ask: Callable[[], T], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._asking = threading.Lock()
        self._answers: list[tuple[float, T]] = []

    def __call__(self) -> T:
        """The last answer while it is fresh, else a new one; what asking raises is raised and not kept.

        While another thread asks it is the last answer too: a scrape does not wait for the one before it.
        """
        if not self._asking.acquire(blocking=not self._answers):
            return self._answers[0][1]
        try:
            if not self._answers or time.monotonic() - self._answers[0][0] >= self._seconds:
                self._answers = [(time.monotonic(), self._ask())]
            return self._answers[0][1]
        finally:
            self._asking.release()
