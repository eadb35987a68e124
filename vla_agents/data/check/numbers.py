"""Checks of states and actions: finite, inside their limits, without jumps, and not constant.

Jumps and outliers are judged against the dataset's own distribution, dimension by dimension, by median and median
absolute deviation, which a few wild values cannot shift (Iglewicz and Hoaglin, "How to Detect and Handle Outliers",
1993). A part's kind says what a step is: angles may wrap around, quaternions change sign, a gripper's command switches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from vla_agents.data.check.findings import Finding
from vla_agents.data.episode import Episode
from vla_agents.embodiment import Embodiment, Part

Episodes = Mapping[int, Episode]
Vector = Literal["state", "action"]
Z = 10.0  # robust standard deviations
BEYOND = 4.0  # times what 98 % of the steps stay below
FEWEST = 50  # rows that make a distribution
_DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations
_WATCH = "look at it with `vla-agents data view`; a lost packet, a slipped encoder or a cut in the recording does this"
_SWITCHING = (
    "gripper_open_01",
    "gripper_close_01",
    "gripper_close_pm1",
    "gripper_open_pm1",
    "gripper_position",
)
_PATHS = (
    "xyz",
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "euler_xyz",
    "rot6d",
    "joint_position",
)


def parts_of(body: Embodiment, vector: Vector) -> list[tuple[Part, slice]]:
    """The parts of a vector and where they lie in it."""
    found, start = [], 0
    for part in body.state if vector == "state" else body.action:
        found.append((part, slice(start, start + part.size)))
        start += part.size
    return found


def label(part: Part, dimension: int) -> str:
    """A dimension's name: the part's, with a number where it has several."""
    return part.name if part.size == 1 else f"{part.name}.{dimension}"


def not_finite(number: int, episode: Episode) -> list[Finding]:
    """NaN and infinities in any number of an episode."""
    named = {
        "state": episode.state,
        "action": episode.action,
        "executed action": episode.executed,
        "commanded action": episode.commanded,
        "reward": episode.reward,
        "time": episode.time,
        **episode.extras,
    }
    found = []
    for name, values in named.items():
        if values is None or values.dtype.kind != "f" or not len(values):
            continue
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if len(bad):
            found.append(
                Finding(
                    "not_finite",
                    "error",
                    f"{name} is not finite",
                    number,
                    int(bad[0]),
                    count=len(bad),
                    remedy="leave the episode out, or mend the sensor's driver and record it again",
                    leave_out=True,
                )
            )
    return found


def limits(number: int, episode: Episode) -> list[Finding]:
    """Values beyond what their part declares (by more than a thousandth of its range)."""
    found = []
    for vector in ("state", "action"):
        values = getattr(episode, vector)
        if values is None:
            continue
        for part, at in parts_of(episode.embodiment, vector):  # type: ignore[arg-type]
            low, high = (side.astype(np.float64) for side in part.bounds())
            width = high - low
            slack = 1e-4 + 1e-3 * np.where(np.isfinite(width), width, 0.0)
            over = np.maximum(values[:, at] - high, low - values[:, at])
            for d in np.flatnonzero((over > slack).any(axis=0)):
                steps = np.flatnonzero(over[:, d] > slack[d])
                worst = steps[over[steps, d].argmax()]
                value = float(values[worst, at][d])
                found.append(
                    Finding(
                        f"{vector}_limit",
                        "warning",
                        f"{vector} {label(part, int(d))} is {value:.4g}, its part allows {low[d]:.4g} to {high[d]:.4g}",
                        number,
                        int(steps[0]),
                        value,
                        len(steps),
                        remedy="the embodiment's limits or unit are wrong (give the right one: --embodiment FILE), or "
                        "the robot was driven beyond them",
                        leave_out=True,
                    )
                )
    return found


def jumps(episodes: Episodes, body: Embodiment, vector: Vector) -> list[Finding]:
    """Steps between two rows far beyond those of the whole dataset, for what moves along a path."""
    found = []
    kinds = (*_PATHS, "other", "unknown") if vector == "state" else _PATHS
    for part, at in parts_of(body, vector):
        if part.kind not in kinds:
            continue
        series = {
            k: _steps(part, values[:, at]) for k, values in _vectors(episodes, vector) if len(values) > 1
        }
        spread = _spread([values[:, at] for _, values in _vectors(episodes, vector)])
        for number, d, steps, sizes, usual in _beyond(series, 0.05 * spread):
            message = (
                f"{vector} {label(part, d)} jumps by {sizes.max():.4g}; 98 % of all steps change it by less "
                f"than {usual:.4g}"
            )
            found.append(
                Finding(
                    f"{vector}_jump",
                    "warning",
                    message,
                    number,
                    int(steps[0]) + 1,
                    float(sizes.max()),
                    len(steps),
                    _WATCH,
                    leave_out=True,
                )
            )
    return found


def outliers(episodes: Episodes, body: Embodiment) -> list[Finding]:
    """Actions far from the whole dataset's, for what is no path: velocities, differences, unknown."""
    found = []
    for part, at in parts_of(body, "action"):
        if part.kind in _PATHS or part.kind in _SWITCHING:
            continue
        rows = [values[:, at] for _, values in _vectors(episodes, "action")]
        if not rows:
            continue
        middle = np.median(np.concatenate(rows), axis=0)
        series = {k: np.abs(values[:, at] - middle) for k, values in _vectors(episodes, "action")}
        for number, d, steps, sizes, usual in _beyond(series, 0.05 * _spread(rows)):
            message = (
                f"action {label(part, d)} is {sizes.max():.4g} away from the median; 98 % of all are nearer than "
                f"{usual:.4g}"
            )
            found.append(
                Finding(
                    "action_outlier",
                    "warning",
                    message,
                    number,
                    int(steps[0]),
                    float(sizes.max()),
                    len(steps),
                    _WATCH,
                    leave_out=True,
                )
            )
    return found


def constant(number: int, episode: Episode) -> list[Finding]:
    """Actions all zero or all the same, and a state that stands still while actions change."""
    if len(episode) < 5:
        return []
    same = bool((episode.action == episode.action[0]).all())
    found = []
    if same:
        zero = not episode.action.any()
        found.append(
            Finding(
                "action_zero" if zero else "action_constant",
                "warning",
                f"all {len(episode)} actions are {'zero' if zero else 'the same'}",
                number,
                0,
                count=len(episode),
                remedy="nothing was commanded, or the wrong column was recorded: leave the episode out",
                leave_out=True,
            )
        )
    if (
        not same
        and episode.state is not None
        and episode.state.size
        and (episode.state == episode.state[0]).all()
    ):
        found.append(
            Finding(
                "state_constant",
                "warning",
                f"the state never changes in {len(episode)} steps, the action does",
                number,
                0,
                count=len(episode),
                remedy="the robot was not read, or did not move: leave the episode out",
                leave_out=True,
            )
        )
    return found


def constant_dimensions(episodes: Episodes, body: Embodiment) -> list[Finding]:
    """Dimensions of the action that are the same in every row of the dataset."""
    rows = [values for _, values in _vectors(episodes, "action")]
    if not rows or sum(map(len, rows)) < FEWEST:
        return []
    every = np.concatenate(rows)
    names = [
        label(part, d)
        for part, at in parts_of(body, "action")
        for d in range(part.size)
        if (every[:, at][:, d] == every[0, at][d]).all()
    ]
    if not names:
        return []
    return [
        Finding(
            "constant_dimension",
            "note",
            f"these actions never change: {', '.join(names)}",
            count=len(names),
            remedy="fine where the task does not need them; normalisation maps them to 0",
        )
    ]


def _vectors(episodes: Episodes, vector: Vector) -> Iterator[tuple[int, np.ndarray]]:
    """Rows whose numbers are finite; others are reported elsewhere."""
    for number, episode in episodes.items():
        values = getattr(episode, vector)
        if values is not None and values.ndim == 2 and len(values) and np.isfinite(values).all():
            yield number, values.astype(np.float64)


def _steps(part: Part, values: np.ndarray) -> np.ndarray:
    """|x[t + 1] - x[t]|, (T - 1, size), the short way round."""
    before, after = values[:-1], values[1:]
    change = np.abs(after - before)
    if part.kind.startswith("quaternion"):
        flipped = np.abs(after + before)
        return np.where(
            (change**2).sum(1, keepdims=True) <= (flipped**2).sum(1, keepdims=True), change, flipped
        )
    if part.kind == "euler_xyz":
        return np.minimum(change, np.abs(2 * np.pi - change))
    if part.kind == "axis_angle":  # the same rotation about the opposite axis
        angle = np.linalg.norm(after, axis=1, keepdims=True)
        other = after * (1 - 2 * np.pi / np.maximum(angle, 1e-9))
        flipped = np.abs(other - before)
        return np.where(
            (change**2).sum(1, keepdims=True) <= (flipped**2).sum(1, keepdims=True), change, flipped
        )
    return change


def _spread(rows: list[np.ndarray]) -> np.ndarray:
    """q99 - q01 of each dimension."""
    if not rows:
        return np.zeros(0)
    low, high = np.quantile(np.concatenate(rows), (0.01, 0.99), axis=0)
    return high - low


def _beyond(
    series: Mapping[int, np.ndarray], least: np.ndarray
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, float]]:
    """`(episode, dimension, steps, sizes, q98)` of non-negative numbers that stand out of all of them."""
    if sum(map(len, series.values())) < FEWEST:
        return
    every = np.concatenate(list(series.values()))
    middle = np.median(every, axis=0)
    deviation = _DEVIATION * np.median(np.abs(every - middle), axis=0)
    usual = np.quantile(every, 0.98, axis=0)
    bound = np.maximum.reduce([middle + Z * deviation, BEYOND * usual, least, np.full_like(usual, 1e-6)])
    for number, sizes in series.items():
        for d in np.flatnonzero((sizes > bound).any(axis=0)):
            steps = np.flatnonzero(sizes[:, d] > bound[d])
            yield number, int(d), steps, sizes[steps, d], float(usual[d])
