"""How glibc's allocator treats large buffers (mallopt(3)); elsewhere this does nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_TRIM_THRESHOLD_BYTES, _MAPPINGS = 131_072, 65_536  # as glibc begins
_LARGEST_THRESHOLD = 33_554_432
"""More glibc does not take; the buffers of a 10 MB film are smaller."""


def give_back_buffers(larger_than: int) -> None:
    """Return every buffer of more bytes to the system when it is freed.

    Else a hundred associations at once leave their buffers with the process for ever.
    """
    _set({_MMAP_THRESHOLD: larger_than, _ARENA_MAX: 2})


def keep_buffers() -> None:
    """Keep the buffers of one film for the next: getting them anew costs a fifth of the time."""
    _set({_MMAP_THRESHOLD: _LARGEST_THRESHOLD, _TRIM_THRESHOLD: _LARGEST_THRESHOLD})


@contextmanager
def everything_kept() -> Iterator[None]:
    """Keep whatever is freed, however large, until the context ends.

    A training step asks for the tensors of the step before; the kernel would clear their pages anew.
    """
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1})
    try:
        yield
    finally:
        _set({_MMAP_MAX: _MAPPINGS, _TRIM_THRESHOLD: _TRIM_THRESHOLD_BYTES})


def _set(options: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, value in options.items():
        if mallopt is not None:
            mallopt(name, value)
