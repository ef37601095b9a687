"""Memory and descriptors of every process of the stack, its children too, and the studies done meanwhile."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import psutil

_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Course:
    """At a quarter of the time and in its last tenth, as medians."""

    megabytes: tuple[float, float]
    descriptors: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look: when (s since the first), how many studies were done, MB of each process."""

    seconds: float
    done: int
    megabytes: Mapping[str, float]


class Watch:
    """Looks at the processes until the block ends."""

    looks: list[Look]

    def __init__(self, processes: Mapping[str, subprocess.Popen[bytes]], done: Callable[[], int]) -> None:
        self.looks = []
        self._finished = done
        self.names = set(processes)
        self._processes = {name: psutil.Process(process.pid) for name, process in processes.items()}
        self._samples: dict[str, list[tuple[float, int]]] = {name: [] for name in processes}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        started = time.monotonic()
        while not self._done.wait(_SECONDS):
            seen: dict[str, float] = {}
            for name, process in self._processes.items():
                try:
                    tree = [process, *process.children(recursive=True)]
                    sample = (
                        sum(one.memory_info().rss for one in tree) / 1e6,
                        sum(one.num_fds() for one in tree),
                    )
                except psutil.NoSuchProcess:
                    continue
                self._samples[name].append(sample)
                seen[name] = sample[0]
            look = Look(seconds=time.monotonic() - started, done=self._finished(), megabytes=seen)
            self.looks.append(look)

    def found(self) -> dict[str, Course]:
        """What was seen of each process."""
        return {name: _course(samples) for name, samples in self._samples.items() if len(samples) > 20}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()


def _course(samples: list[tuple[float, int]]) -> Course:
    quarter, tenth = len(samples) // 4, max(len(samples) // 10, 3)
    windows = samples[quarter - tenth // 2 : quarter + tenth // 2 + 1], samples[-tenth:]
    megabytes, descriptors = (
        tuple(statistics.median(sample[column] for sample in window) for window in windows)
        for column in (0, 1)
    )
    return Course(megabytes=megabytes, descriptors=descriptors)  # type: ignore[arg-type]
