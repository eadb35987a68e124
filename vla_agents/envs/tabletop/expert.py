"""The scripted expert. It looks behind the scenes, but acts on the present state alone.

There is no clock and no phase counter: each action follows from where gripper and blocks are now, so the
expert goes on from any state it is put in (noise on the executed actions, a take-over in mid-episode, a block
that slipped away), and what it does can be learnt by a policy that sees one picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vla_agents.envs.tabletop.scene import BLOCK_HALF, FINGER_OPEN, ROTATION_LIMIT, WORKSPACE
from vla_agents.envs.tabletop.tasks import DIRECTIONS, TURNS, Goal
from vla_agents.envs.tabletop.world import STEP_ROTATION, STEP_XYZ

if TYPE_CHECKING:
    from vla_agents.envs.tabletop.world import World

REACH = 0.8  # largest component of a motion, so that noise on top of it stays within the box
GRASP_HEIGHT = 0.014  # of the finger tips when a block on the table is gripped
PUSH_HEIGHT = 0.016
CARRY = 0.10  # of the finger tips when a block is carried over others
CLEARANCE = 0.075  # of the finger tips when crossing over blocks
OPEN, CLOSE = -1.0, 1.0


def expert_action(world: World, goal: Goal) -> np.ndarray:
    """The action to take now, float32 (7,)."""
    return _PLANS[goal.family](world, goal)


def lift(world: World, goal: Goal) -> np.ndarray:
    """Grip the block and raise it."""
    if holding(world, goal.block):
        return move(world, np.array([*world.eef_position[:2], 0.15]), world.eef_rotation[0], CLOSE)
    return grip(world, goal.block)


def reach(world: World, goal: Goal) -> np.ndarray:
    """Lower the closed fingers onto the block."""
    target = world.position(goal.block)
    return lower(world, target[:2], target[2] + BLOCK_HALF - 0.01, 0.0, CLOSE)


def push(world: World, goal: Goal) -> np.ndarray:
    """Lower the closed fingers behind the block, then drive them through its centre."""
    direction = DIRECTIONS[goal.where]
    block, here = world.position(goal.block)[:2], world.eef_position
    offset = here[:2] - block
    behind = -float(offset @ direction)
    aside = offset + behind * direction  # (2,), from the line through the block's centre
    in_line = float(np.linalg.norm(aside)) < 0.014 and 0.015 < behind < 0.10
    if in_line and here[2] < PUSH_HEIGHT + 0.018 and world.fingers.max() < 0.015:
        ahead = here[:2] - aside + 0.035 * direction
        return move(world, np.array([*ahead, PUSH_HEIGHT]), 0.0, CLOSE)
    return lower(world, block - 0.06 * direction, PUSH_HEIGHT, 0.0, CLOSE)


def place(world: World, goal: Goal) -> np.ndarray:
    """Grip the block, carry it over the pad, set it down."""
    return deliver(world, goal.block, np.array(world.layout.pads[goal.where]), 0.0)


def stack(world: World, goal: Goal) -> np.ndarray:
    """Grip the block, carry it over the other one, set it down."""
    return deliver(world, goal.block, world.position(goal.where)[:2], 2 * BLOCK_HALF)


def turn(world: World, goal: Goal) -> np.ndarray:
    """Grip the block and turn the hand; where the wrist comes to its end, let go and take it afresh."""
    sense, yaw = TURNS[goal.where], float(world.eef_rotation[0])
    if not holding(world, goal.block):
        return grip(world, goal.block, (-1.2, 0.8) if sense > 0 else (-0.8, 1.2))
    at_the_end = sense * yaw > ROTATION_LIMIT[0] - 0.1
    return move(world, world.eef_position, yaw + sense, OPEN if at_the_end else CLOSE)


_PLANS = {"lift": lift, "reach": reach, "push": push, "place": place, "stack": stack, "turn": turn}


# ---- building blocks --------------------------------------------------------------------------------------
def move(world: World, position: np.ndarray, yaw: float, gripper: float) -> np.ndarray:
    """Go straight for a position (3,) and a yaw, hand upright, with the fingers told to open or close."""
    action = np.empty(7, np.float32)
    action[:3] = np.clip((position - world.eef_position) / STEP_XYZ, -REACH, REACH)
    now = world.eef_rotation
    # Small tilts: yaw, pitch and roll errors are the rotation vector to within what the next step corrects.
    cos, sin = np.cos(now[0]), np.sin(now[0])
    pitch, roll = -now[1], -now[2]
    turn = np.array([cos * roll - sin * pitch, sin * roll + cos * pitch, yaw - now[0]])
    action[3:6] = np.clip(turn / STEP_ROTATION, -REACH, REACH)
    action[6] = gripper
    return action


def lower(
    world: World, spot: np.ndarray, low: float, yaw: float, gripper: float, *, unready: float = 0.0
) -> np.ndarray:
    """Come down on a spot (2,) as through a funnel: the further to the side, the higher; nothing is run over.

    Args:
        spot: x and y, m.
        low: Height at the bottom of the funnel, m.
        yaw: Of the hand, rad.
        gripper: `OPEN` or `CLOSE`; the fingers stay up until they have followed.
        unready: What else keeps the hand up; 1 keeps it at the funnel's rim.
    """
    here, fingers = world.eef_position, world.fingers
    aside = max(float(np.linalg.norm(spot - here[:2])) - 0.015, 0.0) / 0.020
    followed = fingers.min() > FINGER_OPEN - 0.008 if gripper == OPEN else fingers.max() < 0.015
    up = min(aside + unready + (0.0 if followed else 1.0), 1.0)
    return move(world, np.array([*spot, low + up * max(CLEARANCE - low, 0.0)]), yaw, gripper)


def grip(world: World, block: str, room: tuple[float, float] = (-1.2, 1.2)) -> np.ndarray:
    """Bring the open gripper over the block, go down around it, close. `room`: yaws to choose from, rad."""
    target, here = world.position(block), world.eef_position
    yaw = grip_yaw(world, block, room)
    near = float(np.linalg.norm(target[:2] - here[:2]))
    turned = abs(yaw - world.eef_rotation[0])
    low = target[2] - BLOCK_HALF + GRASP_HEIGHT
    if near < 0.016 and here[2] < low + 0.015 and turned < 0.25:
        return move(world, np.array([*target[:2], low]), yaw, CLOSE)
    return lower(world, target[:2], low, yaw, OPEN, unready=max(turned - 0.15, 0.0) / 0.20)


def deliver(world: World, block: str, spot: np.ndarray, height: float) -> np.ndarray:
    """Grip the block and set it down on a spot (2,) that is `height` above the table."""
    if not holding(world, block):
        return grip(world, block)
    here, yaw = world.eef_position, float(world.eef_rotation[0])
    spot = spot + here[:2] - world.position(block)[:2]  # the block may sit off the middle of the fingers
    low = max(height + here[2] - world.position(block)[2] + BLOCK_HALF, WORKSPACE[0, 2])
    far = float(np.linalg.norm(spot - here[:2]))
    if far < 0.012 and here[2] < low + 0.006:
        return move(world, np.array([*spot, low]), yaw, OPEN)
    if far < 0.03:
        return move(world, np.array([*spot, low + 0.03 * max(far - 0.010, 0.0) / 0.020]), yaw, CLOSE)
    # Sideways only as far as the block is up already.
    free = float(np.clip((here[2] - CARRY + 0.04) / 0.03, 0.0, 1.0))
    return move(world, np.array([*(here[:2] + free * (spot - here[:2])), CARRY + 0.01]), yaw, CLOSE)


def holding(world: World, block: str) -> bool:
    """Whether the block is between the fingers and these are as near to each other as it lets them."""
    offset = np.abs(world.position(block) - world.eef_position)
    closed = world.fingers.sum() < 2 * BLOCK_HALF + 0.01
    return bool(closed and offset[:2].max() < 0.02 and offset[2] < 0.035)


def grip_yaw(world: World, block: str, room: tuple[float, float]) -> float:
    """The yaw within `room` in which the fingers lie flat against the block, with the least turning."""
    candidates = world.yaw(block) + np.pi / 2 * np.arange(-4, 5)
    candidates = candidates[(candidates > room[0]) & (candidates < room[1])]
    # Nearest to now, so that a half-turned hand goes on; straight where both are near.
    cost = np.abs(candidates - world.eef_rotation[0]) + 0.2 * np.abs(candidates)
    return float(candidates[np.argmin(cost)])
