"""Franka Robotics FR3 and Panda through `franky` (libfranka), as a joint impedance controller that follows targets.

**Not run on hardware.** No emulator of the robot's side exists; the calls are checked against franky's own API.

The controller runs in franky's thread at 1 kHz and holds the last target. **Stopping.** `stop` makes the measured
position the target; `close` brings the arm to rest and lets the robot hold it with its brakes. When this program dies,
the robot notices within milliseconds and stops by itself. Collisions beyond the thresholds set here stop it with a
reflex; `connect` clears an old one. **Before the first run**: a real-time kernel, FCI active, brakes open, and the
joint space in front of the arm free.

Efforts are the external joint torques that the robot estimates, Nm; the gripper measures none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    CommunicationError,
    ConfigError,
    MissingDependencyError,
    MotorError,
    PortNotFoundError,
    RobotStateError,
    UnknownNameError,
)
from vla_agents.robots.limits import Axis, Limits
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target

RANGES = {  # rad, from the data sheets
    "fr3": (
        (-2.7437, 2.7437), (-1.7837, 1.7837), (-2.9007, 2.9007), (-3.0421, -0.1518), (-2.8065, 2.8065),
        (0.5445, 4.5169), (-3.0159, 3.0159),
    ),
    "panda": (
        (-2.8973, 2.8973), (-1.7628, 1.7628), (-2.8973, 2.8973), (-3.0718, -0.0698), (-2.8973, 2.8973),
        (-0.0175, 3.7525), (-2.8973, 2.8973),
    ),
}  # fmt: skip
MARGIN = 0.05  # rad kept from the ends: beyond them the robot stops with an error
HOME = (0.0, -0.785, 0.0, -2.356, 0.0, 1.571, 0.785)
STIFFNESS = (400.0, 400.0, 400.0, 400.0, 150.0, 150.0, 100.0)  # Nm / rad
GRIPPER_SPEED = 0.1  # m / s
_GRIPPER_PERIOD_S = 0.05


class Franka(Robot):
    """An FR3 or a Panda, with the Franka Hand if it has one.

    Args:
        host: Address of the robot's control unit.
        model: `"fr3"` or `"panda"`.
        gripper: Whether the Franka Hand is driven, too.
        home: Where episodes start, rad, seven joints.
        velocity: Of every joint, rad / s.
        acceleration: Of every joint, rad / s².
        stiffness: Of every joint, Nm / rad.
        torque_threshold: External joint torque that stops the arm with a reflex, Nm.
        force_threshold: External force that does, N.
        realtime: Whether a real-time kernel is required, as Franka does.
        control_hz: Actions per second.
    """

    cameras: Sequence[CameraSource] = ()

    def __init__(
        self,
        host: str,
        model: str = "fr3",
        *,
        gripper: bool = True,
        home: Sequence[float] = HOME,
        velocity: float = 1.0,
        acceleration: float = 4.0,
        stiffness: Sequence[float] = STIFFNESS,
        torque_threshold: float = 20.0,
        force_threshold: float = 30.0,
        realtime: bool = True,
        control_hz: float = 30.0,
    ) -> None:
        if model not in RANGES:
            raise UnknownNameError("model", model, RANGES)
        if len(home) != 7 or len(stiffness) != 7:
            raise ConfigError(
                f"home has {len(home)} and stiffness {len(stiffness)} values, the arm has 7 joints"
            )
        axes = [
            Axis(f"joint{k + 1}", low + MARGIN, high - MARGIN, velocity, acceleration, float(home[k]))
            for k, (low, high) in enumerate(RANGES[model])
        ]
        if gripper:
            axes.append(Axis("gripper", 0.0, 1.0, 1.0, 20.0, 1.0, "", "gripper_open_01"))
        self.host, self.model, self.has_gripper = host, model, gripper
        self.stiffness, self.realtime = np.array(stiffness, float), realtime
        self.thresholds = torque_threshold, force_threshold
        self.limits = Limits(axes=tuple(axes))
        self.embodiment: Embodiment = self.limits.embodiment(model, control_hz)
        self._robot: Any = None
        self._tracker: Any = None
        self._hand: _Hand | None = None

    # ---- Robot --------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Connect, recover from an old reflex, and hold. Nothing moves. See `Robot.connect`."""
        if self._robot is not None:
            raise RobotStateError(f"the {self.model} at {self.host} is connected already")
        franky = _franky()
        config = franky.RealtimeConfig.Enforce if self.realtime else franky.RealtimeConfig.Ignore
        torque, force = self.thresholds
        try:
            robot = franky.Robot(
                self.host,
                default_torque_threshold=torque,
                default_force_threshold=force,
                realtime_config=config,
            )
        except Exception as error:  # franky's own, which share no base
            raise PortNotFoundError(
                f"no Franka robot can be had at {self.host} ({error})",
                "check address and network, activate FCI on its web page, and see docs/drivers.md for the kernel",
            ) from error
        try:
            if robot.has_errors and not robot.recover_from_errors():
                raise MotorError(
                    f"the {self.model} at {self.host} does not recover from its error", "see its web page"
                )
            low, high = self.limits.low[:7] - MARGIN, self.limits.high[:7] + MARGIN
            self._tracker = franky.JointImpedanceTracker(
                robot, stiffness=self.stiffness, lower_joint_limits=low, upper_joint_limits=high
            )
            self._hand = _Hand(franky.Gripper(self.host)) if self.has_gripper else None
        except MotorError:
            raise
        except Exception as error:
            self._end(robot)
            raise MotorError(
                f"the {self.model} at {self.host} cannot be controlled ({error})", "see its web page"
            ) from error
        self._robot = robot

    def observe(self) -> Reading:
        """The robot's state of the last millisecond. See `Robot.observe`."""
        robot = self._connected()
        self._require_running(robot)
        try:
            state = robot.state
        except Exception as error:
            raise CommunicationError(f"the {self.model} at {self.host} does not answer ({error})") from error
        now = time.monotonic()
        position = np.array(state.q, np.float64).reshape(7)
        effort = np.array(state.tau_ext_hat_filtered, np.float64).reshape(7)
        if self._hand is not None:
            position, effort = np.append(position, self._hand.opening()), np.append(effort, np.nan)
        return Reading(position, now, effort=effort)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Set the controller's target. See `Robot.command`."""
        robot = self._connected()
        values = check_target(target, self.limits)
        self._require_running(robot)
        try:
            self._tracker.set_target(values[:7])
        except Exception as error:
            raise CommunicationError(f"the {self.model} at {self.host} takes no target ({error})") from error
        if self._hand is not None:
            self._hand.move(values[7])
        return values

    def close(self) -> None:
        """Come to rest, end control; the robot holds itself. See `Robot.close`."""
        robot, self._robot = self._robot, None
        if robot is not None:
            self._end(robot)

    # ---- inside -------------------------------------------------------------------------------------------------
    def _connected(self) -> Any:
        if self._robot is None:
            raise RobotStateError(f"the {self.model} at {self.host} is not connected", "call connect() first")
        return self._robot

    def _require_running(self, robot: Any) -> None:
        if not self._tracker.is_running:
            raise MotorError(
                f"the {self.model} at {self.host} has stopped by itself ({robot.state.last_motion_errors})",
                "look why, release the stop, then close and connect again",
            )

    def _end(self, robot: Any) -> None:
        tracker, self._tracker = self._tracker, None
        hand, self._hand = self._hand, None
        for last in (tracker.stop if tracker else None, hand.close if hand else None, robot.stop):
            if last is not None:
                with contextlib.suppress(Exception):  # what ended control already is raised here again
                    last()


class _Hand:
    """The Franka Hand in a thread of its own: its commands take as long as the movement."""

    def __init__(self, gripper: Any) -> None:
        self._gripper, self._width = gripper, float(gripper.max_width)
        self._goal: float | None = None
        self._opening = float(gripper.width) / self._width
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="franka hand", daemon=True)
        self._thread.start()

    def opening(self) -> float:
        return self._opening

    def move(self, opening: float) -> None:
        self._goal = opening

    def _run(self) -> None:
        sent: float | None = None
        while not self._stop.wait(_GRIPPER_PERIOD_S):
            goal = self._goal
            with contextlib.suppress(Exception):  # a hand that slips off an object reports so
                if goal is not None and (sent is None or abs(goal - sent) > 0.02):
                    if sent is not None:
                        self._gripper.stop()
                    self._gripper.move_async(goal * self._width, GRIPPER_SPEED)
                    sent = goal
                self._opening = float(self._gripper.width) / self._width

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)


def _franky() -> Any:
    try:
        import franky
    except ImportError as error:
        raise MissingDependencyError("franky-control", "franka", "a Franka robot") from error
    return franky


def calls() -> Mapping[str, tuple[str, ...]]:
    """What of franky is used: name -> attributes and parameters, for checking against the installed version."""
    return {
        "Robot": ("has_errors", "recover_from_errors", "state", "stop", "is_in_control"),
        "RobotState": ("q", "tau_ext_hat_filtered", "last_motion_errors"),
        "JointImpedanceTracker": ("set_target", "is_running", "stop"),
        "Gripper": ("max_width", "width", "move_async", "stop"),
        "RealtimeConfig": ("Enforce", "Ignore"),
    }
