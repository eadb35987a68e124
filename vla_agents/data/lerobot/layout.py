"""The layout of a LeRobot v3.0 dataset: names of files and features, `meta/info.json`, tasks.

Facts of the format: `docs/data.md`. Ours is a plain v3.0 dataset with some more features and
`meta/embodiment.json`, which LeRobot ignores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data.guards import COPY, TAMPERED, read_json_lines, require_inside
from vla_agents.errors import DatasetError

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
TASKS_V2 = "meta/tasks.jsonl"
EMBODIMENT = "meta/embodiment.json"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files per folder
MAX_TASK = 1 << 16  # bytes of an instruction
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


UNREADABLE = (pa.ArrowException, OSError, UnicodeError)  # what pyarrow raises of a damaged file
# Of cameras: whatever is one piece of a path, and neither hidden nor a way up. LeRobot refuses "/" alone.
ONE_PIECE = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")


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
    first = str(names[0]) if isinstance(names, list | tuple) and names else ""
    if first.startswith("channel") if first else shape[0] in (1, 3) and shape[2] not in (1, 3):
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
    table = read_parquet(path, file, None, row_bytes=MAX_TASK)
    for name in ("task", "__index_level_0__"):
        if name in table.column_names:
            tasks = table.column(name).to_pylist()
            if all(isinstance(task, str) for task in tasks):
                return tasks
    raise DatasetError(file, f"has no column 'task' of text; it has {table.column_names}", COPY)


def read_tasks_v2(path: Path) -> list[str | None]:
    """The instructions by their `task_index`; None for numbers that are not used."""
    file = path / TASKS_V2
    found: dict[int, str] = {}
    for entry in read_json_lines(path, file):
        index, task = entry.get("task_index"), entry.get("task")
        if type(index) is not int or not 0 <= index < 1 << 24 or not isinstance(task, str):
            raise DatasetError(file, f"is no list of tasks: {str(entry)[:200]}", COPY)
        found[index] = task
    return [found.get(k) for k in range(max(found, default=-1) + 1)]


def read_parquet(root: Path, file: Path, columns: list[str] | None, *, row_bytes: int = 1 << 22) -> pa.Table:
    """Read a parquet file of the dataset at `root` without threads; every error names the file.

    Args:
        root: The dataset's folder, which no link may leave.
        file: The file.
        columns: Which to read; all by default.
        row_bytes: The largest size a row may claim on average.
    """
    require_inside(root, file)
    try:
        with pa.OSFile(str(file)) as source, pq.ParquetFile(source) as opened:
            check_sizes(opened, file, columns, row_bytes)
            table = opened.read(columns=columns, use_threads=False)
            table.validate(full=True)  # text that is none, lists that point elsewhere
            return table
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except UNREADABLE as error:
        raise DatasetError(
            file,
            f"cannot be read as parquet ({error})",
            "it is damaged, or the recording was killed before it was complete: copy it again",
        ) from error


def check_sizes(
    opened: pq.ParquetFile,
    file: Path,
    columns: list[str] | None,
    row_bytes: int,
    groups: Iterable[int] | None = None,
) -> None:
    """Refuse row groups that claim to unfold into more than `row_bytes` per row, before anything is read."""
    metadata = opened.metadata
    paths = [opened.schema.column(k).path for k in range(metadata.num_columns)]
    inside = None if columns is None else tuple(f"{name}." for name in columns)
    wanted = [k for k, p in enumerate(paths) if columns is None or p in columns or p.startswith(inside or ())]
    for group in range(metadata.num_row_groups) if groups is None else groups:
        part = metadata.row_group(group)
        chunks = [part.column(k) for k in wanted]
        size = sum(max(chunk.total_uncompressed_size, 0) for chunk in chunks)
        values = max((chunk.num_values for chunk in chunks), default=0)
        most = part.num_rows * row_bytes + (1 << 20)
        if size > most or values > most or part.num_rows > 1 << 34:
            raise DatasetError(
                file,
                f"claims {size:,} bytes and {values:,} values in {part.num_rows:,} rows",
                "no such dataset needs that: " + TAMPERED,
            )


def column_names(root: Path, file: Path) -> list[str]:
    """The columns of a parquet file of the dataset at `root`."""
    require_inside(root, file)
    try:
        return pq.read_schema(file).names
    except FileNotFoundError:
        raise DatasetError(file, "the file is missing", COPY) from None
    except UNREADABLE as error:
        raise DatasetError(file, f"cannot be read as parquet ({error})", COPY) from error
