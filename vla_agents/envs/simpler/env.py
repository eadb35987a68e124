"""`vla_agents/SimplerWidowX-v0`: SimplerEnv's four WidowX tasks on ManiSkill 3, with a picture and an instruction.

Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation" (2024). ManiSkill 3 has a port of these tasks;
its packages are large, so it is played through an `IsolatedEnv`:

    vla-agents envs install simpler
    gym.make("vla_agents/Isolated-v0", where="simpler", env="vla_agents/SimplerWidowX-v0", task="carrot_on_plate")
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from scipy.spatial.transform import Rotation

from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.envs.common import check_view, checked_action
from vla_agents.envs.explaining import explaining
from vla_agents.envs.simpler.tasks import LAYOUTS_PER_TASK, TASKS, require_simpler, select_tasks, stand_ins
from vla_agents.errors import ConfigError, RenderingError, UnknownNameError
from vla_agents.rotations import unfolded_axis_angle

CONTROL_HZ = 5.0
CAMERA = "3rd_view_camera"  # the camera's name in SimplerEnv
NATIVE = (480, 640)  # height, width it is drawn with
_FINGER = (0.015, 0.037)  # metres, closed and open, as the controller has them
_DRIVER = (
    "Failed to find a supported physical device",
    "ErrorIncompatibleDriver",
    "suitable rendering device",
)


def widowx_embodiment(image_size: int | None = None) -> Embodiment:
    """A WidowX 250S moved by its hand, 5 actions per second; poses and deltas in the frame of its base."""
    height, width = NATIVE if image_size is None else (image_size, image_size)
    return Embodiment(
        name="simpler_widowx",
        action=(
            Part("delta_position", 3, "delta_xyz", -1.0, 1.0, "m"),
            Part("delta_rotation", 3, "delta_axis_angle", -np.pi / 2, np.pi / 2, "rad"),
            Part("gripper", 1, "gripper_open_pm1", -1.0, 1.0),
        ),
        state=(
            Part("eef_position", 3, "xyz", -3.0, 3.0, "m"),
            Part("eef_rotation", 3, "axis_angle", -2 * np.pi, 2 * np.pi, "rad"),
            Part("gripper", 1, "gripper_open_01", -0.1, 1.1),
        ),
        cameras=(Camera("third_view", height, width),),
        control_hz=CONTROL_HZ,
    )


class SimplerWidowXEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One or several WidowX tasks of SimplerEnv.

    An episode follows from its seed: task `(seed // 64) % number of tasks`, placement `seed % 64 % placements`;
    there is no other chance in it. As in SimplerEnv, an episode goes on to its last step, and `info["success"]` is about
    the step it comes with: an object that is put down and pushed off again is no success. `info["solved_once"]` remembers.

    Args:
        task: See `TASKS`; `"all"`, or a tuple of names for a task per episode by seed.
        image_size: None: 480 x 640 as drawn. A number: the whole picture is shrunk to that height and width (Lanczos).
        stop_at_success: End at the first step that is a success; not SimplerEnv's protocol.
        max_steps: Actions until truncation; None: the task's own.
        render_mode: None or `"rgb_array"`: the picture.

    Raises:
        ConfigError: ManiSkill 3 is not installed in this Python.
        SimulatorError: Assets are missing; says the command.
        RenderingError: On reset: no Vulkan driver that SAPIEN can draw with.
        UnknownNameError: No such task.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        *,
        task: Any = "all",
        image_size: int | None = None,
        stop_at_success: bool = False,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_view("SimplerEnv", (), (), NATIVE[0] if image_size is None else image_size, render_mode)
        self.tasks = select_tasks(task)
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps={max_steps}", "it is at least 1")
        require_simpler()
        self._size, self._stop, self._limit = image_size, stop_at_success, max_steps
        self.render_mode = render_mode
        self.embodiment = widowx_embodiment(image_size)
        self.observation_space = self.embodiment.observation_space()
        self.action_space = self.embodiment.action_space()
        self._sims: dict[str, Any] = {}
        self._task = self.tasks[0]
        self._seen: dict[str, Any] | None = None
        self._steps, self._solved_once = 0, False
        self._told: dict[str, bool] = {}
        strange = stand_ins(self.tasks)
        self._about: dict[str, str] = {
            "assets": f"not SimplerEnv's own: {', '.join(strange)}" if strange else "SimplerEnv's own",
            "mani_skill": version("mani_skill"),
            "sapien": version("sapien"),
        }
        if strange:
            self._about["caution"] = (
                f"stand-ins for SimplerEnv's assets, no scores of its: {', '.join(strange)}"
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; there are no options."""
        super().reset(seed=seed)
        for key in options or {}:
            raise UnknownNameError("option of reset", key, [])
        number = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        self._task = self.tasks[number // LAYOUTS_PER_TASK % len(self.tasks)]
        self._steps, self._solved_once, self._told = 0, False, {}
        with explaining("SimplerEnv", "simpler"):
            sim = self._sim()
            layout = number % LAYOUTS_PER_TASK % TASKS[self._task].layouts
            # Built anew: in a scene that has been used, objects fall a little otherwise than in a fresh one.
            self._seen, _ = sim.reset(seed=0, options={"episode_id": layout, "reconfigure": True})
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Carry out one action, float (7,), clipped to the action space; reward 1 where the step is a success."""
        self._ready()
        given = checked_action(action, self.embodiment)
        turn = Rotation.from_rotvec(given[3:6]).as_euler("XYZ")  # the controller takes Euler angles
        wanted = np.concatenate([given[:3], turn, given[6:]]).astype(np.float32)
        self._seen, _, _, _, told = self._sim().step(wanted)
        self._steps += 1
        self._told = {
            "success": bool(told["success"]),
            "grasped_once": bool(told["is_src_obj_grasped"]),
        }
        success = self._told["success"]
        self._solved_once |= success
        ended = success and self._stop
        truncated = self._steps >= (self._limit or TASKS[self._task].max_steps) and not ended
        return self._observe(), float(success), ended, truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The picture as observed, uint8 (height, width, 3), or None without a render mode."""
        return None if self.render_mode is None else self._picture()

    def close(self) -> None:
        """Free the simulator."""
        for sim in getattr(self, "_sims", {}).values():
            sim.close()
        self._sims, self._seen = {}, None

    # ---- parts --------------------------------------------------------------------------------------------
    def _sim(self) -> Any:
        if self._task not in self._sims:
            self._sims[self._task] = _make(TASKS[self._task].sim)
        return self._sims[self._task]

    def _ready(self) -> dict[str, Any]:
        if self._seen is None:
            raise ResetNeeded("call reset() first")
        return self._seen

    def _picture(self) -> np.ndarray:
        picture = self._ready()["sensor_data"][CAMERA]["rgb"][0].numpy().astype(np.uint8)
        if self._size is None:
            return picture.copy()
        from PIL import Image

        size = (self._size, self._size)
        return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))

    def _observe(self) -> dict[str, Any]:
        agent = self._sim().unwrapped.agent
        pose = agent.controller.controllers["arm"].ee_pose_at_base
        w, *xyz = pose.q[0].numpy().astype(float)
        low, high = _FINGER
        opened = (float(agent.robot.get_qpos()[0, -2:].mean()) - low) / (high - low)
        state = np.concatenate([pose.p[0].numpy(), unfolded_axis_angle(w, np.array(xyz)), [opened]])
        return {
            "images": {"third_view": self._picture()},
            "state": state.astype(np.float32),
            "instruction": TASKS[self._task].instruction,
        }

    def _info(self) -> dict[str, Any]:
        return {
            "success": False,
            **self._told,
            "solved_once": self._solved_once,
            "task": self._task,
            "instruction": TASKS[self._task].instruction,
            "renderer": "vulkan",
            **self._about,
        }


def _make(name: str) -> Any:
    import mani_skill.envs  # noqa: F401  (registers the tasks)
    from mani_skill import logger

    logger.setLevel(logging.ERROR)  # it warns at every scene
    try:
        sim = gymnasium.make(name, obs_mode="rgb+segmentation", num_envs=1, sim_backend="physx_cpu")
    except RuntimeError as error:
        if not any(words in str(error) for words in _DRIVER):
            raise
        raise RenderingError(
            f"SimplerEnv draws with Vulkan, and SAPIEN found no driver it can draw with ({error})",
            "vla-agents doctor simpler_widowx",
        ) from error
    # ManiSkill keeps the photo behind the scene in a dict that all tasks share: the next one's would appear in this one.
    scene: Any = sim.unwrapped
    scene._rgb_overlay_images = dict(scene._rgb_overlay_images)
    _free_the_fingers(scene)
    return sim


def _free_the_fingers(scene: Any) -> None:
    """From the next reset on, let the fingers pass through the bar they slide on, as SimplerEnv's own robot does.

    ManiSkill's port forgets it: hulls that overlap from the start then jam the gripper, and push the hand aside.
    """
    load = scene._load_agent

    def load_agent(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        links = scene.agent.robot.links_map
        for bit, finger in enumerate(("left_finger_link", "right_finger_link")):
            for link in (links["gripper_bar_link"], links[finger]):
                link.set_collision_group_bit(group=2, bit_idx=bit, bit=1)

    scene._load_agent = load_agent
