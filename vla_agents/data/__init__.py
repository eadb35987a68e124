"""Episodes on disk: writers and readers for LeRobot v3.0 and HDF5, and windows of them for training.

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_agents.data.episode import Episode, EpisodeReader, EpisodeWriter, Step
    from vla_agents.data.hdf5.reader import Hdf5Reader
    from vla_agents.data.hdf5.writer import Hdf5Writer
    from vla_agents.data.lerobot.reader import LeRobotReader
    from vla_agents.data.lerobot.writer import LeRobotWriter
    from vla_agents.data.loading.load import load_windows
    from vla_agents.data.loading.loader import Loader
    from vla_agents.data.loading.mixture import Mixture
    from vla_agents.data.loading.orders import Draws, Epochs
    from vla_agents.data.loading.store import Pictures
    from vla_agents.data.loading.windows import WindowDataset
    from vla_agents.data.open import create_dataset, open_dataset

_HOME = {
    "Draws": "loading.orders",
    "Episode": "episode",
    "EpisodeReader": "episode",
    "EpisodeWriter": "episode",
    "Epochs": "loading.orders",
    "Hdf5Reader": "hdf5.reader",
    "Hdf5Writer": "hdf5.writer",
    "LeRobotReader": "lerobot.reader",
    "LeRobotWriter": "lerobot.writer",
    "Loader": "loading.loader",
    "Mixture": "loading.mixture",
    "Pictures": "loading.store",
    "Step": "episode",
    "WindowDataset": "loading.windows",
    "create_dataset": "open",
    "load_windows": "loading.load",
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
