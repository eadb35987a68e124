"""Forward and inverse kinematics of an arm in a MuJoCo model.

The inverse is damped least squares in the manner of Levenberg and Marquardt: a step that makes the error worse is taken
back and damped more, so singular positions cost iterations and never a leap. Joints at a limit that a step would push
further out are taken out of that step. Plain MuJoCo, because mink wants a newer one (3.10) than LIBERO can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_agents.errors import ConfigError, UnknownNameError

MODELS = Path(__file__).parent / "models"
_BIGGEST = 0.3  # rad or m: the largest change of a joint in one iteration


@dataclass(frozen=True)
class Pose:
    """Where a tool is: position (3,), m, and orientation, in the base frame of the model."""

    position: np.ndarray
    rotation: Rotation

    def moved(self, step: np.ndarray) -> Pose:
        """After a translation and a turn (axis * angle), (6,), both in the base frame; it turns about its own origin."""
        return Pose(self.position + step[:3], Rotation.from_rotvec(step[3:6]) * self.rotation)

    def error(self, there: Pose) -> np.ndarray:
        """From here to there, (6,): m, and rad as axis * angle in the base frame."""
        return np.concatenate(
            [there.position - self.position, (there.rotation * self.rotation.inv()).as_rotvec()]
        )


@dataclass(frozen=True)
class Solution:
    """What the inverse found.

    Args:
        joints: float64 (J,), within the limits.
        position_error: m, what is left.
        rotation_error: rad, likewise.
        iterations: How many it took.
    """

    joints: np.ndarray
    position_error: float
    rotation_error: float
    iterations: int


class Kinematics:
    """An arm.

    Args:
        model: A MuJoCo `MjModel`, or a file (MJCF or URDF), or the name of a model that ships with us (`"ur5e"`).
        tip: Name of the site or body that is led; "" where there is but one site.
        joints: Names of the joints that move it, in order; None: all hinges and slides above the tip.
        margin: Stay so far inside the limits, rad or m.
    """

    def __init__(
        self, model: Any, tip: str = "", joints: Sequence[str] | None = None, margin: float = 0.0
    ) -> None:
        import mujoco

        self._mujoco = mujoco
        self.model = model if isinstance(model, mujoco.MjModel) else _load(mujoco, str(model))
        self._data = mujoco.MjData(self.model)
        if self.model.nkey:
            self._data.qpos[:] = self.model.key_qpos[0]
        self._object, self._tip, body = self._find_tip(tip)
        indices = self._chain(body) if joints is None else [self._joint(name) for name in joints]
        self.joints = tuple(self._name(mujoco.mjtObj.mjOBJ_JOINT, index) for index in indices)
        self._qpos = self.model.jnt_qposadr[indices]
        self._dofs = self.model.jnt_dofadr[indices]
        limited = self.model.jnt_limited[indices].astype(bool)
        low, high = self.model.jnt_range[indices].T
        self.low = np.where(limited, low + margin, -np.inf)  # (J,)
        self.high = np.where(limited, high - margin, np.inf)  # (J,)
        if not indices or not (self.low < self.high).all():
            raise ConfigError(f"no joint moves {tip!r}, or a joint's range is empty", "see tip and joints")

    # ---- forward ------------------------------------------------------------------------------------------
    def forward(self, joints: np.ndarray) -> Pose:
        """Where the tip is, for joints (J,) in rad or m."""
        self._place(joints)
        matrix = self._data.site_xmat if self._object == "site" else self._data.xmat
        position = self._data.site_xpos if self._object == "site" else self._data.xpos
        return Pose(position[self._tip].copy(), Rotation.from_matrix(matrix[self._tip].reshape(3, 3)))

    def jacobian(self, joints: np.ndarray) -> np.ndarray:
        """(6, J): m/s and rad/s of the tip in the base frame, per unit of joint speed."""
        self._place(joints)
        return self._jacobian()

    # ---- inverse ------------------------------------------------------------------------------------------
    def inverse(
        self,
        goal: Pose,
        start: np.ndarray,
        *,
        rotation_weight: float = 0.3,
        tolerance: float = 1e-4,
        iterations: int = 60,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
    ) -> Solution:
        """Joints that bring the tip to `goal`, or as near as can be, going from `start`.

        Args:
            goal: In the base frame.
            start: (J,); what lies outside the limits is cut first.
            rotation_weight: m that a rad counts as; small values let arms of five joints keep the position.
            tolerance: Of the weighted error, m.
            iterations: At most.
            low, high: (J,) narrower limits, e.g. what can be reached in one control period.
        """
        low = self.low if low is None else np.maximum(low, self.low)
        high = self.high if high is None else np.minimum(high, self.high)
        weights = np.repeat([1.0, rotation_weight], 3)
        joints = np.clip(np.asarray(start, np.float64), low, high)
        error = weights * self.forward(joints).error(goal)
        jacobian = weights[:, None] * self._jacobian()
        damping, done = 1e-3, 0
        for _ in range(iterations):
            if np.linalg.norm(error) < tolerance or damping > 1e6:
                break
            done += 1
            tried = np.clip(joints + _step(jacobian, error, damping, joints, low, high), low, high)
            left = weights * self.forward(tried).error(goal)
            if left @ left < error @ error:
                gained = 1 - float(left @ left) / float(error @ error)
                joints, error, damping = tried, left, max(damping / 4, 1e-7)
                jacobian = weights[:, None] * self._jacobian()
                if gained < 1e-6:  # at the edge of what can be reached
                    break
            else:
                damping *= 8
        left = self.forward(joints).error(goal)
        return Solution(joints, float(np.linalg.norm(left[:3])), float(np.linalg.norm(left[3:])), done)

    # ---- inside -------------------------------------------------------------------------------------------
    def _place(self, joints: np.ndarray) -> None:
        self._data.qpos[self._qpos] = joints
        self._mujoco.mj_kinematics(self.model, self._data)
        self._mujoco.mj_comPos(self.model, self._data)

    def _jacobian(self) -> np.ndarray:
        full = np.zeros((6, self.model.nv))
        ask = self._mujoco.mj_jacSite if self._object == "site" else self._mujoco.mj_jacBody
        ask(self.model, self._data, full[:3], full[3:], self._tip)
        return full[:, self._dofs]

    def _name(self, kind: Any, index: int) -> str:
        return str(self._mujoco.mj_id2name(self.model, kind, int(index)) or f"#{index}")

    def _names(self, kind: Any, count: int) -> list[str]:
        return [self._name(kind, index) for index in range(count)]

    def _find_tip(self, tip: str) -> tuple[str, int, int]:
        """(`"site"` or `"body"`, its number, number of the body it belongs to)."""
        kinds = self._mujoco.mjtObj
        sites = self._names(kinds.mjOBJ_SITE, self.model.nsite)
        bodies = self._names(kinds.mjOBJ_BODY, self.model.nbody)
        if not tip and len(sites) == 1:
            tip = sites[0]
        if tip in sites:
            number = sites.index(tip)
            return "site", number, int(self.model.site_bodyid[number])
        if tip in bodies:
            return "body", bodies.index(tip), bodies.index(tip)
        if not tip:
            raise ConfigError(
                "the model does not say which point is led", f"give tip=, one of {', '.join(sites + bodies)}"
            )
        raise UnknownNameError("site or body", tip, sites + bodies)

    def _chain(self, body: int) -> list[int]:
        """The hinges and slides between the world and a body, from the base up."""
        found: list[int] = []
        while body > 0:
            first, count = int(self.model.body_jntadr[body]), int(self.model.body_jntnum[body])
            found = [i for i in range(first, first + count) if self.model.jnt_type[i] >= 2] + found
            body = int(self.model.body_parentid[body])
        return found

    def _joint(self, name: str) -> int:
        names = self._names(self._mujoco.mjtObj.mjOBJ_JOINT, self.model.njnt)
        if name not in names or self.model.jnt_type[names.index(name)] < 2:
            raise UnknownNameError("joint of the model", name, names)
        return names.index(name)


def _step(
    jacobian: np.ndarray,
    error: np.ndarray,
    damping: float,
    joints: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """The damped step (J,), joints that it would push out of their limits standing still."""
    free = np.ones(len(joints), bool)
    step = np.zeros(len(joints))
    for _ in range(len(joints)):
        part = jacobian[:, free]  # (6, F)
        step[:] = 0
        step[free] = part.T @ np.linalg.solve(part @ part.T + damping * np.eye(6), error)
        out = free & (((joints >= high) & (step > 0)) | ((joints <= low) & (step < 0)))
        if not out.any():
            break
        free &= ~out
    largest = np.abs(step).max()
    return step * min(1.0, _BIGGEST / largest) if largest > 0 else step


def _load(mujoco: Any, name: str) -> Any:
    shipped = MODELS / f"{name}.xml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.xml")))
        raise ConfigError(f"there is no model {name}", f"give an MJCF or URDF file, or one of ours: {known}")
    try:
        return (_load_urdf if path.suffix == ".urdf" else mujoco.MjModel.from_xml_path)(str(path))
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{path} is no model that MuJoCo can read ({error})", "give MJCF or URDF"
        ) from error


def _load_urdf(path: str) -> Any:
    """Frames that are fixed to a link stay, as one of them may be the tip; meshes go, as nobody needs to have them."""
    import mujoco

    spec = mujoco.MjSpec.from_file(path)
    spec.compiler.fusestatic = False
    spec.compiler.boundmass, spec.compiler.boundinertia = (
        1e-3,
        1e-6,
    )  # links without geometry may weigh nothing
    for thing in (*spec.geoms, *spec.meshes):
        if hasattr(thing, "delete"):  # until MuJoCo 3.3
            thing.delete()
        else:
            spec.delete(thing)
    return spec.compile()
