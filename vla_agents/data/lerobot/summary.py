"""Statistics as LeRobot keeps them: of every column of an episode, and merged into those of the dataset.

Means and deviations merge exactly. A quantile of the dataset is, as in LeRobot, the *envelope* of the episodes'
quantiles (the smallest for q01, q10 and q50, the largest for q90 and q99), not a quantile of all values;
`vla_agents.data.statistics` has those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vla_agents.data.guards import read_json_lines
from vla_agents.data.lerobot import layout as lerobot
from vla_agents.data.lerobot.index import Index
from vla_agents.data.lerobot.stats import NAMES, QUANTILES, sample_pixels

STATS_V2 = "meta/episodes_stats.jsonl"
SAMPLES = 16  # pictures per episode and camera
Summary = dict[str, np.ndarray]  # name -> numbers of the feature's own shape
_SMALLEST = ("min", "q01", "q10", "q50")
_LARGEST = ("max", "q90", "q99")


def summary_of(values: np.ndarray) -> Summary:
    """Statistics over the first axis of (T, ...) numbers; those of (T,) have shape (1,)."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    shape = values.shape[1:] or (1,)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    return {name: numbers.reshape(shape) for name, numbers in found.items()}


def picture_summary(images: Sequence[np.ndarray]) -> Summary:
    """Statistics of some pictures, uint8 (H, W, 3), per channel, in 0..1; shape (3, 1, 1)."""
    pixels = np.concatenate([sample_pixels(image) for image in images]).astype(np.float32) / 255
    return {name: numbers.reshape(3, 1, 1) for name, numbers in summary_of(pixels).items()}


class Merged:
    """Statistics of all episodes so far, by feature."""

    def __init__(self) -> None:
        self.frames = 0
        self._features: dict[str, Summary] = {}

    def add(self, episode: dict[str, Summary], frames: int) -> None:
        """Take in an episode."""
        share = frames / (self.frames + frames)
        for key, new in episode.items():
            old = self._features.get(key)
            self._features[key] = dict(new) if old is None else _merge(old, new, share)
        self.frames += frames

    def to_json(self, names: Sequence[str] = NAMES) -> dict[str, Any]:
        """The content of meta/stats.json."""
        return {
            key: {name: summary[name].tolist() for name in names if name in summary}
            | {"count": [self.frames]}
            for key, summary in self._features.items()
        }


def _merge(old: Summary, new: Summary, share: float) -> Summary:
    delta = new["mean"] - old["mean"]
    variance = old["std"] ** 2 * (1 - share) + new["std"] ** 2 * share + delta**2 * share * (1 - share)
    found = {"mean": old["mean"] + delta * share, "std": np.sqrt(variance)}
    found |= {name: np.minimum(old[name], new[name]) for name in _SMALLEST}
    return found | {name: np.maximum(old[name], new[name]) for name in _LARGEST}


def to_columns(episode: dict[str, Summary], frames: int) -> dict[str, pa.Array]:
    """The `stats/...` columns of a row of meta/episodes."""
    found = {}
    for key, summary in episode.items():
        for name in NAMES:
            found[f"stats/{key}/{name}"] = pa.array([summary[name].tolist()], _list_of(summary[name].ndim))
        found[f"stats/{key}/count"] = pa.array([[frames]], pa.list_(pa.int64()))
    return found


def _list_of(depth: int) -> pa.DataType:
    kind: pa.DataType = pa.float64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


class PictureStats:
    """Statistics of cameras that a LeRobot dataset holds for its episodes, so that nothing need be decoded for them.

    Args:
        index: The dataset.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._found: dict[int, dict[str, Summary]] | None = None

    def of(self, episode: int, key: str) -> Summary:
        """Those of `NAMES` that are there, of shape (3, 1, 1)."""
        if self._found is None:
            self._found = self._read_v3() if self._index.info.version == lerobot.VERSION else self._read_v2()
        return self._found.get(episode, {}).get(key, {})

    def _read_v3(self) -> dict[int, dict[str, Summary]]:
        info = self._index.info
        found: dict[int, dict[str, Summary]] = {}
        for file in sorted((info.path / "meta" / "episodes").glob("*/*.parquet")):
            names = lerobot.column_names(info.path, file)
            wanted = [f"stats/{key}/{name}" for key in info.cameras.values() for name in NAMES]
            wanted = [name for name in wanted if name in names]
            table = lerobot.read_parquet(info.path, file, ["episode_index", *wanted])
            for row in table.to_pylist():
                found[row["episode_index"]] = {
                    key: _pictures({name: row.get(f"stats/{key}/{name}") for name in NAMES})
                    for key in info.cameras.values()
                }
        return found

    def _read_v2(self) -> dict[int, dict[str, Summary]]:
        file = self._index.info.path / STATS_V2
        if not file.exists():
            return {}
        found = {}
        for entry in read_json_lines(self._index.info.path, file):
            stats = entry.get("stats")
            if isinstance(stats, dict):
                cameras = self._index.info.cameras.values()
                found[entry.get("episode_index", -1)] = {
                    key: _pictures(stats[key]) for key in cameras if isinstance(stats.get(key), dict)
                }
        return found


def _pictures(entry: dict[str, Any]) -> Summary:
    """What is of shape (3, 1, 1)."""
    found = {}
    for name in NAMES:
        try:
            values = np.array(entry.get(name), np.float64)
        except (TypeError, ValueError):
            continue
        if values.size == 3 and np.isfinite(values).all():
            found[name] = values.reshape(3, 1, 1)
    return found


def stats_line(episode: int, summaries: dict[str, Summary], frames: int) -> str:
    """A line of meta/episodes_stats.jsonl (v2.1), which knows no quantiles."""
    stats = {
        key: {name: summary[name].tolist() for name in ("min", "max", "mean", "std")} | {"count": [frames]}
        for key, summary in summaries.items()
    }
    return json.dumps({"episode_index": episode, "stats": stats})
