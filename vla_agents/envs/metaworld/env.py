"""`vla_agents/MetaWorld-v0`: Meta-World's tasks as a Gymnasium env with pictures and an instruction.

Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning" (CoRL 2019), in the
package's version 3. What a policy sees is the hand, the gripper and pictures; the positions of objects and goal, which the
benchmark's own observation holds, stay behind the scenes with the scripted expert.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.envs.common import check_view, checked_action, episode_number
from vla_agents.envs.explaining import explaining
from vla_agents.envs.metaworld.tasks import INSTRUCTIONS, require_metaworld, select_tasks
from vla_agents.envs.rendering import FrameRenderer, import_mujoco, make_renderer, require_gl
from vla_agents.errors import ConfigError

CONTROL_HZ = 80.0
MAX_STEPS = 500  # the package's `max_path_length`
TRIALS = 50  # seeds of one task before the next one's turn
CAMERAS: dict[str, str] = {  # our name -> the model's
    "corner2": "corner2", "topview": "topview", "behind_gripper": "behindGripper", "wrist": "gripperPOV",
}  # fmt: skip
# Where VLA work puts the camera "corner2", which by itself looks from far away (Seo et al., "Masked World Models", 2022;
# LeRobot's Meta-World data). It hangs upside down.
_CORNER2 = (0.75, 0.075, 0.7)


def metaworld_embodiment(cameras: tuple[str, ...] = ("corner2",), image_size: int = 128) -> Embodiment:
    """The body of every task: a Sawyer arm whose hand moves without turning, 80 actions per second."""
    return Embodiment(
        name="metaworld_sawyer",
        action=(
            Part("delta_position", 3, "delta_xyz", -1.0, 1.0, "0.01 m"),
            Part("gripper", 1, "gripper_close_pm1", -1.0, 1.0),
        ),
        state=(
            Part("eef_position", 3, "xyz", -3.0, 3.0, "m"),
            Part("gripper", 1, "gripper_open_01", 0.0, 1.0),
        ),
        cameras=tuple(Camera(name, image_size, image_size) for name in cameras),
        control_hz=CONTROL_HZ,
    )


class MetaWorldEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One or several tasks of Meta-World.

    An episode's task and layout follow from its seed: task `(seed // 50) % number of tasks`, and a layout drawn by the seed
    from the task's own distribution. `reset(options={"task": name})` overrides the task.

    Args:
        task: A task's name (with or without `-v3`), `"mt10"`, `"mt50"`, or a tuple of names for a task per episode by seed.
        image_size: Height and width of the pictures.
        cameras: `"corner2"`, `"topview"`, `"behind_gripper"`, `"wrist"`, in the order a policy sees them. With none,
            observations have no `"images"`, and no OpenGL is needed.
        max_steps: Actions until truncation, at most 500.
        render_mode: None or `"rgb_array"`: the picture of corner2.

    Raises:
        MissingDependencyError: Meta-World is not installed.
        SimulatorError: On reset: a version that does not fit, a file that is missing; says the command.
        UnknownNameError: No such task or camera.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        *,
        task: Any = "mt10",
        image_size: int = 128,
        cameras: tuple[str, ...] = ("corner2",),
        max_steps: int = MAX_STEPS,
        render_mode: str | None = None,
    ) -> None:
        check_view("Meta-World", cameras, CAMERAS, image_size, render_mode)
        if not 1 <= max_steps <= MAX_STEPS:
            raise ConfigError(f"max_steps={max_steps}", f"it is between 1 and {MAX_STEPS}")
        self.tasks = select_tasks(task)
        require_metaworld()
        self.max_steps, self.render_mode, self._size = max_steps, render_mode, image_size
        self.embodiment = metaworld_embodiment(tuple(cameras), image_size)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        self._gl = require_gl("Meta-World") if cameras or render_mode else ""
        self._mujoco: str = import_mujoco().__version__
        self._sim: Any = None
        self._renderer: FrameRenderer | None = None
        self._task = self.tasks[0]
        self._full = np.zeros(39)  # the benchmark's own observation
        self._steps, self._success = 0, False
        self._pictures: dict[str, np.ndarray] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Decides task and layout (see the class); None draws one.
            options: `{"task": name}`.
        """
        super().reset(seed=seed)
        number = episode_number(self.np_random, seed, options, known=("task",))
        task = self.tasks[number // TRIALS % len(self.tasks)]
        if options and "task" in options:
            task = select_tasks(options["task"])[0]
        with explaining("Meta-World", "metaworld"):
            self._load(task)
            self._sim.np_random = np.random.default_rng(number)
            self._full, _ = self._sim.reset()
        self._steps, self._success = 0, False
        self._look()
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out one action, float (4,), clipped to [-1, 1]; the reward is the benchmark's own, 0 to 10."""
        self._ready()
        self._full, reward, _, _, info = self._sim.step(checked_action(action, self.embodiment))
        self._steps += 1
        self._success = bool(info["success"])
        self._look()
        truncated = self._steps >= self.max_steps and not self._success
        return self._observe(), float(reward), self._success, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The picture of corner2, uint8 (image_size, image_size, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        self._ready()
        seen = self._pictures.get("corner2")
        return self._picture("corner2") if seen is None else seen.copy()

    def close(self) -> None:
        """Free simulator and renderer."""
        if self._renderer is not None:
            self._renderer.close()
        if self._sim is not None:
            self._sim.close()
        self._sim = self._renderer = None

    def expert_action(self) -> np.ndarray:
        """What the benchmark's scripted policy, which sees objects and goal, would do now: float32 (4,)."""
        from metaworld.policies import ENV_POLICY_MAP

        self._ready()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its gains are too high, as it says at every step
            policy: Any = ENV_POLICY_MAP[f"{self._task}-v3"]
            action = policy().get_action(self._full)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    # ---- parts --------------------------------------------------------------------------------------------
    def _load(self, task: str) -> None:
        if self._sim is not None and task == self._task:
            return
        self.close()
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        sim = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        # What the benchmark's `set_task` sets, but for the layout, which comes from the generator that `reset` gives.
        sim._partially_observable = False
        vars(sim).pop("sawyer_observation_space", None)  # cached, with a goal of zeros
        sim._set_task_called = True
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True
        sim.model.cam_pos[sim.model.camera("corner2").id] = _CORNER2
        self._sim, self._task = sim, task
        if self._gl:
            self._renderer = make_renderer(sim.model, self._size, self._size, self._gl)

    def _look(self) -> None:
        self._pictures = {name: self._picture(name) for name in self.embodiment.camera_names}

    def _picture(self, camera: str) -> np.ndarray:
        assert self._renderer is not None
        picture = self._renderer.render(self._sim.data, CAMERAS[camera])
        return np.ascontiguousarray(picture[::-1, ::-1]) if camera == "corner2" else picture

    def _ready(self) -> None:
        if self._sim is None:
            raise ResetNeeded("call reset() first")

    def _observe(self) -> dict[str, Any]:
        observation = {
            "state": self._full[:4].astype(np.float32),
            "instruction": INSTRUCTIONS[self._task],
        }
        return observation | ({"images": dict(self._pictures)} if self._pictures else {})

    def _info(self) -> dict[str, Any]:
        return {
            "success": self._success,
            "task": self._task,
            "instruction": INSTRUCTIONS[self._task],
            "renderer": self._gl or "none",
            "mujoco": self._mujoco,
        }
