"""Statistics of a dataset, beside a script of the kind that openpi uses: a running histogram, updated batch by batch.

    python benchmarks/data_stats.py                   # 100,000 frames
    python benchmarks/data_stats.py --episodes 10000  # 1,000,000 frames

The dataset is that of benchmarks/data_scale.py, grouped as LeRobot writes it. Ours reads the parquet columns and
gives exact statistics. The script does what openpi's `compute_norm_stats.py` does: batches of 32 windows (state, and
a chunk of actions), for each of which mean, mean square and range are brought up to date, and for each dimension a
histogram of 5,000 bins, which is made anew when the range grows; quantiles are read off the histogram. It is given
every advantage: its numbers lie in memory already (openpi loads each window through a data loader, pictures
included, which costs many times what is counted here).

What is compared is CPU time in one process, the two taking turns; then the errors against the exact values.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from data_scale import GROUP, LENGTH, write

BINS, BATCH = 5000, 32


class RunningHistogram:
    """Mean, deviation, range and approximate quantiles of rows that come batch by batch."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows: np.ndarray) -> None:
        """Take in (N, D)."""
        rows = rows.astype(np.float64)
        low, high = rows.min(0), rows.max(0)
        if not self.count:
            self.mean, self.square = rows.mean(0), (rows**2).mean(0)
            self.low, self.high = low, high
            self.edges = [np.linspace(a - 1e-10, b + 1e-10, BINS + 1) for a, b in zip(low, high, strict=True)]
            self.bins = [np.zeros(BINS) for _ in low]
        elif (low < self.low).any() or (high > self.high).any():
            self.low, self.high = np.minimum(low, self.low), np.maximum(high, self.high)
            for k, old in enumerate(self.edges):
                self.edges[k] = np.linspace(self.low[k], self.high[k], BINS + 1)
                self.bins[k] = np.histogram(old[:-1], self.edges[k], weights=self.bins[k])[0]
        self.count += len(rows)
        self.mean += (rows.mean(0) - self.mean) * (len(rows) / self.count)
        self.square += ((rows**2).mean(0) - self.square) * (len(rows) / self.count)
        for k in range(rows.shape[1]):
            self.bins[k] += np.histogram(rows[:, k], self.edges[k])[0]

    def quantile(self, level: float) -> np.ndarray:
        """(D,)"""
        at = [np.searchsorted(np.cumsum(bins), level * self.count) for bins in self.bins]
        return np.array([edges[min(k, BINS)] for k, edges in zip(at, self.edges, strict=True)])


def batch_by_batch(state: np.ndarray, action: np.ndarray, horizon: int) -> dict[str, RunningHistogram]:
    """What the script does, with the numbers in memory."""
    found = {"observation.state": RunningHistogram(), "action": RunningHistogram()}
    steps = np.arange(horizon)
    for first in range(0, len(state), BATCH):
        at = np.arange(first, min(first + BATCH, len(state)))
        ahead = np.minimum(at[:, None] + steps, (at // LENGTH * LENGTH + LENGTH - 1)[:, None])
        found["observation.state"].update(state[at])
        found["action"].update(action[ahead].reshape(-1, action.shape[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--horizon", type=int, nargs="+", default=[1, 50], help="actions per window")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    from vla_agents.data import open_dataset
    from vla_agents.data.statistics import statistics

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        write(path, args.episodes, GROUP)
        columns = open_dataset(path).columns()
        state, action = columns["observation.state"], columns["action"]
        statistics(open_dataset(path))  # imports
        ours: list[float] = []
        theirs: dict[int, list[float]] = {horizon: [] for horizon in args.horizon}
        for _ in range(args.repeats):
            start = time.process_time()
            exact = statistics(open_dataset(path))
            ours.append(time.process_time() - start)
            for horizon in args.horizon:
                start = time.process_time()
                near = batch_by_batch(state, action, horizon)
                theirs[horizon].append(time.process_time() - start)
        print(f"{len(state):,} frames, state of {state.shape[1]}, action of {action.shape[1]}")
        print(f"ours, from the files, exact:            {np.median(ours):8.2f} CPU s")
        for horizon, seconds in theirs.items():
            ratio = np.median(seconds) / np.median(ours)
            print(
                f"batch by batch, chunks of {horizon:>2}, in memory: {np.median(seconds):8.2f} CPU s   {ratio:6.1f} x"
            )
        spread = exact["observation.state"].std
        for name, level in (("q01", 0.01), ("q99", 0.99)):
            off = np.abs(
                near["observation.state"].quantile(level) - exact["observation.state"].quantiles[name]
            )
            print(
                f"{name} of the state: the histogram is off by up to {100 * (off / spread).max():.2f} % of a deviation"
            )


if __name__ == "__main__":
    main()
