"""Writes meta/ of a new LeRobot dataset: the index, tasks, statistics, and info.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.arrow import write_table
from vla_agents.data.lerobot.index import EPISODES_V2
from vla_agents.data.lerobot.info import DATA_V2, VIDEO_V2
from vla_agents.data.lerobot.schema import Rows, Schema
from vla_agents.data.lerobot.stats import NAMES
from vla_agents.data.lerobot.summary import STATS_V2, Merged, Summary, stats_line, to_columns


class _Meta:
    """Common to all versions.

    Args:
        path: The dataset's folder.
        schema: Its columns.
        version: `"v2.0"`, `"v2.1"` or `"v3.0"`.
    """

    def __init__(self, path: Path, schema: Schema, version: str) -> None:
        self.path, self.schema, self.version = path, schema, version
        self._tasks: dict[str, int] = {}

    def task_numbers(self, tasks: Sequence[str]) -> list[int]:
        """The `task_index` of each step."""
        return [self._tasks.setdefault(task, len(self._tasks)) for task in tasks]

    def _info(self, episodes: int, frames: int, fields: dict[str, Any]) -> None:
        info = {
            "codebase_version": self.version,
            "robot_type": self.schema.robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": len(self._tasks),
            "chunks_size": lerobot.CHUNK,
            "fps": self.schema.fps,
            "splits": {"train": f"0:{episodes}"},
            **fields,
            "features": self.schema.features,
        }
        self._write(lerobot.INFO, json.dumps(info, indent=4) + "\n")

    def _write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text, encoding="utf-8")


class MetaV3(_Meta):
    """meta/ of v3.0."""

    def __init__(self, path: Path, schema: Schema, version: str) -> None:
        super().__init__(path, schema, version)
        self._rows: list[pa.Table] = []
        self._written = 0

    def add(self, episode: int, first: int, rows: Rows, summaries: dict[str, Summary]) -> None:
        """The row of an episode."""
        chunk, file = lerobot.file_of(episode)
        names = pa.array([list(dict.fromkeys(rows.tasks))], pa.list_(pa.string()))
        columns: dict[str, pa.Array] = {
            "episode_index": pa.array([episode]),
            "tasks": names,
            "length": pa.array([rows.length]),
            "data/chunk_index": pa.array([chunk]),
            "data/file_index": pa.array([file]),
            "dataset_from_index": pa.array([first]),
            "dataset_to_index": pa.array([first + rows.length]),
        }
        for key in self.schema.videos:
            columns[f"videos/{key}/chunk_index"] = pa.array([chunk])
            columns[f"videos/{key}/file_index"] = pa.array([file])
            columns[f"videos/{key}/from_timestamp"] = pa.array([0.0])
            columns[f"videos/{key}/to_timestamp"] = pa.array([rows.length / self.schema.fps])
        columns |= to_columns(summaries, rows.length)
        where = lerobot.rows_file_of(episode)
        columns["meta/episodes/chunk_index"] = pa.array([where[0]])
        columns["meta/episodes/file_index"] = pa.array([where[1]])
        for name, value in rows.ours.items():
            columns[name] = pa.array([value], pa.string() if isinstance(value, str) else pa.bool_())
        self._rows.append(pa.table(columns))
        if len(self._rows) == lerobot.ROWS_PER_FILE:
            self._flush()

    def finish(self, episodes: int, frames: int, merged: Merged) -> None:
        """Everything else."""
        self._flush()
        if episodes:
            write_table(lerobot.tasks_table(list(self._tasks)), self.path / lerobot.TASKS)
            self._write(lerobot.STATS, json.dumps(merged.to_json()))
        fields = {
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": lerobot.DATA,
            "video_path": lerobot.VIDEO if self.schema.videos else None,
        }
        self._info(episodes, frames, fields)

    def _flush(self) -> None:
        if self._rows:
            chunk, file = lerobot.rows_file_of(self._written)
            path = self.path / lerobot.EPISODES.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(pa.concat_tables(self._rows, promote_options="default").combine_chunks(), path)
            self._written += len(self._rows)
            self._rows = []


class MetaV2(_Meta):
    """meta/ of v2.0 and v2.1."""

    def add(self, episode: int, first: int, rows: Rows, summaries: dict[str, Summary]) -> None:
        """The lines of an episode."""
        entry = {
            "episode_index": episode,
            "tasks": list(dict.fromkeys(rows.tasks)),
            "length": rows.length,
            **rows.ours,
        }
        self._append(EPISODES_V2, json.dumps(entry))
        if self.version == "v2.1":
            self._append(STATS_V2, stats_line(episode, summaries, rows.length))

    def finish(self, episodes: int, frames: int, merged: Merged) -> None:
        """Everything else."""
        tasks = [json.dumps({"task_index": k, "task": task}) for task, k in self._tasks.items()]
        self._write(lerobot.TASKS_V2, "".join(line + "\n" for line in tasks))
        if not episodes:
            self._write(EPISODES_V2, "")
        if self.version == "v2.0" and episodes:
            self._write(lerobot.STATS, json.dumps(merged.to_json(NAMES[:4])))
        fields = {
            "total_videos": episodes * len(self.schema.videos),
            "total_chunks": -(-episodes // lerobot.CHUNK),
            "data_path": DATA_V2,
            "video_path": VIDEO_V2 if self.schema.videos else None,
        }
        self._info(episodes, frames, fields)

    def _append(self, name: str, line: str) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(line + "\n")
