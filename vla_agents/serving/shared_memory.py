"""Pictures and states through memory that client and server share, on one machine: only a small message is sent.

The server makes the memory without a name (memfd), so nothing is left behind when a process dies, and seals its size, so
that no client can shrink it under the server's feet. A client of the same user opens it through /proc; for everyone
else the kernel refuses, and messages go the usual way. In a message, `{"__shared__": true, "offset", "dtype",
"shape"}` stands for an array in it.

A client may write while the server reads. That can spoil its own pictures and nothing else: states are copied before
they are checked, and any byte is a pixel.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import sys
from typing import Any

import numpy as np

from vla_agents.errors import FrameError
from vla_agents.serving.arrays import WireLimits, array_of, check_dtype, check_shape, checked, view_of

NONCE = 32  # bytes at the beginning by which a client knows that it opened the right memory
ALIGNMENT = 64
MAX_SIZE = 256 * 2**20
MOST_PLACES = 64  # that a client remembers


def is_supported() -> bool:
    """Whether this system has memory without a name, sealed: Linux."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class ServerMemory:
    """The server's side; one region per client.

    Args:
        size: Bytes for arrays.
        limits: Of arrays.
    """

    def __init__(self, size: int, limits: WireLimits) -> None:
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise FrameError(f"size of shared memory must be a whole number from 1 to {MAX_SIZE}")
        self._limits, self.size = limits, size + NONCE
        self._closed = False
        self.nonce = secrets.token_bytes(NONCE)
        self._file = os.memfd_create("vla-agents", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._file, self.size)
        fcntl.fcntl(
            self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        self._memory = mmap.mmap(self._file, self.size)
        self._memory[:NONCE] = self.nonce
        self._view = memoryview(self._memory).toreadonly()

    def describe(self) -> dict[str, Any]:
        """What the client needs to open it."""
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        return {"path": path, "size": self.size, "nonce": self.nonce}

    def read_array(self, found: dict[str, Any], limits: WireLimits) -> np.ndarray | None:
        """The array that a map stands for, in a message or in the memory; for `codec.decode`."""
        if "__shared__" not in found:
            return array_of(found, limits)
        if self._closed:
            raise FrameError("the shared memory was closed", "connect again")
        kind = check_dtype(found.get("dtype"))
        axes, size = check_shape(found.get("shape"), kind, self._limits)
        if kind.kind == "b":  # a client could change what was checked
            raise FrameError("a boolean array in shared memory", "send it in the message")
        offset = found.get("offset")
        if type(offset) is not int or not NONCE <= offset <= self.size - size:
            raise FrameError("an array that lies outside the shared memory")
        return view_of(self._view[offset : offset + size], kind, axes)

    def close(self) -> None:
        """Give the memory back once no array looks at it any more."""
        self._closed = True
        os.close(self._file)
        del self._view, self._memory  # unmapped with the last view


class ClientMemory:
    """The client's side.

    Args:
        answer: The server's `shared` message.

    Raises:
        OSError: It cannot be opened: another user's, or another machine's.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        path, size = str(answer["path"]), int(answer["size"])
        if not path.startswith("/proc/") or os.readlink(path).split(" ")[0] != "/memfd:vla-agents":
            raise OSError("not the server's memory")
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(file).st_size != size:
                raise OSError("not the server's memory")
            self._memory = mmap.mmap(file, size)
        finally:
            os.close(file)
        if self._memory[:NONCE] != answer["nonce"]:
            raise OSError("not the server's memory")
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._at = NONCE
        self._places: dict[Any, tuple[np.ndarray, int, dict[str, Any]]] = {}  # by what fits there

    def rewind(self) -> None:
        """Begin a new message; what the last one held is overwritten."""
        self._at = NONCE

    def put(self, array: np.ndarray) -> dict[str, Any] | None:
        """Write an array; what stands for it in the message, or None where there is no more room."""
        key = (self._at, array.dtype, array.shape)
        if key not in self._places:
            kind = checked(np.empty(0, array.dtype)).dtype
            start = -(-self._at // ALIGNMENT) * ALIGNMENT
            end = start + array.nbytes
            if end > len(self._bytes):
                return None
            target = self._bytes[start:end].view(kind).reshape(array.shape)
            told = {"__shared__": True, "offset": start, "dtype": kind.str, "shape": list(array.shape)}
            if len(self._places) == MOST_PLACES:
                self._places.clear()
            self._places[key] = (target, end, told)
        target, self._at, told = self._places[key]
        np.copyto(target, array)
        return told

    def close(self) -> None:
        """Unmap."""
        self._places.clear()
        del self._bytes, self._memory
