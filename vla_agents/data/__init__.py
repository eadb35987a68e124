"""Episodes on disk: writers and readers for LeRobot v3.0 and HDF5, and windows of them for training.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agents.data.episode import Episode, EpisodeReader, EpisodeWriter, Step
    from vla_agents.data.hdf5 import Hdf5Reader
    from vla_agents.data.hdf5_writer import Hdf5Writer
    from vla_agents.data.lerobot_reader import LeRobotReader
    from vla_agents.data.lerobot_writer import LeRobotWriter
    from vla_agents.data.loader import Loader
    from vla_agents.data.loading import load_windows
    from vla_agents.data.mixture import Mixture
    from vla_agents.data.open import create_dataset, open_dataset
    from vla_agents.data.orders import Draws, Epochs
    from vla_agents.data.store import Pictures
    from vla_agents.data.windows import WindowDataset

_HOME = {
    "Draws": "orders",
    "Episode": "episode",
    "EpisodeReader": "episode",
    "EpisodeWriter": "episode",
    "Epochs": "orders",
    "Hdf5Reader": "hdf5",
    "Hdf5Writer": "hdf5_writer",
    "LeRobotReader": "lerobot_reader",
    "LeRobotWriter": "lerobot_writer",
    "Loader": "loader",
    "Mixture": "mixture",
    "Pictures": "store",
    "Step": "episode",
    "WindowDataset": "windows",
    "create_dataset": "open",
    "load_windows": "loading",
    "open_dataset": "open",
}

__all__ = [
    "Draws",
    "Episode",
    "EpisodeReader",
    "EpisodeWriter",
    "Epochs",
    "Hdf5Reader",
    "Hdf5Writer",
    "LeRobotReader",
    "LeRobotWriter",
    "Loader",
    "Mixture",
    "Pictures",
    "Step",
    "WindowDataset",
    "create_dataset",
    "load_windows",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
