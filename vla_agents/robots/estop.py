"""The emergency stop: a latch that anything may trip, from any thread, key or signal.

It is no substitute for the red button that cuts the power; see docs/safety.md.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from typing import Any, TextIO

from vla_agents.errors import ConfigError


class EStop:
    """A latch. One may serve several robots: what trips it stops them all.

    Attributes:
        reason: Why it was tripped; empty where it was not.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._undo: list[Any] = []

    def trip(self, reason: str = "emergency stop") -> None:
        """Stop everything that obeys this latch. Takes no lock: safe in signal handlers."""
        self.reason = self.reason or reason or "emergency stop"

    def clear(self) -> None:
        """Open the latch. Robots still need their own `clear` (`RobotEnv.clear` does both)."""
        self.reason = ""

    def on_signal(self, number: int = signal.SIGUSR1) -> None:
        """Trip on a signal (`kill -USR1 PID`); main thread only. Undone by `close`."""
        name = signal.Signals(number).name
        before = signal.signal(number, lambda *_: self.trip(f"signal {name}"))
        self._undo.append(lambda: signal.signal(number, before))

    def on_key(self, key: str = " ", stream: TextIO | None = None) -> None:
        """Trip when a key is pressed in the terminal, also over SSH. Undone by `close`.

        Args:
            key: One character; the space bar by default.
            stream: The terminal; standard input by default.

        Raises:
            ConfigError: Not a terminal.
        """
        import termios
        import tty

        stream = sys.stdin if stream is None else stream
        try:
            handle = stream.fileno()
            before = termios.tcgetattr(handle)
        except (OSError, ValueError, termios.error) as error:
            raise ConfigError(
                f"keys cannot be read: not a terminal ({error})", "run in a terminal, or use on_signal()"
            ) from None
        tty.setcbreak(handle)
        ended = threading.Event()

        def watch() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    if select.select([handle], [], [], 0.1)[0] and key.encode() in os.read(handle, 64):
                        self.trip(f"key {key!r}")

        thread = threading.Thread(target=watch, name="estop-key", daemon=True)
        thread.start()

        def undo() -> None:
            ended.set()
            thread.join(1.0)
            termios.tcsetattr(handle, termios.TCSADRAIN, before)

        self._undo.append(undo)

    def close(self) -> None:
        """Give signals and terminal back; the latch stays as it is."""
        while self._undo:
            self._undo.pop()()
