"""From an embodiment to the features of a LeRobot dataset."""

from __future__ import annotations

from typing import Any

from vla_agents.data.episode import CAMERA_TIME
from vla_agents.data.lerobot.layout import (
    ACTION,
    COMMANDED,
    EXECUTED,
    IMAGES,
    ONE_PIECE,
    SCALARS,
    STATE,
)
from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError


def make_features(
    embodiment: Embodiment, video_info: dict[str, dict[str, Any]], *, camera_times: bool = False
) -> dict[str, dict[str, Any]]:
    """The `features` of info.json; `video_info` is camera name -> LeRobot's `info` entry."""
    features: dict[str, dict[str, Any]] = {}
    for camera in embodiment.cameras:
        if not ONE_PIECE.fullmatch(camera.name):
            raise ConfigError(
                f"camera {camera.name!r} cannot be part of a file name",
                "no '/' and no control characters, and no '.' at the beginning",
            )
        features[IMAGES + camera.name] = {
            "dtype": "video",
            "shape": [camera.height, camera.width, 3],
            "names": ["height", "width", "channels"],
            "info": video_info[camera.name],
        }
    if embodiment.state:
        features[STATE] = _vector(embodiment.state)
    features[ACTION] = _vector(embodiment.action)
    features[EXECUTED] = _vector(embodiment.action)
    features[COMMANDED] = _vector(embodiment.action)
    for name, dtype in SCALARS.items():
        features[name] = {"dtype": dtype, "shape": [1], "names": None}
    for camera in embodiment.cameras if camera_times else ():
        features[CAMERA_TIME + camera.name] = {"dtype": "float64", "shape": [1], "names": None}
    return features


def _vector(parts: tuple[Part, ...]) -> dict[str, Any]:
    names = [p.name if p.size == 1 else f"{p.name}.{k}" for p in parts for k in range(p.size)]
    return {"dtype": "float32", "shape": [len(names)], "names": names}
