"""An episode at another control rate: observations are taken as they were, actions are cut anew.

Step k' of the new episode begins at k'/new seconds. Its picture and state are the latest ones that had been taken by then
(nothing is invented). Its action does what the old ones did between k'/new and (k'+1)/new:

    deltas        the path they add up to, cut at the new times (rotations turn at constant speed in between)
    targets       where the path through them is at the end of the interval
    velocities    their mean over the interval
    grippers      the one in force in the middle of the interval

So halving the rate adds deltas up in pairs, doubling it halves them, and a whole episode moves as far as before, up to
the last part of an interval.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError
from vla_agents.rotations import SIZES, from_rotation, to_rotation

_DELTAS = ("delta_xyz", "delta_joint_position")
_TARGETS = ("xyz", "joint_position", "gripper_position")
_GRIPPERS = ("gripper_open_01", "gripper_close_01", "gripper_close_pm1", "gripper_open_pm1")


def resample(action: np.ndarray, embodiment: Embodiment, target_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """One episode at another rate.

    Args:
        action: (T, D) at `embodiment.control_hz`.
        embodiment: Says what the parts of the action are.
        target_hz: The new rate.

    Returns:
        rows: int64 (T',): the old step whose observation each new one has.
        action: float32 (T', D).

    Raises:
        ConfigError: A part of the action has no convention that says how.
    """
    check_resampling(embodiment, target_hz)
    length, ratio = len(action), embodiment.control_hz / target_hz  # old steps per new one
    count = int((length - 1) / ratio + 1e-6) + 1
    edges = np.minimum(np.arange(count + 1) * ratio, length)  # in old steps
    rows = np.minimum((edges[:-1] + 1e-6).astype(np.int64), length - 1)
    middle = np.minimum(((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(np.int64), length - 1)
    found = np.empty((count, action.shape[1]), np.float32)
    for part, where in zip(embodiment.action, embodiment.action_slices().values(), strict=True):
        values = action[:, where].astype(np.float64)
        if part.kind in _GRIPPERS:
            found[:, where] = values[middle]
        else:
            found[:, where] = _cut(part, values, edges)
    return rows, found


def check_resampling(embodiment: Embodiment, target_hz: float) -> None:
    """Raise `ConfigError` where the actions of a body cannot be told at another rate."""
    if not target_hz > 0:
        raise ConfigError(f"the new rate is {target_hz} Hz, expected a positive one")
    known = {*_DELTAS, *_TARGETS, *_GRIPPERS, *SIZES, "delta_axis_angle", "joint_velocity"}
    for part in embodiment.action:
        if part.kind not in known:
            raise ConfigError(
                f"action part {part.name!r} of embodiment {embodiment.name!r} is of kind {part.kind!r}: nothing says "
                f"what it is at {target_hz:g} Hz instead of {embodiment.control_hz:g} Hz",
                "give the dataset an embodiment that names the convention, or leave this dataset out",
            )


def _cut(part: Part, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(T, d) -> (T', d)."""
    knots = np.arange(len(values) + 1)
    if part.kind in _DELTAS or part.kind == "joint_velocity":
        path = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        moved = np.diff(_along(path, knots, edges), axis=0)
        return moved / np.diff(edges)[:, None] if part.kind == "joint_velocity" else moved
    if part.kind == "delta_axis_angle":
        turned = [Rotation.identity()]
        for turn in Rotation.from_rotvec(values):
            turned.append(turn * turned[-1])
        at = Slerp(knots, Rotation.concatenate(turned))(edges)
        return (at[1:] * at[:-1].inv()).as_rotvec()
    targets = np.concatenate([values[:1], values])  # nothing is known of the time before the first one
    if part.kind in SIZES:
        return from_rotation(Slerp(knots, to_rotation(targets, part.kind))(edges[1:]), part.kind)
    return _along(targets, knots, edges[1:])


def _along(path: np.ndarray, knots: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(times, knots, column) for column in path.T], axis=1)
