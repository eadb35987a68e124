"""What others call our cameras, state and instruction, in messages of other protocols.

Keys are compared by path: `observation/image`, `{"observation": {"image": ...}}` and `observation.image` are the same.
Where nothing is said, a camera is the picture whose last name is the camera's (`images/front`, `observation/front_image`),
or the only one left, or, of two left, the one with "wrist" in its name for the camera with "wrist" in its; the state is
`state`, or its parts by their names. Everything else is refused, with the names there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ObservationError
from vla_agents.observations import Observation
from vla_agents.serving.messages import as_vector, read_observation

INSTRUCTIONS = ("prompt", "instruction", "task_description", "lang", "language_instruction", "task")
_REMEDY = "say what is what: --keys NAME=PATH ..., e.g. front=observation/image state=observation/state"


@dataclass(frozen=True)
class Keys:
    """Our names and theirs.

    Args:
        names: A camera's name, a part of the state, `"state"` or `"instruction"` -> path in their messages.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    def observation(self, message: Mapping[str, Any], body: Embodiment) -> Observation:
        """Our observation for theirs.

        Raises:
            ObservationError: Something is missing, or does not fit the body.
        """
        leaves = _leaves(message)
        found: dict[str, Any] = {
            "images": self._images(leaves, body),
            "instruction": self._instruction(leaves),
        }
        if body.state:
            found["state"] = self._state(leaves, body)
        return read_observation(found, body)

    def path(self, name: str, default: str) -> str:
        """Their path of something of ours, for a client of theirs."""
        return self.names.get(name, default)

    def _images(self, leaves: dict[str, Any], body: Embodiment) -> dict[str, np.ndarray]:
        pictures = {path: value for path, value in leaves.items() if _is_picture(value)}
        left = dict(pictures)
        found: dict[str, np.ndarray] = {}
        for camera in body.camera_names:
            path = self._named(camera, left)
            if path is not None:
                found[camera] = _upright(left.pop(path))
        missing = [camera for camera in body.camera_names if camera not in found]
        if missing and len(missing) == len(left):
            for camera in list(missing):
                same = [p for p in left if ("wrist" in p) == ("wrist" in camera)]
                if len(same) == 1:
                    found[camera] = _upright(left.pop(same[0]))
                    missing.remove(camera)
        if missing:
            raise ObservationError(f"no picture for {missing}; the message has {sorted(pictures)}", _REMEDY)
        return {camera: found[camera] for camera in body.camera_names}

    def _named(self, camera: str, pictures: Mapping[str, Any]) -> str | None:
        if camera in self.names:
            path = _path(self.names[camera])
            return path if path in pictures else None
        ends = (camera, f"{camera}_image", f"{camera}_rgb")
        named = [path for path in pictures if path.rsplit("/", 1)[-1] in ends]
        return named[0] if len(named) == 1 else None

    def _state(self, leaves: dict[str, Any], body: Embodiment) -> np.ndarray:
        vectors = {p: v for p, v in leaves.items() if not isinstance(v, str) and not _is_picture(v)}
        path = _path(self.names["state"]) if "state" in self.names else _ending(vectors, ("state", "states"))
        if path in vectors:
            return _last_row(vectors[path], body.state_dim, path)
        parts = [self._part(part, vectors) for part in body.state]
        return np.concatenate(parts)

    def _part(self, part: Part, vectors: dict[str, Any]) -> np.ndarray:
        path = _path(self.names[part.name]) if part.name in self.names else _ending(vectors, (part.name,))
        if path not in vectors:
            raise ObservationError(
                f"no state, nor its part {part.name!r}; the message has {sorted(vectors)}", _REMEDY
            )
        return _last_row(vectors[path], part.size, path)

    def _instruction(self, leaves: dict[str, Any]) -> Any:
        if "instruction" in self.names:
            return leaves.get(_path(self.names["instruction"]))
        texts = {path: value for path, value in leaves.items() if isinstance(value, str)}
        path = _ending(texts, INSTRUCTIONS)
        if path is None and len(texts) == 1:
            (path,) = texts
        return texts.get(path or "")


def _leaves(message: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Path -> value of everything that is no map; lists of one text are that text."""
    found: dict[str, Any] = {}
    for key, value in message.items():
        path = before + _path(str(key))
        if isinstance(value, Mapping):
            found.update(_leaves(value, f"{path}/"))
            continue
        while isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
            value = value[0]
        found[path] = value
    return found


def _path(key: str) -> str:
    return key.replace(".", "/")


def _ending(found: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The path that ends in one of these names, of which the first is looked for first."""
    for name in names:
        fits = [path for path in found if path.rsplit("/", 1)[-1] == name]
        if len(fits) == 1:
            return fits[0]
    return None


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 3


def _upright(value: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) or (..., 3, H, W) -> (H, W, 3); of several, the last."""
    while value.ndim > 3 and len(value):
        value = value[-1]
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] != 3:
        value = np.moveaxis(value, 0, 2)
    return np.ascontiguousarray(value)


def _last_row(value: Any, size: int, path: str) -> np.ndarray:
    """(..., size) or a number -> (size,); of several, the last."""
    vector = as_vector(value, path)
    if vector.ndim == 0:
        vector = vector[None]
    if vector.shape[-1] != size or not vector.size:
        raise ObservationError(f"{path} has shape {vector.shape}, expected {size} values", _REMEDY)
    return vector.reshape(-1, size)[-1]
