"""An xArm's control box: the register protocol on its TCP port, joints that follow servo orders, errors and delays."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time

from emulators.ur import TcpServer, read

GET_VERSION, MOTION_EN, SET_STATE, GET_STATE, GET_ERROR, CLEAN_ERR, SET_MODE = 1, 11, 12, 13, 15, 16, 19
MOVE_SERVOJ, GET_JOINT_POS = 29, 42


class XArmEmulator:
    """`with XArmEmulator() as device: ...`; the SDK's port has to be set to `device.port`.

    Attributes:
        goals: Every servo order: (monotonic time, joint positions).
        error: The controller's error number; 0 for none.
        asked: Numbers of the registers that were asked for.
    """

    def __init__(self, joints: int = 6, speed: float = 3.0, seed: int = 0) -> None:
        self.joints, self.speed = joints, speed
        self.q, self.target = [0.1 * k - 0.3 for k in range(joints)], None
        self.goals, self.asked = [], []
        self.error = self.mode = 0
        self.state, self.enabled = 4, False
        self.lose = self.corrupt = self.delay_s = 0.0
        self.silent = False
        self.lock = threading.Lock()
        self._random = random.Random(seed)
        self._then = time.monotonic()
        self._server = TcpServer(self._serve, "127.0.0.1", 0)
        self.port = self._server.port

    def move(self) -> None:
        now = time.monotonic()
        dt, self._then = now - self._then, now
        if self.target is not None and self.mode == 1:
            for k in range(self.joints):
                step = self.target[k] - self.q[k]
                self.q[k] += max(-self.speed * dt, min(self.speed * dt, step))

    def _serve(self, connection: socket.socket) -> None:
        while True:
            number, protocol, length = struct.unpack(">HHH", read(connection, 6))
            body = read(connection, length)
            if protocol != 2:  # a heartbeat
                continue
            with self.lock:
                self.move()
                data = self.obey(body[0], body[1:])
            self.asked.append(body[0])
            if self.silent or self._random.random() < self.lose:
                continue
            time.sleep(self.delay_s)
            status = (0x40 if self.error else 0) | (0x10 if self.state > 2 or not self.enabled else 0)
            answer = bytes([body[0], status]) + data
            answer = struct.pack(">HHH", number, 2, len(answer)) + answer
            if self._random.random() < self.corrupt:
                place = self._random.choice([0, 1, 2, 3, 6])
                answer = answer[:place] + bytes([answer[place] ^ 0x5A]) + answer[place + 1 :]
            connection.sendall(answer)

    def obey(self, register: int, data: bytes) -> bytes:
        if register == GET_VERSION:
            return f"{self.joints},{self.joints},XI1304,AC1300,v2.3.0".encode().ljust(40, b"\0")
        if register == GET_STATE:
            return bytes([self.state])
        if register == GET_ERROR:
            return bytes([self.error, 0])
        if register == GET_JOINT_POS:
            kinds = data[0] & 0x0F if data else 1
            rows = [list(self.q), [0.0] * self.joints, [2.5] * self.joints][:kinds]
            return struct.pack(
                f"<{7 * kinds}f", *(v for row in rows for v in [*row, *[0.0] * (7 - len(row))])
            )
        if register == MOTION_EN:
            self.enabled = bool(data[1])
        elif register == SET_MODE:
            self.mode, self.target = data[0], None
            self.state = 5  # until the state is set again
        elif register == SET_STATE:
            self.state = 2 if data[0] == 0 and not self.error else 4
        elif register == CLEAN_ERR:
            self.error = 0
        elif (
            register == MOVE_SERVOJ and self.mode == 1 and self.enabled and self.state == 2 and not self.error
        ):
            self.target = list(struct.unpack("<7f", data[:28])[: self.joints])
            self.goals.append((time.monotonic(), self.target))
        return b"\0" * 4

    def hang_up(self) -> None:
        self._server.hang_up()

    def close(self) -> None:
        self._server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
