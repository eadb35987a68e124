"""Joints of arms made of servos: which motor, and how its counts become an axis' unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.robots.drivers.calibration import Calibration, MotorCalibration
from vla_agents.robots.limits import Axis

UNITS = {
    "rad": "joints in rad from the middle of their range, gripper 0 (closed) to 1 (open)",
    "deg": "as LeRobot with use_degrees: joints in degrees from the middle, gripper 0 to 100",
    "pm100": "as LeRobot without use_degrees: joints -100 to 100 over their range, gripper 0 to 100",
}
COUNTS = 4096  # per turn, of every servo here


@dataclass(frozen=True)
class Joint:
    """One joint of an arm.

    Args:
        name: As LeRobot calls it, where it knows the arm.
        id: Of its motor on the bus.
        models: Model numbers it may have.
        gripper: Whether it opens and closes instead of turning a link.
        full_turn: Whether it can turn without end; its range is a whole turn.
        velocity: Largest speed, rad / s; for a gripper, whole ways / s.
        acceleration: Largest acceleration, rad / s² or whole ways / s².
        shadow: Id of a second motor on the same shaft that does what the first does; 0 for none.
    """

    name: str
    id: int
    models: tuple[int, ...]
    gripper: bool = False
    full_turn: bool = False
    velocity: float = 3.0
    acceleration: float = 20.0
    shadow: int = 0

    @property
    def motors(self) -> dict[str, int]:
        """Name -> id of its motors: its own and, where it has one, the shadow's."""
        own = {self.name: self.id}
        return {**own, f"{self.name}_shadow": self.shadow} if self.shadow else own


def motors_of(joints: Sequence[Joint]) -> dict[str, int]:
    """Name -> id of all motors of an arm."""
    return {name: motor for joint in joints for name, motor in joint.motors.items()}


class Scale:
    """From counts to axis units and back, for all joints at once.

    Args:
        joints: In the order of a command.
        calibration: Of this arm.
        units: One of `UNITS`.
    """

    def __init__(self, joints: Sequence[Joint], calibration: Calibration, units: str) -> None:
        if units not in UNITS:
            raise UnknownNameError("units", units, UNITS)
        motors = [calibration.motors[joint.name] for joint in joints]
        self.count_low = np.array([motor.range_min for motor in motors], np.int64)  # (J,)
        self.count_high = np.array([motor.range_max for motor in motors], np.int64)  # (J,)
        zeros, factors = zip(
            *(_affine(j, m, units) for j, m in zip(joints, motors, strict=True)), strict=True
        )
        self.zero, self.factor = np.array(zeros, np.float64), np.array(factors, np.float64)

    def position(self, counts: np.ndarray) -> np.ndarray:
        """Counts (J,) -> positions (J,)."""
        return (np.asarray(counts, np.float64) - self.zero) * self.factor

    def counts(self, position: np.ndarray) -> np.ndarray:
        """Positions (J,) -> the nearest counts (J,) inside the calibrated range, int64."""
        counts = np.rint(np.asarray(position, np.float64) / self.factor + self.zero).astype(np.int64)
        return np.clip(counts, self.count_low, self.count_high)


def _affine(joint: Joint, motor: MotorCalibration, units: str) -> tuple[float, float]:
    """`(zero, factor)`: position = (counts - zero) * factor."""
    span, middle = motor.range_max - motor.range_min, (motor.range_min + motor.range_max) / 2
    turned = bool(motor.drive_mode)
    if joint.gripper:
        whole = 1.0 if units == "rad" else 100.0
        return (motor.range_max, -whole / span) if turned else (motor.range_min, whole / span)
    if units == "deg":  # LeRobot: 4095 counts to a turn, and drive_mode does not count
        return middle, 360.0 / (COUNTS - 1)
    factor = 200.0 / span if units == "pm100" else 2 * np.pi / COUNTS
    return middle, -factor if turned else factor


def make_axes(
    joints: Sequence[Joint],
    scale: Scale,
    units: str,
    home: dict[str, float] | None,
    effort: dict[str, float] | None,
) -> tuple[Axis, ...]:
    """The axes of a calibrated arm, in `units`.

    Args:
        joints: In the order of a command.
        scale: Of the same joints.
        units: One of `UNITS`.
        home: Joint -> where episodes start, in the axes' units; the middle, and a closed gripper, where not named.
        effort: Joint -> largest effort, in the unit the driver measures.
    """
    names = [joint.name for joint in joints]
    for given in (home or {}, effort or {}):
        for name in given:
            if name not in names:
                raise UnknownNameError("joint", name, names)
    ends = np.sort(np.stack([scale.position(scale.count_low), scale.position(scale.count_high)]), axis=0)
    axes = []
    for index, joint in enumerate(joints):
        unit, kind = "", "joint_position"
        way = abs(scale.factor[index]) * COUNTS / (2 * np.pi)  # axis units per rad
        if joint.gripper:
            way = ends[1, index] - ends[0, index]  # per whole way
            kind = "gripper_open_01" if units == "rad" else "gripper_position"
        if units != "pm100" and not joint.gripper:
            unit = units
        elif units != "rad":
            unit = "0.01 of the range"
        low, high = float(ends[0, index]), float(ends[1, index])
        rest = (home or {}).get(joint.name, min(max(0.0, low), high))
        if not low <= rest <= high:
            raise ConfigError(
                f"home of {joint.name!r} is {rest}, its range is {low:.4g} to {high:.4g} {unit}"
            )
        axes.append(
            Axis(
                joint.name if units == "rad" else f"{joint.name}.pos",  # LeRobot's column names
                low,
                high,
                velocity=joint.velocity * way,
                acceleration=joint.acceleration * way,
                home=rest,
                unit=unit,
                kind=kind,
                effort=(effort or {}).get(joint.name, np.inf),
                resolution=float(abs(scale.factor[index])),
            )
        )
    return tuple(axes)
