"""What goes between an `IsolatedEnv` and its simulator: JSON over a socket, arrays in memory that both see.

Both sides run this file, under whatever versions their environments have: it needs numpy and the standard library only. The
two ends are one program's; nothing here faces a network.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<I")
_ALIGNMENT = 64
_KINDS = "biufU"  # of arrays: bool, integers, floats, fixed text


class LineClosedError(Exception):
    """The other side has gone."""


class Line:
    """One end.

    Args:
        sock: The socket; this end's half of a pair.
        memory: What both see; the first half is written by the env's side, the second by the simulator's.
        second: Whether this is the simulator's side.
    """

    def __init__(self, sock: socket.socket, memory: mmap.mmap, *, second: bool) -> None:
        self._sock, self._memory = sock, memory
        half = len(memory) // 2
        self._out, self._in = (half, 0) if second else (0, half)
        self._half, self._used = half, 0

    def send(self, message: Any) -> None:
        """Send a message of dicts, lists, tuples, text, numbers, None and arrays; other things are left out of dicts.

        Raises:
            MemoryError: Its arrays need more memory than there is.
            LineClosedError: Nobody is there.
        """
        self._used = 0
        content = json.dumps(self._pack(message)).encode()
        try:
            self._sock.sendall(_LENGTH.pack(len(content)) + content)
        except OSError as error:
            raise LineClosedError(str(error)) from error

    def receive(self, timeout_s: float | None) -> Any:
        """The next message; its arrays are copies.

        Raises:
            TimeoutError: None came in time.
            LineClosedError: Nobody is there any more.
        """
        self._sock.settimeout(timeout_s)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return self._unpack(json.loads(self._read(length)))

    def close(self) -> None:
        """Let go of socket and memory."""
        self._sock.close()
        self._memory.close()

    def _read(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            try:
                part = self._sock.recv(count - len(content))
            except ConnectionError as error:
                raise LineClosedError(str(error)) from error
            if not part:
                raise LineClosedError("the line was closed")
            content += part
        return bytes(content)

    def _pack(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"$array": self._put(value)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {str(key): self._pack(item) for key, item in value.items() if _can_go(item)}
        if isinstance(value, tuple):
            return {"$tuple": [self._pack(item) for item in value]}
        if isinstance(value, list):
            return [self._pack(item) for item in value]
        return value

    def _unpack(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$array" in value:
            start, kind, shape = value["$array"]
            count = int(np.prod(shape, dtype=np.int64))
            where = self._in + start
            return np.frombuffer(self._memory, np.dtype(kind), count, where).reshape(shape).copy()
        if "$tuple" in value:
            return tuple(self._unpack(item) for item in value["$tuple"])
        return {key: self._unpack(item) for key, item in value.items()}

    def _put(self, array: np.ndarray) -> list[Any]:
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        end = start + array.nbytes
        if end > self._half:
            raise MemoryError(
                f"the arrays of one message need more than the {self._half} bytes of shared memory (memory_mb)"
            )
        if array.nbytes:
            target = np.frombuffer(self._memory, array.dtype, array.size, self._out + start)
            np.copyto(target.reshape(array.shape), array)
        self._used = end
        return [start, array.dtype.str, list(array.shape)]


def _can_go(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in _KINDS
    return value is None or isinstance(value, str | bool | int | float | np.generic | Mapping | list | tuple)
