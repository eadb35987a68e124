"""The task families: the goals a scene allows, how they are said, when they are reached, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vla_agents.envs.tabletop.scene import BLOCK_HALF, Layout

if TYPE_CHECKING:
    from vla_agents.envs.tabletop.world import World

LIFT_HEIGHT = 0.07  # m above where it lies on the table
STILL_DOWN = 0.03  # m: an object raised less than this counts as not lifted
PUSH_DISTANCE = 0.08  # m
PUSH_CORRIDOR = 0.04  # m to either side
TURN_ANGLE = 0.7  # rad, 40 degrees

# As the front camera sees it.
DIRECTIONS: dict[str, np.ndarray] = {
    "to the left": np.array([-1.0, 0.0]),
    "to the right": np.array([1.0, 0.0]),
    "away": np.array([0.0, 1.0]),
    "closer": np.array([0.0, -1.0]),
}
# As seen from above; the sign of the angle about the vertical.
TURNS: dict[str, float] = {"clockwise": -1.0, "counterclockwise": 1.0}


@dataclass(frozen=True)
class Goal:
    """What is asked for in an episode.

    Args:
        family: Name of the task family.
        block: Colour of the block to act on.
        where: Colour of the pad or of the block beneath, or a direction; empty where the family needs none.
        instruction: The canonical wording.
    """

    family: str
    block: str
    where: str
    instruction: str


class Family:
    """A kind of task. Subclasses say which goals a layout allows and judge the state of the world.

    `heldout` are the (block, where) combinations that the split `"train"` never draws; each of their words
    occurs in other combinations there.
    """

    name: str
    pads: int = 0
    max_steps: int = 60
    wordings: tuple[str, ...]  # the first is the canonical one
    heldout: frozenset[tuple[str, str]] = frozenset()

    def goals(self, layout: Layout, split: str = "all") -> list[Goal]:
        """Every goal of this family that makes sense in the layout and belongs to the split."""
        return [
            Goal(self.name, block, where, self.say(0, block, where))
            for block, where in self._pairs(layout)
            if split == "all" or ((block, where) in self.heldout) == (split == "heldout")
        ]

    def say(self, wording: int, block: str, where: str) -> str:
        """The instruction in one of `wordings`."""
        return self.wordings[wording].format(block=block, where=where)

    def success(self, world: World, goal: Goal) -> bool:
        """Whether the goal is reached."""
        raise NotImplementedError

    def wrong(self, world: World, goal: Goal) -> bool:
        """Whether something was done that was not asked for; ends the episode."""
        return any(world.raised(name) > LIFT_HEIGHT for name in _others(world, goal))

    def _pairs(self, layout: Layout) -> list[tuple[str, str]]:
        return [(block, "") for block in layout.blocks]


class Lift(Family):
    """Pick up the named block: more than 7 cm up, nothing else lifted."""

    name = "lift"
    wordings = (
        "pick up the {block} block",
        "lift the {block} block",
        "grasp the {block} block and raise it",
        "take the {block} block off the table",
    )

    def success(self, world: World, goal: Goal) -> bool:
        """The named block is up and all else is down."""
        return world.raised(goal.block) > LIFT_HEIGHT and all(
            world.raised(name) < STILL_DOWN for name in _others(world, goal)
        )


class Reach(Family):
    """Touch the named block before any other object."""

    name = "reach"
    max_steps = 40
    wordings = (
        "touch the {block} block",
        "reach the {block} block",
        "tap the {block} block",
        "move to the {block} block and touch it",
    )

    def success(self, world: World, goal: Goal) -> bool:
        """The gripper is in contact with the named block alone."""
        return world.touched() == {goal.block}

    def wrong(self, world: World, goal: Goal) -> bool:
        """The gripper is in contact with another object."""
        return bool(world.touched() - {goal.block})


class Push(Family):
    """Push the named block more than 8 cm along the table, closed fingers, within 4 cm of a straight line."""

    name = "push"
    wordings = (
        "push the {block} block {where}",
        "slide the {block} block {where}",
        "shove the {block} block {where}",
        "with closed fingers move the {block} block {where}",
    )
    heldout = frozenset(
        {("red", "to the left"), ("green", "to the right"), ("blue", "away"), ("yellow", "closer")}
    )

    def success(self, world: World, goal: Goal) -> bool:
        """Far enough, straight enough, neither lifted nor carried."""
        along, side = _moved(world, goal)
        closed = world.fingers.max() < BLOCK_HALF - 0.01
        return (
            along > PUSH_DISTANCE
            and side < PUSH_CORRIDOR
            and world.raised(goal.block) < STILL_DOWN
            and closed
        )

    def wrong(self, world: World, goal: Goal) -> bool:
        """Something was lifted, another object was moved, or the named one was moved elsewhere."""
        along, side = _moved(world, goal)
        astray = side > PUSH_DISTANCE or -along > PUSH_DISTANCE or along > 2 * PUSH_DISTANCE
        lifted = any(world.raised(name) > LIFT_HEIGHT for name in world.objects)
        return astray or lifted or any(_distance(world, name) > 0.05 for name in _others(world, goal))

    def _pairs(self, layout: Layout) -> list[tuple[str, str]]:
        return [
            (block, where) for block in layout.blocks for where in DIRECTIONS if _free(layout, block, where)
        ]


class Place(Family):
    """Put the named block on the named pad and let go of it."""

    name = "place"
    pads = 2
    max_steps = 80
    wordings = (
        "put the {block} block on the {where} pad",
        "place the {block} block on the {where} pad",
        "set the {block} block down on the {where} square",
        "move the {block} block onto the {where} pad",
    )
    heldout = frozenset(
        {("red", "blue"), ("green", "red"), ("blue", "green"), ("yellow", "green"), ("red", "yellow")}
    )

    def success(self, world: World, goal: Goal) -> bool:
        """The block lies on the pad, centre within 2.5 cm of the pad's, and the fingers do not touch it."""
        return _lies_on_pad(world, goal.block, goal.where)

    def wrong(self, world: World, goal: Goal) -> bool:
        """Another object was lifted, or the block was put on another pad."""
        pads = (pad for pad in world.layout.pads if pad != goal.where)
        return super().wrong(world, goal) or any(_lies_on_pad(world, goal.block, pad) for pad in pads)

    def _pairs(self, layout: Layout) -> list[tuple[str, str]]:
        return [(block, pad) for block in layout.blocks for pad in layout.pads]


class Stack(Family):
    """Put one named block on top of another and let go of it."""

    name = "stack"
    max_steps = 80
    wordings = (
        "stack the {block} block on the {where} block",
        "put the {block} block on top of the {where} block",
        "place the {block} block onto the {where} block",
        "set the {block} block on the {where} one",
    )
    heldout = frozenset(
        {("red", "blue"), ("green", "red"), ("blue", "green"), ("yellow", "green"), ("red", "yellow")}
    )

    def success(self, world: World, goal: Goal) -> bool:
        """One block lies on the other, centres within 2.5 cm, and the fingers do not touch it."""
        return _lies_on_block(world, goal.block, goal.where)

    def wrong(self, world: World, goal: Goal) -> bool:
        """Another object was lifted, or the block was put on another one."""
        blocks = (name for name in world.blocks if name not in (goal.block, goal.where))
        return super().wrong(world, goal) or any(_lies_on_block(world, goal.block, name) for name in blocks)

    def _pairs(self, layout: Layout) -> list[tuple[str, str]]:
        return [(top, base) for top in layout.blocks for base in layout.blocks if top != base]


class Turn(Family):
    """Turn the named block by more than 40 degrees about the vertical, on the table."""

    name = "turn"
    wordings = (
        "turn the {block} block {where}",
        "rotate the {block} block {where}",
        "twist the {block} block {where}",
        "give the {block} block a {where} turn",
    )
    heldout = frozenset({("red", "clockwise"), ("green", "counterclockwise"), ("yellow", "clockwise")})

    def success(self, world: World, goal: Goal) -> bool:
        """Far enough in the right sense, and on the table."""
        turned = TURNS[goal.where] * world.turned(goal.block)
        return turned > TURN_ANGLE and world.raised(goal.block) < STILL_DOWN

    def wrong(self, world: World, goal: Goal) -> bool:
        """Lifted, turned the other way, or another block was turned."""
        astray = -TURNS[goal.where] * world.turned(goal.block) > TURN_ANGLE
        others = any(abs(world.turned(name)) > TURN_ANGLE for name in world.blocks if name != goal.block)
        return astray or others or any(world.raised(name) > LIFT_HEIGHT for name in world.objects)

    def _pairs(self, layout: Layout) -> list[tuple[str, str]]:
        return [(block, where) for block in layout.blocks for where in TURNS]


FAMILIES: dict[str, Family] = {f.name: f for f in (Lift(), Reach(), Push(), Place(), Stack(), Turn())}


# ---- judging ----------------------------------------------------------------------------------------------
def _others(world: World, goal: Goal) -> list[str]:
    return [name for name in world.objects if name != goal.block]


def _distance(world: World, name: str) -> float:
    """How far an object is from where it began, along the table, m."""
    return float(np.linalg.norm(world.position(name)[:2] - world.start(name)))


def _moved(world: World, goal: Goal) -> tuple[float, float]:
    """How far the named block has come in the named direction, and how far to either side of it, m."""
    way = world.position(goal.block)[:2] - world.start(goal.block)
    direction = DIRECTIONS[goal.where]
    return float(way @ direction), float(abs(way[0] * direction[1] - way[1] * direction[0]))


def _lies_on_pad(world: World, block: str, pad: str) -> bool:
    offset = np.abs(world.position(block)[:2] - world.layout.pads[pad]).max()
    return bool(offset < 0.025 and world.raised(block) < 0.01 and block not in world.touched())


def _lies_on_block(world: World, top: str, base: str) -> bool:
    offset = world.position(top) - world.position(base)
    return bool(
        np.abs(offset[:2]).max() < 0.025
        and abs(offset[2] - 2 * BLOCK_HALF) < 0.01
        and world.raised(base) < 0.01
        and world.speed(top) < 0.1
        and top not in world.touched()
    )


def _free(layout: Layout, block: str, where: str) -> bool:
    """Whether a block can be pushed that way: room behind it for the fingers and before it for itself."""
    direction = DIRECTIONS[where]
    centre = np.array(layout.blocks[block][:2])
    end, behind = centre + 0.11 * direction, centre - 0.07 * direction
    if (
        abs(end[0]) > 0.22
        or not -0.20 < end[1] < 0.26
        or abs(behind[0]) > 0.25
        or not -0.23 < behind[1] < 0.27
    ):
        return False
    others = [place[:2] for name, place in layout.blocks.items() if name != block]
    others += [(x, y) for _, x, y in layout.distractors]
    for other in others:
        offset = np.array(other) - centre
        along = float(np.clip(offset @ direction, 0.0, 0.11))
        if np.linalg.norm(offset - along * direction) < 0.075 or np.linalg.norm(behind - other) < 0.05:
            return False
    return True
