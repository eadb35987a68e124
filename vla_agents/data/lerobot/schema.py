"""What columns a LeRobot dataset gets that is made from another dataset, and their content for each episode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vla_agents.data.base import require_finite
from vla_agents.data.convert.targets import LOSSLESS, TargetOptions, origin, root_of, times_at, whole_numbers
from vla_agents.data.episode import Episode, EpisodeReader
from vla_agents.data.guards import require_inside
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.arrow import to_arrow
from vla_agents.data.lerobot.embodiment import MODALITY
from vla_agents.data.lerobot.features import make_features
from vla_agents.data.lerobot.reader import LeRobotReader
from vla_agents.data.lerobot.tables import episode_table
from vla_agents.data.recording.recorder import json_text
from vla_agents.data.video.encode import VideoSettings
from vla_agents.errors import DatasetError

_COUNTED = ("frame_index", "episode_index", "index", "task_index")


@dataclass
class Schema:
    """The columns of the new dataset.

    Args:
        features: As in info.json.
        cameras: Feature -> camera name of the sources; `""` for depth, which is only ever copied.
        settings: Video feature -> how it is encoded, where it is.
        fps: Nominal rate.
        robot_type: LeRobot's field.
        passing: Columns are taken over as they are, from LeRobot.
        encodes: Pictures are encoded even where the source's could be copied.
        stores_embodiment: Whether meta/embodiment.json is written.
        copied_files: Files of meta/ to copy.
        extras: Extra of an episode -> its feature.
        info: Fields of info.json to take over.
    """

    features: dict[str, dict[str, Any]]
    cameras: dict[str, str]
    settings: dict[str, VideoSettings]
    fps: int
    robot_type: str | None
    passing: bool
    encodes: bool
    stores_embodiment: bool
    copied_files: list[Path] = field(default_factory=list)
    extras: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def videos(self) -> list[str]:
        """The features that lie in videos/."""
        return [key for key in self.cameras if self.features[key]["dtype"] == "video"]


@dataclass
class Rows:
    """One episode, ready to be written.

    Args:
        columns: Feature -> content, without cameras and indices.
        numbers: The same as numpy, of those that hold numbers.
        tasks: The instruction of each step.
        ours: Columns of meta/episodes that LeRobot does not know.
    """

    columns: dict[str, pa.Array]
    numbers: dict[str, np.ndarray]
    tasks: Sequence[str]
    ours: dict[str, Any]

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.tasks)


def schema_of(sources: Sequence[EpisodeReader], options: TargetOptions, fps: int, version: str) -> Schema:
    """What the dataset made of these sources looks like."""
    roots = [root_of(source) for source in sources]
    first = roots[0]
    if passes(roots) and isinstance(first, LeRobotReader):
        return _passing_schema(first, options, fps)
    body = sources[0].embodiment
    settings = {lerobot.IMAGES + c.name: settings_of(options, c.height, c.width, fps) for c in body.cameras}
    info = {c.name: settings[lerobot.IMAGES + c.name].info() for c in body.cameras}
    features = make_features(body, info)
    for key in settings if options.video_quality == LOSSLESS else ():
        features[key] = _as_image(features[key])
    extras = {}
    for name, values in _extras_of(sources).items():
        key = name.replace("/", ".")
        if key not in features and values.ndim <= 6:
            extras[name] = key
            features[key] = {
                "dtype": "string" if values.dtype.kind == "U" else str(values.dtype),
                "shape": list(values.shape[1:]) or [1],
                "names": None,
            }
    return Schema(
        features=features,
        cameras={lerobot.IMAGES + c.name: c.name for c in body.cameras},
        settings=settings,
        fps=fps,
        robot_type=options.robot_type or body.name,
        passing=False,
        encodes=options.video_quality is not None,
        stores_embodiment=True,
        extras=extras,
    )


def passes(roots: Sequence[EpisodeReader]) -> bool:
    """Whether all are LeRobot datasets with the same columns, whose embodiment shows all there is."""
    first = roots[0]
    if not isinstance(first, LeRobotReader):
        return False
    for root in roots:
        if not isinstance(root, LeRobotReader) or _columns(root) != _columns(first):
            return False
        shown = root.embodiment
        if set(shown.camera_names) != set(root.cameras) or bool(shown.state) != bool(root.info.state_keys):
            return False
    return True


def _columns(reader: LeRobotReader) -> dict[str, Any]:
    return {key: (f["dtype"], tuple(f["shape"])) for key, f in reader.info.features.items()}


def _passing_schema(source: LeRobotReader, options: TargetOptions, fps: int) -> Schema:
    info = source.info
    features = {key: dict(feature) for key, feature in info.features.items()}
    names = {key: name for name, key in source.cameras.items()}
    cameras = {key: names.get(key, "") for key, f in features.items() if f["dtype"] in ("video", "image")}
    settings = {}
    for key, name in cameras.items():
        if not name:
            continue
        height, width, _ = lerobot.image_shape(features[key])
        settings[key] = settings_of(options, height, width, fps)
        if options.video_quality == LOSSLESS:
            features[key] = _as_image(features[key])
        elif options.video_quality is not None:
            features[key] = features[key] | {"dtype": "video", "info": settings[key].info()}
        elif isinstance(features[key].get("info"), dict) and "video.fps" in features[key]["info"]:
            features[key]["info"] = features[key]["info"] | {"video.fps": fps}
    beside = [info.path / name for name in (MODALITY,) if (info.path / name).exists()]
    stored = (info.path / lerobot.EMBODIMENT).exists() or source.overridden
    return Schema(
        features=features,
        cameras=cameras,
        settings=settings,
        fps=fps,
        robot_type=options.robot_type or info.raw.get("robot_type"),
        passing=True,
        encodes=options.video_quality is not None,
        stores_embodiment=stored,
        copied_files=[require_inside(info.path, file) for file in beside],
    )


def settings_of(options: TargetOptions, height: int, width: int, fps: int) -> VideoSettings:
    """How a camera is encoded."""
    crf = options.video_quality if isinstance(options.video_quality, int) else None
    return VideoSettings(height, width, fps, codec=options.codec, crf=crf)


def _as_image(feature: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in feature.items() if key != "info"} | {"dtype": "image"}


def _extras_of(sources: Sequence[EpisodeReader]) -> dict[str, np.ndarray]:
    """The extras of the first episode that can be read."""
    for source in sources:
        for k in range(len(source)):
            try:
                return whole_numbers(*origin(source, k)).extras
            except DatasetError:
                continue
    return {}


# ---- content ----------------------------------------------------------------------------------------------
def passing_columns(reader: LeRobotReader, index: int, schema: Schema) -> Rows:
    """An episode of LeRobot: columns as they are."""
    kept = [key for key in schema.features if key not in schema.cameras and key not in _COUNTED]
    table = episode_table(reader.index, index, kept)
    columns = {key: _stored(reader, key, table) for key in kept}
    rows = dict(reader.rows(index))  # checks types and sizes
    if reader.fps != schema.fps:
        rows["timestamp"] = _timestamps(table.num_rows, schema.fps)
        if "capture_time" in rows:
            rows["capture_time"] = times_at(rows["capture_time"], reader.fps, schema.fps)
        for key in {"timestamp", "capture_time"} & set(rows):
            dtype = reader.info.numeric_dtype(key)
            columns[key] = to_arrow(rows[key].astype(dtype, copy=False).reshape(-1, 1))
    for key in (*reader.info.state_keys, *reader.info.action_keys):
        require_finite(reader.path, rows[key], key, index)
    numbers = {key: values for key, values in rows.items() if key not in _COUNTED}
    ours = {name: reader.index.columns[name][index] for name in _ours(reader)}
    return Rows(columns, numbers, reader.tasks(index), ours)


def _stored(reader: LeRobotReader, key: str, table: pa.Table) -> pa.Array:
    """A column as it is; numbers as LeRobot stores those of the feature's type and shape."""
    column = table.column(key).combine_chunks()
    dtype = reader.info.numeric_dtype(key)
    if dtype is None:
        return column
    while not (pa.types.is_primitive(column.type)):
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    return to_arrow(values.reshape(table.num_rows, *reader.info.features[key]["shape"]))


def _ours(reader: LeRobotReader) -> list[str]:
    return [name for name in reader.index.columns if name.startswith("vla_agents/")]


def episode_columns(source: EpisodeReader, index: int, schema: Schema) -> Rows:
    """An episode of any format."""
    episode = whole_numbers(source, index, schema.fps)
    numbers = _numbers(episode, schema.fps)
    if not episode.embodiment.state:
        numbers.pop(lerobot.STATE, None)
    beside: dict[str, np.ndarray] = {}
    for name, key in schema.extras.items():
        shape = tuple(schema.features[key]["shape"])
        values = episode.extras.get(name)
        if values is None or (values.shape[1:] or (1,)) != shape:
            found = "missing" if values is None else f"of shape {values.shape[1:]}"
            raise DatasetError(source.path, f"episode {index}: {name!r} is {found}, elsewhere {shape}")
        dtype = schema.features[key]["dtype"]
        beside[key] = values if dtype == "string" else values.astype(dtype, copy=False)
    columns = {key: to_arrow(values) for key, values in (numbers | beside).items()}
    numbers |= {key: values for key, values in beside.items() if values.dtype.kind != "U"}
    tasks = episode.tasks or [episode.instruction] * len(episode)
    ours = {
        lerobot.SUCCESS: episode.success,
        lerobot.METADATA: json_text(held_metadata(episode.metadata)),
        lerobot.HAS_EXECUTED: episode.executed is not None,
        lerobot.HAS_COMMANDED: episode.commanded is not None,
        lerobot.LABEL: episode.label,
    }
    return Rows(columns, numbers, tasks, ours)


MOST_METADATA = 1 << 14  # bytes of one entry: the index of a dataset is read as a whole


def held_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without entries so large that the index of the dataset would be slow to read (models in XML, ...)."""
    found = {}
    for key, value in metadata.items():
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if len(json.dumps(v, default=str)) <= MOST_METADATA}
        if len(json.dumps(value, default=str)) <= 4 * MOST_METADATA:
            found[key] = value
    return found


def _numbers(episode: Episode, fps: int) -> dict[str, np.ndarray]:
    length, last = len(episode), np.arange(len(episode)) == len(episode) - 1
    numbers: dict[str, np.ndarray] = {} if episode.state is None else {lerobot.STATE: episode.state}
    return numbers | {
        lerobot.ACTION: episode.action,
        lerobot.EXECUTED: episode.action if episode.executed is None else episode.executed,
        lerobot.COMMANDED: episode.action if episode.commanded is None else episode.commanded,
        "next.reward": episode.reward,
        "next.done": episode.terminated | episode.truncated,
        "next.success": last & bool(episode.success),
        "next.truncated": episode.truncated,
        "next.terminated": episode.terminated,
        "intervention": episode.intervened,
        lerobot.REPEATED: episode.repeated,
        "capture_time": episode.time,
        "timestamp": _timestamps(length, fps),
    }


def _timestamps(length: int, fps: int) -> np.ndarray:
    return (np.arange(length) / fps).astype(np.float32)
