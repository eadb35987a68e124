"""`vla_agents/SimplerOriginal-v0`: SimplerEnv's tasks on its own simulator, with the Google robot and the WidowX.

Li et al., "Evaluating Real-World Robot Manipulation Policies in Simulation" (2024); SAPIEN 2, github.com/simpler-env. It is
played through an `IsolatedEnv`:

    vla-agents envs install simpler-original
    gym.make("vla_agents/Isolated-v0", where="simpler-original", env="vla_agents/SimplerOriginal-v0",
             task="pick_coke_can_matching")
"""

from __future__ import annotations

import math
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.embodiment import Embodiment, Part
from vla_agents.envs.simpler.base import ABOVE, NATIVE, SimplerBase, hand_embodiment, hand_state
from vla_agents.envs.simpler.env import widowx_embodiment
from vla_agents.envs.simpler.expert import Things
from vla_agents.envs.simpler.original_files import asset_root, require_files, require_original, stand_ins
from vla_agents.envs.simpler.published import WIDOWX, Placement, Scene, find_task
from vla_agents.errors import RenderingError

GOOGLE_HZ, WIDOWX_HZ = 3, 5
STICKY_STEPS = 15  # of the Google robot's gripper
_MAIN_SEED = 2022  # with which SimplerEnv's simulator begins
_CAMERAS = {"google_robot": "overhead_camera", "widowx": "3rd_view_camera"}
_CONTROL = {
    "google_robot": "arm_pd_ee_delta_pose_align_interpolate_by_planner_"
    "gripper_pd_joint_target_delta_pos_interpolate_by_planner",
    "widowx": "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
}


def google_robot_embodiment(image_size: int | None = None) -> Embodiment:
    """The Google robot moved by its hand, 3 actions per second; poses and deltas in the frame of its base."""
    size = NATIVE["google_robot"] if image_size is None else (image_size, image_size)
    gripper = Part("gripper", 1, "gripper_open_01", 0.0, 1.0)
    return hand_embodiment("simpler_google_robot", size, "overhead", gripper, float(GOOGLE_HZ))


class StickyGripper:
    """From how far a policy wants the gripper open to what the Google robot is told: +1 closes, -1 opens, 0 leaves it.

    A change by more than half starts a motion, which goes on for `STICKY_STEPS` actions whatever is wanted meanwhile; as
    SimplerEnv drives policies that were trained on openings (simpler_env/policies/octo/octo_model.py).
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._motion, self._steps = 0.0, 0

    def __call__(self, opening: float) -> float:
        """What to tell the robot for an opening of 0 (closed) to 1."""
        change = 0.0 if self._before is None else self._before - opening
        self._before = opening
        if not self._steps and abs(change) > 0.5:
            self._motion, self._steps = change, STICKY_STEPS
        if self._steps:
            self._steps -= 1
            return self._motion
        return change


class SimplerOriginalEnv(SimplerBase):
    """A task of SimplerEnv in one of its two settings, on its own simulator.

    The seed is the number of one of the episodes of SimplerEnv's scripts (modulo how many they are), counted task after
    task, variant after variant, placement after placement. There is no other chance in it. Each begins as in a simulator
    that was built for it alone, which is how SimplerEnv's evaluator does it. As there, an episode goes on to its last
    step, and `info["success"]` is about the step it comes with; `info["solved_once"]` remembers.

    Args:
        task: See `published.TASKS`.
        image_size: None: as drawn, 512 x 640 (Google robot) or 480 x 640. A number: shrunk to that height and width.
        shader: None: the protocol's own. `"ibl"`: without ray tracing, which is not SimplerEnv's protocol for the drawers.
        stage: None: the protocol's own. `"dummy_tabletop"`: a plain table that needs no file, to try things; no protocol.
        stop_at_success: End at the first step that is a success; not SimplerEnv's protocol.
        max_steps: Actions until truncation; None: the task's own.
        render_mode: None or `"rgb_array"`: the picture.

    Raises:
        ConfigError: ManiSkill2_real2sim is not installed in this Python.
        SimulatorError: Files of it are missing.
        RenderingError: The task is drawn by ray tracing, and there is no NVIDIA GPU; or, on reset, no Vulkan driver.
        UnknownNameError: No such task.
    """

    doctor = "simpler_google_pick_coke_can_matching"

    def __init__(
        self,
        *,
        task: str = "pick_coke_can_matching",
        image_size: int | None = None,
        shader: str | None = None,
        stage: str | None = None,
        stop_at_success: bool = False,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.task = find_task(task)
        self.robot = "widowx" if task in WIDOWX else "google_robot"
        self.has_expert = task in WIDOWX or task.startswith("pick_coke_can")
        body = widowx_embodiment if task in WIDOWX else google_robot_embodiment
        super().__init__(body(image_size), image_size, stop_at_success, max_steps, render_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": int(self.embodiment.control_hz)}
        self._shader, self._stage = shader, stage
        require_original()
        require_files(task, without_stage=stage is not None)
        if shader != "ibl" and _traces_rays(self.task.parts):
            _require_nvidia(task)
        strange = stand_ins(task, asset_root()) + ([f"stage {stage}"] if stage else [])
        self._tell(strange, shader=shader or "the protocol's own", sapien=version("sapien"))
        self._built: tuple[Scene, Any] | None = None
        self._part, self._scene = "", next(iter(self.task.parts.values()))[0]
        self._gripper = StickyGripper()

    def close(self) -> None:
        """Free the simulator."""
        built, self._built = getattr(self, "_built", None), None
        if built is not None:
            built[1].close()
        super().close()

    def _begin(self, number: int) -> np.ndarray:
        self._part, self._scene, place = self.task.episode(number)
        self._gripper = StickyGripper()
        sim = self._sim(self._scene, place)
        sim.reset(seed=_MAIN_SEED, options={"reconfigure": True})
        if place.photo:
            sim.unwrapped.rgb_overlay_img = _photo(place.photo)
        seen, _ = sim.reset(options=_reset_options(place))
        return self._overhead(seen)

    def _carry_out(self, action: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        wanted = action.astype(np.float64)
        if self.robot == "google_robot":
            wanted[6] = self._gripper(float(wanted[6]))
        assert self._built is not None
        seen, _, success, _, told = self._built[1].step(wanted)
        scalars = {
            key: value for key, value in told.items() if np.ndim(value) == 0 and key != "elapsed_steps"
        }
        known = {
            key: float(value) if isinstance(value, float | np.floating) else bool(value)
            for key, value in scalars.items()
            if isinstance(value, bool | np.bool_ | float | np.floating)
        }
        return self._overhead(seen), {**known, "success": bool(success)}

    def _own_limit(self) -> int:
        return self.task.limit

    def _state(self) -> np.ndarray:
        assert self._built is not None
        agent = self._built[1].unwrapped.agent
        pose = agent.controller.controllers["arm"].ee_pose_at_base
        return hand_state(pose.p, pose.q, 1.0 - float(agent.get_gripper_closedness()))

    def _things(self) -> Things:
        assert self._built is not None
        scene = self._built[1].unwrapped
        to_base = scene.agent.robot.pose.inv()
        if self.robot == "google_robot":
            thing, middle, size, goal = scene.obj, scene.obj_pose, scene.model_bbox_size, None
        else:
            thing, middle = scene.episode_source_obj, scene.source_obj_pose
            size = scene.episode_model_bbox_sizes[scene.episode_objs.index(thing)]
            heights = (scene.episode_source_obj_bbox_world, scene.episode_target_obj_bbox_world)
            stacked = sum(abs(float(size[2])) for size in heights) / 2
            goal = (to_base * scene.target_obj_pose).p + np.array([0, 0, stacked + ABOVE])
        turn = Rotation.from_quat(np.roll((to_base * thing.pose).q, -1))
        return Things((to_base * middle).p, turn, np.asarray(size), goal)

    def _instruction(self) -> str:
        assert self._built is not None
        return str(self._built[1].unwrapped.get_language_instruction())

    def _playing(self) -> dict[str, Any]:
        return {"task": self._part, "variant": self._scene.name}

    def _overhead(self, seen: dict[str, Any]) -> np.ndarray:
        return np.asarray(seen["image"][_CAMERAS[self.robot]]["rgb"], np.uint8)

    def _sim(self, scene: Scene, place: Placement) -> Any:
        """The simulator of a scene; only the last one is kept."""
        if self._built is None or self._built[0] is not scene:
            if self._built is not None:
                self._built[1].close()
                self._built = None
            self._built = (scene, self._make(scene, place))
        return self._built[1]

    def _make(self, scene: Scene, place: Placement) -> Any:
        import mani_skill2_real2sim.envs  # noqa: F401  (registers the tasks)
        from mani_skill2_real2sim.utils.registration import make

        options = dict(scene.options)
        if self._shader:
            options["shader_dir"] = self._shader
        return make(
            scene.sim,
            as_gym=False,  # without Gymnasium's own wrapper; steps are counted here
            obs_mode="rgbd",
            robot=self.task.robot,
            sim_freq=self.task.sim_hz,
            control_freq=int(self.embodiment.control_hz),
            control_mode=_CONTROL[self.robot],
            camera_cfgs={"add_segmentation": True},
            scene_name=self._stage or scene.stage,
            rgb_overlay_path=str(_photo_path(place.photo)) if place.photo else None,
            rgb_overlay_cameras=[_CAMERAS[self.robot]] if place.photo else [],
            **options,
        )


def _reset_options(place: Placement) -> dict[str, Any]:
    x, y, turn = place.robot
    objects: dict[str, Any] = (
        {"episode_id": place.objects}
        if isinstance(place.objects, int)
        else {"init_xy": np.array(place.objects)}
    )
    # The quaternion (w x y z) of a turn about the vertical, after the half turn by which the robot faces the table.
    quaternion = np.array([-math.sin(turn / 2), 0.0, 0.0, math.cos(turn / 2)])
    return {
        "robot_init_options": {"init_xy": np.array([x, y]), "init_rot_quat": quaternion},
        "obj_init_options": objects,
    }


def _photo_path(name: str) -> Path:
    return asset_root() / "real_inpainting" / name


def _photo(name: str) -> np.ndarray:
    """A photo as the simulator has it: float64 (height, width, 3), 0 to 1."""
    from PIL import Image

    return np.asarray(Image.open(_photo_path(name)).convert("RGB")) / 255


def _traces_rays(parts: dict[str, tuple[Scene, ...]]) -> bool:
    return any(scene.options.get("shader_dir") == "rt" for scenes in parts.values() for scene in scenes)


def _require_nvidia(task: str) -> None:
    if not _has_nvidia():
        raise RenderingError(
            f"{task!r} is drawn by ray tracing with NVIDIA's denoiser, and there is no NVIDIA GPU here",
            'play it on a machine with one; shader="ibl" draws it flat, which is not SimplerEnv\'s protocol (with '
            "--env vla_agents/Isolated-v0 --env-args ... shader=ibl instead of --suite)",
        )


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
