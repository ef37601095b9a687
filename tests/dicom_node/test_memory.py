"""What the allocator does with freed memory, seen from outside: the resident size of a process of its own."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
from contextlib import nullcontext
from dicom_node.memory import everything_kept

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def left_after(megabytes):
    before = resident()
    bytearray(b"x") * (megabytes << 20)
    return resident() - before >> 20

with everything_kept():
    print(left_after(64))
print(left_after(96))
"""


def test_everything_is_kept_until_the_context_ends() -> None:
    """Inside, 64 MiB stay with the process; afterwards what is freed goes back as ever."""
    told = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout
    inside, afterwards = map(int, told.split())
    assert inside >= 60
    assert afterwards <= 4
