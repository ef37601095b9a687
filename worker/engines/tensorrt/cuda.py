"""The CUDA runtime by `cuda.bindings`, with errors that say what to do, and facts about the card."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.errors import CovarianceError
from worker.engines import DeviceLost, DeviceUnavailable

_DRIVER = Path("/proc/driver/nvidia/version")
_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
_NO_DEVICE = {
    "cudaErrorCompatNotSupportedOnDevice",
    "cudaErrorDevicesUnavailable",
    "cudaErrorDeviceUninitialized",
    "cudaErrorInitializationError",
    "cudaErrorInsufficientDriver",
    "cudaErrorInvalidDevice",
    "cudaErrorNoDevice",
    "cudaErrorNoKernelImageForDevice",
    "cudaErrorStubLibrary",
    "cudaErrorSystemDriverMismatch",
    "cudaErrorSystemNotReady",
}
"""Errors of a process that cannot use a GPU, and breaks nothing by having tried."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU, or one MIG slice of it."""

    name: str
    compute_capability: str
    """SM, e.g. `9.0`."""
    driver: str
    """Version of the driver, e.g. `580.65.06`."""
    memory_bytes: int


class Cuda:
    """The runtime and its first visible device (`CUDA_VISIBLE_DEVICES` says which that is)."""

    def __init__(self) -> None:
        """Find the device.

        Raises:
            DeviceUnavailable: no driver, no device, or no `cuda-bindings`.
        """
        try:
            self.runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except (ImportError, OSError, RuntimeError):
            raise DeviceUnavailable(
                "cuda-bindings is not installed here: `make install EXTRAS=tensorrt`, or set another "
                "worker.engine."
            ) from None
        self._serving = False
        self.lost = False
        if self.call("cudaGetDeviceCount") == 0:
            raise DeviceUnavailable(_no_device("there is none"))
        self.call("cudaSetDevice", 0)

    def serve(self) -> None:
        """From now on an error means that a working device was lost, not that none is here."""
        self._serving = True

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; what it gives beside its status is returned.

        Raises:
            DeviceUnavailable: there is no device, or too little memory, while the engine is being opened.
            DeviceLost: whatever else failed then, and everything later.
        """
        status, *values = getattr(self.runtime, name)(*arguments)
        if int(status) != 0:
            error = failure(status.name, name, serving=self._serving)
            self.lost |= isinstance(error, DeviceLost)
            raise error
        return values[0] if len(values) == 1 else tuple(values)

    def card(self) -> Card:
        """What the device is."""
        properties = self.call("cudaGetDeviceProperties", 0)
        name = properties.name
        return Card(
            name=(name.decode() if isinstance(name, bytes) else str(name)).strip("\0 "),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=driver_version() or f"cuda-{self.call('cudaDriverGetVersion')}",
            memory_bytes=int(properties.totalGlobalMem),
        )


def failure(status: str, function: str, *, serving: bool) -> CovarianceError:
    """What a failed call means.

    Args:
        status: name of the CUDA error.
        function: that failed.
        serving: whether the engine had been opened.
    """
    if serving or status not in _NO_DEVICE | {_OUT_OF_MEMORY}:
        # Most of them are sticky: every later call of this process fails as well.
        return DeviceLost(
            f"The GPU failed ({status} in {function}): this process ends, and its studies go to another."
        )
    if status == _OUT_OF_MEMORY:
        return DeviceUnavailable(
            "The GPU has too little free memory for this engine: stop what else runs on it, lower "
            "worker.max_batch, or give this worker another with CUDA_VISIBLE_DEVICES."
        )
    return DeviceUnavailable(_no_device(status))


def _no_device(why: str) -> str:
    return (
        f"This process has no NVIDIA GPU that it can use ({why}): see nvidia-smi and CUDA_VISIBLE_DEVICES, "
        'or set worker.engine = "openvino" or worker.fallback = "cpu".'
    )


def driver_version() -> str:
    """Version of the NVIDIA kernel module that is loaded; empty without one."""
    try:
        found = re.search(r"\b(\d{3,}(?:\.\d+)+)\b", _DRIVER.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""


def driver_is_here() -> bool:
    """Whether this machine has an NVIDIA driver, told without loading anything."""
    # Not by /proc: a container sees there what its host has loaded, and has no device for all that.
    return any(Path(place).exists() for place in ("/dev/nvidiactl", "/dev/dxg"))
