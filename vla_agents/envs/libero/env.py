"""`vla_agents/Libero-v0`: the LIBERO benchmark as a Gymnasium env, under the published protocol."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from vla_agents.embodiment import Embodiment
from vla_agents.envs.common import check_view, checked_action, panda_by_its_hand
from vla_agents.envs.explaining import explaining
from vla_agents.envs.libero.expert import PickPlaceExpert
from vla_agents.envs.libero.simulator import CAMERAS, LiberoSimulator, choose_gl, mujoco_version
from vla_agents.envs.libero.suites import (
    CONTROL_HZ,
    INIT_STATES,
    SETTLE_STEPS,
    Task,
    find_task,
    get_suite,
    load_tasks,
    select_tasks,
)
from vla_agents.errors import ConfigError, UnknownNameError

# Stand still with the gripper open: what the benchmark does while an initial state settles.
IDLE = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
_OPTIONS = ("init_state", "task")


def libero_embodiment(cameras: tuple[str, ...] = ("agentview", "wrist"), image_size: int = 128) -> Embodiment:
    """The body of every LIBERO task: a Panda arm moved by its hand, 20 actions per second."""
    return panda_by_its_hand("libero_panda", cameras, image_size, CONTROL_HZ)


class LiberoEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One or several tasks of a LIBERO suite.

    An episode's task and initial state follow from its seed, which is the only thing a vector env can give to
    each slot: initial state `seed % 50`, task `(seed // 50) % number of tasks`. Seeds 0 to 49 are thus the
    benchmark's 50 trials of the first task, 50 to 99 those of the second.
    `reset(options={"task": ..., "init_state": ...})` overrides either.

    Args:
        suite: `"libero_spatial"`, `"libero_object"`, `"libero_goal"`, `"libero_10"` or `"libero_90"`.
        task: Index, name or instruction; a tuple of such, or `"all"`, for a task per episode by seed.
        image_size: Height and width of the pictures.
        cameras: `"agentview"`, `"wrist"`, in the order a policy sees them. With none, observations have no
            `"images"` and a step costs a tenth.
        max_steps: Actions until truncation; None: the suite's published limit.
        settle_steps: Idle actions before the first observation (10 in the published protocol).
        render_mode: None or `"rgb_array"`: the agentview picture.

    Raises:
        MissingDependencyError: LIBERO is not installed.
        SimulatorError: On reset: a version that does not fit, a file that is missing; says the command.
        UnknownNameError: No such suite, task or camera.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        *,
        suite: str = "libero_object",
        task: Any = 0,
        image_size: int = 128,
        cameras: tuple[str, ...] = ("agentview", "wrist"),
        max_steps: int | None = None,
        settle_steps: int = SETTLE_STEPS,
        render_mode: str | None = None,
    ) -> None:
        check_view("LIBERO", cameras, CAMERAS, image_size, render_mode)
        limit = get_suite(suite).max_steps if max_steps is None else max_steps
        if limit < 1 or settle_steps < 0:
            raise ConfigError(
                f"max_steps={limit}, settle_steps={settle_steps}",
                "max_steps is at least 1, settle_steps at least 0",
            )
        self.suite, self.max_steps, self.settle_steps = suite, limit, settle_steps
        self.render_mode = render_mode
        self._all_tasks = load_tasks(suite)
        self.tasks: list[Task] = select_tasks(self._all_tasks, task)
        self.embodiment = libero_embodiment(tuple(cameras), image_size)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        self._image_size = image_size
        self._renderer = choose_gl() if cameras or render_mode else "none"
        self._mujoco = mujoco_version()
        self._simulator: LiberoSimulator | None = None
        self._loaded: Task | None = None
        self._init_states: dict[int, np.ndarray] = {}
        self._init_state = 0
        self._steps = 0
        self._success = False
        self._expert: PickPlaceExpert | None = None
        self._expert_says: tuple[int, np.ndarray] | None = None

    # ---- Gymnasium ----------------------------------------------------------------------------------------
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Decides task and initial state (see the class); None draws one.
            options: `{"init_state": index, "task": index, name or instruction}`, each optional.
        """
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        task, index = self._choose(number, options or {})
        with explaining("LIBERO", "libero"):
            simulator = self._load(task)
            self._init_state = index
            simulator.reset(self._init_states_of(task)[index], seed=index)
            if not self.settle_steps:
                simulator.look()
            for left in reversed(range(self.settle_steps)):
                simulator.step(IDLE, look=left == 0)
        self._steps, self._success = 0, False
        self._expert, self._expert_says = PickPlaceExpert(simulator), None
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out one action, float (7,), clipped to [-1, 1]; reward 1 where the goal is reached."""
        simulator = self._ready()
        self._success = simulator.step(checked_action(action, self.embodiment))
        self._steps += 1
        truncated = self._steps >= self.max_steps and not self._success
        return self._observe(), float(self._success), self._success, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The agentview picture, uint8 (image_size, image_size, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        seen = self._ready().images.get("agentview")
        return self._ready().render("agentview") if seen is None else seen.copy()

    def close(self) -> None:
        """Free the simulator."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator = self._loaded = self._expert = None

    # ---- expert -------------------------------------------------------------------------------------------
    def expert_action(self) -> np.ndarray:
        """What a scripted expert that sees behind the scenes would do now, float32 (7,).

        Asking again before the next `step` gives the same answer.

        Raises:
            ConfigError: The task is not plain pick-and-place (drawers, switches, ...); see `expert_can`.
        """
        self._ready()
        assert self._expert is not None
        if self._expert_says is None or self._expert_says[0] != self._steps:
            self._expert_says = (self._steps, self._expert.act())
        return self._expert_says[1].copy()

    @property
    def expert_can(self) -> bool:
        """Whether the current task is one that the scripted expert attempts."""
        self._ready()
        assert self._expert is not None
        return not self._expert.obstacle

    # ---- parts --------------------------------------------------------------------------------------------
    def _choose(self, number: int, options: dict[str, Any]) -> tuple[Task, int]:
        for key in options:
            if key not in _OPTIONS:
                raise UnknownNameError("option of reset", key, _OPTIONS)
        task = options.get("task")
        chosen = self._task_by_seed(number) if task is None else find_task(self._all_tasks, task)
        count = len(self._init_states_of(chosen))
        index = options.get("init_state", number % count)
        if not isinstance(index, int | np.integer) or not 0 <= index < count:
            raise ConfigError(f"init_state {index!r} of {chosen.name}", f"there are 0 to {count - 1}")
        return chosen, int(index)

    def _init_states_of(self, task: Task) -> np.ndarray:
        if task.index not in self._init_states:
            self._init_states[task.index] = task.init_states()
        return self._init_states[task.index]

    def _task_by_seed(self, number: int) -> Task:
        return self.tasks[number // INIT_STATES % len(self.tasks)]

    def _load(self, task: Task) -> LiberoSimulator:
        if self._simulator is None or task != self._loaded:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator = LiberoSimulator(
                task.bddl_file,
                cameras=self.embodiment.camera_names,
                size=self._image_size,
                rendering=self.render_mode is not None,
            )
            self._loaded = task
        return self._simulator

    def _ready(self) -> LiberoSimulator:
        if self._simulator is None:
            raise ResetNeeded("call reset() first")
        return self._simulator

    def _observe(self) -> dict[str, Any]:
        simulator = self._ready()
        assert self._loaded is not None
        observation = {"state": simulator.state, "instruction": self._loaded.language}
        return observation | ({"images": simulator.images} if simulator.images else {})

    def _info(self) -> dict[str, Any]:
        assert self._loaded is not None
        return {
            "success": self._success,
            "task": self._loaded.name,
            "suite": self.suite,
            "init_state": self._init_state,
            "instruction": self._loaded.language,
            "renderer": self._renderer,
            "mujoco": self._mujoco,
        }
