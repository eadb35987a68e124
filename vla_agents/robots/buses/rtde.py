"""Real-Time Data Exchange of Universal Robots' controllers (protocol version 2, TCP port 30004).

The controller sends a package of chosen outputs at a chosen rate, and takes packages of chosen inputs. A packet is its
length (two bytes), a letter that says what it is, and the content; numbers have their high bytes first.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_agents.errors import CommunicationError, PortNotFoundError, RobotError

logger = logging.getLogger(__name__)
VERSION, URCONTROL, TEXT, DATA, OUTPUTS, INPUTS, START, PAUSE = b"VvMUOISP"
FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT32": "I", "UINT64": "Q", "INT32": "i", "DOUBLE": "d",
    "VECTOR3D": "3d", "VECTOR6D": "6d", "VECTOR6INT32": "6i", "VECTOR6UINT32": "6I",
}  # fmt: skip
_DRIFT = 2e-6  # s per package that the two clocks may run apart


class Recipe:
    """Names and types of the values in a package.

    Args:
        names: In their order.
        types: The controller's names for their types.
        number: Which recipe it is.
    """

    def __init__(self, names: Sequence[str], types: Sequence[str], number: int) -> None:
        self.names, self.number = list(names), number
        self._sizes = [1 if kind[:6] != "VECTOR" else int(kind[6]) for kind in types]
        self._format = struct.Struct(">B" + "".join(FORMATS[kind] for kind in types))

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """The content of a data package."""
        flat: list[Any] = []
        for name, size in zip(self.names, self._sizes, strict=True):
            flat.extend(values[name] if size > 1 else [values[name]])
        return self._format.pack(self.number, *flat)

    def unpack(self, content: bytes) -> dict[str, Any]:
        """The values of a data package; `ValueError` where it is of another recipe."""
        if len(content) != self._format.size or content[0] != self.number:
            raise ValueError(f"a data package of {len(content)} bytes, recipe {content[:1].hex()}")
        flat, found, at = self._format.unpack(content), {}, 1
        for name, size in zip(self.names, self._sizes, strict=True):
            found[name] = list(flat[at : at + size]) if size > 1 else flat[at]
            at += size
        return found


class RtdeClient:
    """A connection to a controller.

    Args:
        host: Of the controller.
        port: 30004, unless something lies between.
        timeout_s: For connecting, and for answers to what is set up.
    """

    def __init__(self, host: str, port: int = 30004, *, timeout_s: float = 3.0) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self.version: tuple[int, ...] = ()
        self._socket: socket.socket | None = None
        self._inputs: Recipe | None = None
        self._outputs: Recipe | None = None
        self._state: dict[str, Any] | None = None
        self._time = 0.0
        self._number = 0
        self._offset = float("inf")  # monotonic time - the controller's
        self._lost: str = ""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Open the connection and agree on the protocol.

        Raises:
            PortNotFoundError: Nobody listens there.
            CommunicationError: Who listens is no such controller.
        """
        self._socket = open_tcp(self.host, self.port, self.timeout_s)
        self._lost, self._state, self._number, self._offset = "", None, 0, float("inf")
        try:
            if self._ask(VERSION, struct.pack(">H", 2))[:1] != b"\x01":
                raise RobotError(
                    f"the controller at {self.host} does not speak RTDE version 2", "update its software"
                )
            self.version = struct.unpack(">4I", self._ask(URCONTROL))
        except struct.error as error:
            self.close()
            raise CommunicationError(
                f"{self.host}:{self.port} does not answer as a UR controller does"
            ) from error
        except BaseException:
            self.close()
            raise

    def start(self, outputs: Sequence[str], inputs: Sequence[str], hz: float) -> None:
        """Choose outputs and inputs, and let packages flow.

        Raises:
            RobotError: The controller does not know an output, or an input is in use.
        """
        types = self._setup(OUTPUTS, struct.pack(">d", hz), outputs)
        self._outputs = Recipe(outputs, types[1], types[0])
        types = self._setup(INPUTS, b"", inputs)
        self._inputs = Recipe(inputs, types[1], types[0])
        if self._ask(START) != b"\x01":
            raise RobotError(f"the controller at {self.host} does not start to send data")
        self._thread = threading.Thread(target=self._run, name=f"rtde {self.host}", daemon=True)
        self._thread.start()

    def _setup(self, kind: int, head: bytes, names: Sequence[str]) -> tuple[int, list[str]]:
        answer = self._ask(kind, head + ",".join(names).encode())
        types = answer[1:].decode("ascii", "replace").split(",")
        for name, found in zip(names, types, strict=False):
            if found == "IN_USE":
                raise RobotError(
                    f"the register {name} of the controller at {self.host} is in use",
                    "another program controls the robot, or a fieldbus (EtherNet/IP, PROFINET, MODBUS) is on: end it",
                )
        if len(types) != len(names) or not set(types) <= set(FORMATS):
            pairs = dict(zip(names, types, strict=False))
            raise RobotError(
                f"the controller at {self.host} does not offer what is needed: {pairs}", "update its software"
            )
        return answer[0], types

    def state(self, newer_than: int = 0, timeout_s: float = 0.0) -> tuple[dict[str, Any], float, int]:
        """`(values, monotonic capture time, number)` of the newest package, waiting for one after `newer_than`.

        Raises:
            CommunicationError: The connection is lost, or there was no package in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._number > newer_than or bool(self._lost), timeout_s)
            if self._lost:
                raise CommunicationError(
                    f"the connection to {self.host} is lost ({self._lost})", "close and connect again"
                )
            if self._state is None or self._number <= newer_than:
                raise CommunicationError(
                    f"no data from {self.host} for {1000 * timeout_s:.0f} ms", "check the network"
                )
            return self._state, self._time, self._number

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any] | None:
        """The first package that meets the condition; None where there is none in time."""
        end, number = time.monotonic() + timeout_s, 0
        while time.monotonic() < end:
            try:
                state, _, number = self.state(number, max(0.0, end - time.monotonic()))
            except CommunicationError:
                if self._lost:
                    raise
                return None
            if condition(state):
                return state
        return None

    def send(self, values: Mapping[str, Any]) -> None:
        """Set the inputs, all of them."""
        assert self._inputs is not None
        if self._lost:
            raise CommunicationError(
                f"the connection to {self.host} is lost ({self._lost})", "close and connect again"
            )
        self._write(DATA, self._inputs.pack(values))

    def close(self) -> None:
        """Hang up. Safe to call twice."""
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(2.0)

    # ---- inside -------------------------------------------------------------------------------------------------
    def _write(self, kind: int, content: bytes = b"") -> None:
        if self._socket is None:
            raise CommunicationError(f"the connection to {self.host} is closed", "connect again")
        try:
            self._socket.sendall(struct.pack(">HB", 3 + len(content), kind) + content)
        except OSError as error:
            raise CommunicationError(
                f"{self.host} does not take data ({error})", "check the network"
            ) from error

    @staticmethod
    def _read(connection: socket.socket) -> tuple[int, bytes]:
        length, kind = struct.unpack(">HB", read_exactly(connection, 3))
        return kind, read_exactly(connection, length - 3)

    def _ask(self, kind: int, content: bytes = b"") -> bytes:
        self._write(kind, content)
        assert self._socket is not None
        try:
            for _ in range(100):
                found, answer = self._read(self._socket)
                if found == kind:
                    return answer
        except (OSError, struct.error, ValueError) as error:
            raise CommunicationError(
                f"{self.host}:{self.port} does not answer as a UR controller does ({error})",
                "check the address",
            ) from error
        raise CommunicationError(f"{self.host}:{self.port} answers something else")

    def _run(self) -> None:
        connection = self._socket
        assert connection is not None and self._outputs is not None
        try:
            while True:
                kind, content = self._read(connection)
                if kind == DATA:
                    self._arrived(self._outputs.unpack(content))
                elif kind == TEXT:
                    logger.warning("%s says: %s", self.host, content[1:].decode("utf-8", "replace"))
        except (OSError, struct.error, ValueError) as error:
            with self._changed:
                self._lost = str(error) or "closed"
                self._changed.notify_all()

    def _arrived(self, state: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._changed:
            stamp = float(state.get("timestamp", now))  # the quickest package so far says how the clocks lie
            self._offset = min(self._offset + _DRIFT, now - stamp)
            self._state, self._time, self._number = state, stamp + self._offset, self._number + 1
            self._changed.notify_all()


def open_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection without delay; `PortNotFoundError` where nobody listens."""
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise PortNotFoundError(
            f"nobody answers at {host}:{port} ({error})", "check address, network and that the robot is on"
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes; `ConnectionError` where the connection ends before."""
    if count < 0:
        raise ValueError(f"a packet of negative length {count}")
    parts = []
    while count:
        part = connection.recv(count)
        if not part:
            raise ConnectionError("the other side has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
