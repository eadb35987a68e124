"""The episodes of SimplerEnv's original, as its own scripts play them: scenes, placements, photos, limits.

Read in github.com/simpler-env/SimplerEnv at 4ab7178, scripts/octo_*.sh, simpler_env/evaluation/ and
tools/calc_metrics_evaluation_videos.py, which leaves the cameras' variants of the scripts out of its averages. Nothing
here needs the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from vla_agents.errors import UnknownNameError

MATCHING, VARIANTS = "matching", "variants"


@dataclass(frozen=True)
class Scene:
    """What the simulator is built from.

    Args:
        name: Of the variant: `"base"`, `"darker"`, `"recolor_tabletop_1"`.
        sim: Id in ManiSkill2_real2sim.
        stage: The mesh all stands in; one that begins with `"dummy"` is built without a file.
        options: Keyword arguments of the simulator.
    """

    name: str
    sim: str
    stage: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where things are when an episode begins.

    Args:
        robot: Of its base: x, y in metres, turn about the vertical in radians (0 faces the table).
        objects: x, y in metres of the object, or the number of one of the simulator's own placements.
        photo: Drawn behind robot and objects; "" for none.
    """

    robot: tuple[float, float, float]
    objects: tuple[float, float] | int
    photo: str = ""


@dataclass(frozen=True)
class Task:
    """A task in one of the two settings.

    Args:
        parts: What it counts as, each with its scenes: orientations of the can, drawers to open and to close.
        placements: For each scene.
        limit: Actions.
        script: Whose protocol it is.
        variants: What the scenes differ in, in words; "" where there is one.
        success: What counts, at the last step.
        robot: As the simulator calls it.
        sim_hz: Steps of the physics per second.
    """

    parts: dict[str, tuple[Scene, ...]]
    placements: tuple[Placement, ...]
    limit: int
    script: str
    variants: str
    success: str
    robot: str = "google_robot_static"
    sim_hz: int = 513

    @property
    def trials(self) -> int:
        """Episodes of each part."""
        return len(next(iter(self.parts.values()))) * len(self.placements)

    def episode(self, number: int) -> tuple[str, Scene, Placement]:
        """Part, scene and placement of an episode, counted from 0 through parts, then scenes, then placements."""
        names = list(self.parts)
        part = names[number // self.trials % len(names)]
        scene, placement = divmod(number % self.trials, len(self.placements))
        return part, self.parts[part][scene], self.placements[placement]


# ---- what the tasks have in common ------------------------------------------------------------------------------
_TABLE = "google_pick_coke_can_1_v4"
_ARMS = "4 colours of the arm (its own, recolor_tabletop 1 and 2, recolor_cabinet 1) before a photo"
_TABLES = "2 backgrounds, 2 lightings, 2 table textures"
_STATIONS = "base, 2 backgrounds, 2 lightings, 2 cabinets; ray tracing"
_LIFTED = "the can is held, and was lifted by 1 cm in that grasp, touching nothing but the hand; or was 2 cm up for 5 steps"
_NEAR = "the object was moved, farther than the others, lies near the one named and nearest to it; none fell"
_DRAWER = "the drawer is 15 cm open, or within 5 cm of closed"
_APPLE = "in the second part (opening ends after 100 actions): the apple has touched the drawer, 5 cm open at least"
_ON = "the object rests on its target, and on nothing else (the eggplant: in the basket)"


def _line(start: float, end: float, count: int) -> list[float]:
    return [float(value) for value in np.linspace(start, end, count)]


def _recoloured(sim: str, stage: str, options: dict[str, Any]) -> tuple[Scene, ...]:
    colours = {
        "own_colours": "",
        "recolor_tabletop_1": "recolor_tabletop_visual_matching_1",
        "recolor_tabletop_2": "recolor_tabletop_visual_matching_2",
        "recolor_cabinet_1": "recolor_cabinet_visual_matching_1",
    }
    return tuple(Scene(name, sim, stage, {**options, "urdf_version": urdf}) for name, urdf in colours.items())


def _on_tables(sim: str, options: dict[str, Any], more: tuple[Scene, ...]) -> tuple[Scene, ...]:
    """The variants of what is played on a table; `more` are the task's own."""
    stages = {
        "table_1": "Baked_sc1_staging_objaverse_cabinet1_h870",
        "table_2": "Baked_sc1_staging_objaverse_cabinet2_h870",
        "background_1": f"{_TABLE}_alt_background",
        "background_2": f"{_TABLE}_alt_background_2",
    }
    return (
        Scene("base", sim, _TABLE, options),
        *more,
        *(Scene(name, sim, stage, options) for name, stage in stages.items()),
        Scene("darker", sim, _TABLE, {**options, "slightly_darker_lighting": True}),
        Scene("brighter", sim, _TABLE, {**options, "slightly_brighter_lighting": True}),
    )


def _at_stations(sim: str, options: dict[str, Any]) -> tuple[Scene, ...]:
    """The variants of what is played at a cabinet."""
    flat, options = "frl_apartment_stage_simple", {**options, "shader_dir": "rt"}
    return (
        Scene("base", sim, flat, options),
        Scene("background_1", sim, "modern_bedroom_no_roof", options),
        Scene("background_2", sim, "modern_office_no_roof", options),
        Scene("brighter", sim, flat, {**options, "light_mode": "brighter"}),
        Scene("darker", sim, flat, {**options, "light_mode": "darker"}),
        Scene("cabinet_2", sim, flat, {**options, "station_name": "mk_station2"}),
        Scene("cabinet_3", sim, flat, {**options, "station_name": "mk_station3"}),
    )


def _before_photos(sim: str, options: dict[str, Any]) -> tuple[Scene, ...]:
    station = {"station_name": "mk_station_recolor", "light_mode": "simple", "disable_bad_material": True}
    return _recoloured(sim, "dummy_drawer", {**options, **station, "shader_dir": "rt"})


# ---- the Google robot -------------------------------------------------------------------------------------------
_CAN, _CROWDED = "GraspSingleOpenedCokeCanInScene-v0", "GraspSingleOpenedCokeCanDistractorInScene-v0"
_LYING = {
    "horizontal": {"lr_switch": True},
    "standing": {"upright": True},
    "vertical": {"laid_vertically": True},
}
_CANS = [((0.35, 0.2, 0.0), (x, y)) for x, y in product(_line(-0.35, -0.12, 5), _line(-0.02, 0.42, 5))]
_MOVES = [((0.35, 0.21, -0.09), number) for number in range(60)]
_DRAWERS = {
    f"{verb.lower()}_{which.lower()}": f"{verb}{which}DrawerCustomInScene-v0"
    for verb, which in product(("Open", "Close"), ("Top", "Middle", "Bottom"))
}
_STANDS = {  # where the robot stood when a photo was taken
    "a0": (0.644, -0.179, -0.03), "a1": (0.765, -0.182, -0.02), "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0), "b1": (0.752, 0.009, 0.0), "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0), "c1": (0.765, 0.222, -0.025), "c2": (0.865, 0.222, -0.025),
}  # fmt: skip
_INTO = "PlaceIntoClosedTopDrawerCustomInScene-v0"
_APPLES = list(product(_line(-0.08, -0.02, 3), _line(-0.02, 0.08, 3)))


def _crowded(how: dict[str, Any]) -> tuple[Scene, ...]:
    return (
        Scene("distractors", _CROWDED, _TABLE, how),
        Scene("more_distractors", _CROWDED, _TABLE, {**how, "distractor_config": "more"}),
    )


_MOVE = "MoveNearGoogleInScene-v0"
GOOGLE_ROBOT: dict[str, Task] = {
    f"pick_coke_can_{MATCHING}": Task(
        {part: _recoloured(_CAN, _TABLE, how) for part, how in _LYING.items()},
        tuple(Placement(robot, can, "google_coke_can_real_eval_1.png") for robot, can in _CANS),
        80, "octo_pick_coke_can", _ARMS, _LIFTED, sim_hz=501,
    ),
    f"pick_coke_can_{VARIANTS}": Task(
        {part: _on_tables(_CAN, how, _crowded(how)) for part, how in _LYING.items()},
        tuple(Placement(robot, can) for robot, can in _CANS),
        80, "octo_pick_coke_can", f"base, 2 sets of distractors, {_TABLES}", _LIFTED,
    ),
    f"move_near_{MATCHING}": Task(
        {"move_near": _recoloured("MoveNearGoogleBakedTexInScene-v0", _TABLE, {})},
        tuple(Placement(robot, number, "google_move_near_real_eval_1.png") for robot, number in _MOVES),
        80, "octo_move_near", _ARMS, _NEAR,
    ),
    f"move_near_{VARIANTS}": Task(
        {"move_near": _on_tables(_MOVE, {}, (Scene("no_distractor", _MOVE, _TABLE, {"no_distractor": True}),))},
        tuple(Placement(robot, number) for robot, number in _MOVES),
        80, "octo_move_near", f"base, no distractor, {_TABLES}", _NEAR,
    ),
    f"drawer_{MATCHING}": Task(
        {part: _before_photos(sim, {}) for part, sim in _DRAWERS.items()},
        tuple(Placement(robot, (0.0, 0.0), f"open_drawer_{stand}.png") for stand, robot in _STANDS.items()),
        113, "octo_drawer", _ARMS, _DRAWER,
    ),
    f"drawer_{VARIANTS}": Task(
        {part: _at_stations(sim, {}) for part, sim in _DRAWERS.items()},
        tuple(
            Placement((x, y, 0.0), (0.0, 0.0)) for x, y in product(_line(0.65, 0.85, 3), _line(-0.2, 0.2, 3))
        ),
        113, "octo_drawer", _STATIONS, _DRAWER,
    ),
    f"apple_in_drawer_{MATCHING}": Task(
        {"apple_in_drawer": _before_photos(_INTO, {"model_ids": "baked_apple_v2"})},
        tuple(
            Placement(_STANDS[stand], apple, f"open_drawer_{stand}.png")
            for stand, apple in product(("a0", "b0", "c0"), _APPLES)
        ),
        200, "octo_put_in_drawer", _ARMS, _APPLE,
    ),
    f"apple_in_drawer_{VARIANTS}": Task(
        {"apple_in_drawer": _at_stations(_INTO, {"model_ids": "apple"})},
        tuple(Placement((0.65, y, 0.0), apple) for y, apple in product(_line(-0.2, 0.2, 3), _APPLES)),
        200, "octo_put_in_drawer", _STATIONS, _APPLE,
    ),
}  # fmt: skip

# ---- the WidowX -------------------------------------------------------------------------------------------------
_BRIDGE = {
    "spoon_on_towel": "PutSpoonOnTableClothInScene-v0",
    "carrot_on_plate": "PutCarrotOnPlateInScene-v0",
    "stack_cube": "StackGreenCubeOnYellowCubeBakedTexInScene-v0",
}
WIDOWX: dict[str, Task] = {
    f"widowx_{name}": Task(
        {name: (Scene("base", sim, "bridge_table_1_v1"),)},
        tuple(Placement((0.147, 0.028, 0.0), number, "bridge_real_eval_1.png") for number in range(24)),
        60, "octo_bridge", "", _ON, "widowx", 500,
    )
    for name, sim in _BRIDGE.items()
}  # fmt: skip
WIDOWX["widowx_eggplant_in_basket"] = Task(
    {"eggplant_in_basket": (Scene("base", "PutEggplantInBasketScene-v0", "bridge_table_1_v2"),)},
    tuple(Placement((0.127, 0.06, 0.0), number, "bridge_sink.png") for number in range(24)),
    120, "octo_bridge", "", _ON, "widowx_sink_camera_setup", 500,
)  # fmt: skip
TASKS: dict[str, Task] = {**GOOGLE_ROBOT, **WIDOWX}


def find_task(name: str) -> Task:
    """A task by its name.

    Raises:
        UnknownNameError: No such task.
    """
    if name not in TASKS:
        raise UnknownNameError("task of SimplerEnv's original", name, TASKS)
    return TASKS[name]
