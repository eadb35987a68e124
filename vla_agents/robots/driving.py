"""Driving an arm to a place and waiting until it is there: home before an episode, the start of a replay."""

from __future__ import annotations

import time

import numpy as np

from vla_agents.errors import RobotError
from vla_agents.robots.loop import ControlLoop


def drive(loop: ControlLoop, target: np.ndarray, tolerance: float = 0.02) -> None:
    """Drive the axes to a target, through the loop's safety filter, and wait until command and arm are there.

    Args:
        loop: Connected.
        target: (J,), in the axes' units; what lies outside their ranges is moved to the end.
        tolerance: Of the measured position, share of each axis' range; 1 to look at the commands alone.

    Raises:
        RobotError: Not reached in three times the time it should take.
    """
    limits = loop.limits
    target = np.clip(np.asarray(target, np.float64), limits.low, limits.high)
    start = target if loop.now.command is None else loop.now.command
    longest = np.abs(target - start) / limits.velocity + limits.velocity / limits.acceleration
    until = time.monotonic() + 3 * float(longest.max()) + 1.0
    width = limits.high - limits.low
    near = limits.resolution + 1e-6 * width
    there = False
    while True:
        loop.aim(target, drive=True)
        now = loop.wait(loop.now.number + 1)
        before, there = there, now.command is not None and bool((np.abs(now.command - target) <= near).all())
        away = np.full(len(limits), np.inf) if now.reading is None else np.abs(now.reading.position - target)
        if before and there and (away <= tolerance * width).all():
            loop.aim(None)
            return
        if time.monotonic() > until:
            worst = limits.names[int(np.argmax(away / width))]
            raise RobotError(
                f"the arm does not get to {np.round(target, 3).tolist()}: {worst} is off by {away.max():.3g}",
                "is something in its way, or the target outside of the workspace?",
            )
