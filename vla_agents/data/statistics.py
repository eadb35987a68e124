"""Exact statistics of a dataset's numbers, read without a look at its pictures.

Quantiles are those of all rows, by linear interpolation. LeRobot's files hold something else under the same names: the
*envelope* of the episodes' quantiles (the smallest for q01, q10 and q50, the largest for q90 and q99). Both are to
be had here, and say which they are: `quantiles` and `envelope`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.data.episode import EpisodeReader
from vla_agents.errors import ConfigError, DatasetError, UnknownNameError
from vla_agents.normalize import VectorStats

LEVELS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LOWER = ("q01", "q10", "q50")  # of which LeRobot keeps the smallest
DEFAULT = ("observation.state", "action")
FORMAT = "vla_agents_statistics"


@dataclass(frozen=True)
class ColumnStats:
    """Statistics of the rows of one column; every array has a number per dimension.

    Args:
        count: Rows.
        mean: float64 (D,).
        std: float64 (D,), of the population.
        min: float64 (D,).
        max: float64 (D,).
        quantiles: `LEVELS` -> float64 (D,), exact.
        envelope: The same as LeRobot defines it; empty unless asked for.
        skipped: Rows left out because they were not finite.
    """

    count: int
    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    quantiles: dict[str, np.ndarray]
    envelope: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: int = 0

    @property
    def constant(self) -> np.ndarray:
        """bool (D,): which dimensions never change; normalised, they become 0 and come back as they were."""
        return self.min == self.max

    def vector_stats(self) -> VectorStats:
        """For a `Normalizer`."""
        names = ("mean", "std", "min", "max")
        values = {name: tuple(getattr(self, name).tolist()) for name in names}
        q01, q99 = (tuple(self.quantiles[name].tolist()) for name in ("q01", "q99"))
        return VectorStats(count=self.count, q01=q01, q99=q99, **values)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = {"count": self.count, "skipped": self.skipped}
        found |= {name: getattr(self, name).tolist() for name in ("mean", "std", "min", "max")}
        found |= {name: values.tolist() for name, values in self.quantiles.items()}
        return found | {f"envelope_{name}": values.tolist() for name, values in self.envelope.items()}


def statistics(
    reader: EpisodeReader,
    columns: Sequence[str] = (),
    *,
    envelope: bool = False,
    skip_nonfinite: bool = False,
) -> dict[str, ColumnStats]:
    """Exact statistics over all steps of a dataset.

    Args:
        reader: The dataset.
        columns: Which of `reader.columns()`; state and action by default.
        envelope: Also what LeRobot calls quantiles.
        skip_nonfinite: Leave out rows with NaN or infinities, and count them, instead of refusing them.

    Raises:
        DatasetError: A row is not finite (names episode and frame), or there are no rows.
        UnknownNameError: There is no such column.
    """
    lengths = reader.lengths()
    if not lengths.sum():
        raise DatasetError(
            reader.path, "holds no episodes that can be read", "look at it with `data info --skip-bad`"
        )
    wanted = tuple(columns) or tuple(n for n in DEFAULT if n == "action" or reader.embodiment.state)
    found = _read(reader, wanted)
    return {
        name: _column(reader, name, found.pop(name), lengths, envelope=envelope, skip=skip_nonfinite)
        for name in wanted
    }


def _read(reader: EpisodeReader, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    from vla_agents.data.lerobot.reader import LeRobotReader

    if isinstance(reader, LeRobotReader) and set(wanted) <= {*DEFAULT, *reader.info.features}:
        return reader.columns(wanted)
    columns = reader.columns()
    for name in wanted:
        if name not in columns:
            raise UnknownNameError("column", name, columns)
    return {name: columns[name] for name in wanted}


def _column(
    reader: EpisodeReader, name: str, values: np.ndarray, lengths: np.ndarray, *, envelope: bool, skip: bool
) -> ColumnStats:
    if values.dtype.kind not in "biuf":
        raise DatasetError(reader.path, f"column {name!r} holds {values.dtype}, not numbers")
    rows = values.reshape(len(values), -1)
    good = np.isfinite(rows).all(axis=1) if rows.dtype.kind == "f" else np.ones(len(rows), bool)
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    if not good.all():
        if not skip:
            bad = int(np.argmin(good))
            frame = bad - int(np.sum(lengths[: episodes[bad]]))
            raise DatasetError(
                reader.path,
                f"{name} is not finite in episode {episodes[bad]}, frame {frame}: {rows[bad].tolist()} "
                f"({np.count_nonzero(~good)} such rows)",
                "mend or leave out that episode, or pass skip_nonfinite (--skip-nonfinite)",
            )
        rows, episodes = rows[good], episodes[good]
    if not len(rows):
        raise DatasetError(reader.path, f"column {name!r} has no rows to compute statistics of")
    return ColumnStats(
        len(rows),
        **_moments(rows),
        quantiles=_quantiles(rows),
        envelope=_envelope(rows, episodes) if envelope else {},
        skipped=int(np.count_nonzero(~good)),
    )


def _moments(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, deviation and range, dimension by dimension, in float64."""
    found = {name: np.empty(rows.shape[1]) for name in ("mean", "std", "min", "max")}
    for k in range(rows.shape[1]):
        column = rows[:, k].astype(np.float64)
        found["min"][k], found["max"][k] = column.min(), column.max()
        # A constant is its own mean; a sum of many may be off by a rounding.
        found["mean"][k] = column[0] if found["min"][k] == found["max"][k] else column.mean()
        column -= found["mean"][k]
        found["std"][k] = np.sqrt(np.mean(column * column))
    return found


def _quantiles(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Linear quantiles, by partition instead of a sort: only the neighbours of each quantile need be in place."""
    at = np.array(list(LEVELS.values())) * (len(rows) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(rows) - 1)
    places = np.unique(np.concatenate([low, high]))
    share = at - low
    found = np.empty((len(LEVELS), rows.shape[1]))
    for k in range(rows.shape[1]):
        column = np.partition(rows[:, k], places)
        below, above = column[low].astype(np.float64), column[high].astype(np.float64)
        found[:, k] = below + (above - below) * share
    return dict(zip(LEVELS, found, strict=True))


def _envelope(rows: np.ndarray, episodes: np.ndarray) -> dict[str, np.ndarray]:
    """The smallest (q01, q10, q50) or largest (q90, q99) of the episodes' own quantiles."""
    ends = np.flatnonzero(np.diff(episodes)) + 1
    parts = [_quantiles(part) for part in np.split(rows, ends)]
    return {
        name: (np.min if name in _LOWER else np.max)([part[name] for part in parts], axis=0)
        for name in LEVELS
    }


# ---- on disk ----------------------------------------------------------------------------------------------
def save_statistics(path: str | Path, found: dict[str, ColumnStats]) -> None:
    """Write statistics as JSON; numbers come back exactly."""
    content = {"format": FORMAT, "columns": {name: stats.to_json() for name, stats in found.items()}}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_statistics(path: str | Path) -> dict[str, ColumnStats]:
    """Read what `save_statistics` wrote."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KeyError("format")
        return {name: _from_json(entry) for name, entry in content["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not statistics of a dataset ({error!r})", "write them with save_statistics"
        ) from None


def _from_json(entry: dict[str, Any]) -> ColumnStats:
    arrays = {key: np.array(value, np.float64) for key, value in entry.items() if isinstance(value, list)}
    prefix = "envelope_"
    return ColumnStats(
        entry["count"],
        arrays["mean"],
        arrays["std"],
        arrays["min"],
        arrays["max"],
        quantiles={name: arrays[name] for name in LEVELS},
        envelope={name: arrays[prefix + name] for name in LEVELS if prefix + name in arrays},
        skipped=entry["skipped"],
    )
