"""Which windows come when: shares, disjoint and complete ranks, new orders each epoch, and nothing to save."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from vla_agents.data import Draws, Epochs
from vla_agents.data.loading.orders import row_weights, shares
from vla_agents.errors import ConfigError

SIZES = (30, 7, 100)


def test_draws_have_the_expected_shares() -> None:
    """Chi-square over datasets, and over the windows of each; the seed is fixed, so it does not fail by chance."""
    wanted = np.array([0.5, 0.2, 0.3])
    weights = row_weights(SIZES, wanted)
    for which, part in enumerate(np.split(weights, np.cumsum(SIZES)[:-1])):
        assert np.isclose(part.sum(), wanted[which]) and np.ptp(part) < 1e-12
    order = Draws(weights, 50, seed=3)
    rows = np.concatenate([order.rows(step, 4, rank, 2).ravel() for step in range(200) for rank in (0, 1)])
    counts = np.bincount(rows, minlength=137)
    of_dataset = np.add.reduceat(counts, [0, 30, 37])
    assert len(rows) == 80_000 and chisquare(of_dataset, wanted * 80_000).pvalue > 0.01
    assert chisquare(counts, weights * 80_000).pvalue > 0.01
    # That the test can tell: another share would be seen.
    assert chisquare(of_dataset, np.array([0.49, 0.21, 0.3]) * 80_000).pvalue < 1e-4


def test_draws_of_weights_within_a_dataset() -> None:
    within = np.ones(137)
    within[30:33] = 5  # the beginnings of an episode, say
    weights = row_weights(SIZES, (1, 1, 2), within)
    assert np.isclose(weights[30:37].sum(), 0.25) and np.isclose(weights[30] / weights[36], 5)


def test_draws_never_take_what_has_no_weight() -> None:
    weights = np.zeros(40)
    weights[[0, 3, 20]] = [0.1, 1e-9, 5]
    rows = Draws(weights, 4000).rows(0, 10)
    assert set(np.unique(rows)) <= {0, 3, 20}
    for bad in (np.zeros(3), np.array([1, -1.0]), np.array([np.nan]), np.zeros(0)):
        with pytest.raises(ConfigError):
            Draws(bad, 2)


def test_draws_are_a_function_of_seed_and_step() -> None:
    order, again, other = (Draws(np.ones(500), 16, seed) for seed in (1, 1, 2))
    parts = [
        order.rows(5, 2, rank, 3).ravel() for rank in range(3)
    ]  # however a step is cut: the same windows
    assert np.array_equal(np.concatenate(parts), Draws(np.ones(500), 96, 1).rows(5)[0])
    for step in (0, 7, 10**9):
        for rank in range(3):
            assert np.array_equal(order.rows(step, 2, rank, 3), again.rows(step, 2, rank, 3))
    assert not np.array_equal(order.rows(0), other.rows(0))
    assert not np.array_equal(order.rows(0, rank=0, world=2), order.rows(0, rank=1, world=2))
    assert not np.array_equal(order.rows(0), order.rows(1))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch=st.integers(1, 9),
    count=st.integers(1, 3),
    world=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_ranks_are_disjoint_and_complete(
    sizes: list[int], batch: int, count: int, world: int, seed: int
) -> None:
    """Three epochs, whatever the world: every window exactly once in each, by exactly one process."""
    order, total = Epochs(sizes, batch, seed), sum(sizes)
    steps = -(-3 * total // (batch * count * world))
    made = np.stack([[order.rows(s, count, rank, world) for rank in range(world)] for s in range(steps)])
    in_time = made.ravel()  # step, rank, micro-batch, sample
    epochs = in_time[: 3 * total].reshape(3, total)
    assert (np.sort(epochs, axis=1) == np.arange(total)).all()
    if total > 12:
        assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    one = Epochs(sizes, batch * count * world, seed)  # however a step is cut: the same windows
    assert np.array_equal(in_time, np.concatenate([one.rows(s).ravel() for s in range(steps)]))
    fresh = Epochs(sizes, batch, seed)  # taken up again anywhere
    assert np.array_equal(fresh.rows(steps - 1, count, world - 1, world), made[-1, -1])


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_weighted_epochs_have_exact_shares(weights: list[float], seed: int) -> None:
    order = Epochs(SIZES, 8, seed, weights)
    wanted = shares(weights) * 137
    assert order.counts.sum() == 137 and (np.abs(order.counts - wanted) < 1).all()
    seen = [np.zeros(size, int) for size in SIZES]
    for epoch in range(6):
        rows = order.epoch(epoch)
        which = np.searchsorted(np.cumsum(SIZES), rows, side="right")
        assert np.bincount(which, minlength=3).tolist() == order.counts.tolist()
        for k, start in enumerate((0, 30, 37)):
            seen[k] += np.bincount(rows[which == k] - start, minlength=SIZES[k])
            assert np.ptp(seen[k]) <= 1  # nothing comes a second time before all have come


def test_the_order_of_epochs_is_even() -> None:
    """Every window is as likely as any other at the beginning of an epoch."""
    counts = np.zeros(20)
    for seed in range(2000):
        counts[Epochs([20], 1, seed).rows(0)[0, 0]] += 1
    assert chi2.sf(((counts - 100) ** 2 / 100).sum(), 19) > 0.01


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="get"):
        Epochs([5, 0], 2)
    with pytest.raises(ConfigError, match=r"\[10, 0\] samples"):
        Epochs([5, 5], 2, weights=[1000, 1])
    for bad in ([], [-1, 2], [0, 0], [np.inf]):
        with pytest.raises(ConfigError, match="weights are"):
            shares(bad)
