"""Where to take hold of an object from above with a parallel gripper, from its collision geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_OPENING = 0.075  # metres between the finger pads that an object may fill
_YAWS = np.deg2rad(np.arange(-90, 90, 5))
_GRASP_DEPTH = 0.06  # the upper part of an object that decides the fingers' direction
_PALM = np.array([0.105, 0.033])  # half the hand's length along the fingers' motion, and its half width
_PALM_ABOVE = 0.025  # how far the hand's underside is above the point between the fingers
_RIM_DEPTH = 0.015
_REACH = 0.68  # horizontal metres beyond which the arm, hand down, is nearly straight
_CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 24, endpoint=False)), np.sin(a)], axis=1)  # (24, 2)
_CUBE = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 5)]), axis=-1).reshape(-1, 3)  # (125, 3)


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


def choose_grasp(
    points: np.ndarray, obstacles: np.ndarray, *, base: np.ndarray, place: np.ndarray, attempt: int = 0
) -> Grasp:
    """The `attempt`-th best way to hold an object.

    An object that fits between the fingers is held across its narrowest side; a wider one (bowl, plate) by
    its rim.

    Args:
        points: (n, 3) of the object, world frame.
        obstacles: (m, 3) of everything else that can be hit.
        base: (2,) where the arm stands; a rim is held so that the arm need not stretch, here or at the place.
        place: (2,) where the object goes.
        attempt: Counts up with each failure; changes the spot on a rim, and the height on a body.
    """
    bottom, top = points[:, 2].min(), points[:, 2].max()
    upper = points[points[:, 2] > max(bottom, top - _GRASP_DEPTH), :2]
    # As deep as the hand's underside allows, but not into the ground; a failed try is repeated a little higher.
    height = max(bottom + 0.012, top - 0.03) + 0.005 * min(attempt, 2)
    in_the_way = obstacles[obstacles[:, 2] > height + _PALM_ABOVE, :2]
    options = [option for yaw in _YAWS for option in _body_grasps(upper, yaw, in_the_way)]
    if not options:
        return _rim_grasp(upper, obstacles[obstacles[:, 2] > bottom + 0.03, :2], base, place, top, attempt)
    _, yaw, spot = min(options, key=lambda option: option[0])
    return Grasp(np.array([*spot, height]), float(yaw))


def _body_grasps(
    flat: np.ndarray, yaw: float, in_the_way: np.ndarray
) -> list[tuple[float, float, np.ndarray]]:
    """Cost, yaw and spot (2,) of holding points (n, 2) across at that yaw; none where they are too wide."""
    fingers = np.array([-np.sin(yaw), np.cos(yaw)])
    along = np.array([np.cos(yaw), np.sin(yaw)])
    across, length = flat @ fingers, flat @ along
    if np.ptp(across) > MAX_OPENING:
        return []
    middle = fingers * (across.min() + across.max()) / 2 + along * (length.min() + length.max()) / 2
    most = max(0.0, np.ptp(length) / 2 - 0.012)
    options = []
    for shift in {0.0, *np.clip([-0.024, -0.012, 0.012, 0.024], -most, most)}:
        spot = middle + shift * along
        cost = np.ptp(across) + 0.004 * abs(yaw) + 0.1 * abs(shift)
        away = np.maximum(np.abs((in_the_way - spot) @ np.stack([fingers, along], axis=1)) - _PALM, 0.0)
        gap = np.linalg.norm(away, axis=1).min(initial=np.inf)
        options.append((float(cost + 5 * max(0.0, 0.012 - gap)), yaw, spot))
    return options


def _rim_grasp(
    flat: np.ndarray, obstacles: np.ndarray, base: np.ndarray, place: np.ndarray, top: float, attempt: int
) -> Grasp:
    """One finger inside, one outside of the rim; clear spots that need little turning first."""
    centre = (flat.min(0) + flat.max(0)) / 2
    radius = np.linalg.norm(flat - centre, axis=1).max()
    options = []
    for angle in np.deg2rad(np.arange(0, 360, 15)):
        outwards = np.array([np.cos(angle), np.sin(angle)])
        spot = centre + outwards * (radius - 0.004)
        yaw = angle % np.pi - np.pi / 2  # fingers along the radius; half a turn is the same grasp
        room = np.linalg.norm(obstacles - spot - 0.02 * outwards, axis=1).min() if len(obstacles) else 1.0
        stretch = max(float(np.linalg.norm(end + spot - centre - base)) for end in (centre, place)) - _REACH
        options.append((-20 * min(room, 0.05) + 0.25 * abs(yaw) + 20 * max(0.0, stretch), yaw, spot))
    _, yaw, spot = sorted(options, key=lambda option: option[0])[min(attempt, len(options) - 1)]
    return Grasp(np.array([*spot, top - _RIM_DEPTH]), float(yaw))
