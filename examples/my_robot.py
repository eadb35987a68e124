"""A driver in one file: two joints behind a controller that speaks JSON lines over TCP. Run it: python examples/my_robot.py

The controller is pretended by a thread in here; a real one would be at an address of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import numpy as np

from vla_agents.errors import CommunicationError, PortNotFoundError, RobotStateError
from vla_agents.robots.check import check_robot
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.robot import Axis, Limits, Reading, Robot, check_target


class MyArm(Robot):
    """Two joints. Close leaves it holding its last goal.

    Args:
        host: Of the controller.
        port: Likewise.
    """

    def __init__(self, host: str, port: int) -> None:
        self.limits = Limits(
            axes=(
                Axis("shoulder", -1.5, 1.5, velocity=2.0, acceleration=20.0, home=0.0),
                Axis("elbow", 0.0, 2.6, velocity=3.0, acceleration=30.0, home=1.2),
            )
        )
        self.embodiment = self.limits.embodiment("my_arm", control_hz=50)
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        if self._socket is not None:
            raise RobotStateError("my_arm is connected already")
        try:
            self._socket = socket.create_connection(self._address, timeout=2.0)
        except OSError as error:
            raise PortNotFoundError(
                f"nobody answers at {self._address}: {error}", "is the arm on?"
            ) from error
        self._socket.settimeout(0.05)  # a fraction of a period: nothing here may block
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._ask({"hold": True})  # where it is, before anything else
        except BaseException:
            self.close()
            raise

    def observe(self) -> Reading:
        before = time.monotonic()
        answer = self._ask({})
        return Reading(np.array(answer["position"]), (before + time.monotonic()) / 2)

    def command(self, target: np.ndarray) -> np.ndarray:
        values = check_target(target, self.limits)
        return np.array(self._ask({"goal": values.tolist()})["goal"])

    def close(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    def _ask(self, question: dict) -> dict:
        if self._socket is None:
            raise RobotStateError("my_arm is not connected", "call connect() first")
        try:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            line = b""
            while not line.endswith(b"\n"):
                line += self._socket.recv(4096) or b"\n"
            return json.loads(line)
        except (OSError, ValueError) as error:
            raise CommunicationError(f"my_arm at {self._address}: {error}", "check the cable") from error


class Controller:
    """The pretended device: joints that follow their goals."""

    def __init__(self) -> None:
        self.position = self.goal = np.array([0.2, 1.0])
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection, connection.makefile("rw") as stream:
                then = time.monotonic()
                for line in stream:
                    now = time.monotonic()
                    self.position = self.position + (1 - np.exp((then - now) / 0.03)) * (
                        self.goal - self.position
                    )
                    then, question = now, json.loads(line)
                    self.goal = (
                        self.position if "hold" in question else np.array(question.get("goal", self.goal))
                    )
                    stream.write(
                        json.dumps({"position": self.position.tolist(), "goal": self.goal.tolist()}) + "\n"
                    )
                    stream.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # a waiting accept() would take one more connection
        self._server.close()


def main() -> None:
    device = Controller()
    for name in check_robot(MyArm("127.0.0.1", device.port)):
        print("passed:", name)
    env = RobotEnv(MyArm("127.0.0.1", device.port), instruction="wave")
    obs, _ = env.reset()
    for step in range(100):
        obs, *_ = env.step(np.float32([0.5 * np.sin(0.06 * step), 1.2]))
    print("the joints are at", obs["state"].round(2), "|", env.rate())
    env.close()
    device.close()


if __name__ == "__main__":
    main()
