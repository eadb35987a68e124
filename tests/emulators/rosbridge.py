"""A rosbridge server with a robot behind it: joints that follow their goals, a camera, and a bad network."""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

COMMANDS = {"Float64MultiArray", "JointTrajectory"}


class RosbridgeEmulator:
    """`with RosbridgeEmulator(["a", "b"]) as device: ... device.port`.

    Attributes:
        commands: Everything that was published to it: (monotonic time, topic, message).
        goals: Every goal that reached the joints: (monotonic time, {joint: position}).
        lose: Probability that a joint state is not sent.
        garbage: Probability that something else than JSON is sent before one.
        null: Joints whose position is sent as null (NaN).
    """

    def __init__(
        self, joints, hz: float = 100.0, speed: float = 3.0, ros: int = 2, order=None, seed: int = 0
    ) -> None:
        self.joints, self.hz, self.speed, self.ros = list(joints), hz, speed, ros
        self.order = order or [*self.joints, "other_joint"]
        self.position = dict.fromkeys([*self.joints, "other_joint"], 0.0)
        self.goal = dict(self.position)
        self.commands, self.goals, self.subscriptions = [], [], []
        self.lose = self.garbage = self.delay_s = 0.0
        self.silent, self.null = False, set()
        self.picture_size = (48, 64)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set = set()
        self._ended = threading.Event()
        self.port = 0
        self._start()

    def _start(self) -> None:
        self._ended.clear()
        self._server = serve(self._serve, "127.0.0.1", self.port, compression=None, close_timeout=0.2)
        self.port = self._server.socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._server.serve_forever, daemon=True)]
        self._threads[0].start()

    # ---- the robot ----------------------------------------------------------------------------------------------
    def move(self, dt: float) -> None:
        for name, goal in self.goal.items():
            step = goal - self.position[name]
            self.position[name] += max(-self.speed * dt, min(self.speed * dt, step))

    def obey(self, topic: str, message: dict) -> None:
        now = time.monotonic()
        self.commands.append((now, topic, message))
        if "points" in message:
            goals = dict(zip(message["joint_names"], message["points"][-1]["positions"], strict=True))
        else:
            names = [j for j in self.joints if j in topic] or self.joints
            goals = dict(zip(names, message["data"], strict=True))
        self.goals.append((now, goals))
        self.goal.update(goals)

    # ---- the server ---------------------------------------------------------------------------------------------
    def _serve(self, connection) -> None:
        self._connections.add(connection)
        topics: dict[str, float] = {}
        advertised: dict[str, str] = {}
        sender = threading.Thread(target=self._publish, args=(connection, topics), daemon=True)
        sender.start()
        try:
            for text in connection:
                message = json.loads(text)
                if message["op"] == "subscribe":
                    self.subscriptions.append((message["topic"], message["type"]))
                    if ("/msg/" in message["type"]) != (self.ros == 2):
                        status = {
                            "op": "status",
                            "level": "error",
                            "msg": f"no message type {message['type']}",
                        }
                        connection.send(json.dumps(status))
                        continue
                    topics[message["topic"]] = 0.0
                elif message["op"] == "advertise":
                    advertised[message["topic"]] = message["type"]
                elif message["op"] == "publish":
                    assert advertised[message["topic"]].rsplit("/", 1)[1] in COMMANDS
                    with self._lock:
                        self.obey(message["topic"], message["msg"])
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._connections.discard(connection)

    def _publish(self, connection, topics: dict[str, float]) -> None:
        then, number = time.monotonic(), 0
        while not self._ended.wait(1.0 / self.hz) and connection in self._connections:
            now = time.monotonic()
            with self._lock:
                self.move(now - then)
            then, number = now, number + 1
            if self.silent:
                continue
            try:
                for topic in list(topics):
                    if "image" in topic:
                        self._send(connection, topic, self._picture(number))
                        continue
                    if self._random.random() < self.garbage:
                        connection.send(self._random.choice(["{", "[]", '{"op": 1}', '"x"', "null"]))
                    if self._random.random() >= self.lose:
                        time.sleep(self.delay_s)
                        self._send(connection, topic, self._state(now))
            except (ConnectionClosed, OSError):
                return

    def _send(self, connection, topic: str, message: dict) -> None:
        connection.send(json.dumps({"op": "publish", "topic": topic, "msg": message}))

    def _state(self, now: float) -> dict:
        seconds = ("sec", "nanosec") if self.ros == 2 else ("secs", "nsecs")
        return {
            "header": {"stamp": dict(zip(seconds, (int(now), 0), strict=True)), "frame_id": ""},
            "name": self.order,
            "position": [None if name in self.null else self.position[name] for name in self.order],
            "velocity": [],
            "effort": [1.5] * len(self.order),
        }

    def _picture(self, number: int) -> dict:
        file = io.BytesIO()
        Image.fromarray(np.full((*self.picture_size, 3), number % 250, np.uint8)).save(file, "JPEG")
        return {"header": {}, "format": "jpeg", "data": base64.b64encode(file.getvalue()).decode()}

    def hang_up(self) -> None:
        """The server goes down."""
        self._ended.set()
        self._server.shutdown()
        for connection in list(self._connections):
            connection.socket.close()
        for thread in self._threads:
            thread.join(5.0)

    def come_back(self) -> None:
        """And up again, on the same port."""
        self._start()

    def close(self) -> None:
        if not self._ended.is_set():
            self.hang_up()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
