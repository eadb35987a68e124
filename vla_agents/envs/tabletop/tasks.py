"""The task families: which goals a scene allows, how they are said, when they are reached and when the wrong thing is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_agents.envs.tabletop.scene import Layout

if TYPE_CHECKING:
    from vla_agents.envs.tabletop.world import World

LIFT_HEIGHT = 0.07  # m above where it lies on the table
STILL_DOWN = 0.03  # m: an object raised less than this counts as not lifted


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
    """A kind of task. Subclasses say which goals a layout allows and judge the state of the world."""

    name: str
    pads: int = 0
    max_steps: int = 60
    wordings: tuple[str, ...]  # the first is the canonical one

    def goals(self, layout: Layout) -> list[Goal]:
        """Every goal of this family that makes sense in the layout."""
        raise NotImplementedError

    def success(self, world: World, goal: Goal) -> bool:
        """Whether the goal is reached."""
        raise NotImplementedError

    def wrong(self, world: World, goal: Goal) -> bool:
        """Whether something was done that was not asked for; ends the episode."""
        raise NotImplementedError

    def goal(self, block: str, where: str = "") -> Goal:
        """A goal with its canonical instruction."""
        return Goal(self.name, block, where, self.say(0, block, where))

    def say(self, wording: int, block: str, where: str = "") -> str:
        """The instruction in one of `wordings`."""
        return self.wordings[wording].format(block=block, where=where)


class Lift(Family):
    """Pick up the named block: more than 7 cm up, nothing else lifted."""

    name = "lift"
    wordings = (
        "pick up the {block} block",
        "lift the {block} block",
        "grasp the {block} block and raise it",
        "take the {block} block off the table",
    )

    def goals(self, layout: Layout) -> list[Goal]:
        """One per block."""
        return [self.goal(block) for block in layout.blocks]

    def success(self, world: World, goal: Goal) -> bool:
        """The named block is up and all else is down."""
        others = (name for name in world.objects if name != goal.block)
        return world.raised(goal.block) > LIFT_HEIGHT and all(world.raised(n) < STILL_DOWN for n in others)

    def wrong(self, world: World, goal: Goal) -> bool:
        """Another object is up."""
        return any(world.raised(name) > LIFT_HEIGHT for name in world.objects if name != goal.block)


FAMILIES: dict[str, Family] = {family.name: family for family in (Lift(),)}
