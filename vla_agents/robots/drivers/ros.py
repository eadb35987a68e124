"""Any robot under ROS 1 or 2 whose joints are position-controlled, through rosbridge.

    name: my_arm
    ros: 2
    axes:
      - {name: joint1, low: -2.9, high: 2.9, velocity: 1.0, acceleration: 4.0, home: 0.0}
      ...
    state_topic: /joint_states
    commands:
      - {topic: /forward_position_controller/commands, type: positions, joints: [joint1, ...]}
    cameras:
      - {name: front, topic: /camera/image_raw/compressed, height: 480, width: 640}

**Stopping.** A controller under ROS keeps its last goal when messages end; whether it holds, and what its own limits
are, is the controller's business. `stop` publishes the measured position, `close` leaves the arm there.
**Time.** The stamp of a message is that of another machine's clock; the time of arrival is taken instead.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    CameraError,
    CommunicationError,
    ConfigError,
    RobotError,
    RobotStateError,
    suggest,
)
from vla_agents.robots.buses.rosbridge import Latest, RosbridgeClient, message_type
from vla_agents.robots.cameras.stream import CameraStream
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target

COMMAND_TYPES = {"positions": "std_msgs/Float64MultiArray", "trajectory": "trajectory_msgs/JointTrajectory"}


@dataclass(frozen=True)
class Command:
    """Where goals of some joints go.

    Args:
        topic: e.g. `/forward_position_controller/commands`.
        joints: Names of axes, in the order of the message.
        type: `"positions"` (Float64MultiArray, at once) or `"trajectory"` (JointTrajectory of one point, to be
            reached within a control period).
    """

    topic: str
    joints: tuple[str, ...]
    type: str = "positions"


class RosRobot(Robot):
    """A robot behind a rosbridge server.

    Args:
        host: The machine rosbridge runs on.
        description: A YAML file as at the head of this module, or the same as a mapping.
        port: Of rosbridge.
        control_hz: Actions per second.
        timeout_s: How long `observe` waits for a joint state that is newer than the last.
        wait_s: How long `connect` waits for the first.
    """

    def __init__(
        self,
        host: str,
        description: str | Path | Mapping[str, Any],
        *,
        port: int = 9090,
        control_hz: float = 30.0,
        timeout_s: float = 0.05,
        wait_s: float = 3.0,
    ) -> None:
        entries = _load(description)
        self.name, self.ros = str(entries.get("name", "ros")), entries.get("ros", 2)
        if self.ros not in (1, 2):
            raise ConfigError(f"ros is {self.ros!r}", "it is 1 or 2")
        self.limits = Limits(axes=tuple(_make(Axis, entry) for entry in entries["axes"]))
        self.embodiment: Embodiment = self.limits.embodiment(self.name, control_hz)
        self.state_topic = str(entries.get("state_topic", "/joint_states"))
        self.commands = tuple(_make(Command, entry) for entry in entries["commands"])
        _check_commands(self.commands, self.limits)
        self.host, self.port, self.timeout_s, self.wait_s = host, port, timeout_s, wait_s
        self.cameras: Sequence[CameraSource] = [
            RosCamera(entry.pop("topic"), host=host, port=port, ros=self.ros, **entry)
            for entry in map(dict, entries.get("cameras", []))
        ]
        self.client: RosbridgeClient | None = None
        self._states = Latest()

    def connect(self) -> None:
        """Connect, and wait until every joint has been heard of. Publishes nothing. See `Robot.connect`."""
        if self.client is not None:
            raise RobotStateError(f"{self.name} is connected already")
        client = RosbridgeClient(self.host, self.port, wait_s=self.wait_s)
        client.connect()
        self._states = Latest()
        self.client = client
        try:
            for command in self.commands:
                client.advertise(command.topic, message_type(COMMAND_TYPES[command.type], self.ros))
            client.subscribe(
                self.state_topic, message_type("sensor_msgs/JointState", self.ros), self._states.put
            )
            self._await_first(client)
        except BaseException:
            self.close()
            raise

    def observe(self) -> Reading:
        """The next joint state that has come. See `Robot.observe`."""
        self._connected()
        end = time.monotonic() + self.timeout_s
        while True:
            found = self._states.wait(max(0.0, end - time.monotonic()))
            if found is None:
                raise CommunicationError(
                    f"no joint state on {self.state_topic} for {1000 * self.timeout_s:.0f} ms",
                    f"it has to come at least as often as the arm is driven ({self.embodiment.control_hz:g} Hz)",
                )
            message, arrived = found
            missing, position, effort = self._read(message)
            if not missing:  # several nodes may publish parts of the robot on the same topic
                return Reading(position, arrived, effort=effort)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Publish a goal for every joint. See `Robot.command`."""
        client, values = self._connected(), check_target(target, self.limits)
        for command in self.commands:
            goals = [float(values[self.limits.index(name)]) for name in command.joints]
            client.publish(command.topic, self._message(command, goals))
        return values

    def close(self) -> None:
        """Hang up; the controllers keep their last goals. See `Robot.close`."""
        client, self.client = self.client, None
        if client is not None:
            client.close()

    # ---- inside -------------------------------------------------------------------------------------------------
    def _connected(self) -> RosbridgeClient:
        if self.client is None:
            raise RobotStateError(f"{self.name} is not connected", "call connect() first")
        return self.client

    def _await_first(self, client: RosbridgeClient) -> None:
        end, missing = time.monotonic() + self.wait_s, list(self.limits.names)
        heard: set[str] = set()
        while missing and time.monotonic() < end:
            found = self._states.wait(max(0.0, end - time.monotonic()))
            if found is not None:
                missing, _, _ = self._read(found[0])
                heard.update(map(str, found[0].get("name", [])))
        if missing:
            said = f"; rosbridge says: {client.complaints[-1]}" if client.complaints else ""
            raise RobotError(
                f"no position of {', '.join(missing)} on {self.state_topic} (heard of: "
                f"{', '.join(sorted(heard)) or 'nobody'}){said}",
                "check the names of the axes and that the robot's drivers run (`ros2 topic echo /joint_states`)",
            )

    def _read(self, message: Mapping[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """`(axes without a position, positions, efforts)`; NaN travels as null."""
        names = [str(name) for name in message.get("name", [])]
        values = _column(names, message.get("position"))
        efforts = _column(names, message.get("effort"))
        position = np.array([values.get(name, math.nan) for name in self.limits.names], np.float64)
        effort = np.array([efforts.get(name, math.nan) for name in self.limits.names], np.float64)
        missing = [
            n for n, value in zip(self.limits.names, position, strict=True) if not math.isfinite(value)
        ]
        return missing, position, effort

    def _message(self, command: Command, goals: list[float]) -> dict[str, Any]:
        if command.type == "positions":
            return {"layout": {"dim": [], "data_offset": 0}, "data": goals}
        nanoseconds = round(1e9 / self.embodiment.control_hz)
        names = ("sec", "nanosec") if self.ros == 2 else ("secs", "nsecs")
        duration = dict(zip(names, divmod(nanoseconds, 10**9), strict=True))
        point = {
            "positions": goals,
            "velocities": [],
            "accelerations": [],
            "effort": [],
            "time_from_start": duration,
        }
        header = {"stamp": dict.fromkeys(names, 0), "frame_id": ""}  # zero: at once
        return {"header": header, "joint_names": list(command.joints), "points": [point]}


class RosCamera(CameraStream):
    """A topic of `sensor_msgs/CompressedImage`, over a connection of its own.

    Args:
        source: The topic.
        name, height, width, options: See `CameraStream`.
        host: The machine rosbridge runs on.
        port: Of rosbridge.
        ros: 1 or 2.
    """

    def __init__(
        self,
        source: str,
        name: str,
        height: int,
        width: int,
        *,
        host: str,
        port: int = 9090,
        ros: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(source, name, height, width, **options)
        self.host, self.port, self.ros = host, port, ros

    def open(self) -> Any:
        """Connect and subscribe."""
        client, pictures = RosbridgeClient(self.host, self.port, wait_s=self.wait_s), Latest()
        try:
            client.connect()
            kind = message_type("sensor_msgs/CompressedImage", self.ros)
            client.subscribe(self.source, kind, pictures.put, throttle_ms=round(1000 / self.fps))
        except RobotError as error:
            client.close()
            raise CameraError(f"camera {self.camera.name!r}: {error.problem}", error.remedy) from error
        return client, pictures

    def grab(self, device: Any) -> tuple[np.ndarray, float]:
        """The next picture; its time is that of its arrival."""
        from PIL import Image

        while not self._stop.is_set():
            found = device[1].wait(0.1)
            if found is None:
                continue
            try:
                file = io.BytesIO(base64.b64decode(found[0]["data"]))
                return np.asarray(Image.open(file).convert("RGB")), found[1]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CameraError(
                    f"camera {self.camera.name!r}: no picture in {self.source} ({error})"
                ) from error
        raise CameraError("closing")

    def release(self, device: Any) -> None:
        """Hang up."""
        device[0].close()


def _load(description: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(description, Mapping):
        entries: Any = dict(description)
    else:
        try:
            entries = yaml.safe_load(Path(description).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"the description {description} cannot be read ({error})") from error
    known = {"name", "ros", "axes", "state_topic", "commands", "cameras"}
    if not isinstance(entries, dict) or not entries.get("axes") or not entries.get("commands"):
        raise ConfigError("the description of the robot needs `axes` and `commands`", "see docs/drivers.md")
    for key in entries:
        if key not in known:
            raise ConfigError(
                f"the description of the robot has an unknown key {key!r}{suggest(str(key), known)}"
            )
    return entries


def _make(kind: Any, entry: Any) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{entry!r} is no {kind.__name__.lower()}", f"it has the keys {', '.join(sorted(names))}"
        )
    for key in entry:
        if key not in names:
            raise ConfigError(f"{dict(entry)}: unknown key {key!r}{suggest(str(key), names)}")
    try:
        return kind(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        )
    except TypeError as error:
        raise ConfigError(f"{dict(entry)}: {error}") from error


def _check_commands(commands: Sequence[Command], limits: Limits) -> None:
    commanded = [joint for command in commands for joint in command.joints]
    for command in commands:
        if command.type not in COMMAND_TYPES:
            raise ConfigError(
                f"{command.topic}: unknown type {command.type!r}", f"known: {', '.join(COMMAND_TYPES)}"
            )
    if sorted(commanded) != sorted(limits.names):
        raise ConfigError(
            f"the commands are for {commanded}, the axes are {list(limits.names)}",
            "each axis needs one command",
        )


def _column(names: list[str], values: Any) -> dict[str, float]:
    if not isinstance(values, list) or len(values) != len(names):
        return {}
    return {n: math.nan if value is None else float(value) for n, value in zip(names, values, strict=True)}
