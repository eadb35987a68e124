"""Robotiq's 2F grippers on a UR: the text protocol of its URCap (TCP port 63352), in a thread of its own.

The gripper answers slowly (tens of milliseconds). The thread sends the newest goal and reads position and current; the
control loop never waits for it.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from vla_agents.errors import CommunicationError, MotorError
from vla_agents.robots.buses.rtde import open_tcp

logger = logging.getLogger(__name__)
CLOSED = 255  # counts; 0 is open
_PERIOD_S = 0.02


class RobotiqGripper:
    """A gripper: 0 closed, 1 open.

    Args:
        host: Of the UR controller.
        port: Of the URCap.
        speed: 0 to 255.
        force: 0 to 255.
        timeout_s: For an answer.
    """

    def __init__(
        self, host: str, port: int = 63352, *, speed: int = 255, force: int = 50, timeout_s: float = 1.0
    ) -> None:
        self.host, self.port, self.speed, self.force, self.timeout_s = host, port, speed, force, timeout_s
        self._socket: socket.socket | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._goal: int | None = None
        self._opening, self._current, self._time, self._error = 0.0, 0.0, 0.0, ""

    def connect(self) -> None:
        """Open the connection; activate the gripper where it is not (it then moves once from end to end).

        Raises:
            PortNotFoundError: The URCap is not installed or not running.
            MotorError: It cannot be activated.
        """
        self._socket = open_tcp(self.host, self.port, self.timeout_s)
        self._socket.settimeout(self.timeout_s)
        self._error, self._goal = "", None
        try:
            if self._get("STA") != 3:
                logger.warning("the gripper at %s is activated: it opens and closes once", self.host)
                self._set("ACT", 0)
                self._set("ACT", 1)
                end = time.monotonic() + 10.0
                while self._get("STA") != 3:
                    if time.monotonic() > end:
                        raise MotorError(f"the gripper at {self.host} cannot be activated", "see the pendant")
                    time.sleep(0.05)
            for name, value in (("GTO", 1), ("SPE", self.speed), ("FOR", self.force)):
                self._set(name, value)
            self._measure()
        except BaseException:
            self.close()
            raise
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=f"gripper {self.host}", daemon=True)
        self._thread.start()

    def read(self) -> tuple[float, float, float]:
        """`(opening 0..1, current in A, monotonic time)` of the last measurement; `CommunicationError` if lost."""
        with self._lock:
            if self._error:
                raise CommunicationError(
                    f"the gripper at {self.host} is lost ({self._error})", "connect again"
                )
            return self._opening, self._current, self._time

    def move(self, opening: float) -> float:
        """Where it shall be; returns what is sent, rounded to counts."""
        counts = round((1.0 - min(max(opening, 0.0), 1.0)) * CLOSED)
        with self._lock:
            self._goal = counts
        return 1.0 - counts / CLOSED

    def close(self) -> None:
        """Hang up; the gripper keeps its grip. Safe to call twice."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(2.0 * self.timeout_s)
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()

    # ---- the thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        sent: int | None = None
        try:
            while not self._stop.wait(_PERIOD_S):
                goal = self._goal
                if goal is not None and goal != sent:
                    self._set("POS", goal)
                    sent = goal
                self._measure()
        except (OSError, ValueError, CommunicationError) as error:
            with self._lock:
                self._error = str(error)

    def _measure(self) -> None:
        position, current = self._get("POS"), self._get("COU")
        with self._lock:
            self._opening, self._current, self._time = (
                1.0 - position / CLOSED,
                current * 0.01,
                time.monotonic(),
            )

    def _get(self, name: str) -> int:
        answer = self._say(f"GET {name}").split()
        if len(answer) != 2 or answer[0] != name:
            raise CommunicationError(f"the gripper at {self.host} answers {' '.join(answer)!r} to GET {name}")
        return int(answer[1])

    def _set(self, name: str, value: int) -> None:
        answer = self._say(f"SET {name} {value}").strip()
        if answer != "ack":
            raise CommunicationError(f"the gripper at {self.host} answers {answer!r} to SET {name} {value}")

    def _say(self, text: str) -> str:
        assert self._socket is not None
        try:
            self._socket.sendall(text.encode() + b"\n")
            answer = self._socket.recv(256)
        except OSError as error:
            raise CommunicationError(
                f"the gripper at {self.host} does not answer ({error})", "see the pendant"
            ) from error
        if not answer:
            raise CommunicationError(f"the gripper at {self.host} hung up")
        return answer.decode("ascii", "replace")
