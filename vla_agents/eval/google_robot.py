"""SimplerEnv's Google-robot tasks: their protocol, as its own scripts have it. They are known, and cannot be played.

Read in github.com/simpler-env/SimplerEnv at 4ab7178, scripts/octo_*.sh and tools/calc_metrics_evaluation_videos.py, which
leaves the cameras' variants of the scripts out of its averages.
"""

from __future__ import annotations

from dataclasses import dataclass

NEEDS = (
    "SimplerEnv's original on SAPIEN 2, for which vla_agents has no environment yet",
    "its packages are not on the package index: install sapien==2.2.2, numpy<2 and gymnasium<1 in a Python of their own, "
    "then github.com/simpler-env/SimplerEnv with its submodule ManiSkill2_real2sim, and run its scripts/octo_*.sh with "
    "your policy; the WidowX tasks can be played here: --suite simpler_widowx",
)
"""What is missing, and what to do about it."""


@dataclass(frozen=True)
class GoogleTask:
    """A task of the Google robot in one of the two settings.

    Args:
        tasks: How many it counts as: orientations of the can, drawers to open and to close.
        placements: Of objects and robot, for each.
        variants: Over which it is averaged, and how many they are.
        limit: Actions.
        scripts: Whose protocol it is.
        success: What counts, at the last step.
    """

    tasks: int
    placements: int
    variants: tuple[int, str]
    limit: int
    scripts: str
    success: str


_ARMS = (4, "4 colours of the arm (None, recolor_tabletop 1 and 2, recolor_cabinet 1) before a photo")
_STATIONS = (7, "base, 2 backgrounds, 2 lightings, 2 cabinets; ray tracing")
_TABLE = "2 backgrounds, 2 lightings, 2 table textures"
_LIFTED = "the can is held, and was lifted by 1 cm in that grasp, touching nothing but the hand"
_NEAR = "the object was moved, farther than the others, lies near the one named and nearest to it; none fell"
_DRAWER = "the drawer is 15 cm open, or within 5 cm of closed"
_APPLE = "in the second part (the policy ends the first, opening): the apple has touched the drawer, 5 cm open at least"
MATCHING, VARIANTS = "matching", "variants"
TASKS: dict[str, GoogleTask] = {
    f"pick_coke_can_{MATCHING}": GoogleTask(3, 25, _ARMS, 80, "octo_pick_coke_can", _LIFTED),
    f"pick_coke_can_{VARIANTS}": GoogleTask(
        3, 25, (9, f"base, {_TABLE}, 2 sets of distractors"), 80, "octo_pick_coke_can", _LIFTED
    ),
    f"move_near_{MATCHING}": GoogleTask(1, 60, _ARMS, 80, "octo_move_near", _NEAR),
    f"move_near_{VARIANTS}": GoogleTask(
        1, 60, (8, f"base, {_TABLE}, no distractors"), 80, "octo_move_near", _NEAR
    ),
    f"drawer_{MATCHING}": GoogleTask(6, 9, _ARMS, 113, "octo_drawer", _DRAWER),
    f"drawer_{VARIANTS}": GoogleTask(6, 9, _STATIONS, 113, "octo_drawer", _DRAWER),
    f"apple_in_drawer_{MATCHING}": GoogleTask(1, 27, _ARMS, 200, "octo_put_in_drawer", _APPLE),
    f"apple_in_drawer_{VARIANTS}": GoogleTask(1, 27, _STATIONS, 200, "octo_put_in_drawer", _APPLE),
}
