"""Signals that end a program end it through its `finally` blocks and finalizers, so that robots are left safe.

A Ctrl-C does so by itself. SIGTERM (`kill`, a service manager) and SIGHUP (a terminal or SSH session that
closes) would end Python at once; as long as a robot is connected they stop it and raise `SystemExit`.
"""

from __future__ import annotations

import os
import signal
import threading
import weakref
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_agents.robots.loop import ControlLoop

_loops: weakref.WeakSet[ControlLoop] = weakref.WeakSet()


def stop_on_signals(loop: ControlLoop) -> None:
    """Stop the loop when the program is told to end. Handlers that the program has set itself stay.

    Only the main thread may do this; called from another one, nothing is changed.
    """
    _loops.add(loop)
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    driving = [loop for loop in _loops if loop.running]
    for loop in driving:
        loop.stop(f"signal {signal.Signals(number).name}")
    if driving:
        raise SystemExit(128 + number)
    signal.signal(number, signal.SIG_DFL)  # as if we had never been here
    os.kill(os.getpid(), number)
