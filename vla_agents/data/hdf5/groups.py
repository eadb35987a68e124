"""Reads one HDF5 file of groups `episode_N`, a layout that many collecting scripts write.

    episode_0/  images (T, H, W, 3) uint8, or a group of cameras   actions (T, D)   robot_state (T, S)
                instruction (text)   success (optional)

The file says neither the rate nor what the numbers mean: parts are of kind `unknown`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_agents.data.guards import COPY
from vla_agents.data.hdf5.demos import OURS, DemoReader, natural
from vla_agents.data.hdf5.file import Hdf5File, common_length
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import DatasetError

CAMERA = "image"  # the name of a single one
_KNOWN = ("images", "actions", "robot_state", "instruction", "success", OURS)


def is_groups(file: Hdf5File) -> bool:
    """Whether a file has that layout."""
    return any(name.startswith("episode_") and file.has(f"{name}/actions") for name in file.names())


class EpisodeGroupsReader(DemoReader):
    """Random access to the groups `episode_N` of an HDF5 file. Arguments as of `DemoReader`."""

    format = "HDF5 with groups episode_N"

    def _groups(self, file: Hdf5File) -> list[str]:
        return [f"{name}/" for name in sorted(file.names(), key=natural) if name.startswith("episode_")]

    def _derive(self, file: Hdf5File, group: str) -> Embodiment:
        self._note_defaults(fps=False, language=file.has(f"{group}instruction"))
        cameras = []
        for name in file.names(f"{group}images") if file.is_group(f"{group}images") else [CAMERA]:
            dataset = self._camera(file, group, name)
            if file.has(dataset):
                shape = file.shape(dataset)
                if len(shape) != 4 or shape[3] != 3 or file.dtype(dataset) != np.uint8:
                    raise DatasetError(
                        file.path,
                        f"{dataset!r} is {file.dtype(dataset)} {shape}, expected uint8 (T, H, W, 3)",
                        COPY,
                    )
                cameras.append(Camera(name, shape[1], shape[2]))
        state = self._part(file, f"{group}robot_state", "state") if file.has(f"{group}robot_state") else ()
        action = self._part(file, f"{group}actions", "action")
        return Embodiment("unknown", action, state, tuple(cameras), self._rate(self._given_fps))

    def _part(self, file: Hdf5File, name: str, what: str) -> tuple[Part, ...]:
        shape = file.shape(name)
        if len(shape) not in (1, 2) or file.dtype(name).kind not in "biuf":
            raise DatasetError(
                file.path, f"{name!r} is {file.dtype(name)} {shape}, expected numbers (T, D)", COPY
            )
        self.notes.append(f"{what}: the file does not state its convention")
        return (Part(what, shape[1] if len(shape) == 2 else 1, "unknown"),)

    def _vectors(self, file: Hdf5File, group: str) -> list[str]:
        return [f"{group}actions", f"{group}robot_state"]

    def _length(self, file: Hdf5File, group: str) -> int:
        names = ["actions", *(n for n in ("robot_state",) if file.has(group + n))]
        return common_length(file, [group + name for name in names])

    def _language(self, file: Hdf5File, group: str) -> str | None:
        if file.has(f"{group}instruction"):
            return file.text(f"{group}instruction")
        found = file.attribute("instruction", group or "/", optional=True)
        return found if isinstance(found, str) else None

    def _judged(self, file: Hdf5File, group: str) -> bool | None:
        if file.has(f"{group}success"):
            return bool(np.asarray(file.values(f"{group}success")).any())
        found = file.attribute("success", group or "/", optional=True)
        return None if found is None else bool(found)

    def _numbers(self, file: Hdf5File, group: str, length: int, *, wide: bool) -> dict[str, Any]:
        body = self._body
        extras = {}
        for name in file.names(group.rstrip("/")):
            if name not in _KNOWN and not file.is_group(group + name):
                shape = file.shape(group + name)
                numbers = file.dtype(group + name).kind in "biuf"
                if shape[:1] == (length,) and numbers and (wide or len(shape) < 3):
                    extras[name] = file.values(group + name)
        return {
            "action": file.numbers(f"{group}actions", length, body.action_dim),
            "state": file.numbers(f"{group}robot_state", length, body.state_dim) if body.state else None,
            "reward": np.zeros(length, np.float32),
            "terminated": np.zeros(length, bool),
            "metadata": {"attributes": file.attributes(group.rstrip("/"))},
            "extras": extras,
        }

    def _camera(self, file: Hdf5File, group: str, camera: str) -> str:
        return f"{group}images/{camera}" if file.is_group(f"{group}images") else f"{group}images"
