"""Two ways to a `Host`: in this process, or in another interpreter behind a socket that only that one can use."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import subprocess
import sys
from typing import Any, Protocol

import numpy as np

from vla_agents.errors import (
    CalibrationError,
    CommunicationError,
    ConfigError,
    MotorError,
    PortNotFoundError,
    RobotError,
)
from vla_agents.robots.drivers import lerobot_host

START_S = 120.0  # importing LeRobot may take long
TOKEN_BYTES = 32
Numbers = dict[str, float]


class Session(Protocol):
    """What the adapter needs of either."""

    def features(self) -> dict[str, Any]:
        """See `Host.features`."""
        ...

    def connect(self) -> None:
        """Open the devices."""

    def observe(self) -> tuple[Numbers, dict[str, np.ndarray]]:
        """Numbers and pictures."""
        ...

    def command(self, action: Numbers) -> Numbers:
        """Send; returns what was sent."""
        ...

    def close(self) -> None:
        """Disconnect."""


class LocalSession:
    """LeRobot in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        try:
            self._host = lerobot_host.Host(config)
        except ImportError as error:
            raise ConfigError(
                f"LeRobot cannot be imported here ({error})",
                "install it in an environment of its own and give python=/path/to/that/environment/bin/python",
            ) from error
        except Exception as error:  # draccus' own errors, and those of constructors
            raise ConfigError(f"LeRobot cannot make a robot of {config}: {error}") from error

    def features(self) -> dict[str, Any]:
        """See `Host.features`."""
        return self._host.features()

    def connect(self) -> None:
        """Open the devices."""
        _translated("connect", self._host.connect)

    def observe(self) -> tuple[Numbers, dict[str, np.ndarray]]:
        """Numbers and pictures."""
        return _translated("observe", self._host.observe)

    def command(self, action: Numbers) -> Numbers:
        """Send; returns what was sent."""
        return _translated("command", self._host.command, action)

    def close(self) -> None:
        """Disconnect."""
        _translated("close", self._host.close)


def _translated(call: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:
        raise _error(call, str(error), [kind.__name__ for kind in type(error).__mro__]) from error


def _error(call: str, message: str, kinds: list[str]) -> RobotError:
    text = f"LeRobot's {call} failed: {message}"
    if "CalibrationMissing" in kinds:
        return CalibrationError(text, "run lerobot-calibrate for this robot and id")
    if call == "connect":
        return PortNotFoundError(text) if "OSError" in kinds else MotorError(text)
    lost = {"OSError", "TimeoutError", "DeviceNotConnectedError"}  # a ConnectionError is an OSError
    return CommunicationError(text) if lost & set(kinds) else MotorError(text)


class ProcessSession:
    """LeRobot in another interpreter, which ends with this one.

    Args:
        config: See `Host`.
        python: That interpreter, e.g. `/home/me/lerobot/bin/python`.
        timeout_s: How long `observe` and `command` may take.
    """

    def __init__(self, config: dict[str, Any], python: str, timeout_s: float) -> None:
        self.config, self.python, self.timeout_s = config, python, timeout_s
        self._number = 0
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def features(self) -> dict[str, Any]:
        """See `Host.features`."""
        return self._features

    def connect(self) -> None:
        """Open the devices."""
        if self._socket is None:
            self._start()
        self._ask("connect", START_S)

    def observe(self) -> tuple[Numbers, dict[str, np.ndarray]]:
        """Numbers and pictures."""
        result, blobs = self._ask("observe", self.timeout_s)
        images = {name: np.frombuffer(data, np.uint8).reshape(shape) for name, (shape, data) in blobs.items()}
        return result, images

    def command(self, action: Numbers) -> Numbers:
        """Send; returns what was sent."""
        return self._ask("command", self.timeout_s, action=action)[0]

    def close(self) -> None:
        """Disconnect the robot and end the process."""
        try:
            if self._socket is not None and self._process is not None and self._process.poll() is None:
                self._ask("close", 10.0)
        finally:
            self._end()

    # ---- inside -------------------------------------------------------------------------------------------------
    def _start(self) -> None:
        token = secrets.token_hex(TOKEN_BYTES)
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.2)
            command = [self.python, lerobot_host.__file__, str(server.getsockname()[1])]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno() if _has_fd(sys.stderr) else None,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ConfigError(
                    f"{self.python} cannot be started ({error})", "give the python of LeRobot's environment"
                ) from error
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{token}\n".encode())
                self._process.stdin.close()
            self._socket = self._accept(server, token)
        try:
            self._features = self._ask("make", START_S, config=self.config)[0]
        except RobotError as error:
            self._end()
            raise ConfigError(
                f"LeRobot in {self.python} cannot make a robot of {self.config}: {error.problem}"
            ) from error

    def _accept(self, server: socket.socket, token: str) -> socket.socket:
        assert self._process is not None
        for _ in range(int(START_S / 0.2)):
            if self._process.poll() is not None:
                break
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            connection.settimeout(5.0)
            with contextlib.suppress(OSError):
                said = b""
                while len(said) < len(token) and (part := connection.recv(len(token) - len(said))):
                    said += part
                if hmac.compare_digest(said, token.encode()):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return connection
            connection.close()  # somebody else on this machine
        self._end()
        raise ConfigError(f"{self.python} does not answer", "it must be a Python of version 3.10 or later")

    def _ask(
        self, op: str, timeout_s: float, **fields: Any
    ) -> tuple[Any, dict[str, tuple[list[int], bytes]]]:
        if self._socket is None:
            raise CommunicationError("LeRobot's process has ended", "connect again")
        self._number += 1
        try:
            self._socket.settimeout(timeout_s)
            lerobot_host.send(self._socket, {"op": op, "number": self._number, **fields})
            while True:
                header, blobs = lerobot_host.receive(self._socket)
                if header.get("number") == self._number:
                    break  # others are answers to what was given up
        except TimeoutError as error:
            raise CommunicationError(
                f"LeRobot's process did not answer {op!r} within {timeout_s:g} s"
            ) from error
        except (OSError, ValueError) as error:
            self._end()
            raise CommunicationError(
                f"LeRobot's process is gone ({error})", "see what it printed; connect again"
            ) from error
        if "error" in header:
            raise _error(op, str(header["error"]), [str(kind) for kind in header.get("kinds", [])])
        return header.get("result"), blobs

    def _end(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()  # the host disconnects its robot when it sees this
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _has_fd(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False
