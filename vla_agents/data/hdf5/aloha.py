"""Reads the HDF5 files of ALOHA and ACT: `episode_N.hdf5`, one episode each.

    observations/qpos (T, 14)  qvel  effort  images/<camera> (T, H, W, 3), or (T, bytes) JPEG padded with zeros
    action (T, 14)  base_action (T, 2)  compress_len (cameras, T)        attributes: sim, compress

The files say neither instruction nor rate (50 Hz is usual), nor whether pictures are RGB or BGR: as the cameras'
driver handed them over, which for ROS is BGR. `action` is what lies in the row; ACT's own loader starts real
recordings one step earlier. Joints are radians; grippers 0 closed, 1 open.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.guards import COPY
from vla_agents.data.hdf5.demos import DemoReader
from vla_agents.data.hdf5.file import Hdf5File, common_length
from vla_agents.data.lerobot.images import decode_picture
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import DatasetError, UnknownNameError

QPOS = "observations/qpos"
IMAGES = "observations/images"
EXTRAS = {"observations/qvel": "observation.velocity", "observations/effort": "observation.effort"}
BASE = "base_action"
COLOURS = ("rgb", "bgr")
_MOST_PIXELS = 1 << 26
_ARMS = (
    Part("left_arm", 6, "joint_position", unit="rad"),
    Part("left_gripper", 1, "gripper_open_01"),
    Part("right_arm", 6, "joint_position", unit="rad"),
    Part("right_gripper", 1, "gripper_open_01"),
)


def is_aloha(file: Hdf5File) -> bool:
    """Whether a file has that layout."""
    return file.has(QPOS) and file.has("action")


class AlohaReader(DemoReader):
    """Random access to episodes of ALOHA or ACT.

    Args:
        path: The folder of `episode_N.hdf5` files, or one such file.
        colour: In which order the driver handed over the colours: `"rgb"` or `"bgr"`.
        options: As of `DemoReader`.
    """

    format = "ALOHA HDF5"
    default_fps = 50.0
    one_per_file = True

    def __init__(self, path: str | Path, *, colour: str | None = None, **options: Any) -> None:
        if colour not in (None, *COLOURS):
            raise UnknownNameError("colour", colour, COLOURS)
        self._colour = colour
        super().__init__(path, **options)

    def _groups(self, file: Hdf5File) -> list[str]:
        return [""]

    def _derive(self, file: Hdf5File, group: str) -> Embodiment:
        self._note_defaults(fps=False, language=self._language(file, group) is not None)
        cameras = tuple(Camera(name, *self._size_of(file, f"{IMAGES}/{name}")) for name in file.names(IMAGES))
        if cameras and self._colour is None:
            self.notes.append('the files do not state the order of colours: RGB assumed (colour="bgr")')
        state, action = (_parts(file, name) for name in (QPOS, "action"))
        if file.has(BASE):
            size = file.shape(BASE)[-1]
            action = (*action, Part("base", size, "other" if size == 2 else "unknown", unit="m/s, rad/s"))
        return Embodiment("aloha", action, state, cameras, self._rate(self._given_fps))

    def _vectors(self, file: Hdf5File, group: str) -> list[str]:
        return ["action", QPOS, BASE]

    def _length(self, file: Hdf5File, group: str) -> int:
        return common_length(file, ["action", QPOS])

    def _language(self, file: Hdf5File, group: str) -> str | None:
        for name in ("instruction", "language_instruction", "task"):
            value = file.attribute(name, optional=True)
            if isinstance(value, str):
                return value
        return None

    def _numbers(self, file: Hdf5File, group: str, length: int, *, wide: bool) -> dict[str, Any]:
        arms = self._body.action_dim - (self._body.action[-1].size if file.has(BASE) else 0)
        action = [file.numbers("action", length, arms)]
        if file.has(BASE):
            action.append(file.numbers(BASE, length, self._body.action[-1].size))
        extras = {new: file.numbers(old, length) for old, new in EXTRAS.items() if file.has(old)}
        return {
            "action": np.concatenate(action, axis=1),
            "state": file.numbers(QPOS, length, self._body.state_dim),
            "reward": np.zeros(length, np.float32),
            "terminated": np.zeros(length, bool),
            "metadata": {"attributes": file.attributes()},
            "extras": extras,
        }

    def _camera(self, file: Hdf5File, group: str, camera: str) -> str:
        return f"{IMAGES}/{camera}"

    def _pictures(
        self, file: Hdf5File, group: str, camera: str, length: int, steps: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        name = f"{IMAGES}/{camera}"
        if len(file.shape(name)) != 2:
            yield from super()._pictures(file, group, camera, length, steps)
            return
        found = next(c for c in self._body.cameras if c.name == camera)
        if file.shape(name)[0] != length or file.dtype(name) != np.uint8:
            raise DatasetError(
                file.path, f"{name!r} is {file.dtype(name)} {file.shape(name)}, expected uint8 rows", COPY
            )
        for step in range(length) if steps is None else np.asarray(steps).tolist():
            content = file.values(name, step).tobytes()
            try:
                # OpenCV compressed the array as if it were BGR, and gives it back in the same order.
                yield decode_picture(content, (found.height, found.width))[..., ::-1]
            except (ValueError, OSError) as error:
                raise DatasetError(
                    file.path, f"{name!r}, frame {step}: not a picture ({error})", COPY
                ) from error

    def _turned(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for image in frames:
            yield (
                np.ascontiguousarray(image[..., ::-1])
                if self._colour == "bgr"
                else np.ascontiguousarray(image)
            )

    def _size_of(self, file: Hdf5File, name: str) -> tuple[int, int]:
        """`(height, width)`, of JPEG from the first one's header."""
        shape = file.shape(name)
        if len(shape) == 4 and shape[3] == 3 and file.dtype(name) == np.uint8:
            return shape[1], shape[2]
        if len(shape) != 2 or file.dtype(name) != np.uint8 or not shape[0]:
            raise DatasetError(file.path, f"{name!r} is {file.dtype(name)} {shape}, expected pictures", COPY)
        from PIL import Image

        try:
            with Image.open(io.BytesIO(file.values(name, 0).tobytes()), formats=("JPEG", "PNG")) as image:
                width, height = image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(file.path, f"{name!r}, frame 0: not a picture ({error})", COPY) from error
        if width * height > _MOST_PIXELS:
            raise DatasetError(
                file.path, f"{name!r}: pictures of {width}x{height}", "no camera has that many pixels"
            )
        return height, width


def _parts(file: Hdf5File, name: str) -> tuple[Part, ...]:
    shape = file.shape(name)
    if len(shape) != 2 or not shape[1] or file.dtype(name).kind not in "biuf":
        raise DatasetError(
            file.path, f"{name!r} is {file.dtype(name)} {shape}, expected numbers (T, D)", COPY
        )
    return _ARMS if shape[1] == 14 else (Part(name.split("/")[-1], shape[1], "unknown"),)
