"""Reading and driving the simulated scene: poses, contacts, the gripper. No task and no picture in here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vla_agents.envs.tabletop.scene import (
    BLOCK_HALF,
    COLOURS,
    DISTRACTOR_COLOURS,
    FINGER_OPEN,
    ROTATION_LIMIT,
    WORKSPACE,
    Layout,
    scene_xml,
)

STEP_XYZ = 0.05  # m that an action of 1 moves
STEP_ROTATION = 0.5  # rad that an action of 1 turns
SUBSTEPS = 10  # of 5 ms each: 20 actions per second

_FINGERS = ("left", "right")


class World:
    """A table with blocks, pads and distractors under a gripper.

    Args:
        mujoco: The module (imported by the caller, after the choice of a renderer).
        blocks: Number of blocks.
        pads: Number of pads.
        distractors: Number of distractors.
    """

    def __init__(self, mujoco: Any, blocks: int, pads: int, distractors: int) -> None:
        self._mj = mujoco
        self.model = mujoco.MjModel.from_xml_string(scene_xml(blocks, pads, distractors))
        self.data = mujoco.MjData(self.model)
        self._hand = self.model.body("hand").id
        self._pads = pads
        self._block_slots = tuple(f"block{i}" for i in range(blocks))
        self._extra_slots = tuple(f"extra{i}" for i in range(distractors))
        loose = (*self._block_slots, *self._extra_slots)
        self._qpos = {n: int(self.model.joint(n).qposadr[0]) for n in loose}
        self._qvel = {n: int(self.model.joint(n).dofadr[0]) for n in loose}
        self._body = {n: self.model.body(n).id for n in loose}
        self._geom = {n: self.model.geom(n).id for n in (*loose, "left", "right", "palm")}
        self.layout = Layout({})
        self._slot: dict[str, str] = {}  # object name, as the outside knows it -> name in the MJCF

    # ---- starting an episode ------------------------------------------------------------------------------
    def reset(self, layout: Layout) -> None:
        """Put everything where the layout says; nothing of an earlier episode is left."""
        mujoco, model, data = self._mj, self.model, self.data
        mujoco.mj_resetData(model, data)
        self.layout = layout
        self._slot = dict(zip(layout.blocks, self._block_slots, strict=True)) | {
            n: n for n in self._extra_slots
        }
        for colour, (x, y, yaw) in layout.blocks.items():
            slot = self._slot[colour]
            self._put(slot, x, y, BLOCK_HALF, yaw)
            model.geom_rgba[self._geom[slot]] = (*COLOURS[colour], 1)
        for index, name in enumerate(self._extra_slots):
            if index < len(layout.distractors):
                colour, x, y = layout.distractors[index]
                model.geom_rgba[self._geom[name]] = (*DISTRACTOR_COLOURS[colour], 1)
                self._put(name, x, y, 0.022)
            else:  # out of sight and out of reach
                self._put(name, 30.0 + index, 30.0, 0.022)
                model.geom_rgba[self._geom[name]] = (0, 0, 0, 1)
        self._put_pads(layout)
        data.qpos[:3] = layout.gripper
        data.qpos[6:8] = FINGER_OPEN
        data.ctrl[:8] = data.qpos[:8]
        mujoco.mj_forward(model, data)

    @contextlib.contextmanager
    def hand_kept(self) -> Iterator[None]:
        """Within it a `reset` leaves the hand where it is, and doing what it does."""
        data = self.data
        hand = data.qpos[:8].copy(), data.qvel[:8].copy(), data.ctrl[:8].copy()
        yield
        data.qpos[:8], data.qvel[:8], data.ctrl[:8] = hand
        self._mj.mj_forward(self.model, data)

    def _put(self, name: str, x: float, y: float, z: float, yaw: float = 0.0) -> None:
        start = self._qpos[name]
        self.data.qpos[start : start + 7] = (x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))

    def _put_pads(self, layout: Layout) -> None:
        pads = list(layout.pads.items())
        for index in range(self._pads):
            geom = self.model.geom(f"pad{index}").id
            if index < len(pads):
                colour, (x, y) = pads[index]
                self.data.mocap_pos[index] = (x, y, 0.001)
                self.model.geom_rgba[geom] = (*COLOURS[colour], 1)
            else:
                self.data.mocap_pos[index] = (30.0 + index, -30.0, 0.001)

    # ---- driving ------------------------------------------------------------------------------------------
    def apply(self, action: np.ndarray) -> None:
        """Carry out one action, float (7,) in [-1, 1], for 50 ms.

        As in LIBERO the goal is the *present* pose plus the delta, so that an action means the same whatever
        came before it. The gripper closes for values above 0 and opens otherwise.
        """
        mujoco, data = self._mj, self.data
        data.ctrl[:3] = np.clip(data.qpos[:3] + action[:3] * STEP_XYZ, *WORKSPACE)
        turn = action[3:6] * STEP_ROTATION
        angle = float(np.linalg.norm(turn))
        quat, goal, matrix = np.empty(4), np.empty(4), np.empty(9)
        mujoco.mju_axisAngle2Quat(quat, turn / angle if angle > 0 else np.array([0.0, 0.0, 1.0]), angle)
        mujoco.mju_mulQuat(goal, quat, data.xquat[self._hand])
        mujoco.mju_quat2Mat(matrix, goal)
        data.ctrl[3:6] = np.clip(yaw_pitch_roll(matrix.reshape(3, 3)), -ROTATION_LIMIT, ROTATION_LIMIT)
        data.ctrl[6:8] = 0.0 if action[6] > 0 else FINGER_OPEN
        self.advance(SUBSTEPS)

    def advance(self, substeps: int) -> None:
        """Let time pass, 5 ms a substep, towards the goals of the hand's axes (`data.ctrl`)."""
        mujoco, data = self._mj, self.data
        mujoco.mj_step(self.model, data, substeps)
        # mj_step leaves poses one substep behind the joints; pictures and poses must show the same instant.
        mujoco.mj_kinematics(self.model, data)
        mujoco.mj_camlight(self.model, data)

    @contextlib.contextmanager
    def lamp(self) -> Iterator[None]:
        """A lamp that throws shadows, for pictures for people; observations know the headlight only."""
        headlight = self.model.vis.headlight
        before = headlight.ambient.copy(), headlight.diffuse.copy()
        headlight.ambient[:], headlight.diffuse[:], self.model.light_active[0] = 0.35, 0.25, 1
        try:
            yield
        finally:
            headlight.ambient[:], headlight.diffuse[:] = before
            self.model.light_active[0] = 0

    # ---- reading ------------------------------------------------------------------------------------------
    @property
    def eef_position(self) -> np.ndarray:
        """The point between the finger tips, float64 (3,), m, base frame."""
        return self.data.qpos[:3].copy()

    @property
    def eef_rotation(self) -> np.ndarray:
        """The hand's yaw, pitch and roll, float64 (3,), rad; zero when it points straight down."""
        return self.data.qpos[3:6].copy()

    @property
    def eef_axis_angle(self) -> np.ndarray:
        """The hand's orientation as axis * angle, float64 (3,), rad, base frame."""
        result = np.empty(3)
        self._mj.mju_quat2Vel(result, self.data.xquat[self._hand], 1.0)
        return result

    @property
    def fingers(self) -> np.ndarray:
        """Distance of the left and the right finger from the middle, float64 (2,), m."""
        return self.data.qpos[6:8].copy()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Colours of the blocks on the table."""
        return tuple(self.layout.blocks)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of all loose objects on the table: block colours, then `extra0`, ..."""
        return (*self.layout.blocks, *self._extra_slots[: len(self.layout.distractors)])

    def position(self, name: str) -> np.ndarray:
        """Centre of a block (by colour) or a distractor, float64 (3,), m."""
        start = self._qpos[self._slot[name]]
        return self.data.qpos[start : start + 3].copy()

    def yaw(self, name: str) -> float:
        """Where an edge of the block points, rad, whichever side it lies on; known up to a quarter turn."""
        matrix = self._rotation(name)
        edge = matrix[:, int(np.argmin(np.abs(matrix[2])))]
        return float(np.arctan2(edge[1], edge[0]))

    def _rotation(self, name: str) -> np.ndarray:
        return self.data.xmat[self._body[self._slot[name]]].reshape(3, 3)

    def raised(self, name: str) -> float:
        """How far an object is above the height at which it lies on the table, m."""
        return float(self.position(name)[2]) - (BLOCK_HALF if name in self.layout.blocks else 0.022)

    def start(self, name: str) -> np.ndarray:
        """Where an object was when the episode began, float64 (2,), m."""
        if name in self.layout.blocks:
            return np.array(self.layout.blocks[name][:2])
        return np.array(self.layout.distractors[self._extra_slots.index(name)][1:])

    def turned(self, block: str) -> float:
        """How far a block has turned about the vertical since the episode began, rad, within half a turn."""
        now, start = self._rotation(block), self.layout.blocks[block][2]
        angle = np.arctan2(now[1, 0] - now[0, 1], now[0, 0] + now[1, 1]) - start
        return float((angle + np.pi) % (2 * np.pi) - np.pi)

    def speed(self, name: str) -> float:
        """How fast an object moves, m/s."""
        start = self._qvel[self._slot[name]]
        return float(np.linalg.norm(self.data.qvel[start : start + 3]))

    def touched(self, *, parts: Sequence[str] = ("left", "right", "palm")) -> set[str]:
        """Names of the objects that the given parts of the gripper are in contact with."""
        gripper = {self._geom[part] for part in parts}
        names = {self._geom[self._slot[name]]: name for name in self.objects}
        found = set()
        for a, b in self.data.contact.geom.tolist():
            other = b if a in gripper else a if b in gripper else -1
            if other in names:
                found.add(names[other])
        return found

    def held(self, name: str) -> bool:
        """Whether both fingers are in contact with the object."""
        return all(name in self.touched(parts=(finger,)) for finger in _FINGERS)


def yaw_pitch_roll(matrix: np.ndarray) -> np.ndarray:
    """Angles of Rz(yaw) Ry(pitch) Rx(roll) from a rotation matrix (3, 3)."""
    return np.array(
        [
            np.arctan2(matrix[1, 0], matrix[0, 0]),
            np.arcsin(np.clip(-matrix[2, 0], -1.0, 1.0)),
            np.arctan2(matrix[2, 1], matrix[2, 2]),
        ]
    )
