"""meta/episodes: where each episode lies, checked against meta/info.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_agents.data import lerobot
from vla_agents.data.lerobot import Info
from vla_agents.errors import DatasetError


def read_index(info: Info) -> dict[str, Any]:
    """meta/episodes without statistics: column -> values by episode; checked against info.json."""
    folder = info.path / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files and info.total_episodes:
        raise DatasetError(
            folder,
            f"is missing, but {lerobot.INFO} counts {info.total_episodes} episodes",
            "LeRobot writes it when a recording ends; one that was killed cannot be read",
        )
    tables = []
    for file in files:
        try:
            names = pq.read_schema(file).names
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                file, f"cannot be read as parquet ({error})", "copy the dataset again"
            ) from error
        tables.append(lerobot.read_parquet(file, [name for name in names if not name.startswith("stats/")]))
    if not tables:
        return {"length": np.zeros(0, np.int64), "tasks": []}
    table = pa.concat_tables(tables, promote_options="default")
    _check_rows(info, folder, table)
    table = table.slice(0, info.total_episodes)
    return {
        name: np.asarray(table.column(name).to_numpy(), np.int64)
        if name == "length"
        else table.column(name).to_pylist()
        for name in table.column_names
    }


def _check_rows(info: Info, folder: Path, table: pa.Table) -> None:
    needed = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    for key in info.cameras.values():
        if info.features[key]["dtype"] == "video":
            needed += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for name in needed:
        if name not in table.column_names or table.column(name).null_count:
            raise DatasetError(folder, f"column {name!r} is missing or has gaps", "copy the dataset again")
        if name.endswith("from_timestamp") and not np.isfinite(table.column(name).to_numpy()).all():
            raise DatasetError(folder, f"column {name!r} is not finite", "copy the dataset again")
    ours = (info.path / lerobot.EMBODIMENT).exists()  # then rows too many are of an unfinished save
    extra = table.num_rows - info.total_episodes
    if extra < 0 or (extra > 0 and not ours):
        raise DatasetError(
            folder,
            f"has {table.num_rows} rows, {lerobot.INFO} says total_episodes = {info.total_episodes}",
            "the recording was killed, or files of two datasets were mixed: copy the dataset again",
        )
    rows = table.slice(0, info.total_episodes)
    if rows.column("episode_index").to_pylist() != list(range(info.total_episodes)):
        raise DatasetError(
            folder, "column 'episode_index' does not count 0, 1, 2, ...", "an episode's row is missing"
        )
    lengths = rows.column("length").to_numpy()
    if (lengths < 1).any():
        raise DatasetError(
            folder, f"episode {int(np.argmax(lengths < 1))} has length 0", "leave that episode out"
        )
    if lengths.sum() != info.total_frames:
        raise DatasetError(
            info.path / lerobot.INFO,
            f"total_frames is {info.total_frames}, meta/episodes adds up to {lengths.sum()}",
            "files of two datasets were mixed: copy the dataset again",
        )
