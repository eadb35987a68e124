"""`meta/info.json` of a LeRobot dataset, v2.0 to v3.0, checked: features, totals, and where the files lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.guards import COPY, TAMPERED, fill_template, is_inside, read_json
from vla_agents.data.lerobot.layout import (
    ACTION,
    DATA,
    DEFAULT_SCALARS,
    IMAGES,
    INFO,
    ONE_PIECE,
    SCALARS,
    STATE,
    VERSION,
    VIDEO,
    image_shape,
)
from vla_agents.errors import DatasetError, DatasetNotFoundError

VERSIONS = ("v2.0", "v2.1", VERSION)
DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_MOST = {"fps": 1e5, "total_episodes": 1e8, "total_frames": 1e11, "chunks_size": 1e9}
_LARGEST = 1 << 28  # values in one row of one feature
_PICTURES = ("video", "image")


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, checked.

    Args:
        path: The dataset's folder.
        raw: The file's content.
    """

    path: Path
    raw: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Info:
        """Read and check the file of the dataset at `path`."""
        file = path / INFO
        try:
            raw = read_json(path, file)
        except FileNotFoundError:
            raise DatasetNotFoundError(
                path,
                f"no LeRobot dataset there: {INFO} is missing",
                "give the folder that holds meta/ and data/",
            ) from None
        if not isinstance(raw, dict):
            raise DatasetError(file, "is not a JSON object", COPY)
        info = cls(path, raw)
        info._check()
        return info

    # ---- what it says -------------------------------------------------------------------------------------
    @property
    def version(self) -> str:
        """`"v2.0"`, `"v2.1"` or `"v3.0"`."""
        return self.raw["codebase_version"]

    @property
    def fps(self) -> float:
        """Nominal frames per second."""
        return self.raw["fps"]

    @property
    def total_episodes(self) -> int:
        """Number of episodes that exist."""
        return self.raw["total_episodes"]

    @property
    def total_frames(self) -> int:
        """Number of steps of all episodes."""
        return self.raw["total_frames"]

    @property
    def chunks_size(self) -> int:
        """v2.x: episodes per folder; v3.0: files per folder."""
        return self.raw.get("chunks_size", 1000)

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Feature name -> dtype, shape, names."""
        return self.raw["features"]

    @cached_property
    def cameras(self) -> dict[str, str]:
        """Camera name -> its feature, colour cameras only."""
        found = {}
        for key, feature in self.features.items():
            if feature["dtype"] in _PICTURES and not self.is_depth(key):
                found[key.removeprefix(IMAGES).removeprefix("observation.")] = key
        return found

    @cached_property
    def state_keys(self) -> tuple[str, ...]:
        """The features that make up the state, in order; empty where there is none."""
        return self._vectors((STATE, "state"), "observation.state.")

    @cached_property
    def action_keys(self) -> tuple[str, ...]:
        """The features that make up the action, in order."""
        return self._vectors((ACTION, "actions"), "action.")

    def is_depth(self, key: str) -> bool:
        """Whether a picture's feature is no colour camera."""
        info = self.features[key].get("info")
        marks = info if isinstance(info, dict) else {}
        depth = marks.get("is_depth_map", marks.get("video.is_depth_map", False))
        return bool(depth) or image_shape(self.features[key])[2] != 3

    def is_video(self, key: str) -> bool:
        """Whether a feature lies in videos/."""
        return self.features[key]["dtype"] == "video"

    def size(self, key: str) -> int:
        """Numbers in one row of a feature."""
        return math.prod(self.features[key]["shape"])

    def is_scalar(self, key: str) -> bool:
        """Whether a feature is one of the known columns with a number per step."""
        return key in SCALARS and self.size(key) == 1

    def numeric_dtype(self, key: str) -> np.dtype | None:
        """The numpy type of a feature that holds numbers; None for pictures, text and the like."""
        try:
            dtype = np.dtype(self.features[key]["dtype"])
        except TypeError:
            return None
        return dtype if dtype.kind in "biuf" else None

    # ---- files --------------------------------------------------------------------------------------------
    def data_file(self, **values: Any) -> Path:
        """Path of a data file; `values` as the version's template wants them."""
        return self._resolve("data_path", DATA if self.version == VERSION else DATA_V2, **values)

    def video_file(self, key: str, **values: Any) -> Path:
        """Path of a video file."""
        default = VIDEO if self.version == VERSION else VIDEO_V2
        return self._resolve("video_path", default, video_key=key, **values)

    def _resolve(self, field: str, default: str, **values: Any) -> Path:
        template = self.raw.get(field) or default
        where = self.path / INFO
        try:
            found = self.path / fill_template(template, values)
        except (ValueError, OverflowError, TypeError) as error:
            raise DatasetError(
                where, f"field {field!r} is not a path template: {template!r} ({error})", COPY
            ) from error
        if not self._inside(found.parent) or (found.is_symlink() and not self._inside(found)):
            raise DatasetError(where, f"field {field!r} = {template!r} leads out of the dataset", TAMPERED)
        return found

    def _inside(self, path: Path) -> bool:
        """Whether a path, all links followed, lies within the dataset."""
        if path not in self._known_inside:
            if not is_inside(self.path, path):
                return False
            self._known_inside.add(path)
        return True

    @cached_property
    def _known_inside(self) -> set[Path]:
        return set()

    # ---- checks -------------------------------------------------------------------------------------------
    def _vectors(self, names: tuple[str, ...], prefix: str) -> tuple[str, ...]:
        for name in names:
            if name in self.features:
                return (name,)
        return tuple(key for key in self.features if key.startswith(prefix) and self.numeric_dtype(key))

    def _check(self) -> None:
        file = self.path / INFO
        version = self.raw.get("codebase_version")
        if version not in VERSIONS:
            raise DatasetError(
                file,
                f"codebase_version is {version!r}, known: {', '.join(VERSIONS)}",
                "v1.x: convert it with the LeRobot of its time; newer: use a newer vla_agents",
            )
        for key, least in (("fps", 1e-9), ("total_episodes", 0), ("total_frames", 0), ("chunks_size", 1)):
            value = self.raw.get(key, 1000 if key == "chunks_size" else None)
            kinds = (int, float) if key == "fps" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < _MOST[key]:
                raise DatasetError(file, f"field {key!r} is {value!r}, expected a number", COPY)
        if not isinstance(self.raw.get("features"), dict):
            raise DatasetError(file, "field 'features' is missing, or not an object", COPY)
        for key in DEFAULT_SCALARS:
            if key not in self.raw["features"]:
                raise DatasetError(file, f"feature {key!r} is missing", COPY)
        for key, feature in self.features.items():
            self._check_feature(file, key, feature)
        for key in DEFAULT_SCALARS:
            if self.size(key) != 1 or self.numeric_dtype(key) is None:
                raise DatasetError(
                    file, f"feature {key!r} is {self.features[key]}, expected one number", COPY
                )

    def _check_feature(self, file: Path, key: str, feature: Any) -> None:
        good = isinstance(feature, dict) and isinstance(feature.get("dtype"), str)
        good = good and isinstance(feature.get("shape"), list | tuple)
        if not good or not all(type(n) is int and 0 < n < _LARGEST for n in feature["shape"]):
            raise DatasetError(file, f"feature {key!r} has no valid dtype and shape: {feature!r}", COPY)
        if math.prod(feature["shape"]) > _LARGEST:
            raise DatasetError(
                file, f"feature {key!r} has shape {feature['shape']}: no row is that large", COPY
            )
        if feature["dtype"] in _PICTURES:
            if not ONE_PIECE.fullmatch(key):
                raise DatasetError(
                    file, f"feature name {key!r} cannot be part of a path", "rename the camera"
                )
            if len(feature["shape"]) != 3:
                raise DatasetError(
                    file, f"feature {key!r} has shape {feature['shape']}, expected three sizes", COPY
                )
