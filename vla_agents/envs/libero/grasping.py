"""Where to take hold of an object from above with a parallel gripper, from its collision geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPENING = 0.075  # metres between the finger pads that an object may fill
_YAWS = np.deg2rad(np.arange(-90, 90, 5))
_GRASP_DEPTH = 0.06  # the upper part of an object that decides the fingers' direction
_CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 24, endpoint=False)), np.sin(a)], axis=1)  # (24, 2)
_CUBE = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], float)  # (8, 3)


@dataclass(frozen=True)
class Grasp:
    """Where the point between the fingers goes, and how the hand is turned.

    Args:
        position: (3,) in metres, world frame.
        yaw: Turn of the hand about the vertical, in radians; at 0 the fingers open along world y.
    """

    position: np.ndarray
    yaw: float


class Shape:
    """The collision geometry of a body and everything attached to it, as points.

    Args:
        model: `mujoco.MjModel`.
        root: Id of the body.
    """

    def __init__(self, model: Any, root: int) -> None:
        bodies = {root}
        for body in range(root + 1, model.nbody):
            if model.body_parentid[body] in bodies:
                bodies.add(body)
        self._local: list[tuple[int, np.ndarray]] = [
            (geom, _geom_points(model, geom))
            for geom in range(model.ngeom)
            if model.geom_bodyid[geom] in bodies
            and (model.geom_contype[geom] or model.geom_conaffinity[geom])
        ]

    def points(self, data: Any) -> np.ndarray:
        """(n, 3) in the world frame, in metres, at the state `data` is in; n may be 0."""
        world = [
            local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom] for geom, local in self._local
        ]
        return np.concatenate(world) if world else np.zeros((0, 3))


def _geom_points(model: Any, geom: int) -> np.ndarray:
    """Points (n, 3) in the geom's own frame whose hull holds it."""
    import mujoco

    kind, size = mujoco.mjtGeom(int(model.geom_type[geom])), model.geom_size[geom]
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        return np.asarray(model.mesh_vert[start : start + count], float)
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return _CUBE * size[0]
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        half = size[1] + (size[0] if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0)
        rings = [np.column_stack([_CIRCLE * size[0], np.full(len(_CIRCLE), z)]) for z in (-half, half)]
        return np.concatenate(rings)
    return _CUBE * size


def choose_grasp(points: np.ndarray, obstacles: np.ndarray, attempt: int = 0) -> Grasp:
    """The `attempt`-th best way to hold an object.

    An object that fits between the fingers is held across its narrowest side; a wider one (bowl, plate) by
    its rim.

    Args:
        points: (n, 3) of the object, world frame.
        obstacles: (m, 3) of everything else that can be hit.
        attempt: Counts up with each failure; changes the spot on a rim, and the height on a body.
    """
    bottom, top = points[:, 2].min(), points[:, 2].max()
    upper = points[points[:, 2] > max(bottom, top - _GRASP_DEPTH), :2]
    width, yaw, middle = min(
        ((*_across(upper, yaw),) for yaw in _YAWS), key=lambda option: option[0] + 0.004 * abs(option[1])
    )
    if width > MAX_OPENING:
        return _rim_grasp(upper, obstacles[obstacles[:, 2] > bottom + 0.03, :2], top, attempt)
    if top - bottom > 0.06:
        height = top - 0.035 - 0.01 * attempt
    else:
        height = max(bottom + 0.012, min(top - 0.025, (top + bottom) / 2 + 0.02) - 0.005 * attempt)
    return Grasp(np.array([*middle, height]), yaw)


def _across(flat: np.ndarray, yaw: float) -> tuple[float, float, np.ndarray]:
    """Width of points (n, 2) between fingers at that yaw, the yaw, and the middle (2,) of their extent."""
    fingers = np.array([-np.sin(yaw), np.cos(yaw)])
    along = np.array([fingers[1], -fingers[0]])
    across, length = flat @ fingers, flat @ along
    middle = fingers * (across.min() + across.max()) / 2 + along * (length.min() + length.max()) / 2
    return float(np.ptp(across)), float(yaw), middle


def _rim_grasp(flat: np.ndarray, obstacles: np.ndarray, top: float, attempt: int) -> Grasp:
    """One finger inside, one outside of the rim; clear spots that need little turning first."""
    centre = (flat.min(0) + flat.max(0)) / 2
    radius = np.linalg.norm(flat - centre, axis=1).max()
    options = []
    for angle in np.deg2rad(np.arange(0, 360, 15)):
        outwards = np.array([np.cos(angle), np.sin(angle)])
        spot = centre + outwards * (radius - 0.004)
        yaw = angle % np.pi - np.pi / 2  # fingers along the radius; half a turn is the same grasp
        room = np.linalg.norm(obstacles - spot - 0.02 * outwards, axis=1).min() if len(obstacles) else 1.0
        options.append((-20 * min(room, 0.05) + 0.25 * abs(yaw), yaw, spot))
    _, yaw, spot = sorted(options, key=lambda option: option[0])[min(attempt, len(options) - 1)]
    return Grasp(np.array([*spot, top - 0.012]), float(yaw))
