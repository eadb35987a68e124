"""Answers written to a client's socket by the planning thread itself, past the event loop.

Waking the loop, a task in it and its way back to the socket takes longer than all else that is left of an answer's way,
most of all in a process whose caches are cold because it had nothing to do. It is done only where nothing can go wrong
with it: the frame is a small one, and everything that was written before has arrived, so that it goes into the system's
buffer whole. Frames of the loop's own (a pong, a close) come before or after it, never within.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from contextlib import suppress
from typing import Any

MOST = 2**16 - 1  # bytes of a message


class Straight:
    """A way past the event loop, of one connection.

    Args:
        connection: Of `websockets`, without compression.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = (
            threading.Lock()
        )  # so that the socket's number is not another's while something is written
        transport = connection.transport
        is_plain = sys.platform == "linux" and transport.get_extra_info("ssl_object") is None
        self._socket = transport.get_extra_info("socket").dup() if is_plain else None

    def send(self, data: bytes) -> bool:
        """Write a binary message; False where that is the loop's to do. From any thread."""
        from websockets.protocol import State

        size = len(data)
        if size > MOST or self._connection.state is not State.OPEN:
            return False
        header = struct.pack("!BB", 0x82, size) if size < 126 else struct.pack("!BBH", 0x82, 126, size)
        with self._lock:
            if self._socket is None or not self._has_room(size):
                return False
            try:
                sent = self._socket.send(header + data)
            except OSError:
                return False
            if sent < size + len(
                header
            ):  # short of memory: what comes next on this connection would be misread
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        return True

    def _has_room(self, size: int) -> bool:
        """Whether the system takes that many bytes at once, and nothing waits before them."""
        import fcntl
        import termios

        assert self._socket is not None
        if self._connection.transport.get_write_buffer_size():
            return False
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return not waiting and 4 * size < self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def close(self) -> None:
        """The connection is over."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
