"""Devices that lead the tool: what a hand wants, made safe, and turned into the env's actions.

    HandSource.read() -> Motion -> Clutch (lost? silent? neutral? held?) -> step of the tool -> EffectorMap -> action

Axes are those of the robot's base: x forward, y left, z up, turns about them right-handed. `yaw` turns them for an operator
who does not stand behind the robot.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.agent import Observation, batch_size
from vla_agents.collect.devices.effector import EffectorMap, make_effector_map
from vla_agents.collect.teleop import Device, Event
from vla_agents.errors import ConfigError

logger = logging.getLogger(__name__)
FASTEST = 0.5  # m/s with which a hand's own way (phone, headset) is followed at most; 4 times that, rad/s, for turns
KEPT_S = 0.1  # s at that speed: way that was too fast to follow is kept for so long, the rest is dropped


@dataclass(frozen=True)
class Motion:
    """What a hand wants at one moment.

    Args:
        rate: float64 (6,), -1 to 1: share of the top speed, translation and turn.
        way: float64 (6,): how far the hand itself moved since the last `read`, m and rad (axis * angle).
        grip: Opening of the gripper, 0 closed to 1 open; it counts when it changes. None: as it is.
        toggle: Whether the gripper shall close where it is open, and open where it is closed.
        held: Whether the dead-man's switch is held; sources without one say True.
        time: Monotonic time at which the device was last heard of, s; inf where silence is no sign of loss.
    """

    rate: np.ndarray = field(default_factory=lambda: np.zeros(6))
    way: np.ndarray = field(default_factory=lambda: np.zeros(6))
    grip: float | None = None
    toggle: bool = False
    held: bool = True
    time: float = np.inf


class HandSource:
    """The hardware behind an `EndEffectorDevice`: reads it, and knows nothing of robots."""

    name = "hand"
    has_clutch = False  # whether `Motion.held` is a dead-man's switch

    def open(self) -> None:
        """Open it; see `Device.connect` for the errors."""

    def read(self) -> Motion:
        """What the hand wants now. Never waits."""
        raise NotImplementedError

    def events(self) -> list[Event]:
        """See `Device.events`."""
        return []

    @property
    def trouble(self) -> str:
        """Why it cannot be read now; it tries to come back by itself."""
        return ""

    def controls(self) -> dict[str, str]:
        """See `Device.controls`."""
        return {}

    def close(self) -> None:
        """Give it back. May be called twice."""


class Clutch:
    """Decides whether a motion counts: nothing that is lost, silent or not held moves the robot, and nothing jumps.

    After trouble, silence, or `disarm`, the hand has to be neutral once (sticks centred, switch open) before it moves
    anything.

    Args:
        silence: Without word from the device for this long, s, it counts as lost.
        deadzone: Share of a stick's way around the centre that counts as 0; the rest is stretched, so nothing jumps
            at its edge either.
        has_clutch: Whether the source has a dead-man's switch.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        silence: float,
        deadzone: float,
        has_clutch: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.silence, self.deadzone, self.has_clutch, self._clock = silence, deadzone, has_clutch, clock
        self.trouble = ""
        self.engaged = False
        self._armed = False

    def disarm(self) -> None:
        """Ask for neutral before the next motion."""
        self._armed = self.engaged = False

    def pass_on(self, motion: Motion, trouble: str) -> Motion:
        """The motion without its dead zone, or one that moves nothing."""
        if not trouble and self._clock() - motion.time > self.silence:
            trouble = f"no word from it for {self._clock() - motion.time:.1f} s"
        rate = self.shape(motion.rate)
        if not trouble and not (np.isfinite(rate).all() and np.isfinite(motion.way).all()):
            trouble = "it sends numbers that are not finite"
        if trouble:
            if trouble != self.trouble:
                logger.warning("the device gives no motion: %s", trouble)
            self.trouble = trouble
            self.disarm()
            return Motion(held=False)
        if not self._armed:
            self._armed = not (rate.any() or (self.has_clutch and motion.held))
            self.trouble = "" if self._armed else "not neutral: let go of it once"
            self.engaged = False
            return Motion(grip=motion.grip, held=False)
        self.trouble, self.engaged = "", motion.held
        if not motion.held:
            return Motion(grip=motion.grip, toggle=motion.toggle, held=False)
        return dataclasses.replace(motion, rate=rate)

    def shape(self, rate: np.ndarray) -> np.ndarray:
        """Take out the dead zone and cut at 1."""
        size = np.abs(rate)
        return np.sign(rate) * np.clip((size - self.deadzone) / (1 - self.deadzone), 0.0, 1.0)


class EndEffectorDevice(Device):
    """A hand that leads the tool of whatever the env drives: by deltas, by poses, or through inverse kinematics.

    Args:
        env: Whose actions; see `make_effector_map` for which can be driven.
        source: The hardware.
        speed: Top speed of the tool, m/s, at full deflection.
        turn: Top turning speed, rad/s.
        scale: Tool way per way of the hand, for devices that are moved themselves (phone, headset).
        deadzone: See `Clutch`.
        curve: Exponent on the deflection: above 1 is finer around the centre.
        yaw: How far the operator stands turned about the vertical, degrees: 180 facing the robot.
        silence: See `Clutch`.
        model: MuJoCo model (MJCF or URDF file) of a joint robot, see `make_effector_map`.
        tip: Its site or body that is led.
        rotate: Whether turns are passed on.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        env: Any,
        source: HandSource,
        *,
        speed: float = 0.25,
        turn: float = 1.0,
        scale: float = 1.0,
        deadzone: float = 0.08,
        curve: float = 1.5,
        yaw: float = 0.0,
        silence: float = 0.3,
        model: str = "",
        tip: str = "",
        rotate: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        positive = {"speed": speed, "turn": turn, "scale": scale, "curve": curve, "silence": silence}
        wrong = [
            f"{name}={value}" for name, value in positive.items() if not (np.isfinite(value) and value > 0)
        ]
        if wrong or not 0 <= deadzone < 1 or not np.isfinite(yaw):
            raise ConfigError(
                f"{', '.join(wrong) or f'deadzone={deadzone}, yaw={yaw}'}: out of range",
                "speed, turn, scale, curve and silence are above 0, deadzone is 0 or more and below 1",
            )
        self.name, self.source = source.name, source
        self.map: EffectorMap = make_effector_map(env, model=model, tip=tip)
        self._top = np.repeat([speed, turn], 3)  # m/s, rad/s
        self._scale, self._curve, self._rotate = scale, curve, rotate
        self._yaw = Rotation.from_euler("z", yaw, degrees=True)
        self._clutch = Clutch(silence, deadzone, source.has_clutch, clock)
        self._period = 1.0 / self.map.embodiment.control_hz
        self._left = np.zeros(6)  # way that was too fast to follow
        self._grip: float | None = None  # what the hand last said

    # ---- Device -------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """Open the hardware."""
        self.source.open()
        self._clutch.disarm()

    def close(self) -> None:
        """Give it back."""
        self.source.close()

    def reset(self, mask: np.ndarray | None = None, *, seed: Any = None) -> None:
        """A new episode: neutral first, and from where the body is then."""
        self._clutch.disarm()
        self._left[:] = 0
        self._new_grip(self.source.read())  # way made, and buttons pressed, between the episodes
        self.map.reset()

    def act(self, obs: Observation) -> np.ndarray:
        """The action for one period, float32 (D,)."""
        if batch_size(obs) is not None:
            raise ConfigError("a person drives one env", "use a single env, not a vector env")
        motion = self._passed()
        grip = self._new_grip(motion)
        if motion.toggle:
            grip = 0.0 if self.map.opening(obs) > 0.5 else 1.0
        return self.map.action(obs, self._step(motion), grip)

    def follow(self, obs: Observation, action: np.ndarray) -> None:
        """Keep up with who drives, and with the switch."""
        self._new_grip(self._passed())
        self._left[:] = 0
        self.map.follow(obs, action)

    def events(self) -> list[Event]:
        """What was pressed."""
        return self.source.events()

    @property
    def engaged(self) -> bool:
        """Held, where there is a switch to hold; else what was set."""
        return self._clutch.engaged if self.source.has_clutch else self._switched_on

    @engaged.setter
    def engaged(self, value: bool) -> None:
        if self.source.has_clutch:
            raise AttributeError(f"{self.name} is engaged while its switch is held, not by setting it")
        self._switched_on = bool(value)

    @property
    def switched(self) -> bool:
        """Whether there is no switch to hold."""
        return not self.source.has_clutch

    @property
    def trouble(self) -> str:
        """Why nothing moves."""
        return self._clutch.trouble

    def controls(self) -> dict[str, str]:
        """Of the hardware."""
        return self.source.controls()

    # ---- inside -------------------------------------------------------------------------------------------
    def _passed(self) -> Motion:
        motion = self._clutch.pass_on(self.source.read(), self.source.trouble)
        return (
            motion
            if self.engaged
            else dataclasses.replace(Motion(held=False), grip=motion.grip, toggle=motion.toggle)
        )

    def _new_grip(self, motion: Motion) -> float | None:
        """What it says of the gripper, where that changed: who takes over does not let go of what is held."""
        before = self._grip
        self._grip = before if motion.grip is None else motion.grip
        return motion.grip if motion.grip != before else None

    def _step(self, motion: Motion) -> np.ndarray:
        """What the tool shall do in one period, (6,) m and rad in the robot's base frame."""
        rate = np.sign(motion.rate) * np.abs(motion.rate) ** self._curve
        length = max(1.0, float(np.linalg.norm(rate[:3])), float(np.linalg.norm(rate[3:])))
        step = rate / length * self._top * self._period
        if not motion.held:
            self._left[:] = 0
        else:
            most = np.array([FASTEST, 4 * FASTEST])  # m/s, rad/s
            wanted = self._left + motion.way * np.repeat([self._scale, 1.0], 3)
            taken = _cut(wanted, most * self._period)
            self._left = _cut(wanted - taken, most * KEPT_S)
            step = step + taken
        turned = np.concatenate([self._yaw.apply(step[:3]), self._yaw.apply(step[3:])])
        if not self._rotate:
            turned[3:] = 0
        return turned


def _cut(step: np.ndarray, most: np.ndarray) -> np.ndarray:
    """(6,) with translation and turn each no longer than `most` (2,)."""
    sizes = np.array([np.linalg.norm(step[:3]), np.linalg.norm(step[3:])])
    return step * np.repeat(np.minimum(1.0, most / np.maximum(sizes, 1e-12)), 3)
