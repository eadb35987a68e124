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
from scipy.spatial.transform import Rotation

from vla_agents.embodiment import Embodiment, Part
from vla_agents.envs.simpler.base import ABOVE, NATIVE, SimplerBase, hand_embodiment, hand_state
from vla_agents.envs.simpler.expert import Things
from vla_agents.envs.simpler.tasks import LAYOUTS_PER_TASK, TASKS, require_simpler, select_tasks, stand_ins

CONTROL_HZ = 5.0
CAMERA = "3rd_view_camera"  # the camera's name in SimplerEnv
_FINGER = (0.015, 0.037)  # metres, closed and open, as the controller has them


def widowx_embodiment(image_size: int | None = None) -> Embodiment:
    """A WidowX 250S moved by its hand, 5 actions per second; poses and deltas in the frame of its base."""
    size = NATIVE["widowx"] if image_size is None else (image_size, image_size)
    gripper = Part("gripper", 1, "gripper_open_pm1", -1.0, 1.0)
    return hand_embodiment("simpler_widowx", size, "third_view", gripper, CONTROL_HZ)


class SimplerWidowXEnv(SimplerBase):
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
    doctor, extra = "simpler_widowx", "simpler"

    def __init__(
        self,
        *,
        task: Any = "all",
        image_size: int | None = None,
        stop_at_success: bool = False,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(widowx_embodiment(image_size), image_size, stop_at_success, max_steps, render_mode)
        self.tasks = select_tasks(task)
        require_simpler()
        self._sims: dict[str, Any] = {}
        self._task = self.tasks[0]
        self._tell(stand_ins(self.tasks), mani_skill=version("mani_skill"), sapien=version("sapien"))

    def close(self) -> None:
        """Free the simulators."""
        for sim in getattr(self, "_sims", {}).values():
            sim.close()
        self._sims = {}
        super().close()

    def _begin(self, number: int) -> np.ndarray:
        self._task = self.tasks[number // LAYOUTS_PER_TASK % len(self.tasks)]
        sim = self._sim()
        layout = number % LAYOUTS_PER_TASK % TASKS[self._task].layouts
        # Built anew: in a scene that has been used, objects fall a little otherwise than in a fresh one.
        seen, _ = sim.reset(seed=0, options={"episode_id": layout, "reconfigure": True})
        return _picture(seen)

    def _carry_out(self, action: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        turn = Rotation.from_rotvec(action[3:6]).as_euler("XYZ")  # the controller takes Euler angles
        wanted = np.concatenate([action[:3], turn, action[6:]]).astype(np.float32)
        seen, _, _, _, told = self._sim().step(wanted)
        return _picture(seen), {
            "success": bool(told["success"]),
            "grasped_once": bool(told["is_src_obj_grasped"]),
        }

    def _own_limit(self) -> int:
        return TASKS[self._task].max_steps

    def _state(self) -> np.ndarray:
        agent = self._sim().unwrapped.agent
        pose = agent.controller.controllers["arm"].ee_pose_at_base
        low, high = _FINGER
        opened = (float(agent.robot.get_qpos()[0, -2:].mean()) - low) / (high - low)
        return hand_state(pose.p[0].numpy(), pose.q[0].numpy(), opened)

    def _things(self) -> Things:
        scene = self._sim().unwrapped
        to_base = scene.agent.robot.pose.inv()
        names = scene.source_obj_name, scene.target_obj_name
        source, target = (to_base * scene.objs[name].pose for name in names)
        heights = (scene.episode_source_obj_bbox_world, scene.episode_target_obj_bbox_world)
        stacked = sum(abs(float(size.reshape(-1)[2])) for size in heights) / 2
        return Things(
            source.p[0].numpy(),
            Rotation.from_quat(np.roll(source.q[0].numpy(), -1)),
            scene.episode_model_bbox_sizes[names[0]].numpy().reshape(-1),
            target.p[0].numpy() + np.array([0, 0, stacked + ABOVE]),
        )

    def _instruction(self) -> str:
        return TASKS[self._task].instruction

    def _playing(self) -> dict[str, Any]:
        return {"task": self._task}

    def _sim(self) -> Any:
        if self._task not in self._sims:
            self._sims[self._task] = _make(TASKS[self._task].sim)
        return self._sims[self._task]


def _picture(seen: dict[str, Any]) -> np.ndarray:
    return np.asarray(seen["sensor_data"][CAMERA]["rgb"][0].numpy().astype(np.uint8))


def _make(name: str) -> Any:
    import mani_skill.envs  # noqa: F401  (registers the tasks)
    from mani_skill import logger

    logger.setLevel(logging.ERROR)  # it warns at every scene
    sim = gymnasium.make(name, obs_mode="rgb+segmentation", num_envs=1, sim_backend="physx_cpu")
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
