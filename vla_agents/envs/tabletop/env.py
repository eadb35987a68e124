"""`vla_agents/Tabletop-v0`: a language-conditioned table-top environment that needs nothing but MuJoCo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.envs import rendering
from vla_agents.envs.tabletop import expert
from vla_agents.envs.tabletop.scene import CAMERAS, DIFFICULTIES, DISTRACTOR_KINDS, Layout, sample_layout
from vla_agents.envs.tabletop.tasks import FAMILIES, Family, Goal
from vla_agents.envs.tabletop.world import World
from vla_agents.errors import ActionError, ConfigError, UnknownNameError

Observation = dict[str, Any]
SPLITS = ("all", "train", "heldout")
VIEW_SIZE = 480  # of the picture for people, pixels


def tabletop_embodiment(height: int, width: int, cameras: Sequence[str] = CAMERAS) -> Embodiment:
    """The gripper's embodiment with pictures of the given size."""
    return Embodiment(
        name="tabletop",
        action=(
            Part("delta_position", 3, "delta_xyz", -1, 1, "0.05 m"),
            Part("delta_rotation", 3, "delta_axis_angle", -1, 1, "0.5 rad"),
            Part("gripper", 1, "gripper_close_pm1", -1, 1),
        ),
        state=(
            Part("eef_position", 3, "xyz", (-0.4, -0.4, -0.1), (0.4, 0.4, 0.5), "m"),
            Part("eef_orientation", 3, "axis_angle", -np.pi, np.pi, "rad"),
            Part("gripper_position", 2, "gripper_position", -0.02, 0.07, "m"),
        ),
        cameras=tuple(Camera(name, height, width) for name in cameras),
        control_hz=20.0,
    )


class TabletopEnv(gymnasium.Env[Observation, np.ndarray]):
    """Coloured blocks under a two-finger gripper, and an instruction that names what to do with which.

    Args:
        task: A family of `FAMILIES`, several of them, or `"all"`; of several, each episode draws one.
        difficulty: One of `DIFFICULTIES`.
        image_size: Of the observations' pictures: a side, or (height, width).
        cameras: Which of `"front"` and `"wrist"` to render. With none (fastest) there is no `"images"`.
        max_steps: Steps after which an episode is truncated; None takes the family's own.
        split: Which goals are drawn: `"train"`, `"heldout"` (combinations that train never draws) or `"all"`.
        renderer: `"auto"`, `"egl"`, `"osmesa"` or `"raycast"`; the one in use stands in `info["renderer"]`.
        distractors: Number of objects that no instruction names; None takes the difficulty's.
        paraphrase: Draw one of several wordings instead of the canonical one.
        render_mode: `"rgb_array"` for `render()`, a 480 x 480 picture for people.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        *,
        task: str | Sequence[str] = "lift",
        difficulty: str = "medium",
        image_size: int | tuple[int, int] = 64,
        cameras: Sequence[str] = CAMERAS,
        max_steps: int | None = None,
        split: str = "all",
        renderer: str = "auto",
        distractors: int | None = None,
        paraphrase: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self._families = _families(task)
        self._difficulty = DIFFICULTIES[_known("difficulty", difficulty, DIFFICULTIES)]
        self._split = _known("split", split, SPLITS)
        if self._split == "heldout" and not all(FAMILIES[name].heldout for name in self._families):
            able = ", ".join(name for name, family in FAMILIES.items() if family.heldout)
            raise ConfigError(
                f"split 'heldout' with task {task!r}: a family names one thing only", f"use {able}"
            )
        self._distractors = _count("distractors", distractors, 0, len(DISTRACTOR_KINDS))
        self._max_steps = _count("max_steps", max_steps, 1, 1_000_000)
        self._paraphrase = bool(paraphrase)
        if render_mode is not None:
            _known("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._size = _image_size(image_size)
        if isinstance(cameras, str):  # its letters would be taken for cameras
            raise ConfigError(f"cameras is {cameras!r}", f"give a list: cameras=[{cameras}]")
        names = tuple(_known("camera", name, CAMERAS) for name in cameras)
        self.embodiment = tabletop_embodiment(*self._size, names)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()

        self._renderer_name = rendering.choose_renderer(renderer) if names or render_mode else "none"
        most = self._difficulty.distractors[1] if self._distractors is None else self._distractors
        self._world = World(
            rendering.import_mujoco(),
            self._difficulty.blocks,
            max(FAMILIES[name].pads for name in self._families),
            most,
        )
        # Contexts are made at the first picture: AsyncVectorEnv forks after constructing one env, and OpenGL
        # does not survive a fork.
        self._renderer: rendering.FrameRenderer | None = None
        self._viewer: rendering.FrameRenderer | None = None
        self._goal: Goal | None = None
        self._phrase, self._instruction = 0, ""  # index of the wording, and the wording
        self._steps = 0

    # ---- Gymnasium ----------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: The same seed gives the same episode, bit for bit.
            options: `"task"`: the family of this episode. `"instruction"`: the goal, one of those that
                `possible_instructions` would list; the scene is the one the seed gives in any case.
        """
        super().reset(seed=seed)
        options = options or {}
        for key in options:
            _known("reset option", key, ("task", "instruction"))
        # One draw per episode, and a stream of its own for scene, goal and wording: asking for another goal
        # or wording leaves the scene as it was.
        episode = int(self.np_random.integers(2**62))
        scene, choice, wording = (np.random.default_rng((episode, stream)) for stream in range(3))
        drawn = self._families[int(choice.integers(len(self._families)))]
        family = FAMILIES[_known("task", options.get("task", drawn), self._families)]
        layout, goals = self._scene(scene, family)
        self._goal = goals[int(choice.integers(len(goals)))]
        self._world.reset(layout)
        self._phrase = int(wording.integers(len(family.wordings))) if self._paraphrase else 0
        self._instruction = family.say(self._phrase, self._goal.block, self._goal.where)
        if "instruction" in options:
            self._force(options["instruction"])
        self._steps = 0
        return self._observe(), self._info(success=False, wrong=False)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one action (50 ms); reward 1.0 on success."""
        goal = self._started()
        self._world.apply(_checked(action))
        self._steps += 1
        info = self.judge()
        truncated = self._steps >= (self._max_steps or FAMILIES[goal.family].max_steps)
        success = info["success"]
        return self._observe(), float(success), success or info["wrong"], truncated, info

    def render(self) -> np.ndarray | None:
        """A picture for people, uint8 (480, 480, 3), where the render mode is `"rgb_array"`."""
        if self.render_mode is None:
            return None
        self._started()
        if self._viewer is None:
            self._viewer = rendering.make_renderer(
                self._world.model, VIEW_SIZE, VIEW_SIZE, self._renderer_name, samples=4, shadows=2048
            )
        with self._world.lamp():
            return self._viewer.render(self._world.data, "view")

    def close(self) -> None:
        """Free the renderers."""
        for renderer in (self._renderer, self._viewer):
            if renderer is not None:
                renderer.close()
        self._renderer = self._viewer = None

    # ---- beyond Gymnasium ---------------------------------------------------------------------------------
    @property
    def world(self) -> World:
        """The simulated scene, behind the curtain: for experts, and for asking questions about pictures."""
        return self._world

    def expert_action(self) -> np.ndarray:
        """What the scripted expert would do now, float32 (7,)."""
        return expert.expert_action(self._world, self._started())

    def judge(self) -> dict[str, Any]:
        """The `info` of this moment: `"success"`, `"wrong"`, and what the episode is about."""
        goal = self._started()
        success = FAMILIES[goal.family].success(self._world, goal)
        wrong = not success and FAMILIES[goal.family].wrong(self._world, goal)
        return self._info(success=success, wrong=wrong)

    def possible_instructions(self) -> list[str]:
        """Every instruction of this episode's family that makes sense in its scene, of all splits."""
        family = FAMILIES[self._started().family]
        return [family.say(self._phrase, goal.block, goal.where) for goal in self._possible()]

    # ---- inside -------------------------------------------------------------------------------------------
    def _started(self) -> Goal:
        if self._goal is None:
            raise ConfigError("the episode has not been started", "call env.reset() first")
        return self._goal

    def _scene(self, rng: np.random.Generator, family: Family) -> tuple[Layout, list[Goal]]:
        """A layout in which the split has a goal, and at least two blocks can be named."""
        while True:
            layout = sample_layout(rng, self._difficulty, pads=family.pads, distractors=self._distractors)
            goals = family.goals(layout, self._split)
            if goals and len({goal.block for goal in family.goals(layout)}) > 1:
                return layout, goals

    def _possible(self) -> list[Goal]:
        return FAMILIES[self._started().family].goals(self._world.layout)

    def _force(self, instruction: str) -> None:
        family = FAMILIES[self._started().family]
        wordings = {
            family.say(i, goal.block, goal.where): (goal, i)
            for goal in self._possible()
            for i in range(len(family.wordings))
        }
        if instruction not in wordings:
            raise UnknownNameError("instruction for this scene", instruction, self.possible_instructions())
        (self._goal, self._phrase), self._instruction = wordings[instruction], instruction

    def _observe(self) -> Observation:
        world = self._world
        state = np.concatenate([world.eef_position, world.eef_axis_angle, world.fingers]).astype(np.float32)
        space = self.observation_space["state"]  # type: ignore[index]
        names = self.embodiment.camera_names
        if names and self._renderer is None:
            self._renderer = rendering.make_renderer(world.model, *self._size, self._renderer_name)
        images = {name: self._renderer.render(world.data, name) for name in names}  # type: ignore[union-attr]
        return {
            **({"images": images} if names else {}),
            "state": np.clip(state, space.low, space.high),
            "instruction": self._instruction,
        }

    def _info(self, *, success: bool, wrong: bool) -> dict[str, Any]:
        goal = self._started()
        return {
            "success": success,
            "wrong": wrong,
            "task": goal.family,
            "instruction": self._instruction,
            "target": goal.block,
            "where": goal.where,
            "renderer": self._renderer_name,
        }


def _known(kind: str, name: Any, known: Any) -> str:
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return str(name)


def _families(task: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(FAMILIES) if task == "all" else (task,) if isinstance(task, str) else tuple(task)
    if not names:
        raise ConfigError("no task was given", f"known: all, {', '.join(FAMILIES)}")
    return tuple(_known("task", name, FAMILIES) for name in names)


def _count(what: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not (isinstance(value, int | np.integer) and low <= value <= high):
        raise ConfigError(f"{what} is {value!r}", f"a whole number from {low} to {high}, or None")
    return None if value is None else int(value)


def _image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int | np.integer) else tuple(size)
    if len(sides) != 2 or not all(isinstance(s, int | np.integer) and 16 <= s <= 1024 for s in sides):
        raise ConfigError(f"image_size is {size!r}", "a side from 16 to 1024 pixels, or (height, width)")
    return int(sides[0]), int(sides[1])


def _checked(action: Any) -> np.ndarray:
    try:
        values = np.asarray(action, np.float64)
    except (TypeError, ValueError) as error:
        raise ActionError(f"the action is not numbers: {action!r}") from error
    if values.shape != (7,):
        raise ActionError(f"the action has shape {values.shape}, expected (7,)")
    if not np.isfinite(values).all():
        raise ActionError(f"the action is not finite: {values.tolist()}", "nothing was moved")
    return np.clip(values, -1.0, 1.0)
