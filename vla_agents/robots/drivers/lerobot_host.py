"""The other side of the LeRobot adapter: runs where LeRobot is installed, in this process or in one of its own.

As a program it needs neither vla_agents nor numpy beyond what LeRobot brings: `python lerobot_host.py PORT`, with a token
on standard input. It connects to 127.0.0.1:PORT, says the token, and answers. A message is a JSON header of known
length, followed by the raw bytes of the pictures it names. When the other side is gone, the robot is disconnected.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import pkgutil
import socket
import struct
import sys
from typing import Any

RETRIES = 2
MAX_HEADER, MAX_BLOB = 1 << 20, 64 << 20
_LENGTH = struct.Struct(">I")


class Host:
    """A LeRobot robot, made from its configuration.

    Args:
        config: `type` (e.g. `"so101_follower"`) and the fields of that type, cameras included.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.robot = _make(config)

    def features(self) -> dict[str, Any]:
        """`action`: names; `observation`: name -> None for a number, (height, width) for a picture."""
        seen = {
            name: list(kind[:2]) if isinstance(kind, tuple) else None
            for name, kind in self.robot.observation_features.items()
        }
        numbers = [name for name, kind in self.robot.action_features.items() if not isinstance(kind, tuple)]
        return {"action": numbers, "observation": seen, "name": str(getattr(self.robot, "name", "lerobot"))}

    def connect(self) -> None:
        """Open the devices; a robot that is not calibrated is let go again."""
        self.robot.connect(calibrate=False)
        if not self.robot.is_calibrated:
            self.close()
            raise CalibrationMissing("the robot is not calibrated, or its calibration file is of another arm")

    def observe(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers, and pictures as uint8 arrays."""
        for attempt in range(RETRIES + 1):  # LeRobot itself does not ask its motors twice
            try:
                observation = self.robot.get_observation()
                break
            except ConnectionError:
                if attempt == RETRIES:
                    raise
        numbers, pictures = {}, {}
        for name, value in observation.items():
            if getattr(value, "ndim", 0) == 3:
                pictures[name] = value
            else:
                numbers[name] = float(value)
        return numbers, pictures

    def command(self, action: dict[str, float]) -> dict[str, float]:
        """Send an action; returns what was sent."""
        return {name: float(value) for name, value in self.robot.send_action(dict(action)).items()}

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        if self.robot.is_connected:
            self.robot.disconnect()


class CalibrationMissing(RuntimeError):
    """The robot's own calibration is missing or does not fit."""


def _make(config: dict[str, Any]) -> Any:
    import draccus
    import lerobot.cameras
    import lerobot.robots
    from lerobot.robots.config import RobotConfig
    from lerobot.robots.utils import make_robot_from_config

    for package in (lerobot.robots, lerobot.cameras):  # their configurations register themselves
        for module in pkgutil.iter_modules(package.__path__):
            with contextlib.suppress(Exception):  # of a robot whose SDK is not installed
                importlib.import_module(f"{package.__name__}.{module.name}")
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("lerobot.utils.import_utils").register_third_party_plugins()
    return make_robot_from_config(draccus.decode(RobotConfig, config))


# ---- the wire ---------------------------------------------------------------------------------------------------
def send(connection: socket.socket, header: dict[str, Any], blobs: dict[str, Any] | None = None) -> None:
    """Send a header and pictures (uint8 arrays)."""
    blobs = blobs or {}
    listing = {name: list(array.shape) for name, array in blobs.items()}
    data = json.dumps({**header, "blobs": listing}).encode()
    connection.sendall(_LENGTH.pack(len(data)) + data + b"".join(array.tobytes() for array in blobs.values()))


def receive(connection: socket.socket) -> tuple[dict[str, Any], dict[str, tuple[list[int], bytes]]]:
    """The next header, and name -> (shape, bytes) of its pictures; `ConnectionError` at the end or for nonsense."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MAX_HEADER:
        raise ConnectionError(f"a header of {length} bytes")
    header = json.loads(_exactly(connection, length))
    if not isinstance(header, dict) or not isinstance(header.get("blobs"), dict):
        raise ConnectionError("a header that is none")
    blobs = {}
    for name, shape in header["blobs"].items():
        if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)):
            raise ConnectionError(f"a picture of shape {shape}")
        size = math.prod(shape)
        if size > MAX_BLOB:
            raise ConnectionError(f"a picture of {size} bytes")
        blobs[name] = (shape, _exactly(connection, size))
    return header, blobs


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the other side has gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(connection: socket.socket) -> None:
    """Answer until the other side goes; the robot is disconnected whatever happens."""
    host: Host | None = None
    try:
        while True:
            header, _ = receive(connection)
            answer: dict[str, Any] = {"number": header.get("number")}
            blobs: dict[str, Any] = {}
            try:
                op = header["op"]
                if op == "make":
                    host = Host(header["config"])
                    answer["result"] = host.features()
                elif host is None:
                    raise RuntimeError("no robot has been made")
                elif op == "observe":
                    answer["result"], blobs = host.observe()
                elif op == "command":
                    answer["result"] = host.command(header["action"])
                elif op in ("connect", "close"):
                    getattr(host, op)()
                    answer["result"] = None
                else:
                    raise ValueError(f"unknown op {op!r}")
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                answer = {"number": header.get("number"), "error": str(error) or repr(error), "kinds": kinds}
                blobs = {}
            send(connection, answer, blobs)
    except (ConnectionError, OSError, ValueError):
        pass
    finally:
        if host is not None:
            host.close()


def main() -> None:
    """`python lerobot_host.py PORT`, with the token on standard input."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [
        folder for folder in sys.path if os.path.abspath(folder) != here
    ]  # a lerobot.py lies here, too
    token = sys.stdin.readline().strip()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10.0) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(token.encode())
        serve(connection)


if __name__ == "__main__":
    main()
