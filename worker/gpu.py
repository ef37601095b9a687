"""How busy the NVIDIA GPUs of this machine are, as `nvidia-smi` says; nothing where there is none."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.remembered import Remembered

_SECONDS = 10.0
_PATIENCE_SECONDS = 5.0
_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
_MEBIBYTE = 1_048_576


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; None for what it does not tell, as in a MIG slice."""

    index: str
    busy: float | None
    """Share of the last second or so in which a kernel ran, 0 to 1."""
    used_bytes: float | None
    total_bytes: float | None
    celsius: float | None


def parse(text: str) -> list[Gpu]:
    """Read `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`; lines of another form are left out."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(_QUERY):
            continue
        busy, used, total, celsius = (_number(value) for value in row[1:])
        found.append(
            Gpu(
                index=row[0].strip(),
                busy=None if busy is None else busy / 100,
                used_bytes=None if used is None else used * _MEBIBYTE,
                total_bytes=None if total is None else total * _MEBIBYTE,
                celsius=celsius,
            )
        )
    return found


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:  # [N/A], [Not Supported]
        return None


def ask() -> list[Gpu]:
    """Every GPU; none where the program is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse(done.stdout)


class GpuUse(Collector):
    """Asked at a scrape, at most once in ten seconds."""

    def __init__(self) -> None:
        self._ask = Remembered(ask, _SECONDS)

    def collect(self) -> Iterator[Metric]:
        """One series a GPU for each thing that it tells."""
        families = {
            "busy": GaugeMetricFamily(
                "covariance_gpu_busy_ratio", "Use of the GPU, 0 to 1.", labels=("gpu",)
            ),
            "used_bytes": GaugeMetricFamily(
                "covariance_gpu_memory_used_bytes", "Memory of the GPU in use.", labels=("gpu",)
            ),
            "total_bytes": GaugeMetricFamily(
                "covariance_gpu_memory_bytes", "Memory of the GPU.", labels=("gpu",)
            ),
            "celsius": GaugeMetricFamily(
                "covariance_gpu_temperature_celsius", "Temperature of the GPU.", labels=("gpu",)
            ),
        }
        for gpu in self._ask():
            for name, family in families.items():
                value = getattr(gpu, name)
                if value is not None:
                    family.add_metric((gpu.index,), value)
        yield from families.values()
