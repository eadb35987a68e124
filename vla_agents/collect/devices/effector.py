"""From a step of the tool (m, rad, an opening of the gripper) to the action of an env, whatever its units are.

Three kinds of env: those moved by deltas of the tool (`DeltaMap`), those told its pose (`PoseMap`), and those told
their joints (`JointMap`, through inverse kinematics). A step of zeros is always the action that moves nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_agents.agent import Observation
from vla_agents.collect.devices.holding import Holding
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError
from vla_agents.robots.kinematics import Kinematics, Pose
from vla_agents.rotations import SIZES, from_rotation, to_rotation

JOINT_SPEED = 1.5  # rad/s or m/s: the fastest a joint is asked to move, also near singular positions
LEASH = (0.02, 0.2)  # m, rad: how far the goal may run ahead of what the joints can reach
AHEAD = 2.0  # steps at full speed: how far joints may run ahead of what a robot was really told (its limits, its box)
_UNIT = re.compile(r"^\s*(?:([0-9.eE+-]+)\s+)?(m|cm|mm|rad|deg)\s*$")
_SIZE = {"m": 1.0, "cm": 0.01, "mm": 0.001, "rad": 1.0, "deg": np.pi / 180}
_GRIPPERS = {  # kind -> value when closed, value when open
    "gripper_open_01": (0.0, 1.0), "gripper_close_01": (1.0, 0.0),
    "gripper_close_pm1": (1.0, -1.0), "gripper_open_pm1": (-1.0, 1.0),
}  # fmt: skip


class EffectorMap:
    """What all have in common: the last action, and the gripper.

    Args:
        holding: Of the env.
    """

    def __init__(self, holding: Holding) -> None:
        self.embodiment = embodiment = holding.embodiment
        self._holding = holding
        self._slices = embodiment.action_slices()
        self._last: np.ndarray | None = None
        self._low, self._high = (
            np.concatenate(side) for side in zip(*(p.bounds() for p in embodiment.action), strict=True)
        )

    def reset(self) -> None:
        """A new episode: start from where the body is."""
        self._last = None

    def follow(self, obs: Observation, action: np.ndarray) -> None:
        """Somebody else's action: go on from it."""
        self.reset()
        self._last = np.array(action, np.float32)

    def action(self, obs: Observation, step: np.ndarray, grip: float | None) -> np.ndarray:
        """The action float32 (D,) for a step (6,) m and rad in the base frame and an opening, 0 to 1, of the gripper."""
        held = self._held(obs)
        action = held.astype(np.float64)
        self._move(action, step)
        if grip is not None:
            self._grip(action, grip)
        # A body may stand a little outside its limits: what does not move is not pulled in by the first action.
        action = np.clip(action, np.minimum(self._low, held), np.maximum(self._high, held))
        self._last = action.astype(np.float32)
        return self._last.copy()

    def opening(self, obs: Observation) -> float:
        """Of the gripper, as it was last told, 0 to 1; 1 where there is none."""
        for part, closed, opened in self._grippers():
            value = self._held(obs)[self._slices[part.name]]
            return float(np.mean((value - closed) / (np.asarray(opened) - closed)))
        return 1.0

    def _held(self, obs: Observation) -> np.ndarray:
        """The action that moves nothing."""
        return self._holding.action(self._last, obs)

    def _move(self, action: np.ndarray, step: np.ndarray) -> None:
        """Write the step into the action (D,), which holds so far."""
        raise NotImplementedError

    def _grip(self, action: np.ndarray, opening: float) -> None:
        for part, closed, opened in self._grippers():
            action[self._slices[part.name]] = closed + np.clip(opening, 0.0, 1.0) * (
                np.asarray(opened) - closed
            )

    def _grippers(self) -> Iterator[tuple[Part, Any, Any]]:
        """Part, value when closed, value when open."""
        for part in self.embodiment.action:
            closed, opened = _GRIPPERS.get(part.kind, (np.nan, np.nan))
            if part.kind == "gripper_position":
                closed, opened = part.bounds()  # type: ignore[assignment]
            if np.isfinite(closed).all() and np.isfinite(opened).all():
                yield part, closed, opened

    def _place(self, *kinds: str) -> tuple[Part, slice] | None:
        for part in self.embodiment.action:
            if part.kind in kinds:
                return part, self._slices[part.name]
        return None


class DeltaMap(EffectorMap):
    """For actions with `delta_xyz` and maybe `delta_axis_angle`."""

    def __init__(self, holding: Holding) -> None:
        super().__init__(holding)
        self._parts = []
        for kind, which in (("delta_xyz", slice(0, 3)), ("delta_axis_angle", slice(3, 6))):
            found = self._place(kind)
            if found is not None:
                self._parts.append((found[0], found[1], which, unit_size(found[0])))

    def _move(self, action: np.ndarray, step: np.ndarray) -> None:
        for part, place, which, size in self._parts:
            value = step[which] / size
            low, high = part.bounds()
            with np.errstate(divide="ignore", invalid="ignore"):  # shorter rather than bent
                room = np.where(value > 0, high / value, np.where(value < 0, low / value, np.inf))
            action[place] = value * min(1.0, max(0.0, float(room.min())))


class PoseMap(EffectorMap):
    """For actions with `xyz` and maybe an orientation, both absolute."""

    def __init__(self, holding: Holding) -> None:
        super().__init__(holding)
        found = self._place("xyz")
        assert found is not None
        self._xyz, self._size = found[1], unit_size(found[0])
        self._turn = self._place(*SIZES)

    def _move(self, action: np.ndarray, step: np.ndarray) -> None:
        action[self._xyz] += step[:3] / self._size
        if self._turn is not None and step[3:].any():
            part, place = self._turn
            turn = to_rotation(step[None, 3:], "axis_angle") * to_rotation(action[None, place], part.kind)
            action[place] = from_rotation(turn, part.kind)[0]


class JointMap(EffectorMap):
    """For robots that are told their joints, by the kinematics of the arm.

    The goal of the tool is kept from step to step, so rounding does not add up; it never runs further ahead of the
    joints than `LEASH`, so an arm at its limit obeys at once when the hand comes back.

    Args:
        holding: Of the env.
        kinematics: Its joints are found among the action's numbers by name, else, if there are as many, by order.
        joint_speed: See `JOINT_SPEED`.
    """

    def __init__(self, holding: Holding, kinematics: Kinematics, joint_speed: float = JOINT_SPEED) -> None:
        super().__init__(holding)
        self.kinematics = kinematics
        self._places, self._sizes = _places(self.embodiment, kinematics)
        self._most = joint_speed / self.embodiment.control_hz
        self._weight = 0.3 if len(kinematics.joints) >= 6 else 0.01
        low, high = self._low[self._places] * self._sizes, self._high[self._places] * self._sizes
        self._bounds = np.maximum(low, kinematics.low), np.minimum(high, kinematics.high)
        self._goal: Pose | None = None

    def _held(self, obs: Observation) -> np.ndarray:
        held = super()._held(obs)
        told = self._holding.told()
        if told is not None:
            room = AHEAD * self._most / self._sizes
            near = np.clip(held[self._places], told[self._places] - room, told[self._places] + room)
            if not np.array_equal(near, held[self._places]):
                held[self._places], self._goal = near, None
        return held

    def reset(self) -> None:
        """Also the goal."""
        super().reset()
        self._goal = None

    def _move(self, action: np.ndarray, step: np.ndarray) -> None:
        now = action[self._places] * self._sizes
        if self._goal is None:
            self._goal = self.kinematics.forward(now)
        if not step.any():
            return
        low, high = self._bounds
        inside = np.clip(now, low, high)
        goal = self._goal.moved(step)
        found = self.kinematics.inverse(
            goal,
            inside,
            rotation_weight=self._weight,
            low=np.maximum(low, inside - self._most),
            high=np.minimum(high, inside + self._most),
        )
        self._goal = _leashed(self.kinematics.forward(found.joints), goal)
        action[self._places] = found.joints / self._sizes


def make_effector_map(env: Any, *, model: str = "", tip: str = "") -> EffectorMap:
    """The map that fits an env's action.

    Args:
        env: With an embodiment; where it or its robot has a method `kinematics()`, no model needs to be given.
        model: Of the arm, for an env that is told joints: see `Kinematics`.
        tip: The site or body that is led.

    Raises:
        ConfigError: The action is of another kind, or it needs a model and has none.
    """
    holding = Holding(env)
    embodiment = holding.embodiment
    kinds = {part.kind for part in embodiment.action}
    if "delta_xyz" in kinds:
        return DeltaMap(holding)
    base = getattr(env, "unwrapped", env)
    own = getattr(base, "kinematics", None) or getattr(getattr(base, "robot", None), "kinematics", None)
    if model or own is not None:
        return JointMap(holding, Kinematics(model, tip) if model else own())  # type: ignore[misc]
    if "xyz" in kinds:
        return PoseMap(holding)
    if "joint_position" in kinds:
        raise ConfigError(
            f"{embodiment.name!r} is told its joints, and a hand leads the tool: the arm's kinematics is needed",
            "give the device model= (an MJCF or URDF file of the arm; 'ur5e' ships with us) and tip= (the site or body "
            "to lead); or use a leader arm",
        )
    raise ConfigError(
        f"a hand cannot lead {embodiment.name!r}, whose action is {', '.join(sorted(kinds))}",
        "actions with delta_xyz, xyz or joint_position can be led",
    )


def unit_size(part: Part) -> float:
    """How many m or rad 1.0 stands for, from the part's unit; `ConfigError` where it does not say."""
    found = _UNIT.match(part.unit)
    if found is None:
        raise ConfigError(
            f"the part {part.name!r} has the unit {part.unit!r}, so it is not known how far 1.0 is",
            "name it in the embodiment, e.g. '0.05 m', 'm', '0.5 rad', 'deg'",
        )
    return float(found[1] or 1.0) * _SIZE[found[2]]


def _places(embodiment: Embodiment, kinematics: Kinematics) -> tuple[np.ndarray, np.ndarray]:
    """Where each joint of the model stands in the action (J,), and how many rad or m its 1.0 is (J,)."""
    names: list[str] = []
    sizes: list[Part] = []
    joints: list[int] = []
    for part in embodiment.action:
        bare = part.name.removesuffix(".pos")
        for index in range(part.size):
            joints += [len(names)] if part.kind == "joint_position" else []
            names.append(bare if part.size == 1 else f"{bare}_{index}")
            sizes.append(part)
    wanted = list(kinematics.joints)
    if set(wanted) <= set(names):
        places = [names.index(name) for name in wanted]
    elif len(joints) == len(wanted):
        places = joints
    else:
        raise ConfigError(
            f"the model moves {', '.join(wanted)}, the action of {embodiment.name!r} has {', '.join(names)}",
            "the joints must have the same names, or be as many; is it the model of this arm, and the right tip?",
        )
    return np.array(places), np.array([unit_size(sizes[place]) for place in places])


def _leashed(reached: Pose, goal: Pose) -> Pose:
    """The goal, no further from what was reached than `LEASH`."""
    error = reached.error(goal)
    for part, most in zip((slice(0, 3), slice(3, 6)), LEASH, strict=True):
        error[part] *= min(1.0, most / max(float(np.linalg.norm(error[part])), 1e-12))
    return reached.moved(error)
