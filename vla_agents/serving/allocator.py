"""Freed memory that stays with the process, for servers.

By default glibc gives a freed block of 128 KiB or more back to the system at once, and the next message's pages are
faulted in one by one: for two pictures of 224 x 224, copied a few times on their way in, a third of a millisecond.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 64 * 2**20  # bytes that may stay free at the end of each heap
LARGEST = 4 * 2**20  # larger blocks still go back at once


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, up to 64 MiB; False where the C library has no such setting."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
