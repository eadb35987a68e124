"""The scripted expert. It looks behind the scenes, but acts on the present state alone.

There is no clock and no phase counter: each action follows from where gripper and blocks are now, so the expert goes on
from any state it is put in (noise on the executed actions, a take-over in mid-episode, a block that slipped away), and
what it does can be learnt by a policy that sees one picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vla_agents.envs.tabletop.scene import BLOCK_HALF, FINGER_OPEN
from vla_agents.envs.tabletop.tasks import Goal
from vla_agents.envs.tabletop.world import STEP_ROTATION, STEP_XYZ

if TYPE_CHECKING:
    from vla_agents.envs.tabletop.world import World

REACH = 0.8  # largest component of a motion, so that noise on top of it stays within the box
GRASP_HEIGHT = 0.014  # of the finger tips when a block on the table is gripped
CLEARANCE = 0.075  # of the finger tips when crossing over blocks
OPEN, CLOSE = -1.0, 1.0


def expert_action(world: World, goal: Goal) -> np.ndarray:
    """The action to take now, float32 (7,)."""
    return _PLANS[goal.family](world, goal)


def lift(world: World, goal: Goal) -> np.ndarray:
    """Grip the block and raise it."""
    if holding(world, goal.block):
        here = world.eef_position
        return move(world, np.array([here[0], here[1], 0.15]), world.eef_rotation[0], CLOSE)
    return grip(world, goal.block)


_PLANS = {"lift": lift}


# ---- building blocks ------------------------------------------------------------------------------------------
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


def grip(world: World, block: str) -> np.ndarray:
    """Bring the open gripper over the block, go down around it, close."""
    target, here = world.position(block), world.eef_position
    yaw = grip_yaw(world, block)
    near = float(np.linalg.norm(target[:2] - here[:2]))
    turned = abs(yaw - world.eef_rotation[0])
    low = target[2] - BLOCK_HALF + GRASP_HEIGHT
    wide = world.fingers.min() > FINGER_OPEN - 0.008
    if near < 0.016 and here[2] < low + 0.015 and turned < 0.2:
        return move(world, np.array([*target[:2], low]), yaw, CLOSE)
    # A funnel: the further to the side (or the less turned or open), the higher.
    aside = max(near - 0.010, 0.0) / 0.020 + max(turned - 0.10, 0.0) / 0.15 + (0.0 if wide else 1.0)
    height = low + min(aside, 1.0) * (CLEARANCE - GRASP_HEIGHT)
    return move(world, np.array([*target[:2], height]), yaw, OPEN)


def holding(world: World, block: str) -> bool:
    """Whether the block is between closed fingers."""
    offset = world.position(block) - world.eef_position
    return bool(
        world.fingers.max() < BLOCK_HALF + 0.008
        and np.linalg.norm(offset[:2]) < 0.02
        and abs(offset[2]) < 0.035
        and world.held(block)
    )


def grip_yaw(world: World, block: str) -> float:
    """The nearest yaw in which the fingers lie flat against two sides of the block."""
    candidates = world.yaw(block) + np.pi / 2 * np.arange(-4, 5)
    # Nearest to now, so that a half-turned hand goes on; straight where both are near.
    cost = np.abs(candidates - world.eef_rotation[0]) + 0.2 * np.abs(candidates)
    return float(candidates[np.argmin(cost)])
