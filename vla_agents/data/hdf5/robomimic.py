"""Reads robomimic's HDF5 files (robosuite's demonstrations and everything in that layout).

    data  attributes: env_args (JSON), total
    data/demo_N  attributes: num_samples, model_file, ...
        actions (T, A)  rewards  dones  states (T, ...)  obs/<key>  next_obs/<key>  actions_abs  action_dict/<key>
    mask/<filter>  names of demos

The state is made of the robots' `eef_pos`, `eef_quat` (scalar last) and `gripper_qpos`, robomimic's own default;
everything else that has a row per step is in `Episode.extras`, but for `next_obs`, which is `obs` one step later.
What the actions are follows from the controller in `env_args`; where it does not say, their kind is `unknown`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.guards import COPY
from vla_agents.data.hdf5.demos import OURS, DemoReader, natural, parse_json
from vla_agents.data.hdf5.file import Hdf5File, as_text, common_length
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError

KINDS = {
    "eef_pos": ("xyz", 3, "m"),
    "eef_quat": ("quaternion_xyzw", 4, ""),
    "gripper_qpos": ("gripper_position", None, ""),
    "joint_pos": ("joint_position", None, "rad"),
    "joint_vel": ("joint_velocity", None, "rad/s"),
}
_DEFAULT = ("eef_pos", "eef_quat", "gripper_qpos")
_ROOT = ("actions", "rewards", "dones", "obs", "next_obs", OURS)


def is_robomimic(file: Hdf5File) -> bool:
    """Whether a file has that layout."""
    return any(file.has(f"data/{name}/actions") for name in file.names("data")[:8])


class RobomimicReader(DemoReader):
    """Random access to the demos of robomimic files.

    Args:
        path: A file, or a folder of files.
        mask: Only the demos of this filter key (`"train"`, `"valid"`, ...).
        state_keys: The observations that make up the state, in order.
        options: As of `DemoReader`.
    """

    format = "robomimic HDF5"

    def __init__(
        self, path: str | Path, *, mask: str | None = None, state_keys: tuple[str, ...] = (), **options: Any
    ) -> None:
        self._mask, self._given_keys = mask, tuple(state_keys)
        self._state_keys: tuple[str, ...] = ()
        super().__init__(path, **options)

    # ---- which demos --------------------------------------------------------------------------------------
    def _groups(self, file: Hdf5File) -> list[str]:
        names = sorted((n for n in file.names("data") if file.has(f"data/{n}/actions")), key=natural)
        if self._mask is not None:
            masks = file.names("mask")
            if self._mask not in masks:
                raise UnknownNameError(f"filter key of {file.path.name}", self._mask, masks)
            kept = set(_mask(file, self._mask))
            names = [name for name in names if name in kept]
        return [f"data/{name}/" for name in names]

    def _masks_of(self, file: Hdf5File, group: str) -> list[str]:
        name = group.rstrip("/").split("/")[-1]
        return [mask for mask in file.names("mask") if name in _mask(file, mask)]

    def masks_of(self, index: int) -> list[str]:
        """The filter keys to which a demo belongs."""
        with self._opened(self._checked(index)) as file:
            return self._masks_of(file, self._demos[index].group)

    # ---- what they mean -----------------------------------------------------------------------------------
    def _derive(self, file: Hdf5File, group: str) -> Embodiment:
        env = parse_json(file.attribute("env_args", "data", optional=True))
        kwargs = env.get("env_kwargs") if isinstance(env.get("env_kwargs"), dict) else {}
        rate = (kwargs or {}).get("control_freq")
        self._note_defaults(
            fps=isinstance(rate, int | float), language=self._language(file, group) is not None
        )
        names = file.names(f"{group}obs")
        cameras = []
        for name in names:
            shape = file.shape(f"{group}obs/{name}")
            if len(shape) == 4 and shape[3] == 3 and file.dtype(f"{group}obs/{name}") == np.uint8:
                cameras.append(Camera(self._camera_name(name), shape[1], shape[2]))
        state = self._state(file, group, names)
        action = self._action_parts(file, group, kwargs or {})
        robots = (kwargs or {}).get("robots") or env.get("env_name") or "robomimic"
        name = "_".join(map(str, robots)) if isinstance(robots, list) else str(robots)
        return Embodiment(name, action, state, tuple(cameras), self._rate(self._given_fps or rate))

    def _camera_name(self, key: str) -> str:
        return key.removesuffix("_image")

    def _state(self, file: Hdf5File, group: str, names: list[str]) -> tuple[Part, ...]:
        stored = file.json(OURS, optional=True)
        keys = self._given_keys
        if not keys and isinstance(stored, dict):
            keys = tuple(str(key) for key in stored.get("state_keys", ()))
        if not keys:
            robots = sorted({n.split("_")[0] for n in names if n.startswith("robot")}, key=natural)
            keys = tuple(k for robot in robots for e in _DEFAULT if (k := f"{robot}_{e}") in names)
        if not keys:
            vectors = [n for n in names if len(file.shape(f"{group}obs/{n}")) == 2 and n != "object"]
            keys = tuple(sorted(vectors, key=natural))
        missing = [key for key in keys if key not in names]
        if missing:
            raise ConfigError(f"{file.path}: no observation {missing[0]!r}", f"there are {sorted(names)}")
        self._state_keys = keys
        return tuple(self._state_part(key, file.shape(f"{group}obs/{key}")) for key in keys)

    def _state_part(self, key: str, shape: tuple[int, ...]) -> Part:
        size = shape[1] if len(shape) == 2 else 1
        kind, wanted, unit = next((v for end, v in KINDS.items() if key.endswith(end)), ("unknown", None, ""))
        if wanted not in (None, size):
            kind, unit = "unknown", ""
        if kind == "unknown":
            self.notes.append(f"state: the file does not state the convention of {key!r}")
        return Part(key, size, kind, unit=unit)

    def _action_parts(self, file: Hdf5File, group: str, kwargs: dict[str, Any]) -> tuple[Part, ...]:
        shape = file.shape(f"{group}actions")
        if len(shape) != 2 or not shape[1] or file.dtype(f"{group}actions").kind not in "biuf":
            raise DatasetError(file.path, f"'{group}actions' has shape {shape}, expected (T, A)", COPY)
        controller = _controller(kwargs)
        arms, rest = divmod(shape[1], 7)
        if rest or not arms or controller.get("type") != "OSC_POSE":
            self.notes.append("action: env_args do not state its convention")
            return (Part("action", shape[1], "unknown"),)
        delta = controller.get("control_delta", controller.get("input_type", "delta") == "delta")
        largest = controller.get("output_max")
        sizes = largest if isinstance(largest, list) and len(largest) >= 6 else [largest] * 6
        parts: list[Part] = []
        for arm in range(arms):
            before = f"arm{arm}_" if arms > 1 else ""
            for name, kind, unit, at in (("position", "xyz", "m", 0), ("rotation", "axis_angle", "rad", 3)):
                if delta:
                    unit = f"{sizes[at]:g} {unit}" if isinstance(sizes[at], int | float) else ""
                    parts.append(Part(f"{before}delta_{name}", 3, f"delta_{kind}", -1.0, 1.0, unit))
                else:
                    parts.append(Part(before + name, 3, kind, unit=unit))
            parts.append(Part(f"{before}gripper", 1, "gripper_close_pm1", -1.0, 1.0))
        return tuple(parts)

    # ---- an episode ---------------------------------------------------------------------------------------
    def _vectors(self, file: Hdf5File, group: str) -> list[str]:
        return [f"{group}actions", *(f"{group}obs/{key}" for key in self._state_keys)]

    def _length(self, file: Hdf5File, group: str) -> int:
        length = common_length(file, [f"{group}actions", *(f"{group}obs/{key}" for key in self._state_keys)])
        claimed = file.attribute("num_samples", group, optional=True)
        if claimed is not None and int(claimed) != length:
            raise DatasetError(
                file.path,
                f"{group}: num_samples is {claimed}, actions has {length} rows",
                "leave this episode out",
            )
        return length

    def _language(self, file: Hdf5File, group: str) -> str | None:
        meta = parse_json(file.attribute("ep_meta", group, optional=True))
        env = parse_json(file.attribute("env_args", "data", optional=True))
        for found in (meta.get("lang"), env.get("env_lang")):
            if isinstance(found, str) and found:
                return found
        return None

    def _judged(self, file: Hdf5File, group: str) -> bool | None:
        """A sparse reward of 1 says so; a shaped one says nothing."""
        env = parse_json(file.attribute("env_args", "data", optional=True))
        kwargs = env.get("env_kwargs") if isinstance(env.get("env_kwargs"), dict) else {}
        if (kwargs or {}).get("reward_shaping") or not file.has(f"{group}rewards"):
            return None
        return bool((np.asarray(file.values(f"{group}rewards")) >= 1).any())

    def _numbers(self, file: Hdf5File, group: str, length: int, *, wide: bool) -> dict[str, Any]:
        state = [file.numbers(f"{group}obs/{key}", length) for key in self._state_keys]
        reward, done = np.zeros(length, np.float32), np.zeros(length, bool)
        if file.has(f"{group}rewards"):
            reward = file.numbers(f"{group}rewards", length, 1)[:, 0]
        if file.has(f"{group}dones"):
            done = file.numbers(f"{group}dones", length, 1)[:, 0] > 0
        metadata = {
            "attributes": file.attributes(group.rstrip("/")),
            "dataset_attributes": file.attributes("data"),
            "masks": self._masks_of(file, group),
        }
        return {
            "action": file.numbers(f"{group}actions", length, self._body.action_dim),
            "state": np.concatenate(state, axis=1) if state else None,
            "reward": reward,
            "terminated": done,
            "metadata": metadata,
            "extras": self._extras(file, group, length, wide),
        }

    def _extras(self, file: Hdf5File, group: str, length: int, wide: bool) -> dict[str, np.ndarray]:
        """Everything else with a row per step: `states`, `obs.object`, `action_dict.rel_pos`, ..."""
        cameras = {self._camera(file, group, c.name) for c in self._body.cameras}
        names = [name for name in file.names(group.rstrip("/")) if name not in _ROOT]
        names += [f"obs/{name}" for name in file.names(f"{group}obs") if name not in self._state_keys]
        found = {}
        for name in names:
            inner = file.names(group + name) if file.is_group(group + name) else [""]
            for key in (f"{name}/{part}" if part else name for part in inner):
                if group + key in cameras or file.is_group(group + key):
                    continue
                shape = file.shape(group + key)
                if (
                    shape[:1] == (length,)
                    and file.dtype(group + key).kind in "biuf"
                    and (wide or len(shape) < 3)
                ):
                    found[key.replace("/", ".")] = file.values(group + key)
        return found

    def _camera(self, file: Hdf5File, group: str, camera: str) -> str:
        name = f"{group}obs/{camera}_image"
        return name if file.has(name) else f"{group}obs/{camera}"


def _mask(file: Hdf5File, mask: str) -> list[str]:
    return [as_text(name) for name in np.asarray(file.values(f"mask/{mask}"), dtype=object).reshape(-1)]


def _controller(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arm's controller, as robosuite 1.4 (one) or 1.5 (one per body part) write it."""
    found = kwargs.get("controller_configs")
    while isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, dict):
        return {}
    parts = found.get("body_parts")
    if isinstance(parts, dict):
        arms = [v for v in parts.values() if isinstance(v, dict) and v.get("type") == "OSC_POSE"]
        return arms[0] if arms else {}
    return found
