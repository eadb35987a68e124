"""A scripted expert for SimplerEnv's picking tasks: over the object, down, close, up; and over the goal, down, open.

It knows where things are, which a policy does not. It turns the hand about the vertical so that the fingers close
across the narrow side of the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

STEP, TURN = 0.03, 0.15  # at most, per action: m, rad
NEAR, TURNED = 0.01, 0.06  # taken for arrived: m, rad
PATIENCE, STALLED = 25, 3  # actions for a way; without getting nearer


@dataclass(frozen=True)
class Hand:
    """How a robot picks.

    Args:
        fingers: The axis of its hand along which the fingers move: 0, 1 or 2.
        below: How far below an object's centre the hand goes, m.
        closing: Actions until the fingers are closed, or open.
        lift: How high it lifts, m.
    """

    fingers: int
    below: float
    closing: int
    lift: float


@dataclass(frozen=True)
class Things:
    """What is picked, in the frame of the robot's base.

    Args:
        at: The object's centre, (3,) metres.
        turn: Its orientation.
        size: Of the box around it, along its own axes, (3,) metres.
        goal: Where its centre goes, (3,) metres; None: it is only lifted.
    """

    at: np.ndarray
    turn: Rotation
    size: np.ndarray
    goal: np.ndarray | None = None


def pick(things: Things, robot: Hand, state: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    """Deltas of the hand and an opening: (7,) metres, radians, 0 closed to 1 open; without end.

    Args:
        things: What to pick.
        robot: With what.
        state: The hand's pose now: position (3,) and axis-angle (3,) first.
    """
    hand = _turned(Rotation.from_rotvec(state()[3:6]), robot.fingers, narrow_side(things.turn, things.size))
    yield from _way(things.at + np.array([0, 0, 0.15]), hand, 1.0, state)
    yield from _way(things.at - np.array([0, 0, robot.below]), hand, 1.0, state)
    held = state()[:3].copy()
    yield from _rest(robot.closing, 0.0)
    up = held + np.array([0, 0, robot.lift])
    yield from _way(up, hand, 0.0, state)
    if things.goal is not None:
        down = things.goal + held - things.at  # the hand stays where it is on the object
        over = np.array([*down[:2], max(up[2], down[2] + 0.05)])
        yield from _way(over, hand, 0.0, state)
        yield from _way(down, hand, 0.0, state)
        yield from _rest(robot.closing, 1.0)
        yield from _way(over, hand, 1.0, state)
    while True:
        yield from _rest(1, 0.0 if things.goal is None else 1.0)


def _rest(actions: int, opening: float) -> Iterator[np.ndarray]:
    for _ in range(actions):
        yield np.r_[np.zeros(6), opening]


def _turned(start: Rotation, fingers: int, across: np.ndarray) -> Rotation:
    """The hand turned about the vertical, by the smaller angle, until its fingers close across a direction (2,)."""
    now = start.as_matrix()[:2, fingers]
    angle = np.arctan2(across[1], across[0]) - np.arctan2(now[1], now[0])
    angle = (angle + np.pi / 2) % np.pi - np.pi / 2  # either finger may be on either side
    return Rotation.from_rotvec([0.0, 0.0, angle]) * start


def _way(
    to: np.ndarray, hand: Rotation, opening: float, state: Callable[[], np.ndarray]
) -> Iterator[np.ndarray]:
    best, idle = np.inf, 0
    for _ in range(PATIENCE):
        now = state()
        delta, turn = to - now[:3], (hand * Rotation.from_rotvec(now[3:6]).inv()).as_rotvec()
        far, turned = float(np.linalg.norm(delta)), float(np.linalg.norm(turn))
        left = far + 0.1 * turned
        idle, best = (0, left) if left < best - 0.001 else (idle + 1, best)
        if (
            far < NEAR and turned < TURNED
        ) or idle == STALLED:  # on the table, say: pressing on winds the target up
            return
        yield np.concatenate(
            [delta * min(1.0, STEP / max(far, 1e-9)), turn * min(1.0, TURN / max(turned, 1e-9)), [opening]]
        )


def narrow_side(turn: Rotation, size: np.ndarray) -> np.ndarray:
    """The horizontal direction (2,) in which a box is narrowest: its orientation in the base's frame, its size (3,) m."""
    axes = turn.as_matrix()
    level = [i for i in range(3) if abs(axes[2, i]) < 0.7]  # lie rather than stand
    if not level:
        return np.array([1.0, 0.0])
    return np.asarray(axes[:2, min(level, key=lambda i: size[i])])
