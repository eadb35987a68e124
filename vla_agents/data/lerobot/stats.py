"""Statistics in LeRobot's files: of each episode, and of the dataset, merged episode by episode.

These are for LeRobot's tools. As there, a quantile of the dataset is the *envelope* of the episodes'
quantiles (the smallest for q01, q10, q50; the largest for q90, q99), not a quantile of all values.

They are of the cameras, the state and the action: what a policy normalises. All lie side by side in one vector, so
that an episode costs a few numpy calls.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from vla_agents.data.lerobot.layout import ACTION, IMAGES, STATE
from vla_agents.embodiment import Embodiment

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", *QUANTILES)
_PIXELS = 500  # per picture, at most


class Statistics:
    """Where each feature lies in the vector, and how it is written.

    Args:
        embodiment: Which cameras, state and action there are.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        sizes = {IMAGES + name: 3 for name in embodiment.camera_names}
        if embodiment.state_dim:
            sizes[STATE] = embodiment.state_dim
        sizes[ACTION] = embodiment.action_dim
        ends = np.cumsum(list(sizes.values()))
        self.slices = {
            key: slice(int(e) - n, int(e)) for (key, n), e in zip(sizes.items(), ends, strict=True)
        }
        self.size = int(ends[-1])
        self._images = 3 * len(embodiment.cameras)

    def episode(self, pixels: list[np.ndarray], vectors: dict[str, np.ndarray]) -> np.ndarray:
        """Statistics of one episode.

        Args:
            pixels: For each camera uint8 (N, 3), a sample of its pixels.
            vectors: Feature -> float32 (T, size); those that are not counted are left out.

        Returns:
            float64 (9, size): a row per name in `NAMES`.
        """
        out = np.empty((len(NAMES), self.size))
        for k, sample in enumerate(pixels):
            out[:, 3 * k : 3 * k + 3] = _pixel_statistics(sample)
        counted = [vectors[key] for key in self.slices if key in vectors]
        values = np.concatenate(counted, axis=1).astype(np.float64)
        rest = out[:, self._images :]
        rest[0], rest[1] = values.min(0), values.max(0)
        rest[2], rest[3] = values.mean(0), values.std(0)
        rest[4:] = _sorted_quantiles(np.sort(values, axis=0))
        return out

    def columns(self, stats: np.ndarray, frames: int) -> dict[str, pa.Array]:
        """The `stats/...` columns of one row of meta/episodes."""
        columns = {}
        count = pa.array([[frames]], pa.list_(pa.int64()))
        for key, where in self.slices.items():
            offsets = pa.array([0, where.stop - where.start], pa.int32())
            for row, name in enumerate(NAMES):
                values = pa.array(stats[row, where])
                if key.startswith(IMAGES):
                    values = pa.ListArray.from_arrays(_ONES, pa.ListArray.from_arrays(_ONES, values))
                columns[f"stats/{key}/{name}"] = pa.ListArray.from_arrays(offsets, values)
            columns[f"stats/{key}/count"] = count
        return columns

    def from_table(self, table: pa.Table) -> list[tuple[np.ndarray, int]]:
        """The inverse of `columns`: (statistics, frames) of each row."""
        found = [np.empty((len(NAMES), self.size)) for _ in range(table.num_rows)]
        for key, where in self.slices.items():
            for row, name in enumerate(NAMES):
                for out, value in zip(found, table.column(f"stats/{key}/{name}").to_pylist(), strict=True):
                    out[row, where] = np.ravel(value)
        return list(zip(found, table.column("length").to_pylist(), strict=True))

    def to_json(self, total: Total) -> dict[str, Any]:
        """The content of meta/stats.json."""
        result: dict[str, Any] = {}
        for key, where in self.slices.items():
            shape = (3, 1, 1) if key.startswith(IMAGES) else (-1,)
            entry = {name: total.stats[row, where].reshape(shape).tolist() for row, name in enumerate(NAMES)}
            result[key] = entry | {"count": [total.frames]}
        return result


class Total:
    """Statistics of all episodes so far; `with_episode` gives those with one more."""

    def __init__(self, stats: np.ndarray, frames: int) -> None:
        self.stats = stats
        self.frames = frames

    @classmethod
    def empty(cls, size: int) -> Total:
        """Of no episode."""
        stats = np.zeros((len(NAMES), size))
        for row, name in enumerate(NAMES):
            if name in _SMALLEST:
                stats[row] = np.inf
            elif name in _LARGEST:
                stats[row] = -np.inf
        return cls(stats, 0)

    def with_episode(self, episode: np.ndarray, frames: int) -> Total:
        """Merge exactly for mean and std (parallel variance); envelope for the rest."""
        total = self.frames + frames
        share = frames / total
        stats = np.empty_like(self.stats)
        for row, name in enumerate(NAMES):
            if name in _SMALLEST:
                stats[row] = np.minimum(self.stats[row], episode[row])
            elif name in _LARGEST:
                stats[row] = np.maximum(self.stats[row], episode[row])
        delta = episode[2] - self.stats[2]
        stats[2] = self.stats[2] + delta * share
        variance = self.stats[3] ** 2 * (1 - share) + episode[3] ** 2 * share + delta**2 * share * (1 - share)
        stats[3] = np.sqrt(variance)
        return Total(stats, total)


_SMALLEST = ("min", "q01", "q10", "q50")
_LARGEST = ("max", "q90", "q99")
_ONES = pa.array([0, 1, 2, 3], pa.int32())
_LEVELS = np.arange(256) / 255.0


def sample_pixels(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel of a picture, uint8 (N, 3); enough for its mean and spread."""
    step = max(1, math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _PIXELS)))
    return image[::step, ::step].copy().reshape(-1, 3)


def _pixel_statistics(sample: np.ndarray) -> np.ndarray:
    """(9, 3) of uint8 (N, 3), scaled to 0..1, through a histogram per channel."""
    flat = sample.astype(np.intp) + np.array([0, 256, 512])
    counts = np.bincount(flat.ravel(), minlength=768).reshape(3, 256).astype(np.float64)
    n = len(sample)
    mean = counts @ _LEVELS / n
    std = np.sqrt(np.maximum(counts @ _LEVELS**2 / n - mean**2, 0))
    below = np.cumsum(counts, axis=1)
    ranks = np.array([0.5, n, *(q * n for q in QUANTILES.values())])  # first value, last value, quantiles
    levels = (below[:, None, :] < ranks[None, :, None]).sum(-1).clip(0, 255).T / 255.0
    return np.concatenate([levels[:2], mean[None], std[None], levels[2:]])


def _sorted_quantiles(ordered: np.ndarray) -> np.ndarray:
    """(5, D) linear quantiles of values sorted along the first axis, (T, D)."""
    at = np.array(list(QUANTILES.values())) * (len(ordered) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    share = (at - low)[:, None]
    return ordered[low] * (1 - share) + ordered[high] * share
