"""Ctrl-C and SIGTERM (what Slurm, Docker and `torchrun` send before they kill) end a run after its step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal calls `stop`; after it, each does again what it did before (a second Ctrl-C interrupts)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop()
        restore()

    for number in numbers:
        signal.signal(number, ask_to_stop)
    try:
        yield
    finally:
        restore()
