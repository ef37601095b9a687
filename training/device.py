"""What a network is computed on, and in which precision."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dicom_node.memory import everything_kept


@dataclass(frozen=True, kw_only=True)
class Device:
    """A processor or a GPU."""

    device: torch.device
    name: str
    """In its own words."""
    half: bool
    """Whether activations are bfloat16; weights, statistics and sums stay float32."""

    @property
    def precision(self) -> str:
        """Of the activations."""
        return "bfloat16" if self.half else "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """Where the forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network there, channels last."""
        network.to(self.device)
        network.to(memory_format=torch.channels_last)
        return network

    def pixels(self, films_BHW: Tensor) -> Tensor:
        """Films `(B, H, W)` uint8 as `(B, 1, H, W)` float32 in [0, 1]."""
        return films_BHW.to(self.device, non_blocking=True)[:, None].float() / 255


def best_device(*, half: bool = True) -> Device:
    """The GPU if there is one, else the processor; bfloat16 where the hardware has it.

    Args:
        half: False computes in float32 everywhere, for comparison.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return Device(device=torch.device("cuda"), name=name, half=half and torch.cuda.is_bf16_supported())
    flags = _processor("flags").split()
    name = f"{_processor('model name') or platform.processor()}, {torch.get_num_threads()} threads"
    return Device(device=torch.device("cpu"), name=name, half=half and "avx512_bf16" in flags)


@contextmanager
def ready_to_train() -> Iterator[None]:
    """What training wants of a process, and nothing else does; afterwards it is as it was.

    Freed memory is kept. Numbers too small for the normal form are zero: they cost a hundred times as much
    and mean nothing. The setting is the thread's, so that whoever computes in it afterwards must find it as
    it was; it is to be made before torch starts the threads that inherit it.
    """
    torch.set_flush_denormal(True)
    try:
        with everything_kept():
            yield
    finally:
        torch.set_flush_denormal(False)


def _processor(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
