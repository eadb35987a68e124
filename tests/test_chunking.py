"""Chunkers against their formulas, and their slots against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_agents.chunking import Chunker, CosineEnsemble, RecedingHorizon, TemporalEnsemble, make_chunker
from vla_agents.errors import (
    ConfigError,
    UnknownNameError,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not there")


def drive(chunker: Chunker, chunks: np.ndarray, slot: int = 0) -> np.ndarray:
    """Feed a chunk whenever one is needed; the actions."""
    feed, out = iter(chunks), []
    try:
        while True:
            if chunker.needs_plan(slot):
                chunker.add(slot, next(feed))
            out.append(chunker.next(slot))
    except StopIteration:
        return np.array(out)


def chunks_of(count: int, horizon: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, horizon, 3))


@pytest.mark.parametrize("execute", [1, 3, 5])
def test_receding_horizon(execute: int) -> None:
    chunks = chunks_of(4)
    np.testing.assert_array_equal(drive(RecedingHorizon(execute), chunks), chunks[:, :execute].reshape(-1, 3))
    with pytest.raises(ConfigError, match="plans 5 actions, execute=6"):
        RecedingHorizon(6).add(0, chunks[0])


@pytest.mark.parametrize(("keep", "decay"), [(5, 0.01), (5, 0.5), (3, 0.1), (9, 0.0)])
def test_temporal_ensemble_is_acts_formula(keep: int, decay: float) -> None:
    chunks = chunks_of(12)
    out = drive(TemporalEnsemble(keep, decay), chunks)
    for t in range(12):
        oldest = max(0, t - min(keep, 5) + 1)
        predictions = np.array([chunks[i][t - i] for i in range(oldest, t + 1)])
        weights = np.exp(-decay * np.arange(len(predictions)))
        np.testing.assert_allclose(out[t], weights @ predictions / weights.sum(), atol=1e-12)


@needs_golden
@pytest.mark.parametrize("keep", [2, 7])
def test_cosine_ensemble_agrees_with_the_reference(keep: int) -> None:
    golden = np.load(GOLDEN / "adaptive_ensemble" / "ensemble.npz")
    out = drive(CosineEnsemble(keep, float(golden["alpha"])), golden["chunks"])
    np.testing.assert_allclose(out, golden[f"H{keep}"], atol=1e-6)


def test_cosine_ensemble_trusts_what_agrees() -> None:
    chunker = CosineEnsemble(2, alpha=20.0)
    chunker.add(0, np.array([[9.0, 0], [1.0, 0.1]]))
    chunker.next(0)
    chunker.add(0, np.array([[-1.0, 0], [0, 0]]))
    np.testing.assert_allclose(chunker.next(0), [-1, 0], atol=1e-6)  # the old prediction points the other way
    chunker.reset(0)
    chunker.add(0, np.zeros((2, 2)))
    np.testing.assert_array_equal(chunker.next(0), [0, 0])  # no direction at all is no division by zero


@pytest.mark.parametrize(
    "make", [lambda: RecedingHorizon(2), lambda: TemporalEnsemble(4), lambda: CosineEnsemble(4)]
)
def test_slots_do_not_see_each_other(make: Any) -> None:
    chunker, mine, others = make(), chunks_of(6, seed=1), chunks_of(6, seed=2)
    alone = drive(make(), mine)
    out = []
    feeds = {0: iter(mine), 5: iter(others)}
    for _ in range(len(alone)):
        for slot in (0, 5):
            if chunker.needs_plan(slot):
                chunker.add(slot, next(feeds[slot], others[0]))
        out.append(chunker.next(0))
        chunker.next(5)
        if len(out) == 3:
            chunker.reset(5)
    np.testing.assert_array_equal(out, alone)
    chunker.reset(None)
    assert chunker.needs_plan(0) and chunker.needs_plan(5)
    np.testing.assert_array_equal(drive(chunker, mine), alone)


def test_chunkers_by_name() -> None:
    assert isinstance(make_chunker(4, 8), RecedingHorizon)
    act, cosine = make_chunker(4, 8, "act"), make_chunker(4, 8, "cosine")
    assert isinstance(act, TemporalEnsemble) and isinstance(cosine, CosineEnsemble)
    with pytest.raises(ConfigError, match="horizon 8"):
        make_chunker(9, 8)
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        make_chunker(4, 8, "cosin")
    for bad in (lambda: RecedingHorizon(0), lambda: TemporalEnsemble(0), lambda: CosineEnsemble(0)):
        with pytest.raises(ConfigError):
            bad()
