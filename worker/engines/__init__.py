"""Engines: one protocol, several back ends. An engine serves only after it has replayed the golden cases."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.findings import Inference


class Engine(Protocol):
    """What runs the network. Calls may come from several threads."""

    name: str
    """Engine and version, e.g. `openvino 2026.4.1`."""
    precision: str
    """Arithmetic, e.g. `f32`, `bf16`."""

    def infer(self, pixels_B1HW: NDArray[np.float32]) -> Inference:
        """Run one forward pass.

        Args:
            pixels_B1HW: `(B, 1, size, size)` float32 in [0, 1].

        Raises:
            Retryable: the device is busy or gone.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...
