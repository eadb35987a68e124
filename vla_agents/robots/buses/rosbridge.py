"""A client of rosbridge: topics of ROS 1 or 2 as JSON over a websocket, without ROS on this machine.

A thread receives, and connects again when the connection was lost; topics are then advertised and subscribed to anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from vla_agents.errors import CommunicationError, MissingDependencyError, PortNotFoundError

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
Handler = Callable[[dict[str, Any]], None]


def message_type(name: str, ros: int) -> str:
    """`"sensor_msgs/JointState"` as the ROS of that generation spells it."""
    package, _, kind = name.partition("/")
    return f"{package}/msg/{kind}" if ros == 2 else f"{package}/{kind}"


class RosbridgeClient:
    """One connection to a rosbridge server.

    Args:
        host: Name or address of the machine it runs on.
        port: Its port.
        wait_s: How long a connection attempt may take.

    Attributes:
        complaints: The last errors and warnings that the server sent.
    """

    def __init__(self, host: str, port: int = 9090, *, wait_s: float = 3.0) -> None:
        self.host, self.port, self.wait_s = host, port, wait_s
        self.complaints: list[str] = []
        self._handlers: dict[str, Handler] = {}
        self._standing: list[dict[str, Any]] = []  # what is said anew after a reconnection
        self._socket: Any = None
        self._stack = contextlib.ExitStack()  # closes it
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """`ws://host:port`"""
        return f"ws://{self.host}:{self.port}"

    def connect(self) -> None:
        """Connect and start to receive.

        Raises:
            PortNotFoundError: Nobody listens there, or it is no websocket.
        """
        self._closed.clear()
        self._socket = self._open()
        self._thread = threading.Thread(target=self._run, name=f"rosbridge {self.host}", daemon=True)
        self._thread.start()

    def subscribe(self, topic: str, kind: str, handler: Handler, *, throttle_ms: int = 0) -> None:
        """Call `handler` with each message of a topic, in the receiving thread; only the newest is kept waiting."""
        self._handlers[topic] = handler
        self._say_always(
            {"op": "subscribe", "topic": topic, "type": kind, "throttle_rate": throttle_ms, "queue_length": 1}
        )

    def advertise(self, topic: str, kind: str) -> None:
        """Announce that messages will be published on a topic."""
        self._say_always({"op": "advertise", "topic": topic, "type": kind, "queue_size": 1})

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        """Publish on a topic; `CommunicationError` while the connection is lost."""
        self._say({"op": "publish", "topic": topic, "msg": message})

    def close(self) -> None:
        """End. Safe to call twice."""
        self._closed.set()
        thread, self._thread = self._thread, None
        socket = self._socket
        if socket is not None:
            with contextlib.suppress(Exception):
                self._stack.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(3.0)
        self._socket = None

    # ---- inside -------------------------------------------------------------------------------------------------
    def _say_always(self, message: dict[str, Any]) -> None:
        self._standing.append(message)
        self._say(message)

    def _say(self, message: dict[str, Any]) -> None:
        socket = self._socket
        if socket is None:
            raise CommunicationError(
                f"the connection to {self.address} is lost", "check rosbridge and the network"
            )
        try:
            with self._lock:
                socket.send(json.dumps(message))
        except Exception as error:  # websockets' own, and those of sockets
            raise CommunicationError(f"{self.address} did not take a message ({error!r})") from error

    def _open(self) -> Any:
        try:
            from websockets.sync.client import connect
        except ImportError as error:
            raise MissingDependencyError("websockets", "robots", "a robot behind rosbridge") from error
        try:
            context = connect(
                self.address, open_timeout=self.wait_s, close_timeout=0.5, max_size=64 << 20, compression=None,
                proxy=None, ping_interval=5, ping_timeout=5,
            )  # fmt: skip
            return self._stack.enter_context(context)
        except Exception as error:
            raise PortNotFoundError(
                f"no rosbridge answers at {self.address} ({error})",
                "on the robot: `ros2 launch rosbridge_server rosbridge_websocket_launch.xml` "
                "(ROS 1: `roslaunch rosbridge_server rosbridge_websocket.launch`)",
            ) from error

    def _run(self) -> None:
        while not self._closed.is_set():
            socket = self._socket
            try:
                for text in socket:
                    self._received(text)
            except Exception as error:
                if not self._closed.is_set():
                    logger.warning("%s: %r", self.address, error)
            if not self._closed.is_set():
                self._socket = None
                with contextlib.suppress(Exception):
                    self._stack.close()
                self._reconnect()

    def _reconnect(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closed.wait(pause):
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                socket = self._open()
                for message in self._standing:
                    socket.send(json.dumps(message))
            except Exception as error:
                logger.info("%s: %s", self.address, error)
                continue
            self._socket = socket
            logger.warning("connected to %s again", self.address)
            return

    def _received(self, text: str | bytes) -> None:
        try:
            message = json.loads(text)
            op, topic = message["op"], message.get("topic")
        except (ValueError, KeyError, TypeError, AttributeError):
            self._complain(f"a message that is not rosbridge's: {text[:80]!r}")
            return
        if op == "status" and message.get("level") in ("error", "warning"):
            self._complain(str(message.get("msg")))
        elif op == "publish" and topic in self._handlers:
            try:
                self._handlers[topic](message["msg"])
            except Exception as error:
                self._complain(f"a message on {topic} that cannot be used: {error!r}")

    def _complain(self, text: str) -> None:
        self.complaints = [*self.complaints[-4:], text]
        logger.warning("%s: %s", self.address, text)


class Latest:
    """The newest message of a topic, and when it came; `wait` gives each message once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._message: Any = None
        self._time = 0.0
        self._fresh = False

    def put(self, message: Any) -> None:
        """A new one has come."""
        with self._condition:
            self._message, self._time, self._fresh = message, time.monotonic(), True
            self._condition.notify_all()

    def wait(self, timeout_s: float) -> tuple[Any, float] | None:
        """The newest message not returned before, and when it came; None where there was none in time."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._fresh, timeout_s):
                return None
            self._fresh = False
            return self._message, self._time
