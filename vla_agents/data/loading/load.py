"""From folders of episodes to windows for training: where pictures come from, and how several datasets go together."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vla_agents.data.episode import EpisodeReader
from vla_agents.data.loading.mixture import Mixture
from vla_agents.data.loading.store import Pictures, available_bytes, required_bytes
from vla_agents.data.loading.windows import WindowDataset, common_embodiment
from vla_agents.data.open import open_dataset
from vla_agents.errors import ConfigError

_log = logging.getLogger(__name__)
_SHARE = 0.25  # of the free memory that pictures may take without being asked for
Mix = Literal["no", "pooled", "per_dataset"]


def load_windows(
    datasets: Sequence[str | Path | EpisodeReader],
    horizon: int,
    *,
    cache: str = "auto",
    cache_format: Literal["auto", "raw", "jpeg"] = "auto",
    image_size: int = 0,
    actions: Literal["absolute", "relative"] = "absolute",
    fps: float | None = None,
    weights: Sequence[float] = (),
    mix: Mix = "no",
    modes: Mapping[str, str] | None = None,
    cameras: Sequence[str] | None = None,
    progress: bool = False,
) -> WindowDataset | Mixture:
    """Windows over one dataset or several.

    Args:
        datasets: Folders, or readers.
        horizon: Actions per window.
        cache: `"auto"`: pictures in memory where they take at most a quarter of what is free, else in a decode-once
            cache on disk; `"off"`: in memory, else straight from the files; or the folder for the cache.
        cache_format: See `Pictures`.
        image_size: Side of the pictures; 0: as recorded.
        actions: `"absolute"`, or `"relative"` to the state.
        fps: Rate to bring all to; None: datasets of different rates are refused.
        weights: Share of each dataset in the samples; empty: as large as they are.
        mix: `"no"`: all datasets must be of one body. `"pooled"`, `"per_dataset"`: they may differ (see `Mixture`).
        modes: Normalisation of parts, for `"per_dataset"`.
        cameras: Which cameras; None: all.
        progress: Show bars.

    Raises:
        EmbodimentMismatchError: The bodies differ, and `mix` is `"no"`.
    """
    readers = [open_dataset(each) if isinstance(each, str | Path) else each for each in datasets]
    if not readers:
        raise ConfigError("no dataset was given", "give at least one folder of episodes")
    if weights and len(weights) != len(readers):
        raise ConfigError(
            f"{len(weights)} weights for {len(readers)} datasets", "give one weight per dataset, or none"
        )
    if mix == "no":
        common_embodiment(readers, cameras, fps)
    pictures = choose_pictures(
        readers, cache, cache_format=cache_format, image_size=image_size, cameras=cameras, progress=progress
    )

    def windows(which: EpisodeReader | Sequence[EpisodeReader]) -> WindowDataset:
        return WindowDataset(which, horizon, cameras=cameras, pictures=pictures, actions=actions, fps=fps)

    if mix == "no" and not weights:
        return windows(readers)
    parts = {name: windows(reader) for name, reader in zip(_names(readers), readers, strict=True)}
    statistics: Literal["pooled", "per_dataset"] = "per_dataset" if mix == "per_dataset" else "pooled"
    return Mixture(parts, weights or None, statistics=statistics, modes=modes)


def choose_pictures(
    readers: Sequence[EpisodeReader],
    cache: str = "auto",
    *,
    cache_format: Literal["auto", "raw", "jpeg"] = "auto",
    image_size: int = 0,
    cameras: Sequence[str] | None = None,
    progress: bool = False,
) -> Pictures:
    """Where the pictures of these datasets had best come from; see `load_windows`."""
    size = (image_size, image_size) if image_size else None
    common = {"size": size, "progress": progress, "format": cache_format}
    if cache not in ("auto", "off"):
        return Pictures("cache", folder=cache, **common)  # type: ignore[arg-type]
    needed = 0
    for reader in readers:
        body = reader.embodiment if size is None else reader.embodiment.with_image_size(*size)
        all_of_it = required_bytes(body, int(np.sum(reader.lengths())))
        wanted = [c for c in body.cameras if cameras is None or c.name in cameras]
        needed += all_of_it * max(1, len(wanted)) // max(1, len(body.cameras))
    free = available_bytes()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each of which would hold them
    if free is None or needed * processes <= _SHARE * free:
        return Pictures("memory", **common)  # type: ignore[arg-type]
    source: Literal["files", "cache"] = "files" if cache == "off" else "cache"
    _log.info(
        "pictures would take %.1f GB of %.1f GB free memory: taken from %s", needed / 1e9, free / 1e9, source
    )
    return Pictures(source, **common)  # type: ignore[arg-type]


def _names(readers: Sequence[EpisodeReader]) -> list[str]:
    """A name for each dataset: its folder's, with a number where two have the same."""
    found: list[str] = []
    for reader in readers:
        base = reader.path.resolve().name
        name, count = base, 2
        while name in found:
            name, count = f"{base} {count}", count + 1
        found.append(name)
    return found
