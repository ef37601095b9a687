"""Micro-batching: one thread owns the device, and batches what the task threads hand it.

It knows no engine: what it is given is opened, called and closed in its thread, and nowhere else.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dicom_node.logs import get_logger
from worker.engines import DeviceLost, Engine
from worker.findings import Inference

log = get_logger("batching")

HUNG_SECONDS = 120.0
"""A batch takes milliseconds; a device that has not answered after this is taken for lost."""

_Found = tuple[np.float32, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Film:
    """One film that waits for its turn."""

    pixels_1HW: NDArray[np.float32]
    since: float
    """`time.monotonic()` of its coming."""
    found: Future[_Found] = field(default_factory=Future)


class MicroBatcher:
    """An engine for any number of threads, around one that is for a single thread."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        *,
        max_batch: int,
        max_wait: float,
        callers: int,
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        """Open the engine in its thread.

        Args:
            open_engine: makes what runs the batches.
            max_batch: films in one batch at most.
            max_wait: seconds that a film waits for others at most, while the device is idle.
            callers: threads that may call `infer`; once all of them wait, nothing else can come.
            hung_seconds: seconds for one film from handing in to its result, after which the device is lost.

        Raises:
            ConfigurationError: whatever `open_engine` raises.
        """
        self._max_batch, self._max_wait, self._callers = max_batch, max_wait, callers
        self._hung_seconds = hung_seconds
        self._changed = threading.Condition()
        self._waiting: deque[_Film] = deque()
        self._inside = 0
        self._closing = False
        self._lost: DeviceLost | None = None
        opened: Future[Engine] = Future()
        # A daemon: a thread that hangs in a driver must not keep the process alive.
        self._thread = threading.Thread(
            target=self._serve, args=(open_engine, opened), daemon=True, name="infer"
        )
        self._thread.start()
        engine = opened.result()
        self.name, self.precision = engine.name, engine.precision
        self.batches = tuple(size for size in engine.batches if size <= max_batch) or engine.batches[:1]

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Hand in the films of one study and wait for their results.

        Raises:
            DeviceLost: the device failed or hangs; every later call raises it at once.
            Retryable: as the engine.
        """
        now = time.monotonic()
        films = [_Film(pixels_1HW=pixels_1HW, since=now) for pixels_1HW in pixels_B1HW]
        with self._changed:
            if self._lost is not None:
                raise DeviceLost(str(self._lost))
            if self._closing:
                raise DeviceLost("The engine has been closed: the study is tried again.")
            self._waiting.extend(films)
            self._inside += 1
            self._changed.notify_all()
        try:
            found = [film.found.result(self._hung_seconds) for film in films]
        except NotInTime:
            raise self._lose(
                DeviceLost(
                    f"The device has not answered for {self._hung_seconds:g} s: this process ends, and its "
                    "studies go to another."
                )
            ) from None
        finally:
            with self._changed:
                self._inside -= 1
        return Inference(
            logits_B=np.array([logit for logit, _ in found], np.float32),
            cams_Bhw=np.stack([cam_hw for _, cam_hw in found]),
        )

    def close(self) -> None:
        """End the thread once it has done what waits; an engine that hangs is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(0 if self._lost else self._hung_seconds)

    def _serve(self, open_engine: Callable[[], Engine], opened: Future[Engine]) -> None:
        try:
            engine = open_engine()
        except BaseException as error:  # noqa: BLE001 (it is raised in the thread that waits)
            opened.set_exception(error)
            return
        opened.set_result(engine)
        try:
            while films := self._gather():
                self._run(engine, films)
        finally:
            engine.close()

    def _gather(self) -> list[_Film]:
        """The next batch; empty when all is done."""
        with self._changed:
            while not self._waiting:
                if self._closing or self._lost:
                    return []
                self._changed.wait()
            # What came while the device was busy has waited long enough by now.
            until = self._waiting[0].since + self._max_wait
            while len(self._waiting) < self._max_batch and self._inside < self._callers and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    def _run(self, engine: Engine, films: list[_Film]) -> None:
        try:
            found = engine.infer(np.stack([film.pixels_1HW for film in films]))
        except DeviceLost as error:
            for film in films:
                film.found.set_exception(error)
            self._lose(error)
        except BaseException as error:  # noqa: BLE001 (each caller gets it; without an answer they would hang)
            for film in films:
                film.found.set_exception(error)
        else:
            for film, logit, cam_hw in zip(films, found.logits_B, found.cams_Bhw, strict=True):
                film.found.set_result((logit, cam_hw))

    def _lose(self, error: DeviceLost) -> DeviceLost:
        """Answer all that waits, and whatever comes later, with the loss; the first one counts."""
        with self._changed:
            if self._lost is None:
                self._lost = error
                log.error("device_lost", why=str(error))
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for film in waiting:
            film.found.set_exception(error)
        return error
