"""Reads LIBERO's demonstrations: `<task>_demo.hdf5`, in robomimic's layout with names of its own.

Instruction: `problem_info` of the file. Pictures lie bottom row first where `macros_image_convention` is `opengl`
(always, in the published files) and are turned upright by swapping rows, which is what `vla_agents/Libero-v0` shows;
turning by 180 degrees, as OpenVLA does, would mirror them. The embodiment is that env's own: the demonstrations fit
it without any transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_agents.data.hdf5.demos import parse_json
from vla_agents.data.hdf5.file import Hdf5File
from vla_agents.data.hdf5.robomimic import RobomimicReader, is_robomimic
from vla_agents.embodiment import Camera, Embodiment

CAMERAS = {"agentview_rgb": "agentview", "eye_in_hand_rgb": "wrist"}
STATE = ("ee_pos", "ee_ori", "gripper_states")
FPS = 20.0
LIBERO_MARKS = ("problem_info", "bddl_file_name")  # attributes of `data` that robomimic's own files lack


def is_libero(file: Hdf5File) -> bool:
    """Whether a file has that layout."""
    named = file.has("data") and any(
        file.attribute(m, "data", optional=True) is not None for m in LIBERO_MARKS
    )
    return named and is_robomimic(file)


class LiberoReader(RobomimicReader):
    """Random access to LIBERO demonstrations; arguments as of `RobomimicReader`."""

    format = "LIBERO HDF5"
    default_fps = FPS

    def _derive(self, file: Hdf5File, group: str) -> Embodiment:
        notes = list(self.notes)
        found = super()._derive(file, group)
        cameras = tuple(Camera(c.name, c.height, c.width) for c in sorted(found.cameras, key=_order))
        shapes = tuple(part.size for part in found.state), found.action_dim
        if self._state_keys == STATE and shapes == ((3, 3, 2), 7):
            from vla_agents.envs.libero.env import libero_embodiment

            self.notes = notes
            self._note_defaults(fps=True, language=self._language(file, group) is not None)
            body = libero_embodiment()
            return Embodiment(body.name, body.action, body.state, cameras, self._given_fps or FPS)
        return Embodiment(found.name, found.action, found.state, cameras, self._given_fps or FPS)

    def _camera_name(self, key: str) -> str:
        return CAMERAS.get(key, key.removesuffix("_rgb"))

    def _camera(self, file: Hdf5File, group: str, camera: str) -> str:
        key = next((key for key, name in CAMERAS.items() if name == camera), f"{camera}_rgb")
        return f"{group}obs/{key}"

    def _state(self, file: Hdf5File, group: str, names: list[str]) -> Any:
        if not self._given_keys and set(STATE) <= set(names):
            self._given_keys = STATE
        return super()._state(file, group, names)

    def _language(self, file: Hdf5File, group: str) -> str | None:
        info = parse_json(file.attribute("problem_info", "data", optional=True))
        found = info.get("language_instruction")
        while isinstance(found, list) and found:
            found = found[0]
        return found.strip('"') if isinstance(found, str) else None

    def _judged(self, file: Hdf5File, group: str) -> bool | None:
        if not file.has(f"{group}rewards"):
            return None
        return bool((np.asarray(file.values(f"{group}rewards")) >= 1).any())

    def _turned(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for image in frames:
            yield np.ascontiguousarray(image[::-1]) if self._upside_down else image

    def _describe(self, file: Hdf5File, group: str) -> Embodiment:
        convention = file.attribute("macros_image_convention", "data", optional=True)
        self._upside_down = convention != "opencv"
        if convention not in ("opengl", "opencv"):
            self.notes.append("macros_image_convention is missing: taken as 'opengl' (bottom row first)")
        return super()._describe(file, group)


def _order(camera: Camera) -> tuple[int, str]:
    names = list(CAMERAS.values())
    return (names.index(camera.name) if camera.name in names else len(names)), camera.name
