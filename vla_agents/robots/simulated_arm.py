"""The gripper of `vla_agents/Tabletop-v0` as a robot in real time, so that everything runs without hardware.

The physics runs in a thread of its own, as fast as time passes, whether or not anybody commands it: a program
that dawdles finds the arm where it went meanwhile. As on a servo bus, commands are rounded, and the last one
holds until the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.embodiment import Embodiment, Part
from vla_agents.envs import rendering
from vla_agents.envs.tabletop.env import TabletopEnv, tabletop_embodiment
from vla_agents.envs.tabletop.scene import CAMERAS, FINGER_OPEN, ROTATION_LIMIT, WORKSPACE
from vla_agents.envs.tabletop.world import STEP_ROTATION, STEP_XYZ, yaw_pitch_roll
from vla_agents.errors import CommunicationError, RobotStateError, UnknownNameError
from vla_agents.robots.env import RobotEnv
from vla_agents.robots.kinematics import Kinematics
from vla_agents.robots.limits import Axis, Limits, Workspace
from vla_agents.robots.loop_tools import favour_this_thread
from vla_agents.robots.robot import CameraSource, Reading, Robot, check_target
from vla_agents.robots.simulated_camera import SimulatedCamera, Studio

logger = logging.getLogger(__name__)

TIMESTEP = 0.005  # s
MOST = 400  # substeps that are caught up at once; a longer pause (a laptop asleep) is left out
GRIP_FORCE = 8.0  # N


def tips(positions: np.ndarray) -> np.ndarray:
    """The point between the finger tips, (N, 7) -> (N, 1, 3)."""
    return positions[:, None, :3]


def arm_limits() -> Limits:
    """Three slides, three hinges and a gripper whose force is measured."""
    (x0, y0, z0), (x1, y1, z1) = WORKSPACE.tolist()
    yaw, pitch, roll = ROTATION_LIMIT.tolist()
    step = 1e-5

    def slide(name: str, low: float, high: float, home: float) -> Axis:
        return Axis(name, low, high, 1.0, 12.0, home, "m", "other", resolution=step)

    def hinge(name: str, limit: float) -> Axis:
        return Axis(name, -limit, limit, 6.0, 80.0, 0.0, resolution=step)

    gripper = Axis(
        "gripper", 0.0, FINGER_OPEN, 0.4, 10.0, FINGER_OPEN, "m", "gripper_position",
        lead=FINGER_OPEN, effort=GRIP_FORCE, resolution=step,
    )  # fmt: skip
    axes = (
        slide("x", x0, x1, 0.0), slide("y", y0, y1, 0.0), slide("z", z0, z1, 0.15),
        hinge("yaw", yaw), hinge("pitch", pitch), hinge("roll", roll), gripper,
    )  # fmt: skip
    edge = 0.002  # the box lies within the slides' ranges, so that it has something to do
    box = Workspace((x0 + edge, y0 + edge, z0), (x1 - edge, y1 - edge, z1 - edge), tips, margin=0.0)
    return Limits(axes, box)


class SimulatedArm(Robot):
    """The robot.

    Args:
        image_size: Side of the cameras' pictures.
        cameras: Which of `"front"` and `"wrist"` it has.
        fps: Pictures per second.
        renderer: See `TabletopEnv`.
        **scene: `task`, `difficulty`, `split`, ... of `TabletopEnv`: what lies on the table.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 64,
        cameras: Sequence[str] = CAMERAS,
        fps: float = 20.0,
        renderer: str = "auto",
        **scene: Any,
    ) -> None:
        self.env = TabletopEnv(cameras=(), **scene)
        self.env.reset(seed=0)
        self.limits = arm_limits()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        state = tabletop_embodiment(height, width, ()).state
        action = tuple(Part(a.name, 1, a.kind, a.low, a.high, a.unit) for a in self.limits.axes)
        self.embodiment = Embodiment("simulated_arm", action, state, (), 20.0)
        self.lock = threading.RLock()  # of the physics
        name = rendering.choose_renderer(renderer) if cameras else "none"
        studio = Studio(self, (height, width), fps, name)
        self.cameras: tuple[CameraSource, ...] = tuple(SimulatedCamera(studio, camera) for camera in cameras)
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._since = 0.0  # monotonic time of the physics
        self.cut = False  # tests: the connection is lost

    def connect(self) -> None:
        """Switch on: the arm holds where it is."""
        if self._thread is not None:
            raise RobotStateError("the simulated arm is connected already", "close() it first")
        data = self.env.world.data
        data.ctrl[:8] = data.qpos[:8]
        self._since = time.monotonic()
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, name="simulated-arm", daemon=True)
        self._thread.start()

    def observe(self) -> Reading:
        """Joint positions, the tabletop's state, and the force of the fingers."""
        self._require()
        with self.lock:
            self._advance()
            world, data = self.env.world, self.env.world.data
            state = np.concatenate([world.eef_position, world.eef_axis_angle, world.fingers])
            effort = np.full(7, np.nan)
            effort[6] = data.actuator_force[6]
            return Reading(data.qpos[:7].copy(), time.monotonic(), state.astype(np.float32), effort)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Set the goals of the position actuators, rounded to 10 micrometres."""
        values = check_target(target, self.limits)
        self._require()
        step = self.limits.resolution
        sent = np.round(values / step) * step
        with self.lock:
            self._advance()
            self.env.world.data.ctrl[:7] = sent
            self.env.world.data.ctrl[7] = sent[6]
        return sent

    def home(self, position: np.ndarray) -> Sequence[np.ndarray]:
        """Let go, then up, then sideways."""
        open_, up = np.array(position), np.array(position)
        open_[6] = up[6] = self.limits.home[6]
        up[2] = max(self.limits.home[2], up[2])
        return [open_, up, self.limits.home]

    def kinematics(self) -> Kinematics:
        """Of the hand, for devices that lead it."""
        return Kinematics(self.env.world.model, "hand", ("x", "y", "z", "yaw", "pitch", "roll"))

    def close(self) -> None:
        """The arm holds; time stands still until the next `connect`."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._thread = None

    # ---- the table ----------------------------------------------------------------------------------------
    def reset(self, seed: int | None, options: dict[str, Any]) -> dict[str, Any]:
        """Put the objects where the seed says, the arm being left alone (`Scene`)."""
        with self.lock, self.env.world.hand_kept():
            self._advance()
            _, info = self.env.reset(seed=seed, options=options)
        return info

    def judge(self) -> dict[str, Any]:
        """Success and failure of the tabletop's task (`Scene`)."""
        with self.lock:
            return self.env.judge()

    # ---- inside -------------------------------------------------------------------------------------------
    def _require(self) -> None:
        if self._thread is None:
            raise RobotStateError("the simulated arm is not connected", "call connect() first")
        if self.cut:
            raise CommunicationError("the simulated arm does not answer", "set cut=False")

    def _run(self) -> None:
        favour_this_thread(4)  # time passes for a real arm, too, whatever the computer does
        while not self._ended.wait(TIMESTEP):
            with self.lock:
                self._advance()

    def _advance(self) -> None:
        """Let the physics catch up with the clock."""
        due = int((time.monotonic() - self._since) / TIMESTEP)
        if due > 0:
            self._since += due * TIMESTEP
            self.env.world.advance(min(due, MOST))


class TabletopActions:
    """The actions of `vla_agents/Tabletop-v0` for the simulated arm: deltas from where the hand is measured."""

    def __init__(self) -> None:
        self.parts = tabletop_embodiment(16, 16, ()).action

    def target(self, action: np.ndarray, reading: Reading) -> np.ndarray:
        """See `World.apply`."""
        goal = np.array(reading.position)
        goal[:3] = np.clip(goal[:3] + action[:3] * STEP_XYZ, *WORKSPACE)
        turn = Rotation.from_rotvec(np.asarray(action[3:6], float) * STEP_ROTATION)
        matrix = (turn * _rotation(reading)).as_matrix()
        goal[3:6] = np.clip(yaw_pitch_roll(matrix), -ROTATION_LIMIT, ROTATION_LIMIT)
        goal[6] = 0.0 if action[6] > 0 else FINGER_OPEN
        return goal

    def action(self, target: np.ndarray, reading: Reading, asked: np.ndarray) -> np.ndarray:
        """The inverse; open or closed as asked."""
        there = Rotation.from_euler("ZYX", target[3:6])
        turn = (there * _rotation(reading).inv()).as_rotvec() / STEP_ROTATION
        return np.concatenate([(target[:3] - reading.position[:3]) / STEP_XYZ, turn, asked[6:7]])

    def hold(self, command: np.ndarray) -> np.ndarray:
        """No delta; the fingers go on as they are."""
        return np.array([0, 0, 0, 0, 0, 0, 1.0 if command[6] < FINGER_OPEN / 2 else -1.0])


def _rotation(reading: Reading) -> Rotation:
    return Rotation.from_euler("ZYX", reading.position[3:6])


class SimulatedArmEnv(RobotEnv):
    """`vla_agents/SimulatedArm-v0`: the simulated arm with objects on the table, in real time.

    Args:
        actions: `"tabletop"`: observations and actions are those of `vla_agents/Tabletop-v0`, so its agents run
            here unchanged. `"axes"`: the targets of the seven axes.
        hz, divide, limits, estop, max_steps, instruction, camera_timeout: See `RobotEnv`.
        **options: Of `SimulatedArm`.
    """

    def __init__(
        self,
        *,
        actions: str = "tabletop",
        hz: float | None = None,
        divide: int | None = None,
        limits: Limits | None = None,
        estop: Any = None,
        max_steps: int | None = None,
        instruction: str = "",
        camera_timeout: float = 0.5,
        **options: Any,
    ) -> None:
        if actions not in ("tabletop", "axes"):
            raise UnknownNameError("kind of actions", actions, ("tabletop", "axes"))
        arm = SimulatedArm(**options)
        super().__init__(
            arm,
            actions=TabletopActions() if actions == "tabletop" else None,
            scene=arm, hz=hz, divide=divide, limits=limits, estop=estop, max_steps=max_steps,
            instruction=instruction, camera_timeout=camera_timeout,
        )  # fmt: skip
        self.arm = arm

    def kinematics(self) -> Kinematics:
        """Of the hand, for devices that lead it."""
        return self.arm.kinematics()

    def expert_action(self) -> np.ndarray:
        """What the tabletop's scripted expert would do now, float32 (7,)."""
        if not isinstance(self._actions, TabletopActions):
            raise RobotStateError(
                "the expert speaks tabletop actions", "make the env with actions='tabletop'"
            )
        with self.arm.lock:
            return self.arm.env.expert_action()
