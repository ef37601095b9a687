"""Engines: one protocol, several back ends. An engine serves only after it has replayed the golden cases."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import ConfigurationError, Retryable
from worker.findings import Inference


class DeviceUnavailable(ConfigurationError):
    """The device that an engine runs on is not here, or cannot be used now."""


class DeviceLost(Retryable):
    """The device failed under a working engine. What a process has on it is gone: a new process may work."""


class Engine(Protocol):
    """What runs the network. Calls may come from several threads."""

    name: str
    """Engine and version, e.g. `openvino 2026.4.1`."""
    precision: str
    """Arithmetic, e.g. `f32`, `bf16`, `f16`."""
    batches: tuple[int, ...]
    """Batch sizes that it has kernels for, in ascending order; the parity gate tries each of them."""

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one forward pass.

        Args:
            pixels_B1HW: `(B, 1, size, size)` float32 in [0, 1].

        Raises:
            Retryable: the device is busy or gone (`DeviceLost`).
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
