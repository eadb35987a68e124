"""Chunks of absolute actions, told relative to the state in which they were planned (as pi0 and UMI do).

A robot that is commanded where to be (joint positions, a pose) is easier to learn as how far to go from here. The
whole chunk is relative to the *one* state that the policy saw, not each action to the one before: errors do not add up,
and a chunk that is executed late still leads to the same place.

    position, joints    a_h - s              rotation    R(a_h) R(s)^-1, as axis * angle in the base frame

Grippers, velocities and parts that are deltas already stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError
from vla_agents.rotations import SIZES, from_rotation, to_rotation
from vla_agents.transforms import Compose, Transform

RELATIVE = {"xyz": "relative_xyz", "joint_position": "relative_joint_position"}
RELATIVE |= dict.fromkeys(SIZES, "relative_axis_angle")
KINDS = frozenset(RELATIVE.values())


@dataclass(frozen=True)
class _Entry:
    """What becomes of an action part: relative to a state part, or (`base` None) kept."""

    part: Part
    base: Part | None
    at: slice  # of the absolute action vector
    of: slice  # of the state vector
    to: slice  # of the relative action vector


@dataclass(frozen=True)
class RelativeActions(Transform):
    """Absolute chunks to chunks relative to the current state, and back.

    Args:
        source: The embodiment with the absolute actions: what env and dataset speak.

    Raises:
        ConfigError: No part of the action is absolute, or the state has nothing for it to be relative to.
    """

    source: Embodiment

    def __post_init__(self) -> None:
        _ = self._entries  # says now what does not fit

    @cached_property
    def _entries(self) -> list[_Entry]:
        return _plan(self.source)

    def embodiment(self, source: Embodiment) -> Embodiment:
        """The parts that become relative have kinds of their own, so that nobody takes one for the other."""
        seen = dataclasses.replace(source, cameras=self.source.cameras, control_hz=self.source.control_hz)
        self.source.require(seen, ours="RelativeActions", theirs=f"embodiment {source.name!r}")
        return dataclasses.replace(source, action=tuple(_relative_part(part) for part in source.action))

    def action(self, action: np.ndarray) -> np.ndarray:
        """Cannot be said of an action alone."""
        raise ConfigError("an action is relative to a state, and none was given", "use chunk(chunk, state)")

    def inverse_action(self, action: np.ndarray) -> np.ndarray:
        """Cannot be said of an action alone."""
        raise ConfigError(
            "an action is relative to a state, and none was given", "use inverse_chunk(chunk, state)"
        )

    def chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """float32 (..., H, D) absolute, and the state (..., S) -> (..., H, D') relative."""
        base = _checked(state)
        parts = [_subtract(entry, chunk[..., entry.at], base[..., entry.of]) for entry in self._entries]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def inverse_chunk(self, chunk: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """float32 (..., H, D') relative, and the state (..., S) it was planned in -> (..., H, D) absolute."""
        base = _checked(state)
        parts = [_add(entry, chunk[..., entry.to], base[..., entry.of]) for entry in self._entries]
        return np.concatenate(parts, axis=-1).astype(np.float32)


def is_relative(embodiment: Embodiment) -> bool:
    """Whether some part of the action is relative to the state the chunk was planned in."""
    return any(part.kind in KINDS for part in embodiment.action)


def with_relative_actions(
    transforms: Sequence[Transform], source: Embodiment | None, *, policy: str
) -> tuple[Transform, ...]:
    """The transforms between a body and a policy that plans relative chunks, with `RelativeActions` at their end.

    Args:
        transforms: What else lies between them; returned as it is where it makes actions relative already.
        source: The body's embodiment.
        policy: What to call the policy in errors.
    """
    if source is None:
        raise ConfigError(
            f"{policy} plans actions relative to the state, and what they become depends on the body",
            "pass env=..., or embodiment=...",
        )
    found = Compose(tuple(transforms)).embodiment(source)
    return tuple(transforms) if is_relative(found) else (*transforms, RelativeActions(found))


def _checked(state: np.ndarray | None) -> np.ndarray:
    if state is None:
        raise ConfigError("relative actions need the state, and the observation has none", "record the state")
    return np.asarray(state, np.float64)[..., None, :]  # for every action of the chunk


def _relative_part(part: Part) -> Part:
    if part.kind not in RELATIVE:
        return part
    kind = RELATIVE[part.kind]
    size = 3 if kind == "relative_axis_angle" else part.size
    return Part(part.name, size, kind, unit="rad" if kind == "relative_axis_angle" else part.unit)


def _plan(source: Embodiment) -> list[_Entry]:
    actions, states = source.action_slices(), source.state_slices()
    plan: list[_Entry] = []
    start = 0
    for part in source.action:
        base = _base_of(part, source) if part.kind in RELATIVE else None
        end = start + _relative_part(part).size
        of = slice(0, 0) if base is None else states[base.name]
        plan.append(_Entry(part, base, actions[part.name], of, slice(start, end)))
        start = end
    if all(entry.base is None for entry in plan):
        raise ConfigError(
            f"embodiment {source.name!r} has no absolute action to make relative: "
            f"{ {part.name: part.kind for part in source.action} }",
            f"absolute are {sorted(RELATIVE)}; give the dataset an embodiment that says so, or leave actions "
            "as they are",
        )
    return plan


def _base_of(part: Part, source: Embodiment) -> Part:
    """The state part that says where the thing is which the action part says where to bring."""
    fits = [s for s in source.state if RELATIVE.get(s.kind) == RELATIVE[part.kind]]
    if part.kind == "joint_position":
        fits = [s for s in fits if s.size == part.size]
    named = [s for s in fits if s.name == part.name]
    if len(named or fits) != 1:
        raise ConfigError(
            f"action part {part.name!r} ({part.kind}) has {len(fits)} state parts to be relative to: "
            f"{[s.name for s in fits]}",
            f"give one of the state parts ({[s.name for s in source.state]}) the same name",
        )
    base = (named or fits)[0]
    if part.kind not in SIZES and base.unit != part.unit:
        raise ConfigError(
            f"action part {part.name!r} is in {part.unit!r}, state part {base.name!r} in {base.unit!r}",
            "use one unit for both",
        )
    return base


def _subtract(entry: _Entry, values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(..., H, d) absolute and (..., 1, s) -> (..., H, d') relative."""
    if entry.base is None:
        return values
    if entry.part.kind not in SIZES:
        return values.astype(np.float64) - base
    target, origin = _flat(values, entry.part.kind), _flat(_like(base, values), entry.base.kind)
    return (target * origin.inv()).as_rotvec().reshape(*values.shape[:-1], 3)


def _add(entry: _Entry, values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """(..., H, d') relative and (..., 1, s) -> (..., H, d) absolute."""
    if entry.base is None:
        return values
    if entry.part.kind not in SIZES:
        return values.astype(np.float64) + base
    turn, origin = _flat(values, "axis_angle"), _flat(_like(base, values), entry.base.kind)
    return from_rotation(turn * origin, entry.part.kind).reshape(*values.shape[:-1], entry.part.size)


def _like(base: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(base, (*values.shape[:-1], base.shape[-1]))


def _flat(values: np.ndarray, kind: str) -> Rotation:
    return to_rotation(values.reshape(-1, values.shape[-1]).astype(np.float64), kind)
