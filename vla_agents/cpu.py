"""What a process that computes on a CPU is better off with: freed memory that it keeps, and no denormal numbers.

By default glibc gives a freed block of 128 KiB or more back to the system at once, and the next one's pages are faulted in
again: for two pictures of 224 x 224 that a server copies a few times, a third of a millisecond; for a training step of
0.2 s, some 10 to 20 ms.

Denormal numbers (below 1.2e-38 in float32) take a CPU tens of times longer than others. Probabilities of attention that are
next to nothing are such numbers, and so are their gradients.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_OF_OLD_GLIBC = 32 * 2**20  # before 2.35 it refuses more
MIB = 2**20
_DENORMAL = 2.0**-140


def keep_freed_memory(kept: int = 64 * MIB, largest: int = 4 * MIB) -> bool:
    """Have this process keep what it frees.

    Args:
        kept: Bytes that may stay free at the end of each heap.
        largest: Larger blocks still go back at once.

    Returns:
        False where the C library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    taken = mallopt(_MMAP_THRESHOLD, largest) or mallopt(_MMAP_THRESHOLD, _MOST_OF_OLD_GLIBC)
    return bool(taken) and bool(mallopt(_TRIM_THRESHOLD, kept))


@contextlib.contextmanager
def no_denormals() -> Iterator[None]:
    """Inside, denormal numbers are zeros, in this thread and in those that it starts; numpy's and MuJoCo's too."""
    import torch

    had = float(torch.tensor([_DENORMAL], device="cpu") * 1.0) != 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not had)
