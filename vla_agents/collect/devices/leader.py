"""A leader arm as a device: an arm of bus servos led by hand, torque off, whose joints another arm repeats.

The leader's joints are found at the follower by name, in the same units. It is never followed in one leap: after a
reset, a takeover or a pause of the leader the follower first closes in on it at `catch_up`, then follows directly.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_agents.agent import Observation, batch_size
from vla_agents.collect.devices.holding import Holding
from vla_agents.collect.teleop import Device
from vla_agents.embodiment import Embodiment
from vla_agents.errors import CommunicationError, ConfigError, EmbodimentMismatchError, RobotError
from vla_agents.robots import make_robot
from vla_agents.robots.robot import Robot

logger = logging.getLogger(__name__)
SILENCE_S = 0.25
PERIOD_S = 0.005  # between two readings of the leader
RETRY_S = 1.0


class LeaderDevice(Device):
    """A leader arm.

    Args:
        env: Of the follower; its action is joint positions.
        robot: Kind of the leader (`so101`, `koch_leader`, `widowx`, ...), or a `Robot` whose joints are read.
        port: Its serial port.
        name: Under which it was calibrated (`vla-agents robot calibrate so101 --name leader`).
        units: Of `ServoArm`; by default those of the follower.
        joints: Leader joint -> follower joint, where their names differ.
        catch_up: How fast the follower closes in, share of each joint's range per second.
        keys: Not needed; the terminal's keys see to the recording.
        **robot_args: More options of the leader, e.g. `calibration=`, `baud=`.
    """

    name = "leader"

    def __init__(
        self,
        env: Any,
        *,
        robot: str | Robot = "so101",
        port: str = "",
        name: str = "leader",
        units: str = "",
        joints: Mapping[str, str] | None = None,
        catch_up: float = 0.25,
        keys: Any = None,
        **robot_args: Any,
    ) -> None:
        if not (np.isfinite(catch_up) and catch_up > 0):
            raise ConfigError(f"catch_up is {catch_up}", "it is above 0")
        self._holding = Holding(env)
        self.embodiment = self._holding.embodiment
        if isinstance(robot, str):
            if not port:
                raise ConfigError(
                    "the leader's port is not given", "port=/dev/ttyACM1; `vla-agents robot find`"
                )
            units = units or _units_of(self.embodiment)
            robot = make_robot(robot, port=port, name=name, units=units, passive=True, **robot_args)
        self.arm: Robot = robot  # type: ignore[assignment]
        self._places = match_joints(self.arm, self.embodiment, joints or {})
        low, high = (
            np.concatenate(s) for s in zip(*(p.bounds() for p in self.embodiment.action), strict=True)
        )
        self._low, self._high = low[self._places].astype(float), high[self._places].astype(float)
        _tell_ranges(self.arm, self._low, self._high)
        reach = np.minimum(self._high, self.arm.limits.high) - np.maximum(self._low, self.arm.limits.low)
        self._step = catch_up * np.maximum(reach, 1e-3) / self.embodiment.control_hz  # (J,)
        self._at: np.ndarray | None = None
        self._close = False  # whether the follower is where the leader is
        self._lock = threading.Lock()
        self._seen: tuple[np.ndarray, float] | None = None
        self._lost = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Open the leader and switch its torque off."""
        self.arm.connect()
        try:
            self._seen = self.arm.observe().position, time.monotonic()
        except BaseException:
            self.arm.close()
            raise
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="leader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give it back; its torque stays off."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._thread = None
        self.arm.close()

    def reset(self, mask: np.ndarray | None = None, *, seed: Any = None) -> None:
        """A new episode: close in again, from where the follower is then."""
        self._at, self._close = None, False

    def follow(self, obs: Observation, action: np.ndarray) -> None:
        """Somebody else drives; close in from there."""
        self._at, self._close = np.array(action, np.float32), False

    def act(self, obs: Observation) -> np.ndarray:
        """The leader's joints, or a step towards them, float32 (D,)."""
        if batch_size(obs) is not None:
            raise ConfigError("a leader arm drives one env", "use a single env, not a vector env")
        held = self._holding.action(self._at, obs)
        action = held.copy()
        if not self.engaged or self.trouble:
            self._close = False
        else:
            assert self._seen is not None
            with self._lock:
                wanted = np.clip(self._seen[0], self._low, self._high)
            away = wanted - held[self._places]
            self._close = self._close or bool((np.abs(away) <= self._step).all())
            if not self._close:
                away = np.clip(away, -self._step, self._step)
            action[self._places] = held[self._places] + away
        self._at = action
        return action.copy()

    @property
    def trouble(self) -> str:
        """No word from the leader."""
        with self._lock:
            if self._lost:
                return self._lost
            age = np.inf if self._seen is None else time.monotonic() - self._seen[1]
        return f"the leader has said nothing for {age:.1f} s" if age > SILENCE_S else ""

    def controls(self) -> dict[str, str]:
        """One."""
        return {
            "the leader arm": f"the follower closes in on it, then repeats {', '.join(self.arm.limits.names)}"
        }

    # ---- inside -------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        wait = PERIOD_S
        while not self._ended.wait(wait):
            try:
                if self._lost:
                    self.arm.close()
                    self.arm.connect()
                position = self.arm.observe().position
                with self._lock:
                    self._seen, self._lost = (position, time.monotonic()), ""
                wait = PERIOD_S
            except RobotError as error:
                if not isinstance(error, CommunicationError) or self._lost or self._is_silent():
                    if not self._lost:
                        logger.warning("the leader is lost: %s", error.problem)
                    with self._lock:
                        self._lost = f"the leader is lost: {error.problem}"
                    wait = RETRY_S
        with contextlib.suppress(RobotError):
            self.arm.close()

    def _is_silent(self) -> bool:
        return self._seen is None or time.monotonic() - self._seen[1] > SILENCE_S


def match_joints(leader: Robot, follower: Embodiment, names: Mapping[str, str]) -> np.ndarray:
    """Where each joint of the leader stands in the follower's action, (J,).

    Raises:
        EmbodimentMismatchError: A joint that the other has not, or in other units.
    """
    places: dict[str, tuple[int, Any]] = {}
    for part in follower.action:
        for index in range(part.size):
            bare = part.name.removesuffix(".pos")
            places[bare if part.size == 1 else f"{bare}_{index}"] = (len(places), part)
    problems, found = [], []
    for axis in leader.limits.axes:
        bare = axis.name.removesuffix(".pos")
        wanted = names.get(bare, bare)
        if wanted not in places:
            problems.append(f"the leader's {bare!r} has no joint {wanted!r} at the follower")
            continue
        place, part = places[wanted]
        found.append(place)
        if (axis.unit, axis.kind) != (part.unit, part.kind):
            problems.append(
                f"{bare!r} is {axis.kind} in {axis.unit or '0 to 1'} there, {part.kind} in {part.unit or '0 to 1'} here: "
                "give both the same units="
            )
    rest = [name for name, (place, _) in places.items() if place not in found]
    problems += [f"the follower's {name!r} is led by no joint" for name in rest]
    if problems:
        raise EmbodimentMismatchError("the leader arm", f"the follower {follower.name!r}", problems)
    return np.array(found)


def _tell_ranges(leader: Robot, low: np.ndarray, high: np.ndarray) -> None:
    """Say where the leader reaches further than the follower: it is held at its limit there."""
    for axis, bottom, top in zip(leader.limits.axes, low, high, strict=True):
        span = top - bottom
        if axis.low < bottom - 0.05 * span or axis.high > top + 0.05 * span:
            logger.warning(
                "%s of the leader reaches from %.3g to %.3g, the follower from %.3g to %.3g: it stops there",
                axis.name, axis.low, axis.high, bottom, top,
            )  # fmt: skip


def _units_of(embodiment: Embodiment) -> str:
    units = {part.unit for part in embodiment.action if part.kind == "joint_position"}
    return "deg" if "deg" in units else "pm100" if "0.01 of the range" in units else "rad"
