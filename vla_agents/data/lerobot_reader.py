"""Reads LeRobot v3.0 datasets, our own and LeRobot's: values and pixels as LeRobot returns them."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data import lerobot
from vla_agents.data.decode import decode
from vla_agents.data.episode import Episode
from vla_agents.data.frames import VideoFiles
from vla_agents.data.lerobot import ACTION, COMMANDED, EXECUTED, SCALARS, STATE, Info
from vla_agents.data.lerobot_features import load_embodiment
from vla_agents.data.lerobot_index import read_index
from vla_agents.errors import DatasetError

_CACHED_FILES = 8


class LeRobotReader:
    """Random access to the episodes of a LeRobot v3.0 dataset; may be used from several threads.

    Only the index (meta/) is read at first. `meta/info.json` decides how many episodes there are: what a
    recording that was killed left beyond that count is ignored.

    Args:
        path: The folder that holds meta/ and data/.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = Info.load(self.path)
        self.embodiment = load_embodiment(self.info)
        self._vectors = [key for key in (STATE, ACTION, EXECUTED, COMMANDED) if key in self.info.features]
        self._names = [*self._vectors, *(key for key in SCALARS if key in self.info.features)]
        self._tasks = lerobot.read_tasks(self.path) if self.info.total_episodes else []
        self._index = read_index(self.info)
        self._files: OrderedDict[Path, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.info.total_episodes

    def lengths(self) -> np.ndarray:
        """int64 (N,): steps per episode."""
        return self._index["length"].copy()

    def instructions(self) -> list[str]:
        """The instruction of each episode; where it changes inside one, that of its first step."""
        return [
            tasks[0] if len(tasks) == 1 else self._first_task(k)
            for k, tasks in enumerate(self._index["tasks"])
        ]

    def successes(self) -> list[bool | None]:
        """Whether each episode succeeded; None where nobody judged."""
        if lerobot.SUCCESS in self._index:
            return list(self._index[lerobot.SUCCESS])
        return [self._success(k) for k in range(len(self))]

    def metadata(self, index: int) -> dict[str, Any]:
        """What was stored with an episode when it was recorded."""
        text = self._index[lerobot.METADATA][index] if lerobot.METADATA in self._index else None
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise DatasetError(
                self.path, f"episode {index}: column {lerobot.METADATA!r} is not JSON ({error})"
            ) from None

    def columns(self) -> dict[str, np.ndarray]:
        """All numbers of the dataset, in the order of the episodes: feature -> (N,) or (N, D)."""
        rows = [self._rows(k) for k in range(len(self))]
        if not rows:
            return {name: self._empty(name) for name in self._names}
        return {name: np.concatenate([row[name] for row in rows]) for name in self._names}

    def videos(self, camera: str) -> VideoFiles | None:
        """Which video holds each episode of a camera; None where its pictures are stored one by one."""
        key = self.info.cameras[camera]
        if self.info.features[key]["dtype"] == "image":
            return None
        chunks, files = (self._index[f"videos/{key}/{name}_index"] for name in ("chunk", "file"))
        names = list(zip(chunks, files, strict=True))
        distinct = {name: k for k, name in enumerate(dict.fromkeys(names))}
        return VideoFiles(
            files=tuple(self.info.video_file(key, *name) for name in distinct),
            file_of=np.array([distinct[name] for name in names], np.int64),
            start=np.asarray(self._index[f"videos/{key}/from_timestamp"], np.float64),
            fps=self.info.fps,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})

    def images(self, index: int) -> dict[str, np.ndarray]:
        """Camera -> uint8 (T, H, W, 3) of one episode."""
        index = self._checked(index)
        return self._decoded(index, self._rows(index))

    def read(self, index: int, *, images: bool = True) -> Episode:
        """One whole episode; `images=False` skips decoding (then `images` is empty)."""
        index = self._checked(index)
        rows = {name: values.copy() for name, values in self._rows(index).items()}
        length = len(rows[ACTION])
        no = np.zeros(length, bool)
        truncated = rows.get("next.truncated", no)
        done = rows.get("next.done", no)
        return Episode(
            embodiment=self.embodiment,
            instruction=self._instruction(index, rows),
            images=self._decoded(index, rows) if images else {},
            state=rows.get(STATE),
            action=rows[ACTION],
            reward=rows.get("next.reward", np.zeros(length, np.float32)).astype(np.float32),
            terminated=rows.get("next.terminated", done & ~truncated),
            truncated=truncated,
            intervened=rows.get("intervention", no),
            time=rows.get("capture_time", np.asarray(rows["timestamp"], np.float64)),
            success=self._success(index),
            executed=self._given(index, rows.get(EXECUTED), lerobot.HAS_EXECUTED),
            commanded=self._given(index, rows.get(COMMANDED), lerobot.HAS_COMMANDED),
            repeated=rows.get(lerobot.REPEATED, no),
            metadata=self.metadata(index),
        )

    # ---- inside -------------------------------------------------------------------------------------------
    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no episode {index}, there are {len(self)}")
        return index % len(self)

    def _given(self, index: int, values: np.ndarray | None, flag: str) -> np.ndarray | None:
        """A column that repeats the label where nothing was given; `flag` says whether."""
        return None if flag in self._index and not self._index[flag][index] else values

    def _instruction(self, index: int, rows: dict[str, np.ndarray]) -> str:
        task = int(rows["task_index"][0])
        if not 0 <= task < len(self._tasks):
            raise DatasetError(
                self._data_file(index),
                f"episode {index}: task_index {task}, meta/tasks has {len(self._tasks)}",
                "files of two datasets were mixed: copy the dataset again",
            )
        return self._tasks[task]

    def _first_task(self, index: int) -> str:
        return self._instruction(index, self._rows(index))

    def _success(self, index: int) -> bool | None:
        if lerobot.SUCCESS in self._index:
            return self._index[lerobot.SUCCESS][index]
        found = self._rows(index).get("next.success")
        return None if found is None else bool(found.any())

    def _empty(self, name: str) -> np.ndarray:
        if name in self._vectors:
            return np.zeros((0, self.info.features[name]["shape"][0]), np.float32)
        return np.zeros(0, SCALARS[name])

    def _data_file(self, index: int) -> Path:
        return self.info.data_file(
            self._index["data/chunk_index"][index], self._index["data/file_index"][index]
        )

    def _rows(self, index: int) -> dict[str, np.ndarray]:
        """The numbers of one episode."""
        file = self._data_file(index)
        columns = self._file_columns(file)
        at = np.flatnonzero(columns["episode_index"] == index)
        expected = self._index["length"][index]
        if len(at) != expected or (len(at) and at[-1] - at[0] + 1 != expected):
            raise DatasetError(
                file,
                f"episode {index} has {len(at)} rows, meta/episodes says {expected}",
                "copy the dataset again",
            )
        where = slice(int(at[0]), int(at[-1]) + 1)
        rows = {name: values[where] for name, values in columns.items()}
        for name in self._vectors:
            bad = np.flatnonzero(~np.isfinite(rows[name]).all(axis=1))
            if len(bad):
                raise DatasetError(
                    file,
                    f"{name} is not finite in episode {index}, frame {bad[0]}",
                    "leave this episode out, or mend it",
                )
        return rows

    def _file_columns(self, file: Path) -> dict[str, np.ndarray]:
        with self._lock:
            if file in self._files:
                self._files.move_to_end(file)
                return self._files[file]
        table = lerobot.read_parquet(file, self._names)
        columns = {name: self._to_numpy(file, name, table) for name in self._names}
        with self._lock:
            self._files[file] = columns
            while len(self._files) > _CACHED_FILES:
                self._files.popitem(last=False)
        return columns

    def _to_numpy(self, file: Path, name: str, table: pa.Table) -> np.ndarray:
        if name not in table.column_names:
            raise DatasetError(file, f"column {name!r} is missing", f"it has {table.column_names}")
        chunked = table.column(name)
        column = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # some versions of pyarrow return an empty one as it is
            column = pa.array([], column.type)
        nested = pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)
        values = column.flatten() if nested else column
        if column.null_count or values.null_count:
            raise DatasetError(file, f"column {name!r} holds nulls", "mend or leave out those rows")
        numbers = values.to_numpy(zero_copy_only=False)
        size = self.info.features[name]["shape"][0] if name in self._vectors else 1
        if len(numbers) != table.num_rows * size:
            raise DatasetError(
                file,
                f"column {name!r} has {len(numbers)} values in {table.num_rows} rows, not {size} in each",
                "meta/info.json is of another dataset",
            )
        try:
            numbers = numbers.astype(np.float32 if name in self._vectors else SCALARS[name], copy=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(file, f"column {name!r} does not hold numbers ({error})", "mend it") from error
        return numbers.reshape(-1, size) if name in self._vectors else numbers

    def _decoded(self, index: int, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: self._images(index, name, rows) for name in self.embodiment.camera_names}

    def _images(self, index: int, camera: str, rows: dict[str, np.ndarray]) -> np.ndarray:
        key = self.info.cameras[camera]
        feature = self.info.features[key]
        height, width, _ = lerobot.image_shape(feature)
        if feature["dtype"] == "image":
            return self._stills(index, key, (height, width))
        prefix = f"videos/{key}/"
        chunk, file = self._index[prefix + "chunk_index"][index], self._index[prefix + "file_index"][index]
        times = self._index[prefix + "from_timestamp"][index] + rows["timestamp"].astype(np.float64)
        return decode(self.info.video_file(key, chunk, file), times, self.info.fps, (height, width))

    def _stills(self, index: int, key: str, shape: tuple[int, int]) -> np.ndarray:
        """Pictures stored one by one (PNG) in the data file."""
        from PIL import Image, UnidentifiedImageError

        file = self._data_file(index)
        out = np.empty((self._index["length"][index], *shape, 3), np.uint8)
        for k, entry in enumerate(_still_rows(file, key, index)):
            try:
                with Image.open(io.BytesIO(entry["bytes"])) as image:
                    if (image.height, image.width) != shape:
                        raise ValueError(f"it is {image.height}x{image.width}, meta/info.json says {shape}")
                    out[k] = np.asarray(image.convert("RGB"))
            except (UnidentifiedImageError, ValueError, OSError, TypeError) as error:
                raise DatasetError(
                    file,
                    f"{key}, episode {index}, frame {k}: not a picture ({error})",
                    "copy the dataset again",
                ) from error
        return out


def _still_rows(file: Path, key: str, episode: int) -> list[dict[str, Any]]:
    """The entries of one episode, read from the row groups that hold it."""
    try:
        with pq.ParquetFile(file) as opened:
            found: list[dict[str, Any]] = []
            for group in range(opened.num_row_groups):
                at = opened.read_row_group(group, columns=["episode_index"]).column(0).to_numpy() == episode
                if at.any():
                    rows = opened.read_row_group(group, columns=[key]).column(0).to_pylist()
                    found += [row for row, wanted in zip(rows, at, strict=True) if wanted]
            return found
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(file, f"cannot be read as parquet ({error})", "copy the dataset again") from error
