"""Where the planning thread waits: for what other threads put there, and at doors through which clients come directly."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol


class Door(Protocol):
    """A way to the planning thread that needs no other thread; `doorbell.Doorbell` is one."""

    def fileno(self) -> int:
        """What becomes readable when somebody is there."""

    def take(self) -> Any | None:
        """What was brought; None where it was refused at the door, or nobody is there.

        Raises:
            OSError: Nobody will come any more.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class Mailbox:
    """One thread takes, any may put. Without doors it is a queue and costs no more than that."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._wake = -1  # an eventfd, from the first door on
        self._poll: Any = None  # the taking thread's own, as are the doors
        self._doors: dict[int, Door] = {}

    def put(self, item: Any) -> None:
        """From any thread."""
        self._queue.put(item)
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def attach(self, door: Door) -> None:
        """Wait at this door too; calls come from one thread. It is closed when nobody comes any more."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.put(_Attached(door))

    def take(self, timeout: float | None) -> Sequence[Any]:
        """What is there, or comes first within that time (None: however long); may be nothing."""
        if not self._doors:
            try:
                item = (
                    self._queue.get(timeout=timeout)
                    if timeout is None or timeout > 0
                    else self._queue.get_nowait()
                )
            except Empty:
                return ()
            return self._opened([item])
        found: list[Any] = []
        milliseconds = None if timeout is None else -(-timeout * 1000 // 1)
        for number, _ in self._poll.poll(milliseconds):
            found += self._waiting() if number == self._wake else self._at(number)
        return self._opened(found)

    def close(self) -> None:
        """Close the doors; called by the taking thread, or once it has ended."""
        for door in self._doors.values():
            door.close()
        self._doors.clear()
        for item in self._waiting():
            if isinstance(item, _Attached):
                item.door.close()

    def _waiting(self) -> list[Any]:
        if self._wake >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        found = []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except Empty:
                return found

    def _at(self, number: int) -> list[Any]:
        """What came through a door."""
        try:
            item = self._doors[number].take()
        except OSError:
            self._poll.unregister(number)
            self._doors.pop(number).close()
            return []
        return [] if item is None else [item]

    def _opened(self, items: list[Any]) -> list[Any]:
        """The items, new doors among them taken out and waited at."""
        for item in items:
            if isinstance(item, _Attached):
                if self._poll is None:
                    self._poll = select.poll()
                    self._poll.register(self._wake, select.POLLIN)
                self._poll.register(item.door.fileno(), select.POLLIN)
                self._doors[item.door.fileno()] = item.door
        return [item for item in items if not isinstance(item, _Attached)]


class _Attached:
    def __init__(self, door: Door) -> None:
        self.door = door
