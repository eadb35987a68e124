"""Pictures without any graphics library: one ray per pixel, in numpy, shaded as MuJoCo's headlight would.

For scenes of planes, boxes, spheres and cylinders in plain colours, which is what our own scenes consist of.
(`mj_multiRay` would serve any shape, but it drops hits on shapes that fill a wide angle, as the gripper does
before the wrist camera: seen with MuJoCo 3.3.0.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_agents.errors import RenderingError

# In the shape's own frame, from one origin (3,) along unit rays (n, 3): distances (n,), infinite where there
# is no hit, and outward unit normals (n, 3), of which the values at missed rays mean nothing.
Hits = tuple[np.ndarray, np.ndarray]


class RaycastRenderer:
    """Pictures of one size from one model.

    Args:
        model: The MjModel.
        height: Of the pictures, pixels.
        width: Of the pictures, pixels.
        samples: 0 for one ray per pixel; more for four, against jagged edges.
    """

    name = "raycast"

    def __init__(self, model: Any, height: int, width: int, *, samples: int = 0) -> None:
        import mujoco

        self._model = model
        self._fine = 2 if samples else 1
        self._height, self._width = height * self._fine, width * self._fine
        self._rays: dict[float, np.ndarray] = {}  # field of view -> unit directions in the camera's frame
        self._closed = False
        kinds = mujoco.mjtGeom
        shapes = {kinds.mjGEOM_PLANE: _plane, kinds.mjGEOM_BOX: _box, kinds.mjGEOM_SPHERE: _sphere,
                  kinds.mjGEOM_CYLINDER: _cylinder}  # fmt: skip
        self._shapes: list[Callable[[np.ndarray, np.ndarray, np.ndarray], Hits]] = []
        for geom in range(model.ngeom):
            shape = next((hit for kind, hit in shapes.items() if model.geom_type[geom] == kind), None)
            if shape is None:
                raise RenderingError(
                    f"the ray-casting renderer does not know the shape of geom {model.geom(geom).name!r}",
                    "it draws planes, boxes, spheres and cylinders: use 'egl' or 'osmesa'",
                )
            self._shapes.append(shape)

    def render(self, data: Any, camera: str) -> np.ndarray:
        """uint8 RGB (height, width, 3), upright; a new array."""
        if self._closed:
            raise RenderingError("the renderer is closed")
        index, light = self._model.camera(camera).id, self._model.vis.headlight
        turn = data.cam_xmat[index].reshape(3, 3)
        rays = self._directions(float(self._model.cam_fovy[index])) @ turn.T  # (N, 3), base frame
        depth = np.full(len(rays), np.inf)
        colours = np.zeros_like(rays)
        for geom, shape in enumerate(self._shapes):
            near = self._near(data, geom, data.cam_xpos[index], rays)
            frame = data.geom_xmat[geom].reshape(3, 3)
            origin = (data.cam_xpos[index] - data.geom_xpos[geom]) @ frame
            distance, normals = shape(origin, rays[near] @ frame, self._model.geom_size[geom])
            seen = distance < depth[near]
            pixels = near[seen]
            depth[pixels] = distance[seen]
            facing = np.maximum(normals[seen] @ (frame.T @ turn[:, 2]), 0.0)[
                :, None
            ]  # 1: square to the camera
            colours[pixels] = self._model.geom_rgba[geom, :3] * (light.ambient + light.diffuse * facing)
        picture = colours.reshape(self._height, self._width, 3)
        if self._fine > 1:
            picture = picture.reshape(self._height // 2, 2, self._width // 2, 2, 3).mean((1, 3))
        return np.rint(np.minimum(picture, 1.0) * 255.0).astype(np.uint8)

    def close(self) -> None:
        """Nothing is held; the renderer cannot be used afterwards."""
        self._closed = True

    def _directions(self, fovy: float) -> np.ndarray:
        """Unit vectors through the pixels, row by row from the top left, (N, 3), camera's frame."""
        if fovy not in self._rays:
            step = 2.0 * np.tan(np.deg2rad(fovy) / 2.0) / self._height
            right = (np.arange(self._width) + 0.5 - self._width / 2) * step
            up = -(np.arange(self._height) + 0.5 - self._height / 2) * step
            grid = np.stack([*np.meshgrid(right, up), np.full((self._height, self._width), -1.0)], -1)
            rays = grid.reshape(-1, 3)
            self._rays[fovy] = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        return self._rays[fovy]

    def _near(self, data: Any, geom: int, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Indices of the rays that meet the geom's bounding sphere: the only ones worth a closer look."""
        radius, way = float(self._model.geom_rbound[geom]), data.geom_xpos[geom] - origin
        distance = float(np.linalg.norm(way))
        if radius <= 0.0 or distance <= radius:  # planes have no bounding sphere
            return np.arange(len(rays))
        return np.flatnonzero(rays @ way > np.sqrt(distance**2 - radius**2))


# ---- shapes -----------------------------------------------------------------------------------------------
def _plane(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hits:
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = -origin[2] / rays[:, 2]
        spot = origin[:2] + rays[:, :2] * distance[:, None]
        inside = (np.abs(spot) <= np.where(size[:2] > 0, size[:2], np.inf)).all(1)
    hit = inside & (distance > 0) & (origin[2] > 0)
    return np.where(hit, distance, np.inf), np.broadcast_to((0.0, 0.0, 1.0), rays.shape)


def _box(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hits:
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (-np.copysign(size, rays) - origin) / rays  # (n, 3): where each pair of sides is entered
        last = (np.copysign(size, rays) - origin) / rays
    side = np.argmax(np.where(np.isnan(first), -np.inf, first), axis=1)
    rows = np.arange(len(rays))
    enter = first[rows, side]
    hit = (enter > 0) & (enter <= np.nanmin(last, axis=1, initial=np.inf))
    normals = np.zeros_like(rays)
    normals[rows, side] = -np.sign(rays[rows, side])
    return np.where(hit, enter, np.inf), normals


def _sphere(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hits:
    along = rays @ origin
    inside = along**2 - (origin @ origin - size[0] ** 2)
    distance = np.where(inside > 0, -along - np.sqrt(np.maximum(inside, 0.0)), np.inf)
    distance = np.where(distance > 0, distance, np.inf)
    return distance, (origin + rays * np.minimum(distance, 1e3)[:, None]) / size[0]


def _cylinder(origin: np.ndarray, rays: np.ndarray, size: np.ndarray) -> Hits:
    radius, half = size[0], size[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        a = (rays[:, :2] ** 2).sum(1)
        b = rays[:, :2] @ origin[:2]
        inside = b**2 - a * (origin[:2] @ origin[:2] - radius**2)
        wall = (-b - np.sqrt(np.where(inside > 0, inside, np.nan))) / a
        wall = np.where((wall > 0) & (np.abs(origin[2] + wall * rays[:, 2]) <= half), wall, np.inf)
        top = np.sign(origin[2])
        lid = (top * half - origin[2]) / rays[:, 2]
        spot = origin[:2] + rays[:, :2] * lid[:, None]
        lid = np.where((abs(origin[2]) > half) & (lid > 0) & ((spot**2).sum(1) <= radius**2), lid, np.inf)
    normals = np.empty_like(rays)
    normals[:, :2] = (origin[:2] + rays[:, :2] * np.minimum(wall, 1e3)[:, None]) / radius
    normals[:, 2] = 0.0
    normals[lid < wall] = (0.0, 0.0, top)
    return np.minimum(wall, lid), normals
