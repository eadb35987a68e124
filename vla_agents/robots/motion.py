"""Commands that can always still be stopped: the arithmetic behind the safety filter.

Every command that goes out has a *way to stop* that was checked beforehand: from here, at this speed, braking
with the allowed deceleration, no axis leaves its range and no point leaves the box. A wish is followed only as
far as the command it leads to has such a way as well; otherwise the next point of the old way is sent. So by
induction no sequence of wishes leads out, whatever the policy says, and it makes no difference when it falls
silent.

The velocity of a command is the mean over its period, (command - last command) / dt; the acceleration between
two of them is the difference over the time between the middles of the periods. Both hold for periods of
unequal length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from vla_agents.robots.limits import Limits, Workspace

SAMPLE = 0.01  # s between the points of a way to stop at which the box is checked
MOST_SAMPLES = 40
ROUNDING = 1e-9


@dataclass(frozen=True)
class Stopping:
    """The way to stop: from `start` at `velocity`, each axis brakes with its `deceleration`; all (J,)."""

    start: np.ndarray
    velocity: np.ndarray
    deceleration: np.ndarray

    def at(self, after: np.ndarray | float) -> np.ndarray:
        """Positions so many seconds later, (J,), or for times (N, 1): (N, J)."""
        braking = np.minimum(after, np.abs(self.velocity) / self.deceleration)
        return self.start + braking * (
            self.velocity - 0.5 * np.sign(self.velocity) * self.deceleration * braking
        )

    @property
    def end(self) -> np.ndarray:
        """Where every axis comes to rest, (J,)."""
        return self.start + self.velocity * np.abs(self.velocity) / (2 * self.deceleration)

    @property
    def duration(self) -> float:
        """Seconds until the last axis rests."""
        return float((np.abs(self.velocity) / self.deceleration).max())

    def samples(self) -> np.ndarray:
        """Points along it, ends included, (N, J)."""
        duration = self.duration
        count = min(int(np.ceil(duration / SAMPLE)), MOST_SAMPLES) + 1
        return self.at(np.linspace(0.0, duration, count)[:, None])


def reachable_speed(room: np.ndarray, dt: float, deceleration: np.ndarray) -> np.ndarray:
    """The largest v with v dt + v² / (2 a) <= room: a period at v, and then it can stop; all (J,)."""
    room = np.maximum(room, 0.0)
    return deceleration * (np.sqrt(dt * dt + 2 * room / deceleration) - dt)


class Motion:
    """Where the last command was, how fast, and the way to stop from there.

    Args:
        limits: Of the robot.
        start: Measured position (J,). It may lie outside of ranges and box: from there nothing may go further
            out, only back in.
    """

    def __init__(self, limits: Limits, start: np.ndarray) -> None:
        self._limits = limits
        self._box = _Box(limits.workspace, start) if limits.workspace is not None else None
        self.position = np.array(start, np.float64)
        self.velocity = np.zeros_like(self.position)
        self._low = np.minimum(limits.low, start)
        self._high = np.maximum(limits.high, start)
        self.rest()

    def rest(self, position: np.ndarray | None = None) -> None:
        """The arm is at rest, at the last command, or where it was really sent."""
        if position is not None:
            self.position = np.array(position, np.float64)
            self._low, self._high = np.minimum(self._low, position), np.maximum(self._high, position)
            if self._box is not None:
                self._box.include(self.position)
        self.velocity = np.zeros_like(self.position)
        self._way = Stopping(self.position, self.velocity, self._limits.acceleration)
        self._along = self._last_dt = 0.0

    def gain(self, dt: float) -> np.ndarray:
        """How much the velocity may change from the last period to one of length dt, (J,)."""
        return self._limits.acceleration * 0.5 * ((self._last_dt or dt) + dt)

    def room(self) -> tuple[np.ndarray, np.ndarray]:
        """How far the axes may go down and up, both (J,) and at least 0."""
        return self.position - self._low, self._high - self.position

    def advance(self, wish: np.ndarray, dt: float) -> bool:
        """Move on by one period as near to the wish as there is a way to stop afterwards.

        Args:
            wish: Velocity (J,), within the speed limits and `gain`.
            dt: Length of the period, s.

        Returns:
            Whether the wish was followed in full.
        """
        onward = self._way.at(self._along + dt)
        braking = (onward - self.position) / dt
        for share in _shares(len(wish)):
            velocity = braking + share * (wish - braking)
            way = Stopping(self.position + velocity * dt, velocity, self._limits.acceleration)
            if self._accept(way):
                self._go(way.start, velocity, way, 0.0, dt)
                return bool((share == 1.0).all())
        self._go(onward, braking, self._way, self._along + dt, dt)
        self._give_up_outside(onward, self._way.end)
        return False

    def _go(self, position: np.ndarray, velocity: np.ndarray, way: Stopping, along: float, dt: float) -> None:
        self.position, self.velocity, self._way, self._along = position, velocity, way, along
        self._last_dt = dt

    def _accept(self, way: Stopping) -> bool:
        """Whether the way stays inside; where it does, what lies outside of ranges and box is given up."""
        low, high = np.minimum(way.start, way.end), np.maximum(way.start, way.end)
        slack = ROUNDING * (1 + np.abs(way.start))
        if (low < self._low - slack).any() or (high > self._high + slack).any():
            return False
        if self._box is not None and not self._box.accept(way.samples()):
            return False
        self._give_up_outside(way.start, way.end)
        return True

    def _give_up_outside(self, start: np.ndarray, end: np.ndarray) -> None:
        """Outside of a range, only what still lies ahead remains allowed."""
        self._low = np.minimum(self._limits.low, np.minimum(start, end))
        self._high = np.maximum(self._limits.high, np.maximum(start, end))


@cache
def _shares(axes: int) -> np.ndarray:
    """How much of a wish is tried in turn, (N, J): all; all axes but one, so that an arm slides along the side of
    its box; all of them more slowly; one axis alone."""
    one = np.eye(axes)
    return np.concatenate(
        [np.ones((1, axes)), 1 - one, np.full((1, axes), 0.5), np.full((1, axes), 0.25), one]
    )


class _Box:
    """The workspace, widened to where the points are when they are outside."""

    def __init__(self, workspace: Workspace, start: np.ndarray) -> None:
        self._points = workspace.points
        self._inner = (
            np.asarray(workspace.low, float) + workspace.margin,
            np.asarray(workspace.high, float) - workspace.margin,
        )
        self._low, self._high = self._inner
        self.include(start)

    def include(self, position: np.ndarray) -> None:
        points = self._points(position[None])[0]  # (P, 3)
        self._low, self._high = np.minimum(self._low, points), np.maximum(self._high, points)

    def accept(self, positions: np.ndarray) -> bool:
        """Whether all points stay inside at positions (N, J); shrinks back where they do."""
        points = self._points(positions)  # (N, P, 3)
        low, high = points.min(0), points.max(0)
        if not ((low >= self._low - ROUNDING).all() and (high <= self._high + ROUNDING).all()):
            return False  # NaN included
        self._low, self._high = np.minimum(self._inner[0], low), np.maximum(self._inner[1], high)
        return True
