"""Robots without hardware for tests: one that records what reaches its wire, and whose every part can be broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from wire_checker import WireChecker

from vla_agents.errors import RobotStateError
from vla_agents.robots.robot import Axis, Limits, Reading, Robot, Workspace, check_target

LENGTHS = (0.30, 0.25)  # m


def planar_points(q: np.ndarray) -> np.ndarray:
    """Elbow and tip of two links on a lift: (N, 4) -> (N, 2, 3)."""
    first, second = q[:, 0], q[:, 0] + q[:, 1]
    elbow = np.stack([LENGTHS[0] * np.cos(first), LENGTHS[0] * np.sin(first), q[:, 2]], -1)
    reach = np.stack([LENGTHS[1] * np.cos(second), LENGTHS[1] * np.sin(second), np.zeros(len(q))], -1)
    return np.stack([elbow, elbow + reach], 1)


def planar_limits(box: bool = True, **changes: Any) -> Limits:
    """Two joints, a lift and a gripper that measures its force."""
    axes = (
        Axis("shoulder", -1.5, 1.5, velocity=2.0, acceleration=8.0, home=0.3),
        Axis("elbow", -2.0, 2.0, velocity=3.0, acceleration=12.0, home=0.8),
        Axis("lift", 0.0, 0.4, velocity=0.3, acceleration=1.5, home=0.2, unit="m", kind="other"),
        Axis("gripper", 0.0, 1.0, 4.0, 40.0, home=1.0, unit="", kind="gripper_open_01", effort=5.0),
    )
    workspace = Workspace((-0.1, -0.45, 0.05), (0.50, 0.45, 0.35), planar_points) if box else None
    return Limits(**({"axes": axes, "workspace": workspace} | changes))


def checker_for(limits: Limits, period: float) -> WireChecker:
    """A checker with the same numbers (the checker's arithmetic is its own)."""
    columns = {name: np.array([getattr(axis, name) for axis in limits.axes]) for name in (
        "low", "high", "velocity", "acceleration", "resolution")}  # fmt: skip
    space = limits.workspace
    return WireChecker(
        **columns,
        lead=np.array([0.5 * a.velocity if a.lead is None else a.lead for a in limits.axes]),
        effort_limit=np.array([a.effort for a in limits.axes]),
        stale_after=limits.stale_after,
        watchdog=limits.watchdog,
        period=period,
        box=None if space is None else (np.array(space.low), np.array(space.high), space.points),
    )


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.0)


class RecordingRobot(Robot):
    """Follows its commands with a lag, keeps them in `wire`, and lets a checker judge them.

    `trouble` maps "connect", "observe", "command", ... to an error that the call raises, or to a function that
    is called first.
    """

    def __init__(
        self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic, period: float = 0.01,
        start: np.ndarray | None = None, hz: float = 20.0,
    ) -> None:  # fmt: skip
        self.limits = limits or planar_limits()
        self.embodiment = self.limits.embodiment("recording", control_hz=hz)
        self.checker = checker_for(self.limits, period)
        self.trouble: dict[str, Any] = {}
        self.calls: list[str] = []
        self.wire: list[tuple[float, np.ndarray]] = []
        self.effort: np.ndarray | None = None
        self.position = np.array(self.limits.home if start is None else start, float)
        self._clock, self._connected = clock, False
        self._last = clock()

    def connect(self) -> None:
        self._called("connect")
        if self._connected:
            raise RobotStateError("connected already")
        self._connected = True
        self._last = self._clock()

    def observe(self) -> Reading:
        self._called("observe")
        self._move()
        reading = Reading(self.position.copy(), self._last, effort=self.effort)
        self.checker.measured(reading.time, reading.position, reading.effort)
        return reading

    def command(self, target: np.ndarray) -> np.ndarray:
        target = check_target(target, self.limits)
        self._called("command")
        self._move()
        self.wire.append((self._clock(), target.copy()))
        return target

    def close(self) -> None:
        self._called("close")
        self._connected = False

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in ("observe", "command") and not self._connected:
            raise RobotStateError("not connected")
        trouble = self.trouble.get(name)
        if isinstance(trouble, Exception):
            raise trouble
        if trouble is not None:
            trouble()

    def _move(self) -> None:
        """First order, 30 ms."""
        now = self._clock()
        if self.wire:
            share = 1.0 - np.exp(-(now - self._last) / 0.03)
            self.position = self.position + share * (self.wire[-1][1] - self.position)
        self._last = now
