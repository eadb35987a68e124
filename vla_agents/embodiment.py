"""What a body senses and does, with every convention named, so that a mismatch is an error, not a bad score.

An `Embodiment` is stored in every dataset and checkpoint and carried by every env and robot. Wrong gripper
sign, flipped image, other rotation convention: `Embodiment.require` refuses each, naming both sides and
what would mend it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from vla_agents.errors import EmbodimentError, EmbodimentMismatchError, UnknownNameError, suggest

# kind -> what a value of it means. Sizes are checked where the kind fixes one.
KINDS: dict[str, str] = {
    "delta_xyz": "end-effector translation per step, base frame",
    "delta_axis_angle": "end-effector rotation per step, axis * angle, base frame",
    "xyz": "position, base frame",
    "axis_angle": "orientation, axis * angle, base frame",
    "quaternion_xyzw": "orientation, unit quaternion, scalar last",
    "quaternion_wxyz": "orientation, unit quaternion, scalar first",
    "euler_xyz": "orientation, extrinsic x-y-z angles",
    "rot6d": "orientation, first two columns of the rotation matrix",
    "joint_position": "joint angles or extensions",
    "delta_joint_position": "change of joint angles or extensions per step",
    "joint_velocity": "joint velocities",
    "relative_xyz": "position relative to the state the chunk was planned in, base frame",
    "relative_axis_angle": "orientation relative to the state the chunk was planned in, axis * angle, base frame",
    "relative_joint_position": "joint positions relative to the state the chunk was planned in",
    "gripper_open_01": "0 closed, 1 open",
    "gripper_close_01": "0 open, 1 closed",
    "gripper_close_pm1": "-1 open, +1 closed",
    "gripper_open_pm1": "-1 closed, +1 open",
    "gripper_position": "finger joint positions",
    "other": "no named convention",
    "unknown": "convention not stated by the dataset",
}
_FIXED_SIZE = {
    "delta_xyz": 3, "delta_axis_angle": 3, "xyz": 3, "axis_angle": 3, "euler_xyz": 3,
    "quaternion_xyzw": 4, "quaternion_wxyz": 4, "rot6d": 6, "relative_xyz": 3, "relative_axis_angle": 3,
}  # fmt: skip
ORIENTATIONS = ("upright", "rotated_180", "flipped_vertically", "mirrored")

# Any printable character an instruction may hold; Gymnasium's own default lacks even the space.
_CHARSET = "".join(chr(c) for c in (*range(0x20, 0x7F), *range(0xA0, 0x250)))


@dataclass(frozen=True)
class Part:
    """A named slice of the state or action vector, with its convention.

    Args:
        name: Unique within its vector, e.g. `"eef_position"`.
        size: Number of values.
        kind: One of `KINDS`; decides what may be compared with what.
        low: Smallest value (one number for all, or one per value).
        high: Largest value.
        unit: `"m"`, `"rad"`, ..., or what 1.0 stands for, e.g. `"0.05 m"`.
    """

    name: str
    size: int
    kind: str
    low: float | tuple[float, ...] = -np.inf
    high: float | tuple[float, ...] = np.inf
    unit: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError(f"kind of part {self.name!r}", self.kind, KINDS)
        if self.size < 1 or _FIXED_SIZE.get(self.kind, self.size) != self.size:
            raise EmbodimentError(
                f"part {self.name!r} of kind {self.kind!r} has size {self.size}",
                f"a {self.kind!r} has {_FIXED_SIZE.get(self.kind, 'at least 1')} values",
            )
        for side in ("low", "high"):
            value = getattr(self, side)
            if isinstance(value, Sequence | np.ndarray):
                if len(value) != self.size:
                    raise EmbodimentError(
                        f"part {self.name!r}: {side} has {len(value)} values, size is {self.size}"
                    )
                object.__setattr__(self, side, tuple(float(v) for v in value))
            else:
                object.__setattr__(self, side, float(value))
        low, high = self.bounds()
        if not (low <= high).all():  # NaN included
            raise EmbodimentError(f"part {self.name!r}: low {self.low} does not lie below high {self.high}")

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """`(low, high)`, each float32 of shape (size,)."""
        return (
            np.broadcast_to(np.asarray(self.low, np.float32), (self.size,)),
            np.broadcast_to(np.asarray(self.high, np.float32), (self.size,)),
        )


@dataclass(frozen=True)
class Camera:
    """A camera's name and picture: uint8 RGB of shape (height, width, 3).

    `orientation` says how the picture lies: `"upright"`, or as the simulator hands it over.
    """

    name: str
    height: int
    width: int
    orientation: str = "upright"

    def __post_init__(self) -> None:
        if self.orientation not in ORIENTATIONS:
            raise UnknownNameError(f"orientation of camera {self.name!r}", self.orientation, ORIENTATIONS)
        if self.height < 1 or self.width < 1:
            raise EmbodimentError(f"camera {self.name!r} has size {self.height}x{self.width}")


@dataclass(frozen=True)
class Embodiment:
    """What a body senses and does.

    Args:
        name: e.g. `"tabletop"`, `"libero_panda"`.
        action: The parts of the action vector, in order.
        state: The parts of the proprioceptive state, in order; empty where there is none.
        cameras: In the order in which a policy sees them.
        control_hz: Actions per second.
    """

    name: str
    action: tuple[Part, ...]
    state: tuple[Part, ...] = ()
    cameras: tuple[Camera, ...] = ()
    control_hz: float = 20.0

    def __post_init__(self) -> None:
        for field in ("action", "state", "cameras"):
            value = tuple(getattr(self, field))
            object.__setattr__(self, field, value)
            names = [item.name for item in value]
            if len(set(names)) != len(names):
                raise EmbodimentError(f"embodiment {self.name!r} names a {field} twice: {names}")
        if not self.action:
            raise EmbodimentError(f"embodiment {self.name!r} has no action")
        if not self.control_hz > 0:
            raise EmbodimentError(f"embodiment {self.name!r} has control_hz {self.control_hz}")

    # ---- sizes and spaces ---------------------------------------------------------------------------------
    @cached_property
    def action_dim(self) -> int:
        """Length of the action vector."""
        return sum(part.size for part in self.action)

    @cached_property
    def state_dim(self) -> int:
        """Length of the state vector (0 where there is none)."""
        return sum(part.size for part in self.state)

    @cached_property
    def camera_names(self) -> tuple[str, ...]:
        """The cameras' names, in order."""
        return tuple(camera.name for camera in self.cameras)

    def action_slices(self) -> dict[str, slice]:
        """Name -> slice of the action vector."""
        return _slices(self.action)

    def state_slices(self) -> dict[str, slice]:
        """Name -> slice of the state vector."""
        return _slices(self.state)

    def action_space(self) -> spaces.Box:
        """The Gymnasium space of one action."""
        return _box(self.action)

    def observation_space(self) -> spaces.Dict:
        """The Gymnasium space of one observation: `images` and `state` (where there are any), `instruction`."""
        content: dict[str, spaces.Space] = {}
        if self.cameras:  # Gymnasium refuses an empty Dict
            images = {c.name: spaces.Box(0, 255, (c.height, c.width, 3), np.uint8) for c in self.cameras}
            content["images"] = spaces.Dict(dict[str, spaces.Space](images))
        if self.state:
            content["state"] = _box(self.state)
        content["instruction"] = spaces.Text(max_length=512, min_length=0, charset=_CHARSET)
        return spaces.Dict(content)

    # ---- comparing ----------------------------------------------------------------------------------------
    def differences(self, other: Embodiment, *, ours: str = "this", theirs: str = "other") -> list[str]:
        """One line per difference that would change what numbers or pixels mean; empty if there is none."""
        lines = _part_differences("action", self.action, other.action, ours, theirs)
        lines += _part_differences("state", self.state, other.state, ours, theirs)
        lines += _camera_differences(self.cameras, other.cameras, ours, theirs)
        if abs(self.control_hz - other.control_hz) > 1e-6:
            lines.append(
                f"control rate: {ours} {self.control_hz:g} Hz, {theirs} {other.control_hz:g} Hz "
                "(mend: make the env with the other control_hz; datasets are brought to one rate by --fps)"
            )
        return lines

    def require(self, other: Embodiment, *, ours: str | None = None, theirs: str | None = None) -> None:
        """Raise `EmbodimentMismatchError` unless numbers and pixels mean the same on both sides.

        Args:
            other: The embodiment to compare with.
            ours: What to call this side in the message, e.g. `"checkpoint runs/a"`.
            theirs: What to call the other side.
        """
        ours = ours or f"embodiment {self.name!r}"
        theirs = theirs or f"embodiment {other.name!r}"
        found = self.differences(other, ours=ours, theirs=theirs)
        if found:
            raise EmbodimentMismatchError(ours, theirs, found)

    # ---- on disk ------------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinities become None."""
        return _finite(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, where: str = "embodiment") -> Embodiment:
        """The inverse of `to_dict`; `where` names the file in errors."""
        try:
            parts = {
                key: tuple(Part(**_unfinite(_known(Part, entry, where))) for entry in data.get(key, ()))
                for key in ("action", "state")
            }
            cameras = tuple(Camera(**_known(Camera, entry, where)) for entry in data.get("cameras", ()))
            return cls(name=data["name"], cameras=cameras, control_hz=data["control_hz"], **parts)
        except (KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UnknownNameError):
                raise
            raise EmbodimentError(
                f"{where}: not an embodiment ({error!r})", "write it with Embodiment.save"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Embodiment:
        """Read JSON written by `save`."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EmbodimentError(
                f"{path}: no such file", "it is written beside every dataset and checkpoint"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise EmbodimentError(f"{path}: not JSON ({error})") from error
        return cls.from_dict(data, where=str(path))

    def with_image_size(self, height: int, width: int | None = None) -> Embodiment:
        """The same body, every camera at another size."""
        cameras = tuple(dataclasses.replace(c, height=height, width=width or height) for c in self.cameras)
        return dataclasses.replace(self, cameras=cameras)


def embodiment_of(env: Any) -> Embodiment:
    """The embodiment of a Gymnasium env (wrapped or vector), or a clear error where it carries none."""
    for candidate in (env, getattr(env, "unwrapped", None), *getattr(env, "envs", ())[:1]):
        found = getattr(candidate, "embodiment", None) or getattr(
            getattr(candidate, "unwrapped", None), "embodiment", None
        )
        if isinstance(found, Embodiment):
            return found
    if hasattr(env, "get_attr"):
        found = env.get_attr("embodiment")[0]
        if isinstance(found, Embodiment):
            return found
    raise EmbodimentError(
        f"{env} carries no embodiment", "give the env class an attribute `embodiment: Embodiment`"
    )


def _slices(parts: tuple[Part, ...]) -> dict[str, slice]:
    ends = np.cumsum([part.size for part in parts])
    return {part.name: slice(int(end) - part.size, int(end)) for part, end in zip(parts, ends, strict=True)}


def _box(parts: tuple[Part, ...]) -> spaces.Box:
    low, high = zip(*(part.bounds() for part in parts), strict=True)
    return spaces.Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)


_GRIPPERS = {"gripper_open_01", "gripper_close_01", "gripper_close_pm1", "gripper_open_pm1"}
_ROTATIONS = {"axis_angle", "quaternion_xyzw", "quaternion_wxyz", "euler_xyz", "rot6d"}


def _mend(what: str, ours: Part, theirs: Part, start: int) -> str:
    """The transform that leads from their convention to ours; there are some for actions only."""
    arguments = f"({theirs.name!r}, {theirs.kind!r}, {ours.kind!r}, start={start})"
    if what == "action" and {ours.kind, theirs.kind} <= _GRIPPERS:
        return f"transform GripperConvention{arguments}"
    if what == "action" and {ours.kind, theirs.kind} <= _ROTATIONS:
        return f"transform RotationConvention{arguments}"
    if what == "action" and ours.kind.startswith("relative_") and not theirs.kind.startswith("relative_"):
        return "transform RelativeActions"
    return "use an env or dataset with the same convention"


def _part_differences(
    what: str, ours: tuple[Part, ...], theirs: tuple[Part, ...], our_name: str, their_name: str
) -> list[str]:
    lines = []
    sizes = sum(p.size for p in ours), sum(p.size for p in theirs)
    if len(ours) != len(theirs):
        return [
            f"{what}: {our_name} has {sizes[0]} values {[p.name for p in ours]}, "
            f"{their_name} {sizes[1]} values {[p.name for p in theirs]}"
        ]
    start = 0  # of their part
    for a, b in zip(ours, theirs, strict=True):
        if (a.kind, a.size) != (b.kind, b.size):
            lines.append(
                f"{what} {a.name!r}: {our_name} {a.kind}[{a.size}] ({KINDS[a.kind]}), "
                f"{their_name} {b.kind}[{b.size}] ({KINDS[b.kind]}) (mend: {_mend(what, a, b, start)})"
            )
        elif a.unit != b.unit:
            lines.append(f"{what} {a.name!r}: {our_name} unit {a.unit!r}, {their_name} unit {b.unit!r}")
        elif a.name != b.name and a.kind in (
            "joint_position",
            "delta_joint_position",
            "joint_velocity",
            "other",
            "unknown",
        ):
            lines.append(f"{what}: {our_name} has {a.name!r} where {their_name} has {b.name!r}")
        start += b.size
    return lines


def _camera_differences(
    ours: tuple[Camera, ...], theirs: tuple[Camera, ...], our_name: str, their_name: str
) -> list[str]:
    our_names, their_names = [c.name for c in ours], [c.name for c in theirs]
    if set(our_names) != set(their_names):
        return [
            f"cameras: {our_name} {our_names}, {their_name} {their_names} "
            "(mend: transform RenameCameras or SelectCameras)"
        ]
    lines = []
    if our_names != their_names:
        lines.append(
            f"camera order: {our_name} {our_names}, {their_name} {their_names} "
            f"(mend: transform SelectCameras({tuple(our_names)}))"
        )
    by_name = {c.name: c for c in theirs}
    for a in ours:
        b = by_name[a.name]
        if (a.height, a.width) != (b.height, b.width):
            lines.append(
                f"camera {a.name!r}: {our_name} {a.height}x{a.width}, {their_name} {b.height}x{b.width} "
                f"(mend: transform ResizeImages({a.height}, {a.width}))"
            )
        if a.orientation != b.orientation:
            lines.append(
                f"camera {a.name!r}: {our_name} {a.orientation}, {their_name} {b.orientation} "
                "(mend: transform TurnImages(...))"
            )
    return lines


def _known(cls: type, entry: dict[str, Any], where: str) -> dict[str, Any]:
    fields = {f.name for f in dataclasses.fields(cls)}
    for key in entry:
        if key not in fields:
            raise EmbodimentError(f"{where}: unknown field {key!r} of {cls.__name__}{suggest(key, fields)}")
    return dict(entry)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _unfinite(entry: dict[str, Any]) -> dict[str, Any]:
    for side, infinite in (("low", -np.inf), ("high", np.inf)):
        value = entry.get(side)
        if isinstance(value, list):
            entry[side] = tuple(infinite if v is None else v for v in value)
        elif value is None:
            entry[side] = infinite
    return entry
