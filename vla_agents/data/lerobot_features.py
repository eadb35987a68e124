"""From an embodiment to the features of a LeRobot dataset, and back."""

from __future__ import annotations

from typing import Any

from vla_agents.data.lerobot import (
    ACTION,
    COMMANDED,
    EMBODIMENT,
    EXECUTED,
    IMAGES,
    INFO,
    SAFE_NAME,
    SCALARS,
    STATE,
    Info,
    image_shape,
)
from vla_agents.embodiment import Camera, Embodiment, Part
from vla_agents.errors import ConfigError, DatasetError, EmbodimentError


def make_features(embodiment: Embodiment, video_info: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The `features` of info.json; `video_info` is camera name -> LeRobot's `info` entry."""
    features: dict[str, dict[str, Any]] = {}
    for camera in embodiment.cameras:
        if not SAFE_NAME.fullmatch(camera.name):
            raise ConfigError(
                f"camera {camera.name!r} cannot be part of a file name",
                "use letters, digits, '_', '-' and '.'",
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
    return features


def _vector(parts: tuple[Part, ...]) -> dict[str, Any]:
    names = [p.name if p.size == 1 else f"{p.name}.{k}" for p in parts for k in range(p.size)]
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def derive_embodiment(info: Info) -> Embodiment:
    """What can be known of a dataset that carries no embodiment: sizes and names, but no conventions."""
    cameras = []
    for name, key in info.cameras.items():
        height, width, _ = image_shape(info.features[key])
        cameras.append(Camera(name, height, width))
    state = _derive_parts(info, STATE, "state") if STATE in info.features else ()
    if ACTION not in info.features:
        raise DatasetError(info.path / INFO, "has no feature 'action'", f"it has {sorted(info.features)}")
    return Embodiment(
        name=str(info.raw.get("robot_type") or "unknown"),
        action=_derive_parts(info, ACTION, "action"),
        state=state,
        cameras=tuple(cameras),
        control_hz=float(info.fps),
    )


def _derive_parts(info: Info, key: str, name: str) -> tuple[Part, ...]:
    feature = info.features[key]
    if len(feature["shape"]) != 1:
        raise DatasetError(
            info.path / INFO,
            f"feature {key!r} has shape {feature['shape']}, expected one dimension",
            "flatten it",
        )
    size, names = feature["shape"][0], feature.get("names")
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    if isinstance(names, list) and len(names) == size and len({str(n) for n in names}) == size:
        return tuple(Part(str(n), 1, "other") for n in names)
    return (Part(name, size, "other"),)


def load_embodiment(info: Info) -> Embodiment:
    """The dataset's embodiment: stored where we wrote it, else derived; checked against the features."""
    file = info.path / EMBODIMENT
    if not file.exists():
        return derive_embodiment(info)
    try:
        found = Embodiment.load(file)
    except EmbodimentError as error:
        raise DatasetError(file, str(error.problem), "copy the dataset again") from error
    plain = derive_embodiment(info)
    for what, ours, theirs in (
        ("action values", found.action_dim, plain.action_dim),
        ("state values", found.state_dim, plain.state_dim),
        (
            "cameras",
            sorted((c.name, c.height, c.width) for c in found.cameras),
            sorted((c.name, c.height, c.width) for c in plain.cameras),
        ),
    ):
        if ours != theirs:
            raise DatasetError(
                file, f"{what}: {ours} here, {theirs} in {INFO}", "one of the two files is of another dataset"
            )
    return found
