"""How much better an episode went from a step on than was to be expected, for advantage-weighted regression.

Return of step t in an episode of T steps: discount ** (T - 1 - t) where it succeeded, else 0 (a reward of 1 at the end).
What was to be expected is a ridge regression of the returns on what is known at that step: the state and its squares, the
step and its square, and the instruction. The advantage is their difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_agents.data import WindowDataset

_RIDGE = 1e-3  # per window


def returns(windows: WindowDataset, discount: float) -> np.ndarray:
    """float64 (N,): of every window's step."""
    left = windows.lengths[windows.episode_of] - 1 - windows.step_of
    success = np.array([bool(done) for done in windows.successes])[windows.episode_of]
    return np.where(success, discount**left, 0.0)


def expected(parts: Sequence[WindowDataset], discount: float) -> list[np.ndarray]:
    """What was to be expected at every step of each part, fitted to all of them together."""
    texts = sorted({text for part in parts for text in part.instructions})
    raw = [_features(part, texts) for part in parts]
    whole = np.concatenate(raw)
    mean, spread = whole.mean(0), np.maximum(whole.std(0), 1e-6)
    scaled = [np.hstack([np.ones((len(x), 1)), (x - mean) / spread]) for x in raw]
    x, y = np.concatenate(scaled), np.concatenate([returns(part, discount) for part in parts])
    weights = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    return [part @ weights for part in scaled]


def _features(windows: WindowDataset, texts: Sequence[str]) -> np.ndarray:
    """(N, F): state, its squares, step, its square, one column per instruction."""
    state = windows.state.astype(float)
    step = windows.step_of[:, None].astype(float)
    which = np.array([texts.index(text) for text in windows.instructions])[windows.episode_of]
    return np.hstack([state, state**2, step, step**2, np.eye(len(texts))[which]])


def advantage_weights(
    parts: Sequence[WindowDataset], one: WindowDataset, discount: float, temperature: float, most: float
) -> np.ndarray:
    """float64 (N,): exp(advantage / temperature), at most `most`, for the windows of one part.

    Advantages are in units of their standard deviation over all parts. Where none succeeded, there is nothing to learn
    from: all are 0.
    """
    gaps = [
        returns(part, discount) - hoped for part, hoped in zip(parts, expected(parts, discount), strict=True)
    ]
    if not any(returns(part, discount).any() for part in parts):
        return np.zeros(len(one))
    spread = max(float(np.concatenate(gaps).std()), 1e-6)
    (mine,) = (gap for gap, part in zip(gaps, parts, strict=True) if part is one)
    return np.minimum(np.exp(mine / spread / temperature), most)
