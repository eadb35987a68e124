"""Any robot of LeRobot that is driven by positions, in this process or in LeRobot's own environment.

    make_robot("lerobot", config={"type": "so101_follower", "port": "/dev/ttyACM0", "id": "left"},
               python="/home/me/lerobot/bin/python")

LeRobot knows no limits, so `axes` must name them where positions are not parts of a calibrated range (-100 to 100, the
gripper 0 to 100). Its calibration and its cameras are used as they are.

**Stopping.** `stop` sends the measured position. `close` disconnects; most LeRobot robots then switch the torque off
at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.embodiment import Camera, Embodiment
from vla_agents.errors import CameraError, CommunicationError, ConfigError, RobotStateError, suggest
from vla_agents.robots.drivers.lerobot_session import LocalSession, ProcessSession, Session
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.robot import CameraSource, Frame, Reading, Robot, check_target

POSITION = ".pos"


class LeRobotRobot(Robot):
    """A robot of LeRobot.

    Args:
        config: LeRobot's configuration: `type`, and the fields of that type.
        python: Interpreter of the environment LeRobot is installed in; empty: this one.
        axes: Feature (e.g. `"shoulder_pan.pos"`) -> low, high, velocity, acceleration, and maybe home and unit, for
            those that are not parts of a range.
        control_hz: Actions per second.
        timeout_s: How long the other process may take for an answer.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        python: str = "",
        axes: Mapping[str, Mapping[str, Any]] | None = None,
        control_hz: float = 30.0,
        timeout_s: float = 0.1,
    ) -> None:
        config = dict(config)
        if "type" not in config:
            raise ConfigError(
                "LeRobot's configuration needs `type`", 'e.g. config={"type": "so101_follower", ...}'
            )
        self.session: Session = ProcessSession(config, python, timeout_s) if python else LocalSession(config)
        self._connected = self._is_open = False
        try:
            features = self.session.features()
            self.limits = Limits(axes=_axes(features, axes or {}, bool(config.get("use_degrees"))))
        except BaseException:
            self.session.close()
            raise
        self.name = str(config["type"])
        self.embodiment: Embodiment = self.limits.embodiment(self.name, control_hz)
        sizes = {name: size for name, size in features["observation"].items() if size}
        self._views = {name: LeRobotCamera(self, name, *size) for name, size in sizes.items()}
        self.cameras: Sequence[CameraSource] = list(self._views.values())

    def connect(self) -> None:
        """LeRobot's `connect`, without its calibration dialogue. See `Robot.connect`."""
        if self._connected:
            raise RobotStateError(f"LeRobot's {self.name} is connected already")
        self._open()
        self._connected = True

    def observe(self) -> Reading:
        """LeRobot's `get_observation`; its pictures go to the cameras. See `Robot.observe`."""
        self._require()
        numbers, captured = self._measure()
        missing = [name for name in self.limits.names if not np.isfinite(numbers.get(name, np.nan))]
        if missing:
            raise CommunicationError(f"LeRobot's {self.name} gave no {', '.join(missing)}")
        return Reading(np.array([numbers[name] for name in self.limits.names], np.float64), captured)

    def command(self, target: np.ndarray) -> np.ndarray:
        """LeRobot's `send_action`. See `Robot.command`."""
        self._require()
        values = check_target(target, self.limits)
        sent = self.session.command(dict(zip(self.limits.names, values.tolist(), strict=True)))
        return np.array([sent.get(n, v) for n, v in zip(self.limits.names, values, strict=True)], np.float64)

    def close(self) -> None:
        """LeRobot's `disconnect`; ends its process. See `Robot.close`."""
        self._connected = self._is_open = False
        self.session.close()

    def look(self) -> None:
        """Take the first pictures before the robot itself is connected, as its cameras are asked to."""
        if not self._connected:
            self._open()
            self._measure()

    def _open(self) -> None:
        if not self._is_open:
            self.session.connect()
            self._is_open = True

    def _measure(self) -> tuple[dict[str, float], float]:
        before = time.monotonic()
        numbers, pictures = self.session.observe()
        now = time.monotonic()
        for name, picture in pictures.items():
            if name in self._views:
                self._views[name].put(picture, now)
        return numbers, (before + now) / 2

    def _require(self) -> None:
        if not self._connected:
            raise RobotStateError(f"LeRobot's {self.name} is not connected", "call connect() first")


class LeRobotCamera(CameraSource):
    """A camera that LeRobot reads: its newest picture is that of the robot's last `observe`."""

    def __init__(self, robot: LeRobotRobot, name: str, height: int, width: int) -> None:
        self.camera = Camera(name, height, width)
        self._robot, self._frame = robot, Frame(np.zeros((height, width, 3), np.uint8), -np.inf, 0)

    def put(self, image: np.ndarray, captured: float) -> None:
        """A new picture has come."""
        if image.shape == self._frame.image.shape:
            self._frame = Frame(image, captured, self._frame.number + 1)

    def connect(self) -> None:
        """Have a first picture; later ones come whenever the robot is observed."""
        self._robot.look()
        end = time.monotonic() + 5.0
        while not self._frame.number:
            if time.monotonic() > end:
                raise CameraError(
                    f"camera {self.camera.name!r}: LeRobot gave no picture", "see what it printed"
                )
            time.sleep(0.01)

    def latest(self) -> Frame:
        """The newest picture. See `CameraSource.latest`."""
        if not self._frame.number:
            raise CameraError(f"camera {self.camera.name!r} has no picture yet", "connect the robot first")
        return self._frame

    def close(self) -> None:
        """LeRobot closes it together with the robot."""


def _axes(
    features: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]], degrees: bool
) -> tuple[Axis, ...]:
    names = features["action"]
    for name in given:
        if name not in names:
            raise ConfigError(
                f"axes: LeRobot has no {name!r}{suggest(name, names)}", f"it has {', '.join(names)}"
            )
    axes = []
    for name in names:
        if not name.endswith(POSITION) or name not in features["observation"]:
            raise ConfigError(
                f"{name!r} is no position that can be measured", "only such robots can be driven here"
            )
        entry = dict(given.get(name, {}))
        if not entry:
            gripper = "gripper" in name
            if degrees and not gripper:
                raise ConfigError(
                    f"LeRobot gives {name!r} in degrees and says no limits",
                    "name them: axes={...}, or use_degrees=False",
                )
            entry = {
                "low": 0.0 if gripper else -100.0,
                "high": 100.0,
                "velocity": 120.0,
                "acceleration": 600.0,
            }
            entry["kind"] = "gripper_position" if gripper else "joint_position"
            entry["unit"], entry["resolution"] = "0.01 of the range", 0.1  # a count of a joint of 180 degrees
        entry.setdefault("home", min(max(0.0, entry.get("low", 0.0)), entry.get("high", 0.0)))
        try:
            axes.append(Axis(name, **entry))
        except TypeError as error:
            raise ConfigError(f"axes: {name!r}: {error}") from error
    return tuple(axes)
