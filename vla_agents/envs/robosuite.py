"""`vla_agents/Robosuite-v0`: single-arm tasks of robosuite 1.5, with pictures and an instruction.

Zhu et al., "robosuite: A Modular Simulation Framework and Benchmark for Robot Learning" (2020). Its packages
exclude ours, so it is played through an `IsolatedEnv`:

    vla-agents envs install robosuite
    gym.make("vla_agents/Isolated-v0", where="robosuite", env="vla_agents/Robosuite-v0", task="Lift")
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from vla_agents.embodiment import Embodiment
from vla_agents.envs.common import check_view, checked_action, episode_number, panda_by_its_hand
from vla_agents.envs.explaining import explaining
from vla_agents.envs.rendering import require_gl
from vla_agents.errors import ConfigError, UnknownNameError
from vla_agents.rotations import unfolded_axis_angle

CONTROL_HZ = 20.0


@dataclass(frozen=True)
class Task:
    """A task of robosuite.

    Args:
        instruction: What to tell a policy; the sentences are ours.
        max_steps: Of robomimic's evaluations (Mandlekar et al., 2021), or robosuite's horizon of 500 where it has none.
    """

    instruction: str
    max_steps: int


TASKS: dict[str, Task] = {
    "Lift": Task("lift the red cube", 400),
    "PickPlaceCan": Task("put the can into its bin", 400),
    "NutAssemblySquare": Task("put the square nut over the square peg", 400),
    "ToolHang": Task("insert the frame into its base and hang the tool on it", 700),
    "Stack": Task("put the red cube on the green cube", 500),
    "Door": Task("open the door", 500),
}
CAMERAS: dict[str, str] = {
    "agentview": "agentview", "wrist": "robot0_eye_in_hand", "frontview": "frontview", "sideview": "sideview",
}  # fmt: skip


def robosuite_embodiment(
    cameras: tuple[str, ...] = ("agentview", "wrist"), image_size: int = 128
) -> Embodiment:
    """A Panda arm moved by its hand (operational-space control, deltas in the base frame), 20 actions per second."""
    return panda_by_its_hand("robosuite_panda", cameras, image_size, CONTROL_HZ)


class RobosuiteEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A task of robosuite.

    Objects and the arm's initial noise follow from the reset seed, bit for bit, in a fresh env or a used one.

    Args:
        task: See `TASKS`.
        image_size: Height and width of the pictures.
        cameras: `"agentview"`, `"wrist"`, `"frontview"`, `"sideview"`; with none, nothing is drawn.
        max_steps: Actions until truncation; None: the task's own.
        render_mode: None or `"rgb_array"`: the agentview picture.

    Raises:
        ConfigError: robosuite 1.5 is not installed in this Python.
        SimulatorError: It does not run with the packages beside it, or a file of it is missing; says the command.
        UnknownNameError: No such task or camera.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        *,
        task: str = "Lift",
        image_size: int = 128,
        cameras: tuple[str, ...] = ("agentview", "wrist"),
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task not in TASKS:
            raise UnknownNameError("robosuite task", task, TASKS)
        check_view("robosuite", cameras, CAMERAS, image_size, render_mode)
        self.max_steps = TASKS[task].max_steps if max_steps is None else max_steps
        if self.max_steps < 1:
            raise ConfigError(f"max_steps={max_steps}", "it is at least 1")
        _require_robosuite()
        self.task, self.render_mode = task, render_mode
        self.embodiment = robosuite_embodiment(tuple(cameras), image_size)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        wanted = dict.fromkeys([*cameras, *(["agentview"] if render_mode else [])])
        self._renderer = require_gl("robosuite") if wanted else "none"
        with explaining("robosuite", "robosuite"):
            self._sim = _make(task, [CAMERAS[name] for name in wanted], image_size)
        self._seen: dict[str, Any] | None = None
        self._steps, self._success = 0, False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; there are no options."""
        super().reset(seed=seed)
        number = episode_number(self.np_random, seed, options)
        with explaining("robosuite", "robosuite"):
            self._sim.rng = np.random.default_rng(number)
            _hand_over(self._sim.placement_initializer, self._sim.rng)
            self._seen = self._sim.reset()
        self._steps, self._success = 0, False
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out one action, float (7,), clipped to [-1, 1]; reward 1 at the goal, which ends the episode."""
        self._ready()
        self._seen, *_ = self._sim.step(checked_action(action, self.embodiment))
        self._steps += 1
        self._success = bool(self._sim._check_success())
        truncated = self._steps >= self.max_steps and not self._success
        return self._observe(), float(self._success), self._success, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The agentview picture, uint8 (image_size, image_size, 3), or None without a render mode."""
        return None if self.render_mode is None else self._picture("agentview")

    def close(self) -> None:
        """Free the simulator."""
        if getattr(self, "_sim", None) is not None:
            self._sim.close()
        self._sim = self._seen = None

    def _ready(self) -> dict[str, Any]:
        if self._seen is None:
            raise ResetNeeded("call reset() first")
        return self._seen

    def _picture(self, camera: str) -> np.ndarray:
        return np.ascontiguousarray(self._ready()[f"{CAMERAS[camera]}_image"][::-1])

    def _observe(self) -> dict[str, Any]:
        seen = self._ready()
        *xyz, w = seen["robot0_eef_quat"]
        rotation = unfolded_axis_angle(w, np.array(xyz))
        state = np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]])
        observation = {"state": state.astype(np.float32), "instruction": TASKS[self.task].instruction}
        images = {name: self._picture(name) for name in self.embodiment.camera_names}
        return observation | ({"images": images} if images else {})

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "task": self.task,
            "instruction": TASKS[self.task].instruction,
            "renderer": self._renderer,
        }


def _require_robosuite() -> None:
    try:
        found = version("robosuite")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith("1.5"):  # LIBERO brings 1.4
        raise ConfigError(
            f"vla_agents/Robosuite-v0 needs robosuite 1.5, and this Python has {found}",
            "vla-agents envs install robosuite; then --env vla_agents/Isolated-v0 --env-args where=robosuite "
            "env=vla_agents/Robosuite-v0",
        )


def _make(task: str, cameras: list[str], size: int) -> Any:
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    return robosuite.make(
        task,
        robots="Panda",
        controller_configs=load_composite_controller_config(controller="BASIC", robot="Panda"),
        has_renderer=False,
        has_offscreen_renderer=bool(cameras),
        use_camera_obs=bool(cameras),
        use_object_obs=False,
        camera_names=cameras or "agentview",
        camera_heights=size,
        camera_widths=size,
        control_freq=int(CONTROL_HZ),
        ignore_done=True,
        hard_reset=False,
    )


def _hand_over(sampler: Any, rng: np.random.Generator) -> None:
    """Let everything that places objects draw from this generator."""
    if sampler is not None:
        sampler.rng = rng
        for inner in getattr(sampler, "samplers", {}).values():
            _hand_over(inner, rng)
