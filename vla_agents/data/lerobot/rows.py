"""The rows of an episode: its steps in data/, and its own row in meta/episodes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data.episode import CAMERA_TIME, Step, stacked_or_none
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.embodiment import Embodiment


@dataclass(frozen=True)
class EpisodeRows:
    """An episode that is about to be written.

    Args:
        body: The dataset's embodiment.
        steps: Without pictures.
        index: The episode's number.
        first: Number of steps in all episodes before it.
        fps: Nominal rate.
        task: Index of the instruction in meta/tasks.
        instruction: What the agent was told.
        success: Whether the task was done, where somebody judged.
        metadata: JSON.
    """

    body: Embodiment
    steps: list[Step]
    index: int
    first: int
    fps: int
    task: int
    instruction: str
    success: bool | None
    metadata: str

    def vectors(self) -> dict[str, np.ndarray]:
        """State (where there is one), action, executed and commanded action: float32 (T, size)."""
        found = {}
        if self.body.state_dim:
            found[lerobot.STATE] = np.stack([np.asarray(s.state) for s in self.steps])
        found[lerobot.ACTION] = np.stack([s.action for s in self.steps])
        for key, name in ((lerobot.EXECUTED, "executed"), (lerobot.COMMANDED, "commanded")):
            given = stacked_or_none(self.steps, name)
            found[key] = found[lerobot.ACTION] if given is None else given
        return found

    def data(self, vectors: dict[str, np.ndarray], names: list[str]) -> pa.Table:
        """The content of the data file; `names` are the dataset's columns."""
        steps, length = self.steps, len(self.steps)
        terminated = np.array([s.terminated for s in steps], bool)
        truncated = np.array([s.truncated for s in steps], bool)
        frames = np.arange(length)
        scalars = {
            "next.reward": np.array([s.reward for s in steps], np.float32),
            "next.done": terminated | truncated,
            "next.success": (frames == length - 1) & bool(self.success),
            "next.truncated": truncated,
            "next.terminated": terminated,
            "intervention": np.array([s.intervened for s in steps], bool),
            lerobot.REPEATED: np.array([s.repeated for s in steps], bool),
            "capture_time": np.array([s.time for s in steps], np.float64),
            "timestamp": (frames / self.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, self.index),
            "index": frames + self.first,
            "task_index": np.full(length, self.task),
        }
        for name in self.body.camera_names:
            if CAMERA_TIME + name in names:
                scalars[CAMERA_TIME + name] = np.array([s.camera_times.get(name, s.time) for s in steps])
        columns = {name: _vector_array(values) for name, values in vectors.items()}
        columns |= {name: pa.array(values) for name, values in scalars.items() if name in names}
        return pa.table({name: columns[name] for name in names})

    def row(self, stats: dict[str, pa.Array]) -> pa.Table:
        """The row of meta/episodes."""
        length = len(self.steps)
        chunk, file = lerobot.file_of(self.index)
        rows_chunk, rows_file = lerobot.rows_file_of(self.index)
        columns: dict[str, pa.Array] = {
            "episode_index": pa.array([self.index]),
            "tasks": pa.array([[self.instruction]], pa.list_(pa.string())),
            "length": pa.array([length]),
            "data/chunk_index": pa.array([chunk]),
            "data/file_index": pa.array([file]),
            "dataset_from_index": pa.array([self.first]),
            "dataset_to_index": pa.array([self.first + length]),
        }
        for name in self.body.camera_names:
            key = f"videos/{lerobot.IMAGES}{name}/"
            columns[key + "chunk_index"] = pa.array([chunk])
            columns[key + "file_index"] = pa.array([file])
            columns[key + "from_timestamp"] = pa.array([0.0])
            columns[key + "to_timestamp"] = pa.array([length / self.fps])
        columns |= stats
        columns["meta/episodes/chunk_index"] = pa.array([rows_chunk])
        columns["meta/episodes/file_index"] = pa.array([rows_file])
        columns[lerobot.SUCCESS] = pa.array([self.success], pa.bool_())
        columns[lerobot.METADATA] = pa.array([self.metadata])
        executed = any(s.executed is not None for s in self.steps)
        columns[lerobot.HAS_EXECUTED] = pa.array([executed])
        columns[lerobot.HAS_COMMANDED] = pa.array([any(s.commanded is not None for s in self.steps)])
        columns[lerobot.LABEL] = pa.array(["commanded" if executed else "sent"])
        return pa.table(columns)


def to_parquet(table: pa.Table) -> bytes:
    """A parquet file; without what costs more than it gives in files of a few rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False, compression="snappy")
    return sink.getvalue()


def _vector_array(values: np.ndarray) -> pa.Array:
    """(T, D) as LeRobot stores it: a fixed-size list, or plain numbers where D is 1."""
    flat = pa.array(values.ravel())
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
