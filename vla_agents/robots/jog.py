"""Moving one axis a little, slowly and through the safety filter: to see that it turns, and which way."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from vla_agents.errors import ConfigError, RobotError
from vla_agents.robots.loop import ControlLoop
from vla_agents.robots.robot import Robot

LOOP_HZ = 50.0
SETTLE_S = 2.0  # how long the arm may lag behind before that is an error
CLOSE = 0.02  # of the axis' range


def jog(
    robot: Robot,
    axis: str,
    *,
    by: float | None = None,
    to: float | None = None,
    speed: float = 0.1,
    back: bool = False,
    show: Callable[[float, float], None] | None = None,
) -> tuple[float, float]:
    """Move one axis of a robot that is not connected; it is closed again in the end.

    Args:
        robot: The robot.
        axis: Name of the axis, e.g. `"elbow_flex"`.
        by: How far from where it stands, in the axis' unit.
        to: Where to, instead.
        speed: Part of the velocity limits, above 0 and at most 1.
        back: Go back to the start afterwards.
        show: Called with command and measured position while it moves.

    Returns:
        `(position before, position at the target)`, measured.

    Raises:
        ConfigError: The target lies outside the axis' range.
        RobotError: The axis does not follow.
    """
    limits = robot.limits.scaled(speed)
    index = limits.index(axis)
    if (by is None) == (to is None):
        raise ConfigError("a jog needs either how far (by) or where to (to)")
    loop = ControlLoop(robot, max(LOOP_HZ, robot.embodiment.control_hz), limits=limits)
    loop.connect()
    try:
        command, reading = loop.now.command, loop.now.reading
        assert command is not None and reading is not None
        start, before = command.copy(), float(reading.position[index])
        place = before + by if by is not None else float(to or 0.0)
        low, high = float(limits.low[index]), float(limits.high[index])
        if not low <= place <= high:
            raise ConfigError(
                f"{axis} at {place:.4g} is outside its range {low:.4g} to {high:.4g} {limits.axes[index].unit}".rstrip(),
                f"it stands at {before:.4g}",
            )
        target = start.copy()
        target[index] = place
        after = _drive(loop, index, target, show)
        if back:
            _drive(loop, index, start, show)
        return before, after
    finally:
        loop.close()


def _drive(
    loop: ControlLoop, index: int, target: np.ndarray, show: Callable[[float, float], None] | None
) -> float:
    limits = loop.limits
    near = CLOSE * float(limits.high[index] - limits.low[index])
    late: float | None = None
    while True:
        loop.aim(target, drive=True)
        now = loop.wait(loop.now.number + 1)
        assert now.command is not None and now.reading is not None
        told, seen = float(now.command[index]), float(now.reading.position[index])
        if show is not None:
            show(told, seen)
        if abs(told - target[index]) <= limits.resolution[index] + 1e-9:
            if abs(seen - told) <= near:
                return seen
            late = late or time.monotonic()
            if time.monotonic() - late > SETTLE_S:
                name = limits.names[index]
                raise RobotError(
                    f"{name} was told to go to {told:.4g} and stands at {seen:.4g}",
                    "is something in its way?",
                )
