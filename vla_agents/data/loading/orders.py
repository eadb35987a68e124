"""Which windows come when: functions of (seed, step, rank), so that there is no position to save and none to lose.

Both orders have `rows(step, count, rank, world)`: the windows of `count` micro-batches of one optimiser step on one of
`world` processes. A step's samples depend on how many they are together, not on how they are cut into micro-batches and
processes. However many workers load them, and wherever a run is taken up again, the rows are the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_agents.errors import ConfigError


class Order(Protocol):
    """Which windows come when."""

    def rows(self, step: int, count: int = 1, rank: int = 0, world: int = 1) -> np.ndarray:
        """int64 (count, batch_size)."""


class Draws:
    """Drawn at random, with replacement; the expected share of each window is exactly its weight.

    Args:
        weights: (N,), need not add up to 1.
        batch_size: Samples per micro-batch.
        seed: The draw of step s depends on (seed, s) alone.
    """

    def __init__(self, weights: np.ndarray, batch_size: int, seed: int = 0) -> None:
        weights = np.asarray(weights, np.float64)
        if not len(weights) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
            raise ConfigError(
                "weights of windows must be finite, not negative, and not all zero", "check the weights"
            )
        self._cumulative = np.cumsum(weights / weights.sum())
        self._last = int(np.flatnonzero(weights)[-1])  # sums of many numbers end a little below 1
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int, count: int = 1, rank: int = 0, world: int = 1) -> np.ndarray:
        """int64 (count, batch_size)."""
        mine = count * self.batch_size
        draws = np.random.default_rng([self.seed, step, 0, 0xBC]).random(world * mine)
        draws = draws[rank * mine : (rank + 1) * mine].reshape(count, self.batch_size)
        return np.minimum(np.searchsorted(self._cumulative, draws, side="right"), self._last)


class Epochs:
    """Without replacement: in each epoch every process gets other windows, and together they get all, in a new order.

    With weights, each dataset has its exact share of every epoch: a small one comes several times, a large one
    only in part, and the next epoch goes on where the last one stopped. An epoch is as long as the datasets together.

    Args:
        sizes: Windows of each dataset, which lie one after the other.
        batch_size: Samples per micro-batch.
        seed: Decides the orders.
        weights: Share of each dataset; None: as large as it is, every window once per epoch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int = 0,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.sizes = np.asarray(sizes, np.int64)
        self.length = int(self.sizes.sum())  # of an epoch
        self.batch_size, self.seed = batch_size, seed
        self.counts = self.sizes if weights is None else _apportion(shares(weights), self.length)
        if (self.sizes < 1).any() or (self.counts < 1).any():
            raise ConfigError(
                f"datasets of {self.sizes.tolist()} windows get {self.counts.tolist()} samples per epoch",
                "leave out the empty one, or raise its weight",
            )
        self._kept: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()

    def rows(self, step: int, count: int = 1, rank: int = 0, world: int = 1) -> np.ndarray:
        """int64 (count, batch_size)."""
        mine = count * self.batch_size
        at = ((step * world + rank) * mine + np.arange(mine)).reshape(count, self.batch_size)
        numbers, places = np.divmod(at, self.length)
        found = np.empty(at.shape, np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = self.epoch(int(number))[places[here]]
        return found

    def epoch(self, number: int) -> np.ndarray:
        """int64 (length,): all rows of one epoch, in order."""
        key = (number,)
        if key not in self._kept:
            starts = np.cumsum(self.sizes) - self.sizes
            parts = [start + self._part(which, number) for which, start in enumerate(starts)]
            rows = np.concatenate(parts)
            np.random.default_rng([self.seed, number, 0xE0]).shuffle(rows)
            self._keep(key, rows)
        return self._kept[key]

    def _part(self, which: int, number: int) -> np.ndarray:
        """The windows of one dataset in one epoch: the next piece of its endless sequence of shuffled rounds."""
        size, count = int(self.sizes[which]), int(self.counts[which])
        at = number * count + np.arange(count)
        rounds = range(int(at[0] // size), int(at[-1] // size) + 1)
        sequence = np.concatenate([self._round(which, one) for one in rounds])
        return sequence[at - rounds.start * size]

    def _round(self, which: int, number: int) -> np.ndarray:
        key = (which, number)
        if key not in self._kept:
            order = np.random.default_rng([self.seed, which, number, 0xE1]).permutation(
                int(self.sizes[which])
            )
            self._keep(key, order)
        return self._kept[key]

    def _keep(self, key: tuple[int, ...], rows: np.ndarray) -> None:
        self._kept[key] = rows
        while len(self._kept) > 2 + len(self.sizes):
            self._kept.popitem(last=False)


def shares(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 (E,), adding up to 1."""
    values = np.asarray(weights, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
        raise ConfigError(f"weights are {list(weights)}", "expected numbers of at least 0, not all zero")
    return values / values.sum()


def row_weights(
    sizes: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    within: np.ndarray | None = None,
) -> np.ndarray:
    """float64 (N,): weights of windows under which each dataset has its share.

    Args:
        sizes: Windows of each dataset.
        weights: Share of each dataset.
        within: (N,) how much more often some windows of a dataset come than others; None: all alike.
    """
    found = np.ones(int(np.sum(sizes))) if within is None else np.asarray(within, np.float64).copy()
    start = 0
    for size, share in zip(sizes, shares(weights), strict=True):
        part = found[start : start + size]
        part *= share / part.sum()
        start += size
    return found


def _apportion(parts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers nearest to the shares of a total (largest remainders)."""
    exact = parts * total
    found = np.floor(exact).astype(np.int64)
    rest = np.argsort(found - exact, kind="stable")[: total - int(found.sum())]
    found[rest] += 1
    return found
