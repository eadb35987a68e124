"""Statistics and normalisation of state and action vectors, part by part.

A `Normalizer` is the affine map y = (x - offset) / scale with one mode per part:

    mean_std   offset = mean,               scale = std min_max    offset = (max + min) / 2,    scale = (max
    - min) / 2      -> [-1, 1] q01_q99    offset = (q99 + q01) / 2,    scale = (q99 - q01) / 2      -> most
    values in [-1, 1], nothing clipped none       offset = 0,                  scale = 1

A constant dimension gets scale 1, so it becomes 0 and comes back exactly; so does one that moves by less than 1 % of the
range its part declares (its noise would be blown up to full size). The same object serves training
and acting, for numpy arrays and torch tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_agents.embodiment import Embodiment, Part
from vla_agents.errors import ConfigError, UnknownNameError

MODES = ("mean_std", "min_max", "q01_q99", "none")
_CONSTANT = 1e-6  # a spread below this is taken as constant ...
_HARDLY = 0.01  # ... and so is one below this share of the part's declared half range


@dataclass(frozen=True)
class VectorStats:
    """Exact statistics of the rows of an (N, D) array; each field but `count` has D numbers."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def identity(cls, size: int) -> VectorStats:
        """Statistics under which every mode is (nearly) the identity: mean 0, std 1, range [-1, 1]."""
        zero, one, minus = (0.0,) * size, (1.0,) * size, (-1.0,) * size
        return cls(count=0, mean=zero, std=one, min=minus, max=one, q01=minus, q99=one)


class StatsAccumulator:
    """Gathers rows from many places (episodes, workers, datasets) into exact statistics.

    The values are kept (4 bytes each), because exact quantiles need them: a million rows of 14 numbers are
    56 MB.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.skipped = 0  # rows left out because they were not finite
        self._blocks: list[np.ndarray] = []

    def update(self, rows: np.ndarray, *, nonfinite: str = "raise", where: str = "rows") -> None:
        """Add rows of shape (N, D) or one row (D,).

        Args:
            rows: The values.
            nonfinite: `"raise"` refuses NaN and infinities, `"skip"` leaves those rows out and counts them.
            where: Names the source in errors.
        """
        rows = np.atleast_2d(np.asarray(rows, np.float32))
        if rows.shape[1] != self.size:
            raise ConfigError(f"{where}: rows have {rows.shape[1]} values, expected {self.size}")
        good = np.isfinite(rows).all(axis=1)
        if not good.all():
            if nonfinite == "raise":
                bad = np.flatnonzero(~good)
                raise ConfigError(
                    f"{where}: {len(bad)} row(s) are not finite, first row {bad[0]}: {rows[bad[0]].tolist()}",
                    "mend the data, or pass nonfinite='skip' to leave those rows out",
                )
            self.skipped += int((~good).sum())
            rows = rows[good]
        if len(rows):
            self._blocks.append(rows)

    def merge(self, other: StatsAccumulator) -> None:
        """Take over what another accumulator gathered."""
        if other.size != self.size:
            raise ConfigError(f"cannot merge statistics of {other.size} values into {self.size}")
        self._blocks += other._blocks
        self.skipped += other.skipped

    def finish(self) -> VectorStats:
        """The statistics of all rows so far."""
        if not self._blocks:
            raise ConfigError("no rows to compute statistics of")
        rows = np.concatenate(self._blocks)
        q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
        rows64 = rows.astype(np.float64)
        values = {
            "mean": rows64.mean(0), "std": rows64.std(0), "min": rows.min(0), "max": rows.max(0),
            "q01": q01, "q99": q99,
        }  # fmt: skip
        return VectorStats(count=len(rows), **{k: tuple(float(x) for x in v) for k, v in values.items()})


def default_mode(part: Part) -> str:
    """What suits a part: binary grippers stay as they are, all else is scaled by its central 98 %."""
    return "none" if part.kind.startswith("gripper_") and part.kind != "gripper_position" else "q01_q99"


class Normalizer:
    """The affine map of one vector.

    Args:
        parts: The parts of the vector, in order.
        stats: Its statistics.
        modes: Part name -> mode, or `"*"` for all; parts not named take `default_mode`.
        exact: The scale of a constant dimension stays 0: it becomes 0 and comes back as the constant, whatever was
            predicted. For statistics of others, whose convention must be met to the bit.
        clip: Normalised values are clipped to [-clip, clip] before they are un-normalised; None does not.
        binary: Parts whose normalised values are 0 below 0.5 and 1 from there on before they are un-normalised.
    """

    def __init__(
        self,
        parts: tuple[Part, ...],
        stats: VectorStats,
        modes: Mapping[str, str] | None = None,
        *,
        exact: bool = False,
        clip: float | None = None,
        binary: Sequence[str] = (),
    ) -> None:
        modes = dict(modes or {})
        names = [part.name for part in parts]
        for name in (*modes, *binary):
            if name not in names and (name != "*" or name in binary):
                raise UnknownNameError("part in normalisation modes", name, names)
        self.stats = stats
        self.exact, self.clip, self.binary = exact, clip, tuple(binary)
        self.modes = {part.name: modes.get(part.name, modes.get("*", default_mode(part))) for part in parts}
        size = sum(part.size for part in parts)
        if len(stats.mean) != size:
            raise ConfigError(f"statistics have {len(stats.mean)} values, the parts {names} have {size}")
        self.offset = np.zeros(size, np.float32)
        self.scale = np.ones(size, np.float32)
        self._is_binary = np.zeros(size, bool)
        start = 0
        for part in parts:
            where = slice(start, start + part.size)
            self.offset[where], self.scale[where] = _affine(
                stats, where, self.modes[part.name], part, exact=exact
            )
            self._is_binary[where] = part.name in self.binary
            start += part.size

    def normalize(self, x: Any) -> Any:
        """(…, D) in the embodiment's units -> (…, D) normalised; numpy or torch."""
        offset, scale = self._like(x)
        return (x - offset) / (scale + (scale == 0)) * (scale != 0) if self.exact else (x - offset) / scale

    def unnormalize(self, y: Any) -> Any:
        """The inverse of `normalize`."""
        offset, scale = self._like(y)
        if self.clip is not None:
            y = y.clip(-self.clip, self.clip)
        if self.binary:
            y = self._stepped(y)
        return y * scale + offset

    def _stepped(self, y: Any) -> Any:
        if isinstance(y, np.ndarray):
            return np.where(self._is_binary, (y >= 0.5) + 0 * y, y).astype(y.dtype)  # NaN stays NaN
        return ((y >= 0.5) + 0 * y).where(y.new_tensor(self._is_binary).bool(), y)

    def options(self) -> dict[str, Any]:
        """What differs from a plain affine map, for `stats.json`."""
        found = {"exact": self.exact, "clip": self.clip, "binary": list(self.binary)}
        return {key: value for key, value in found.items() if value not in (False, None, [])}

    def _like(self, x: Any) -> tuple[Any, Any]:
        if isinstance(x, np.ndarray):
            return self.offset, self.scale
        return x.new_tensor(self.offset), x.new_tensor(self.scale)


def _affine(
    stats: VectorStats, where: slice, mode: str, part: Part, *, exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    if mode not in MODES:
        raise UnknownNameError("normalisation mode", mode, MODES)
    if mode == "none":
        size = where.stop - where.start
        return np.zeros(size, np.float32), np.ones(size, np.float32)
    if mode == "mean_std":
        offset, scale = np.array(stats.mean[where]), np.array(stats.std[where])
    else:
        low_name, high_name = ("min", "max") if mode == "min_max" else ("q01", "q99")
        low, high = np.array(getattr(stats, low_name)[where]), np.array(getattr(stats, high_name)[where])
        offset, scale = (high + low) / 2, (high - low) / 2
        if mode == "q01_q99" and not exact:  # where only the outer 2 % move: the whole range
            low, high = np.array(stats.min[where]), np.array(stats.max[where])
            rare = (scale < _CONSTANT) & (high - low >= _CONSTANT)
            offset, scale = np.where(rare, (high + low) / 2, offset), np.where(rare, (high - low) / 2, scale)
    if exact:
        return offset.astype(np.float32), scale.astype(np.float32)
    return offset.astype(np.float32), np.where(scale < _least_spread(part), 1.0, scale).astype(np.float32)


def _least_spread(part: Part) -> np.ndarray:
    """(size,): below this a dimension counts as constant."""
    low, high = part.bounds()
    half = (high.astype(np.float64) - low) / 2
    return np.where(np.isfinite(half), np.maximum(_HARDLY * half, _CONSTANT), _CONSTANT)


def save_normalizers(path: str | Path, normalizers: Mapping[str, Normalizer]) -> None:
    """Write statistics and modes as JSON (`stats.json` of a checkpoint)."""
    data = {
        name: {"modes": n.modes, "stats": asdict(n.stats)} | n.options() for name, n in normalizers.items()
    }
    Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def load_normalizers(path: str | Path, embodiment: Embodiment) -> dict[str, Normalizer]:
    """Read what `save_normalizers` wrote, for the `state` and `action` of an embodiment."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = {"state": embodiment.state, "action": embodiment.action}
        return {
            name: Normalizer(parts[name], VectorStats(**_tuples(entry.pop("stats"))), **entry)
            for name, entry in data.items()
        }
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})", "it is part of every checkpoint"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not normalisation statistics ({error!r})") from error


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
