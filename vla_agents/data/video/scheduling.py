"""Encoders that make themselves real-time processes, and how they are kept from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_TASKS = Path("/proc/self/task")


@contextlib.contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Within it, no thread of this process gets another scheduling policy for good.

    SVT-AV1 gives the thread that opens it, and each of its own, `SCHED_FIFO` at priority 99 where the process may do so
    (as root, in most containers): above a robot's control loop, and above every other program of the machine. Linux
    only; elsewhere nothing happens.
    """
    if not _TASKS.is_dir():
        yield
        return
    before = {thread: _policy(thread) for thread in _threads()}
    mine = _policy(0)
    try:
        yield
    finally:
        for thread in _threads():
            wanted = before.get(thread, mine)
            if wanted is not None and _policy(thread) not in (None, wanted):
                with contextlib.suppress(OSError):  # it has ended in between
                    os.sched_setscheduler(thread, wanted[0], os.sched_param(wanted[1]))


def _threads() -> list[int]:
    return [int(name) for name in os.listdir(_TASKS)]


def _policy(thread: int) -> tuple[int, int] | None:
    """Policy and priority; None where the thread has ended."""
    try:
        return os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    except ProcessLookupError:
        return None
