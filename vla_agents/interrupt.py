"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """Within it, a Ctrl-C is not only raised but also remembered: `check` raises it again.

    Python raises `KeyboardInterrupt` wherever the main thread is. Where that is a destructor or a callback of a weak
    reference, the exception is printed and dropped ("Exception ignored in ..."), and the program goes on as if
    nobody had pressed anything. A loop that calls `check` at every turn ends all the same.

    Handlers other than Python's own, and threads other than the main one, are left alone.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where one was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def __enter__(self) -> CtrlC:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        raise KeyboardInterrupt
