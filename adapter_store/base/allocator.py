"""Tell the C allocator to keep freed memory.

Where page faults are slow, handing large blocks back to the system after every operation costs more than the
operation. Call this first thing in a process entry point, before torch is imported.
"""

from __future__ import annotations

import ctypes
import platform
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def tune_allocator(top_pad_mib: int = 64) -> bool:
    """Make glibc serve large blocks from its heap and keep them after they are freed.

    Args:
        top_pad_mib: How much the heap grows at a time beyond what is asked for, in MiB.

    Returns:
        Whether it was applied: only glibc on Linux has these switches.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # Heaps of other arenas than the first end at 64 MiB and go back when empty: computing threads share it.
    settings = {
        _M_ARENA_MAX: 1,
        _M_MMAP_MAX: 0,
        _M_TRIM_THRESHOLD: 2**31 - 1,
        _M_TOP_PAD: top_pad_mib << 20,
    }
    return all(bool(libc.mallopt(option, value)) for option, value in settings.items())
