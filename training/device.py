"""What a network is computed on, and in which precision."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


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

    Numbers too small for the normal form are zero: they cost a hundred times as much and mean nothing. The
    setting is the thread's, so that whoever computes in it afterwards must find it as it was; it is to be
    made before torch starts the threads that inherit it.

    Memory is kept when it is freed. A step asks for the same tensors as the one before, and the C library
    gives each large one back to the kernel, which clears its pages anew: more than half of the baseline
    CNN's time and a sixth of DenseNet-121's.
    """
    torch.set_flush_denormal(True)
    _keep_freed_memory(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        _keep_freed_memory(False)


# mallopt(3), glibc's malloc.h; other C libraries have no `mallopt` or ignore it.
_TRIM_THRESHOLD, _MAPPINGS_AT_MOST = -1, -4
_TRIM_THRESHOLD_BYTES, _MAPPINGS = 128 << 10, 65536


def _keep_freed_memory(keep: bool) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MAPPINGS_AT_MOST, 0 if keep else _MAPPINGS)
        library.mallopt(_TRIM_THRESHOLD, -1 if keep else _TRIM_THRESHOLD_BYTES)
    if not keep and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _processor(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
