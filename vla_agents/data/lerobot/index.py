"""Where each episode of a LeRobot dataset lies: meta/episodes (v3.0) or meta/episodes.jsonl (v2.x), checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data.guards import COPY, read_json_lines, require_inside
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.info import Info
from vla_agents.errors import DatasetError

EPISODES_V2 = "meta/episodes.jsonl"
_ROW_BYTES = 1 << 16  # of a row of meta/episodes without statistics, generously
_MOST_TASKS = 1 << 16  # bytes of text


@dataclass
class Index:
    """The episodes of a dataset, without their steps.

    Args:
        info: Its meta/info.json.
        lengths: int64 (N,): steps per episode.
        tasks: The instructions of each episode.
        columns: Other columns by name, a value per episode: positions of files, and ours.
        notes: What was damaged, and left out.
    """

    info: Info
    lengths: np.ndarray
    tasks: list[list[str]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        chunks = self.columns.get("data/chunk_index", np.arange(len(self)))
        files = self.columns.get("data/file_index", np.zeros(len(self)))
        keys = list(zip(np.asarray(chunks).tolist(), np.asarray(files).tolist(), strict=True))
        self.first_rows = np.zeros(len(self), np.int64)  # of each episode, within its file
        self.rows_of_file: dict[tuple[int, int], int] = {}
        self._keys = keys
        for k, key in enumerate(keys):
            self.first_rows[k] = self.rows_of_file.get(key, 0)
            self.rows_of_file[key] = int(self.first_rows[k] + self.lengths[k])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def where(self) -> Path:
        """Where the episodes are listed."""
        return self.info.path / ("meta/episodes" if self.info.version == lerobot.VERSION else EPISODES_V2)

    def rows_in_file_of(self, episode: int) -> int:
        """Steps of all episodes that share the data file of this one."""
        return self.rows_of_file[self._keys[episode]]

    def data_file(self, episode: int) -> Path:
        """The file with the numbers of an episode."""
        return self.info.data_file(**self._at(episode, "data"))

    def video_file(self, episode: int, key: str) -> Path:
        """The file with a camera's frames of an episode."""
        return self.info.video_file(key, **self._at(episode, f"videos/{key}"))

    def video_start(self, episode: int, key: str) -> float:
        """The time in that file at which the episode starts, seconds."""
        name = f"videos/{key}/from_timestamp"
        return float(self.columns[name][episode]) if name in self.columns else 0.0

    def _at(self, episode: int, what: str) -> dict[str, int]:
        if self.info.version != lerobot.VERSION:
            return {"episode_chunk": episode // self.info.chunks_size, "episode_index": episode}
        return {name: int(self.columns[f"{what}/{name}"][episode]) for name in ("chunk_index", "file_index")}


def read_index(info: Info, *, skip_bad: bool = False) -> Index:
    """The episodes that meta/info.json counts, checked against it.

    With `skip_bad`, episodes of length 0, totals that are off, and lines of episodes.jsonl or files of meta/episodes that
    cannot be read are let pass: such an episode has length 0 here, and reading it is an error.
    """
    index = _read_v3(info, skip_bad) if info.version == lerobot.VERSION else _read_v2(info, skip_bad)
    if skip_bad:
        return index
    if (index.lengths < 1).any():
        raise DatasetError(
            index.where,
            f"episode {int(np.argmax(index.lengths < 1))} has length 0",
            "leave that episode out",
        )
    if index.lengths.sum() != info.total_frames:
        raise DatasetError(
            info.path / lerobot.INFO,
            f"total_frames is {info.total_frames}, meta/episodes adds up to {index.lengths.sum()}",
            "files of two datasets were mixed: copy the dataset again",
        )
    return index


# ---- v3.0 -------------------------------------------------------------------------------------------------
def _read_v3(info: Info, skip_bad: bool) -> Index:
    folder = info.path / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files and info.total_episodes:
        raise DatasetError(
            folder,
            f"is missing, but {lerobot.INFO} counts {info.total_episodes} episodes",
            "LeRobot writes it when a recording ends; one that was killed cannot be read",
        )
    tables, notes = [], []
    for number, file in enumerate(files):
        try:
            table = _read_rows(info, file)
            _check_columns(info, file, table)
            tables.append(table)
        except DatasetError as error:
            if not skip_bad or (number + 1 == len(files) and not tables):
                raise
            notes.append(f"{error}; its episodes are missing")
    if not tables:
        return Index(info, np.zeros(0, np.int64), [])
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DatasetError(folder, f"columns differ from file to file ({error})", COPY) from error
    if skip_bad:
        return _index_with_gaps(info, table, notes)
    _check_rows(info, folder, table)
    table = table.slice(0, info.total_episodes)
    columns = {name: _values(table.column(name)) for name in table.column_names if name != "tasks"}
    lengths = np.asarray(columns.pop("length"), np.int64)
    return Index(info, lengths, table.column("tasks").to_pylist(), columns)


def _index_with_gaps(info: Info, table: pa.Table, notes: Sequence[str]) -> Index:
    """The rows by their `episode_index`; those that are missing have length 0."""
    numbers = table.column("episode_index").to_numpy()
    row_of = {int(k): row for row, k in reversed([*enumerate(numbers)]) if 0 <= k < info.total_episodes}
    rows = np.array([row_of.get(k, -1) for k in range(info.total_episodes)], np.int64)
    there = rows >= 0
    columns: dict[str, Any] = {}
    for name in table.column_names:
        values = _values(table.column(name))
        if isinstance(values, np.ndarray):
            columns[name] = np.where(there, values[rows], 0)
        else:
            columns[name] = [values[row] if row >= 0 else None for row in rows.tolist()]
    tasks = [found if found is not None else [] for found in columns.pop("tasks")]
    lengths = np.maximum(columns.pop("length").astype(np.int64), 0)
    return Index(info, lengths, tasks, columns, notes)


def _read_rows(info: Info, file: Path) -> pa.Table:
    """A file of meta/episodes without statistics, which are most of it."""
    require_inside(info.path, file)
    try:
        with pa.OSFile(str(file)) as source, pq.ParquetFile(source) as opened:
            names = [n for n in opened.schema_arrow.names if not n.startswith(("stats/", "meta/"))]
            allowed = 2 * info.total_episodes + 1000
            if opened.metadata.num_rows > allowed:
                raise DatasetError(
                    file, f"claims {opened.metadata.num_rows:,} rows, {lerobot.INFO} counts "
                    f"{info.total_episodes} episodes", COPY,
                )  # fmt: skip
            lerobot.check_sizes(opened, file, names, _ROW_BYTES)
            table = opened.read(columns=names, use_threads=False)
            table.validate(full=True)  # text that is none, lists that point elsewhere
            return table
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except lerobot.UNREADABLE as error:
        raise DatasetError(file, f"cannot be read as parquet ({error})", COPY) from error


def _values(column: pa.ChunkedArray) -> Any:
    plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    return column.to_numpy() if plain and not column.null_count else column.to_pylist()


def _check_columns(info: Info, file: Path, table: pa.Table) -> None:
    whole = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for key in info.cameras.values():
        if info.is_video(key):
            whole += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index")]
    for name in (*whole, "tasks", *(n for n in table.column_names if n.endswith("/from_timestamp"))):
        if name not in table.column_names or table.column(name).null_count:
            raise DatasetError(file, f"column {name!r} is missing or has gaps", COPY)
        kind = table.column(name).type
        good = pa.types.is_integer(kind) if name in whole else pa.types.is_floating(kind)
        if not (pa.types.is_list(kind) if name == "tasks" else good):
            raise DatasetError(file, f"column {name!r} holds {kind}", COPY)
        if name.endswith("from_timestamp") and not np.isfinite(table.column(name).to_numpy()).all():
            raise DatasetError(file, f"column {name!r} is not finite", COPY)


def _check_rows(info: Info, folder: Path, table: pa.Table) -> None:
    ours = (info.path / lerobot.EMBODIMENT).exists()  # then rows too many are of an unfinished save
    extra = table.num_rows - info.total_episodes
    if extra < 0 or (extra > 0 and not ours):
        raise DatasetError(
            folder,
            f"has {table.num_rows} rows, {lerobot.INFO} says total_episodes = {info.total_episodes}",
            "the recording was killed, or files of two datasets were mixed: copy the dataset again",
        )
    rows = table.slice(0, info.total_episodes)
    if not np.array_equal(rows.column("episode_index").to_numpy(), np.arange(info.total_episodes)):
        raise DatasetError(
            folder, "column 'episode_index' does not count 0, 1, 2, ...", "an episode's row is missing"
        )


# ---- v2.0 and v2.1 ----------------------------------------------------------------------------------------
def _read_v2(info: Info, skip_bad: bool) -> Index:
    file = info.path / EPISODES_V2
    found: dict[int, dict[str, Any]] = {}
    extra: set[str] = set()
    for entry in read_json_lines(info.path, file, skip_bad=skip_bad):
        index, length, tasks = (entry.get(name) for name in ("episode_index", "length", "tasks"))
        tasks = [tasks] if isinstance(tasks, str) else tasks
        if type(index) is not int or type(length) is not int or not 0 <= length < 1 << 40:
            raise DatasetError(
                file, f"field 'episode_index' or 'length' is no number in {str(entry)[:200]}", COPY
            )
        if not isinstance(tasks, list) or not all(isinstance(t, str) and len(t) < _MOST_TASKS for t in tasks):
            raise DatasetError(file, f"episode {index}: field 'tasks' is no list of text", COPY)
        if index in found:
            raise DatasetError(file, f"episode {index} is there twice", COPY)
        if len(found) > 2 * info.total_episodes + 1000:
            raise DatasetError(file, f"has more lines than {lerobot.INFO} counts episodes", COPY)
        found[index] = entry | {"tasks": tasks}
        extra |= {name for name in entry if name.startswith("vla_agents/")}
    missing = [k for k in range(info.total_episodes) if k not in found]
    if skip_bad:
        found |= {k: {"length": 0, "tasks": [""]} for k in missing}
    elif missing:
        raise DatasetError(
            file,
            f"episode {missing[0]} is missing, but {lerobot.INFO} says total_episodes = {info.total_episodes}",
            "the recording was killed, or an episode was deleted by hand: copy the dataset again",
        )
    rows = [found[k] for k in range(info.total_episodes)]
    return Index(
        info,
        np.array([row["length"] for row in rows], np.int64),
        [row["tasks"] for row in rows],
        {name: [row.get(name) for row in rows] for name in extra},
    )
