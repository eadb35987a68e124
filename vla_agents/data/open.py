"""Which format a folder holds, and the reader or writer for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_agents.data.episode import EpisodeReader, EpisodeWriter
from vla_agents.embodiment import Embodiment
from vla_agents.errors import DatasetError, DatasetNotFoundError, UnknownNameError

FORMATS = ("lerobot", "hdf5")
_LOOKED_FOR = "meta/info.json (LeRobot) or dataset.json (HDF5)"


def open_dataset(path: str | Path) -> EpisodeReader:
    """Open a dataset of any known format for reading.

    Args:
        path: The dataset's folder.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetNotFoundError(
            path,
            "no such folder",
            f"looked for a folder with {_LOOKED_FOR}; the current folder is {Path.cwd()}",
        )
    if not path.is_dir():
        raise DatasetError(
            path, "is a file, not a dataset's folder", f"give the folder that holds {_LOOKED_FOR}"
        )
    if (path / "meta" / "info.json").exists():
        from vla_agents.data.lerobot_reader import LeRobotReader

        return LeRobotReader(path)
    if (path / "dataset.json").exists():
        from vla_agents.data.hdf5 import Hdf5Reader

        return Hdf5Reader(path)
    found = sorted(entry.name for entry in path.iterdir())[:8]
    raise DatasetNotFoundError(
        path, f"no dataset there: neither {_LOOKED_FOR}", f"the folder holds {', '.join(found) or 'nothing'}"
    )


def create_dataset(
    path: str | Path, embodiment: Embodiment, format: str = "lerobot", **options: Any
) -> EpisodeWriter:
    """Start a dataset, or go on with one (`resume=True`).

    Args:
        path: The dataset's folder; made where missing.
        embodiment: What the numbers and pixels mean.
        format: `"lerobot"` (v3.0, compressed video) or `"hdf5"` (lossless pictures).
        options: Of `LeRobotWriter` or `Hdf5Writer`.
    """
    if format == "lerobot":
        from vla_agents.data.lerobot_writer import LeRobotWriter

        return LeRobotWriter(path, embodiment, **options)
    if format == "hdf5":
        from vla_agents.data.hdf5_writer import Hdf5Writer

        return Hdf5Writer(path, embodiment, **options)
    raise UnknownNameError("dataset format", format, FORMATS)
