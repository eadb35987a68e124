"""What stands between an agent and the motors: a state machine that turns wishes into commands.

    waiting   no trustworthy reading yet: nothing is sent
    running   follows the target within the limits
    holding   brakes and holds: no target, a silent policy, a target that is not finite, an old reading; goes on
              by itself when the cause is gone
    stopped   brakes and holds until `clear`, and then for readings and a target newer than that

It has no thread, reads no clock and does no input or output, so that it can be tested to the bottom: `step` is
told the time. `ControlLoop` calls it once per control period; there is no other way to the motors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from vla_agents.errors import ConfigError
from vla_agents.robots.limits import Limits
from vla_agents.robots.motion import Motion, reachable_speed
from vla_agents.robots.robot import Reading

WAITING, RUNNING, HOLDING, STOPPED = "waiting", "running", "holding", "stopped"
LONGEST = 2.5  # periods: after a longer pause the arm has come to rest at the last command by itself
SLACK = 1e-6  # relative, of rounding
APART = 0.001  # of an axis' range: a command so far from the measured position pushes that way
NEARLY = 0.8  # of the largest effort: from here on an axis pushes no further
STEADY = 0.02  # of an axis' range: what two readings of an arm at rest may differ by

INTERVENTIONS = {
    "not_finite": "the target was NaN or infinite: it was dropped",
    "position": "the target was outside an axis' range",
    "velocity": "the target was further away than an axis may go in one period",
    "acceleration": "the target asked for a harder start or stop than allowed",
    "workspace": "the target would have led a point of the arm out of its box",
    "lead": "the command would have run too far ahead of the measured position",
    "effort": "an axis pushes harder than allowed: its command gives way",
    "stale_reading": "the last reading is too old",
    "watchdog": "no new action came in time",
    "stop": "the stop is latched",
}


@dataclass(frozen=True)
class Target:
    """Where the arm shall be now, and when an agent last said so.

    Args:
        position: (J,)
        time: Monotonic time of the agent's action, s.
    """

    position: np.ndarray
    time: float


@dataclass(frozen=True)
class Decision:
    """What came of a step.

    Args:
        command: float64 (J,) to send now; None: nothing may be sent.
        state: One of waiting, running, holding, stopped.
        interventions: Names (of `INTERVENTIONS`) of what kept the command from being the target.
    """

    command: np.ndarray | None
    state: str
    interventions: tuple[str, ...] = ()


class SafetyFilter:
    """The state machine.

    Args:
        limits: Of the robot.
        period: Of the control loop, s.

    Attributes:
        counts: Number of steps in which each intervention happened.
        reason: Why the stop is latched; empty where it is not.
    """

    def __init__(self, limits: Limits, period: float) -> None:
        if not 0 < period < 1:
            raise ConfigError(f"a control period of {period} s", "it must lie between 0 and 1 s")
        self.limits, self.period = limits, period
        self.counts: Counter[str] = Counter()
        self.reason = ""
        self._motion: Motion | None = None  # None: nothing may be sent
        self._first: Reading | None = None  # of the two readings that must agree before there is a motion
        self._unseen = False  # there was a time without readings
        self._begun = False  # the first command has got through
        self._now = -np.inf
        self._cleared = -np.inf
        self._wished: np.ndarray | None = None  # the target of the last step, where it was followed

    @property
    def command(self) -> np.ndarray | None:
        """The last command (J,), None before the first."""
        return None if self._motion is None else self._motion.position.copy()

    @property
    def moving(self) -> bool:
        """Whether the commands have not come to rest yet."""
        return self._motion is not None and bool(np.any(self._motion.velocity != 0))

    # ---- the stop -----------------------------------------------------------------------------------------
    def stop(self, reason: str) -> None:
        """Latch the stop; the first reason stays."""
        self.reason = self.reason or reason or "stop"

    def clear(self, now: float) -> bool:
        """Unlatch: as at the start, nothing is sent until there are two readings from after `now`, and nothing
        moves until there is a target from after `now`.

        Returns:
            False while the arm still brakes: it was not cleared, ask again.
        """
        if self.reason and self.moving:
            return False
        if self.reason:
            self.reason, self._cleared = "", now
            self._motion = self._first = None
        return True

    def sent(self, actual: np.ndarray) -> None:
        """What the driver says it sent in place of the last command, (J,).

        Rounding is the device's business; where a driver changed a command by more than that, the motion goes
        on from what it sent; where by more than the lead, the stop is latched.
        """
        motion = self._motion
        if motion is None:
            return
        self._begun = True
        if (np.abs(actual - motion.position) > self.limits.resolution + 1e-9).any():
            if self._away(motion, actual):
                self.stop(f"the driver sent {actual.tolist()}, it was told {motion.position.tolist()}")
                return
            motion.rest(actual)

    def unsure(self) -> None:
        """It is not known whether the last command arrived. Where it did, the arm rests there; where it did not, it is
        a step away: from there it goes on, from rest. Where it was the first one, the next is measured anew."""
        if self._motion is not None:
            self._motion.rest()
        if not self._begun:
            self._motion = self._first = None

    # ---- one period ---------------------------------------------------------------------------------------
    def step(self, now: float, reading: Reading | None, target: Target | None) -> Decision:
        """Decide what to send.

        Args:
            now: Monotonic time, s. A call that is not later than the last one sends nothing.
            reading: The newest one there is, however old.
            target: None: hold.
        """
        dt = now - self._now
        if not dt > 0:
            return Decision(None, self._state(False))
        self._now = now
        fresh = self._usable(reading, now)
        before = self._motion
        self._look(fresh)
        motion = self._motion
        if motion is None:
            decision = Decision(None, self._state(False), ("stop",) if self.reason else ())
        elif motion is not before:  # the first command says: stay where you are
            decision = Decision(motion.position.copy(), self._state(False))
        else:
            if dt > LONGEST * self.period:
                motion.rest()
                dt = self.period
            decision = self._move(motion, dt, fresh, target)
        self.counts.update(decision.interventions)
        return decision

    def _state(self, following: bool) -> str:
        if self.reason:
            return STOPPED
        return WAITING if self._motion is None else RUNNING if following else HOLDING

    def _usable(self, reading: Reading | None, now: float) -> Reading | None:
        """The reading where it is one of this robot, finite, recent and not from the future."""
        if reading is None or np.shape(reading.position) != (len(self.limits),):
            return None
        recent = now - self.limits.stale_after <= reading.time <= now + self.period
        return reading if recent and np.isfinite(reading.position).all() else None

    def _look(self, fresh: Reading | None) -> None:
        """Begin where the arm is; notice when it is elsewhere than it was left."""
        if fresh is None:
            self._unseen = self._motion is not None
            self._first = None
            return
        if self._unseen and self._motion is not None and self._away(self._motion, fresh.position):
            self.stop("the arm is not where it was before the connection was lost")
            self._motion = None  # a command from there would make it jump
        self._unseen = False
        if self._motion is not None or self.reason or fresh.time <= self._cleared:
            return
        first, self._first = self._first, fresh
        if first is None or not fresh.time > first.time:
            self._first = first or fresh
            return
        limits = self.limits
        close = limits.velocity * (fresh.time - first.time) + STEADY * (limits.high - limits.low)
        if (np.abs(fresh.position - first.position) <= close).all():
            self._motion, self._wished, self._begun = Motion(limits, fresh.position), None, False

    def _away(self, motion: Motion, position: np.ndarray) -> bool:
        return bool((np.abs(motion.position - position) > self.limits.lead).any())

    # ---- from a wish to a command -------------------------------------------------------------------------
    def _move(self, motion: Motion, dt: float, fresh: Reading | None, target: Target | None) -> Decision:
        found = self._why_hold(fresh, target)
        silent = target is not None and self._now - target.time > self.limits.watchdog
        following = target is not None and found == [] and not silent and target.time > self._cleared
        if silent and found == [] and self._wanted(motion, target):
            found.append("watchdog")
        wish = np.zeros(len(self.limits))
        if following:
            assert target is not None
            wish = self._pursue(motion, np.asarray(target.position, np.float64), dt, found)
        else:
            self._wished = None
        gain = motion.gain(dt)
        wish = np.clip(
            self._bounded(motion, wish, dt, fresh, found), motion.velocity - gain, motion.velocity + gain
        )
        end = "position" if self.limits.workspace is None else "workspace"
        if not motion.advance(wish, dt) and following and end not in found:
            found.append(end)
        return Decision(motion.position.copy(), self._state(following), tuple(found))

    def _why_hold(self, fresh: Reading | None, target: Target | None) -> list[str]:
        if self.reason:
            return ["stop"]
        if fresh is None:
            return ["stale_reading"]
        if target is None or target.time <= self._cleared:
            return []
        if np.shape(target.position) != (len(self.limits),) or not np.isfinite(target.position).all():
            return ["not_finite"]
        return []

    def _wanted(self, motion: Motion, target: Target | None) -> bool:
        """Whether the arm would still have to go somewhere: one that rests at its target is not held up."""
        return target is not None and (self.moving or bool((motion.position != target.position).any()))

    def _pursue(self, motion: Motion, target: np.ndarray, dt: float, found: list[str]) -> np.ndarray:
        """The velocity (J,) that leads to the target: in this period where that is allowed, else as soon as
        possible without running past it."""
        limits, gain = self.limits, motion.gain(dt) * (1 + SLACK)
        goal = np.clip(target, limits.low, limits.high)
        way = goal - motion.position
        last = goal if self._wished is None else self._wished
        self._wished = goal
        pace = np.clip((goal - last) / dt, -limits.velocity, limits.velocity)  # of the target itself
        exact = way / dt
        fits = np.abs(exact) <= limits.velocity * (1 + SLACK)
        # Reached without a jerk, and without one could it be left at the target's own pace.
        within = np.clip(exact, -limits.velocity, limits.velocity)
        smooth = (np.abs(within - motion.velocity) <= gain) & (np.abs(within - pace) <= gain)
        behind = way - pace * dt
        chase = pace + np.sign(behind) * reachable_speed(np.abs(behind), dt, limits.acceleration)
        found += [
            name
            for name, wrong in (("position", goal != target), ("velocity", ~fits), ("acceleration", ~smooth))
            if wrong.any()
        ]
        return np.where(fits & smooth, exact, chase)

    def _bounded(
        self, motion: Motion, wish: np.ndarray, dt: float, fresh: Reading | None, found: list[str]
    ) -> np.ndarray:
        """The wish (J,), slowed down before the end of a range, before running ahead, and before pushing."""
        limits, braking = self.limits, self.limits.acceleration
        down, up = (np.minimum(limits.velocity, reachable_speed(room, dt, braking)) for room in motion.room())
        wish = np.clip(wish, -down, up)
        if fresh is None:
            return wish
        ahead = motion.position - fresh.position
        held = np.clip(
            wish,
            -reachable_speed(limits.lead + ahead, dt, braking),
            reachable_speed(limits.lead - ahead, dt, braking),
        )
        if (held != wish).any():
            found.append("lead")
        if fresh.effort is None or np.shape(fresh.effort) != wish.shape:
            return held
        return self._yielding(held, np.nan_to_num(fresh.effort), ahead, dt, found)

    def _yielding(
        self, wish: np.ndarray, effort: np.ndarray, ahead: np.ndarray, dt: float, found: list[str]
    ) -> np.ndarray:
        """No further the way an axis pushes too hard, and back towards the measured position.

        Which way it pushes is told by where its command is from where it is; only where these are the same does
        the sign of the effort count: drivers get it wrong.
        """
        limits = self.limits
        apart = np.abs(ahead) > limits.resolution + APART * (limits.high - limits.low)
        push = np.where(apart, np.sign(ahead), np.sign(effort))
        near = np.abs(effort) > NEARLY * limits.effort
        over = np.abs(effort) > limits.effort
        asked, wish = wish, np.where(near, push * np.minimum(push * wish, 0.0), wish)
        if over.any() or (wish != asked).any():
            found.append("effort")
        back = np.minimum(
            limits.velocity, reachable_speed(np.maximum(push * ahead, 0.0), dt, limits.acceleration)
        )
        return np.where(over, push * np.minimum(push * wish, -back), wish)
