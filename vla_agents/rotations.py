"""Orientations in the conventions that `Part.kind` names, and scipy's `Rotation` between them."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.errors import UnknownNameError

# kind -> number of values
SIZES = {"axis_angle": 3, "euler_xyz": 3, "quaternion_xyzw": 4, "quaternion_wxyz": 4, "rot6d": 6}


def to_rotation(values: np.ndarray, kind: str) -> Rotation:
    """(N, d) in a convention -> N rotations. `rot6d` (Zhou 2019) is made orthonormal, quaternions unit."""
    if kind == "axis_angle":
        return Rotation.from_rotvec(values)
    if kind == "euler_xyz":
        return Rotation.from_euler("xyz", values)
    if kind == "quaternion_xyzw":
        return Rotation.from_quat(values)
    if kind == "quaternion_wxyz":
        return Rotation.from_quat(values, scalar_first=True)
    if kind == "rot6d":  # Gram-Schmidt on the two columns
        a, b = values[:, :3], values[:, 3:]
        x = a / np.linalg.norm(a, axis=1, keepdims=True)
        y = b - (x * b).sum(1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        return Rotation.from_matrix(np.stack([x, y, np.cross(x, y)], axis=-1))
    raise UnknownNameError("rotation convention", kind, SIZES)


def from_rotation(rotation: Rotation, kind: str) -> np.ndarray:
    """N rotations -> (N, d) in a convention."""
    if kind == "axis_angle":
        return rotation.as_rotvec()
    if kind == "euler_xyz":
        return rotation.as_euler("xyz")
    if kind == "quaternion_xyzw":
        return rotation.as_quat()
    if kind == "quaternion_wxyz":
        return rotation.as_quat(scalar_first=True)
    if kind == "rot6d":
        matrix = rotation.as_matrix()
        return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=-1)
    raise UnknownNameError("rotation convention", kind, SIZES)


def unfolded_axis_angle(w: float, xyz: np.ndarray) -> np.ndarray:
    """Axis * angle (3,) of a unit quaternion, the angle in [0, 2 pi] as in robosuite.

    Angles above pi are kept: a hand that points down is near pi, and a fold there would make the sign jump.
    """
    w = min(1.0, max(-1.0, float(w)))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-9 else xyz / sine * (2.0 * np.arccos(w))
