"""The layout of a LeRobot v3.0 dataset: names of files and features, `meta/info.json`, tasks.

Facts of the format: `docs/data.md`. Ours is a plain v3.0 dataset with some more features and
`meta/embodiment.json`, which LeRobot ignores.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.errors import DatasetError, DatasetNotFoundError

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EMBODIMENT = "meta/embodiment.json"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files per folder
ROWS_PER_FILE = 50  # episodes per file of meta/episodes; the last one is written anew at each save
IMAGES = "observation.images."
STATE = "observation.state"
ACTION = "action"
# Not "action.executed": LeRobot takes every feature whose name starts with "action" for something to predict.
EXECUTED = "executed_action"
COMMANDED = "commanded_action"
REPEATED = "repeated_frame"
SUCCESS = "vla_agents/success"  # columns of ours in meta/episodes
METADATA = "vla_agents/metadata"
HAS_EXECUTED = "vla_agents/has_executed"
HAS_COMMANDED = "vla_agents/has_commanded"
LABEL = "vla_agents/label"

# Scalar columns: name -> numpy dtype. The second group is what LeRobot adds to every dataset.
OUR_SCALARS = {
    "next.reward": "float32",
    "next.done": "bool",
    "next.success": "bool",
    "next.truncated": "bool",
    "next.terminated": "bool",
    "intervention": "bool",
    REPEATED: "bool",
    "capture_time": "float64",
}
DEFAULT_SCALARS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
SCALARS = OUR_SCALARS | DEFAULT_SCALARS


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
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DatasetNotFoundError(
                path,
                f"no LeRobot dataset there: {INFO} is missing",
                "give the folder that holds meta/ and data/",
            ) from None
        except (ValueError, OSError) as error:
            raise DatasetError(file, f"cannot be read as JSON ({error})", "copy the dataset again") from error
        if not isinstance(raw, dict):
            raise DatasetError(file, "is not a JSON object", "copy the dataset again")
        info = cls(path, raw)
        info._check()
        return info

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
    def features(self) -> dict[str, dict[str, Any]]:
        """Feature name -> dtype, shape, names."""
        return self.raw["features"]

    @cached_property
    def cameras(self) -> dict[str, str]:
        """Camera name -> its feature, colour cameras only."""
        found = {}
        for key, feature in self.features.items():
            picture = feature["dtype"] in ("video", "image") and image_shape(feature)[2] == 3
            if picture and not (feature.get("info") or {}).get("is_depth_map", False):
                found[key.removeprefix(IMAGES).removeprefix("observation.")] = key
        return found

    def _check(self) -> None:
        file = self.path / INFO
        version = self.raw.get("codebase_version")
        if version in ("v2.0", "v2.1"):
            raise DatasetError(
                file,
                f"codebase_version is {version!r}; this version of vla_agents reads v3.0 only",
                "v2.1: convert it with LeRobot's `lerobot.scripts.convert_dataset_v21_to_v30` "
                "--push-to-hub=false; reading v2.0 and v2.1 directly comes with a later version",
            )
        if version != VERSION:
            raise DatasetError(
                file, f"codebase_version is {version!r}, known: 'v3.0'", "convert it with LeRobot"
            )
        for key, least in (("fps", 1e-9), ("total_episodes", 0), ("total_frames", 0)):
            value = self.raw.get(key)
            kinds = (int, float) if key == "fps" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < 1e12:
                raise DatasetError(file, f"field {key!r} is {value!r}, expected a number", _COPY)
        if not isinstance(self.raw.get("features"), dict):
            raise DatasetError(file, "field 'features' is missing, or not an object", _COPY)
        for key in DEFAULT_SCALARS:
            if key not in self.raw["features"]:
                raise DatasetError(file, f"feature {key!r} is missing", _COPY)
        for key, feature in self.features.items():
            good = isinstance(feature, dict) and isinstance(feature.get("dtype"), str)
            good = good and isinstance(feature.get("shape"), list | tuple)
            if not good or not all(isinstance(n, int) and n > 0 for n in feature["shape"]):
                raise DatasetError(file, f"feature {key!r} has no valid dtype and shape: {feature!r}", _COPY)
            if feature["dtype"] in ("video", "image"):
                if not SAFE_NAME.fullmatch(key):
                    raise DatasetError(
                        file, f"feature name {key!r} cannot be part of a path", "rename the camera"
                    )
                if len(feature["shape"]) != 3:
                    raise DatasetError(
                        file, f"feature {key!r} has shape {feature['shape']}, expected three sizes", _COPY
                    )

    def data_file(self, chunk: int, file: int) -> Path:
        """Path of a data file."""
        return self._resolve("data_path", DATA, chunk_index=chunk, file_index=file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """Path of a video file."""
        return self._resolve("video_path", VIDEO, video_key=key, chunk_index=chunk, file_index=file)

    def _inside(self, path: Path) -> bool:
        """Whether a path, all links followed, lies within the dataset."""
        if path not in self._known_inside:
            if not path.resolve().is_relative_to(self.path.resolve()):
                return False
            self._known_inside.add(path)
        return True

    @cached_property
    def _known_inside(self) -> set[Path]:
        return set()

    def _resolve(self, field: str, default: str, **values: Any) -> Path:
        template = self.raw.get(field) or default
        where = self.path / INFO
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
            if not names <= set(values):
                raise KeyError(str(names - set(values)))
            relative = template.format(**values)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise DatasetError(
                where, f"field {field!r} is not a path template: {template!r} ({error})", _COPY
            ) from error
        found = self.path / relative
        if not self._inside(found.parent) or (found.is_symlink() and not self._inside(found)):
            raise DatasetError(
                where,
                f"field {field!r} = {template!r} leads out of the dataset",
                "do not open it: it was tampered with",
            )
        return found


_COPY = "copy the dataset again"
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def file_of(episode: int) -> tuple[int, int]:
    """`(chunk, file)` of an episode's data and videos, as we write them."""
    return episode // CHUNK, episode % CHUNK


def rows_file_of(episode: int) -> tuple[int, int]:
    """`(chunk, file)` of an episode's row in meta/episodes, as we write it."""
    file = episode // ROWS_PER_FILE
    return file // CHUNK, file % CHUNK


def image_shape(feature: dict[str, Any]) -> tuple[int, int, int]:
    """`(height, width, channels)` of a camera's feature, whichever order it is written in."""
    shape, names = feature["shape"], feature.get("names") or ()
    if names and str(names[0]).startswith("channel"):
        shape = (shape[1], shape[2], shape[0])
    return int(shape[0]), int(shape[1]), int(shape[2])


# ---- tasks ------------------------------------------------------------------------------------------------
def tasks_table(tasks: list[str]) -> pa.Table:
    """`meta/tasks.parquet`: a pandas frame whose index, named `task`, is the instruction."""
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def read_tasks(path: Path) -> list[str]:
    """The instructions, by position; accepts an index without a name."""
    file = path / TASKS
    table = read_parquet(file, None)
    for name in ("task", "__index_level_0__"):
        if name in table.column_names:
            tasks = table.column(name).to_pylist()
            if all(isinstance(task, str) for task in tasks):
                return tasks
    raise DatasetError(
        file, f"has no column 'task' of text; it has {table.column_names}", "copy the dataset again"
    )


def read_parquet(file: Path, columns: list[str] | None) -> pa.Table:
    """Read a parquet file without threads; every error names the file."""
    try:
        with pa.OSFile(str(file)) as source, pq.ParquetFile(source) as opened:
            return opened.read(columns=columns, use_threads=False)
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", "copy the dataset again") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            file,
            f"cannot be read as parquet ({error})",
            "it is damaged, or the recording was killed before it was complete: copy it again",
        ) from error
