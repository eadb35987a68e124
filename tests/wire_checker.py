"""Judges what reached the wire, from the wire and the readings alone. Shares no code with the safety filter.

It is told what the robot measured, what was asked for and what was sent, with times, and keeps a list of what
was unsafe. A pause of more than `GAP` periods between commands is a stop at the last of them: the device holds
its last goal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

GAP = 2.5  # periods
EPS = 1e-6


@dataclass
class Late:
    """What was known when a command was tried that did not arrive; `given`: (J,) how far axes may give way since."""

    time: float
    reading: Any
    must_stop: bool
    given: np.ndarray


@dataclass
class WireChecker:
    """Args: `axes` and `box` (low, high, points) are plain data, `period` of the control loop in s."""

    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    lead: np.ndarray
    effort_limit: np.ndarray
    resolution: np.ndarray
    stale_after: float
    watchdog: float
    period: float
    box: tuple[np.ndarray, np.ndarray, Any] | None = None
    unsafe: list[str] = field(default_factory=list)
    commands: int = 0

    def __post_init__(self) -> None:
        self._readings: list[tuple[float, np.ndarray, np.ndarray | None]] = []
        self._wish_time, self._wish_ok = -np.inf, False
        self._stopped, self._cleared = False, -np.inf
        self._last: np.ndarray | None = None
        self._last_time, self._last_dt = -np.inf, 0.0
        self._last_v = np.zeros_like(self.low)
        self._tried = -np.inf  # time of the last command, whether or not it arrived
        self._late: Late | None = None  # the first one that was tried since the last that arrived
        self._first_of_all = False  # the last command is the first one
        self._hold = False  # nothing moves on until a command gets through for certain
        self._given_way = np.zeros_like(self.low)  # speed that an axis may have from giving way unseen
        self._outside: tuple[np.ndarray, np.ndarray] | None = None

    # ---- what happened ------------------------------------------------------------------------------------
    def measured(self, time: float, position: np.ndarray, effort: np.ndarray | None = None) -> None:
        if np.shape(position) == self.low.shape and np.isfinite(position).all():
            self._readings.append((time, np.array(position), effort))
            self._readings = self._readings[-50:]

    def wished(self, time: float, target: np.ndarray) -> None:
        self._wish_time, self._wish_ok = time, bool(np.isfinite(target).all())

    def stopped(self) -> None:
        self._stopped = True

    def cleared(self, time: float) -> None:
        """Everything begins anew."""
        self._stopped, self._cleared = False, time
        self._begin_anew()
        self._readings = []

    def doubted(self, time: float) -> None:
        """The command of `time` was answered by an error. Where it arrived all the same, `sent` was told so before.

        Who sends cannot know which of the two it is, and has to repeat it until one gets through. Where it arrived, the
        arm rests there, or, where it was the first, is measured anew. Where it did not, the next one that arrives makes
        up for its step, and is judged by when it should have come and what was known then.
        """
        if self._last is None:
            return
        if self._last_time < time:
            reading = self._recent(time)
            if self._late is None:
                stop = self._hold or self._must_stop(time, reading)
                self._late = Late(time, reading, stop, np.zeros_like(self.low))
            else:
                self._late.given += self._gives_way(time) * self._step(time)
        elif self._first_of_all:
            self._begin_anew()
        else:
            self._last_v = self._given_way = np.zeros_like(self.low)
            self._last_dt = 0.0
        self._hold, self._tried = True, time

    def _begin_anew(self) -> None:
        self._last = self._outside = self._late = None
        self._hold, self._given_way = False, np.zeros_like(self.low)

    def _recent(self, time: float) -> Any:
        recent = [r for r in self._readings if r[0] >= time - self.stale_after and r[0] <= time + self.period]
        return recent[-1] if recent else None

    def _step(self, time: float) -> float:
        """How long the step lasts that begins at the command tried before; after a gap, it is one of a period."""
        dt = time - self._tried
        return self.period if dt > GAP * self.period else dt

    def _gives_way(self, time: float) -> np.ndarray:
        """Speeds (J,) at which axes that push too hard may give way from rest, in a step nobody sees by itself."""
        reading = self._recent(time)
        if reading is None or reading[2] is None:
            return np.zeros_like(self.low)
        over = np.abs(np.nan_to_num(reading[2])) > self.effort_limit
        return np.where(over, self.acceleration * self._step(time), 0.0)

    # ---- what was sent ------------------------------------------------------------------------------------
    def sent(self, time: float, command: np.ndarray) -> None:
        self.commands += 1
        command = np.asarray(command, float)
        if command.shape != self.low.shape or not np.isfinite(command).all():
            self._wrong(time, "not finite or of wrong shape", command)
            return
        if self._last is None:
            self._first(time, command, self._recent(time))
        elif time <= self._tried:
            self._wrong(time, "two commands at once", command)
            return
        elif self._late is not None:
            self._made_up_for(time, command, self._late)
        else:
            reading, stop = self._recent(time), self._hold
            self._check(time, command, reading, stop or self._must_stop(time, reading))
        self._late, self._hold = None, False
        self._last_time = self._tried = time

    def _made_up_for(self, time: float, command: np.ndarray, late: Late) -> None:
        """The step of a lost command; since then the arm has rested but for axes that give way."""
        speed, step = self._gives_way(time), self._step(time)
        given = late.given + speed * step
        dt = late.time - self._last_time
        self._given_way = self._given_way + given / (self.period if dt > GAP * self.period else dt)
        self._check(late.time, command, late.reading, late.must_stop)
        self._last_v, self._last_dt, self._given_way = np.zeros_like(self.low), step, speed

    def _first(self, time: float, command: np.ndarray, reading: Any) -> None:
        if len(self._readings) < 2 or reading is None:
            self._wrong(time, "sent before two fresh readings", command)
        else:
            if (np.abs(command - reading[1]) > self.resolution + EPS).any():
                self._wrong(time, f"first command is not the measured {reading[1]}", command)
            self._last = reading[1]
            self._check_place(time, command)
        self._remember(command, np.zeros_like(self.low), 0.0)
        self._first_of_all = True

    def _check(self, time: float, command: np.ndarray, reading: Any, must_stop: bool) -> None:
        assert self._last is not None
        self._first_of_all = False
        dt = time - self._last_time
        if dt > GAP * self.period:  # it came to rest there
            self._last_v, self._last_dt, dt = np.zeros_like(self.low), 0.0, self.period
        v = (command - self._last) / dt
        given, self._given_way = self._given_way, np.zeros_like(self.low)
        rounding = self.resolution / dt + given
        dv = self.acceleration * (dt + (self._last_dt or dt)) / 2
        rounding_a = rounding + self.resolution / (self._last_dt or dt)
        fast = (np.abs(v) > self.velocity * (1 + EPS) + rounding + EPS).any()
        hard = (np.abs(v - self._last_v) > dv * (1 + EPS) + rounding_a + EPS).any()
        if fast:
            self._wrong(time, f"velocity {v}", command)
        if hard:
            self._wrong(time, f"velocity {self._last_v} -> {v}, allowed change {dv}", command)
        self._check_place(time, command)
        # What a mean speed may be at most where it must go down: braking begins at the end of a period, so that
        # at first, and in the period in which it ends, the mean goes down half as fast as the speed.
        brake = 0.5 * self.acceleration * min(dt, self._last_dt or dt)
        last = np.abs(self._last_v)
        slower = np.maximum(0.5 * last, last - brake)
        slack = rounding_a + EPS
        if reading is not None:
            ahead = command - reading[1]
            outward = np.sign(ahead) * v > np.where(np.sign(ahead) * self._last_v > 0, slower, 0) + slack
            if (outward & (np.abs(ahead) > self.lead + self.resolution + EPS)).any():
                self._wrong(time, f"runs ahead of {reading[1]}", command)
            self._check_effort(time, command, v, slower, slack, reading)
        if must_stop:
            faster = np.abs(v) > slower + slack
            turned = (v * self._last_v < -slack) & (np.abs(v) > slack)
            yielding = np.zeros_like(faster)
            if reading is not None and reading[2] is not None:
                hard = np.abs(np.nan_to_num(reading[2])) > self.effort_limit
                lag = reading[1] - self._last  # it gives way towards where it is, and no further
                yielding = hard & (self._push(reading) * v <= slack)
                yielding &= (lag * v >= 0) & (
                    np.abs(v) * dt <= np.abs(lag) + 2 * self.resolution + slack * dt
                )
            if ((faster | turned) & ~yielding).any():
                self._wrong(time, f"moves on, {self._last_v} -> {v}, and must stop", command)
        self._remember(command, v, dt)

    def _push(self, reading: Any) -> np.ndarray:
        """Which way the axes push: towards the last command, or as the effort says where they are there.

        0 where the two differ and the device's rounding decides which of them it is: there nothing can be said.
        """
        assert self._last is not None
        lag, near = self._last - reading[1], self.resolution + 0.001 * (self.high - self.low)
        ways = np.sign(lag), np.sign(np.nan_to_num(reading[2]))
        push = np.where(np.abs(lag) <= near, ways[1], ways[0])
        unclear = (np.abs(np.abs(lag) - near) <= self.resolution + EPS) & (ways[0] != ways[1])
        return np.where(unclear, 0.0, push)

    def _check_effort(
        self, time: float, command: np.ndarray, v: np.ndarray, slower: np.ndarray, slack: Any, reading: Any
    ) -> None:
        if reading[2] is None:
            return
        push = self._push(reading)
        on = push * v > np.where(push * self._last_v > 0, slower, 0) + slack
        if (on & (np.abs(np.nan_to_num(reading[2])) > self.effort_limit)).any():
            self._wrong(time, f"pushes on at effort {reading[2]}", command)

    def _must_stop(self, time: float, reading: Any) -> bool:
        silent = time - self._wish_time > self.watchdog or self._wish_time <= self._cleared
        return self._stopped or reading is None or silent or not self._wish_ok

    def _check_place(self, time: float, command: np.ndarray) -> None:
        """Inside, or at least not further out than before; relative to `_last`."""
        assert self._last is not None
        slack = self.resolution + EPS * (1 + np.abs(command))
        below = command < np.minimum(self.low, self._last) - slack
        above = command > np.maximum(self.high, self._last) + slack
        if (below | above).any():
            self._wrong(time, f"outside of the range, before {self._last}", command)
        if self.box is None:
            return
        low, high, points = self.box
        at, start = points(command[None])[0], points(self._last[None])[0]
        if self._outside is None:
            self._outside = np.minimum(low, start), np.maximum(high, start)
        if (at < self._outside[0] - 1e-4).any() or (at > self._outside[1] + 1e-4).any():
            self._wrong(time, f"point outside of the box: {at}", command)
        if (at >= low).all() and (at <= high).all():
            self._outside = np.broadcast_to(low, at.shape), np.broadcast_to(high, at.shape)

    def _remember(self, command: np.ndarray, v: np.ndarray, dt: float) -> None:
        self._last, self._last_v, self._last_dt = command, v, dt

    def _wrong(self, time: float, what: str, command: np.ndarray) -> None:
        self.unsafe.append(f"t={time:.4f}: {command.tolist()}: {what}")
